"""Pretraining (report §2.4): next-token prediction on packed rows, judged in bits per byte of held-out text."""

import gzip
import lzma
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from qwenjax.config import Compute, Experiment
from qwenjax.data import prepare as preparation
from qwenjax.data import stream
from qwenjax.generate.decode import generate
from qwenjax.generate.sampling import TopP
from qwenjax.model import transformer
from qwenjax.objectives.losses import next_token_loss
from qwenjax.train import step as steps

SAMPLE_TOKENS = 96


def make_loss(experiment: Experiment, compute: Compute) -> steps.LossFn:
    """(params, batch, rng) -> (summed nll in nats, number of predicted tokens)."""
    model = transformer.Transformer(experiment.model, compute, experiment.dropout)

    def loss_fn(params, batch, rng):
        rngs = {"dropout": rng} if experiment.dropout else {}
        hidden, _ = model.apply(
            {"params": params}, batch["inputs"], batch["positions"], batch.get("segments"), rngs=rngs
        )
        weights = batch["weights"]
        total = next_token_loss(hidden, transformer.head(params), batch["targets"], weights, compute.loss_tokens)
        return total, jnp.sum(weights)

    return loss_fn


def abstract_batch(experiment: Experiment, sharding: NamedSharding) -> dict:
    """ShapeDtypeStructs of one step's batch."""
    shape = (experiment.data.batch, experiment.data.length)
    names = {"inputs": np.int32, "targets": np.int32, "positions": np.int32, "weights": np.float32}
    if experiment.data.isolate:
        names["segments"] = np.int32
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in names.items()}


class Pretrain:
    """The task: what is read, what is minimised, how it is judged."""

    def __init__(self, experiment: Experiment, mesh: Mesh):
        platform = mesh.devices.flat[0].platform
        self.experiment, self.mesh = experiment, mesh
        self.compute = experiment.compute.resolved(platform, mesh.shape["tensor"])
        self.program = steps.build(experiment, make_loss(experiment, self.compute), mesh)
        self.abstract_batch = abstract_batch(experiment, self.program.batch_sharding)
        plain = make_loss(_without_dropout(experiment), self.compute)
        self._eval_step = jax.jit(lambda params, batch: plain(params, batch, None)[0])

    def prepare(self, root: Path) -> list[str]:
        """Opens the data, making shards and tokenizer if the experiment starts from text. Returns lines to print.

        Raises:
          ValueError: data missing or broken, or a tokenizer with more ids than the model has rows.
        """
        data, model = self.experiment.data, self.experiment.model
        self.tokenizer, self.shards, lines = preparation.prepare(data, self.experiment.seed, root)
        if self.tokenizer.size > model.vocab:
            raise ValueError(
                f"tokenizer {self.tokenizer.name} has {self.tokenizer.size} ids but model.vocab={model.vocab}; "
                f"use --set model.vocab={-(-self.tokenizer.size // 128) * 128}"
            )
        weights = [source.weight for source in data.sources]
        self.mixture = stream.Mixture(self.shards, weights, data.length, self.experiment.seed)
        self.held_out, ids = stream.validation_rows(self.shards, data.length, data.eval_tokens)
        text = self.tokenizer.decode_bytes(ids)
        self.held_out_bytes = len(text)
        self.baselines = compressors(text)
        tokens = sum(s.tokens("train") for s in self.shards)
        epochs = self.experiment.steps * self.experiment.tokens_per_step / tokens
        lines.append(
            f"data        {tokens:,} training tokens, this run reads {epochs:.2f} epochs; "
            f"held out: {len(ids):,} tokens, {len(text):,} bytes"
        )
        return lines

    def batches(self, next_row: int) -> Iterator[tuple[int, dict]]:
        """(row after this batch, global batch on the mesh), from row `next_row` on, for ever."""
        data, sharding = self.experiment.data, self.program.batch_sharding
        shape = (data.batch, data.length)
        mine = _rows(sharding, shape)
        for after, local in stream.Batches(self.mixture, data.batch, mine, self.tokenizer.eot, data.isolate, next_row):
            yield after, {name: _globalise(local[name], mine, sharding, shape) for name in self.abstract_batch}

    def describe(self, row: int) -> str:
        """Where rows of a step came from, for an error message."""
        source, epoch, window, _ = self.mixture.locate(row)
        return f"row {row}: source {source}, epoch {epoch}, window {window}"

    def evaluate(self, params: dict) -> dict[str, float]:
        """Loss in nats per token and bits per byte over the held-out text, every token predicted once."""
        sharding = self.program.batch_sharding
        size = self.experiment.data.batch // self.experiment.accumulate
        rows = len(self.held_out["inputs"])
        total = jnp.float32(0)
        with jax.set_mesh(self.mesh):
            for start in range(0, rows, size):
                part = {k: v[start : start + size] for k, v in self.held_out.items()}
                part = {k: np.pad(v, ((0, size - len(v)), (0, 0))) for k, v in part.items()}  # weight 0
                mine = _rows(sharding, (size, self.experiment.data.length))
                batch = {k: _globalise(part[k][mine], mine, sharding, part[k].shape) for k in self.abstract_batch}
                total += self._eval_step(params, batch)
        nats = float(total)
        return {
            "eval_loss": nats / float(self.held_out["weights"].sum()),
            "eval_bits_per_byte": nats / math.log(2) / self.held_out_bytes,
        }

    def samples(self, params: dict) -> list[tuple[str, str]]:
        """(prompt, continuation) for every prompt of the experiment."""
        if not self.experiment.prompts:
            return []
        model = transformer.Transformer(self.experiment.model, self.compute)
        prompts = [[self.tokenizer.eot, *self.tokenizer.encode_ordinary(p)] for p in self.experiment.prompts]
        with jax.set_mesh(self.mesh):
            out = generate(
                model,
                params,
                prompts,
                policy=TopP(0.9),
                max_new=min(SAMPLE_TOKENS, self.experiment.model.context - 64),
                stop=self.tokenizer.eot,
                size=self.tokenizer.size,
                seed=self.experiment.seed,
            )
        return [(p, self.tokenizer.decode(ids)) for p, ids in zip(self.experiment.prompts, out)]


def compressors(text: bytes) -> dict[str, float]:
    """Bits per byte that general compressors reach on the same text: what a model must beat to have learned."""
    if not text:
        return {}
    sizes = {"gzip -9": len(gzip.compress(text, 9)), "xz -9e": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def _without_dropout(experiment: Experiment) -> Experiment:
    from dataclasses import replace

    return replace(experiment, dropout=0.0)


def _rows(sharding: NamedSharding, shape: tuple[int, int]) -> np.ndarray:
    """Rows of a global [b t] array that this process's devices hold, in order."""
    places = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([np.arange(shape[0])[rows] for rows, _ in places]))


def _globalise(local: np.ndarray, rows: np.ndarray, sharding: NamedSharding, shape: tuple[int, int]) -> jax.Array:
    """The global array whose rows `rows` are `local`; every process passes its own."""

    def block(index):
        asked = np.arange(shape[0])[index[0]]
        return local[np.searchsorted(rows, asked)][:, index[1]]

    return jax.make_array_from_callback(shape, sharding, partial(block))
