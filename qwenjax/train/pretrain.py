"""Pretraining (report §2.4): next-token prediction on packed rows, judged in bits per byte of held-out text."""

import gzip
import lzma
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from qwenjax.config import Compute, Experiment
from qwenjax.data import prepare as preparation
from qwenjax.data import stream
from qwenjax.generate.decode import Request, generate
from qwenjax.generate.sampling import Sample
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
        self.compute = experiment.compute_on(platform, mesh.shape)
        self.program = steps.build(experiment, make_loss(experiment, self.compute), mesh)
        self.abstract_batch = abstract_batch(experiment, self.program.batch_sharding)
        plain = make_loss(replace(experiment, dropout=0.0), self.compute)
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
        size = data.batch // self.experiment.accumulate
        self.held_out = stream.validation_rows(self.shards, data.length, data.eval_tokens, size, data.isolate)
        eot = self.tokenizer.eot  # separates documents and is no text of theirs
        text = b"".join(self.tokenizer.decode_bytes(part[part != eot].tolist()) for part in self.held_out.tokens)
        self.held_out_bytes = len(text)
        self.baselines = compressors(text)
        epochs = self.mixture.epochs(self.experiment.steps * data.batch)
        read = ", ".join(f"{n:.2f}" for n in epochs)
        lines.append(f"this run reads {read} epochs; it is judged on {len(text):,} bytes of held-out text")
        return [f"data        {line}" for line in lines]

    def batches(self, next_row: int) -> Iterator[tuple[int, dict]]:
        """(row after this batch, global batch on the mesh), from row `next_row` on, for ever."""
        data = self.experiment.data
        mine = self._rows(data.batch)
        read = partial(self.mixture.batch, eot=self.tokenizer.eot, isolate=data.isolate)
        with stream.Batches(read, data.batch, mine, next_row) as batches:
            for after, local in batches:
                yield after, self._place(local, data.batch, mine)

    def _rows(self, size: int) -> np.ndarray:
        """Rows of a global batch of `size` that this process's devices hold, in order."""
        shape = (size, self.experiment.data.length)
        places = self.program.batch_sharding.addressable_devices_indices_map(shape).values()
        return np.unique(np.concatenate([np.arange(size)[rows] for rows, _ in places]))

    def _place(self, local: dict, size: int = 0, rows: np.ndarray | None = None) -> dict:
        """Global arrays of `size` rows on the mesh; `local` has this process's `rows` of them, or all."""

        def block(array, index):
            asked = np.arange(shape[0])[index[0]]
            return array[asked if rows is None else np.searchsorted(rows, asked)][:, index[1]]

        sharding = self.program.batch_sharding
        shape = (size or len(local["inputs"]), self.experiment.data.length)
        return {
            name: jax.make_array_from_callback(shape, sharding, partial(block, local[name]))
            for name in self.abstract_batch
        }

    def describe(self, row: int) -> str:
        """Where rows of a step came from, for an error message."""
        source, epoch, window, _ = self.mixture.locate(row)
        return f"row {row}: source {source}, epoch {epoch}, window {window}"

    def evaluate(self, params: dict) -> dict[str, float]:
        """Loss in nats per token and bits per byte over the held-out text, every token predicted once.

        End-of-text tokens are predicted too, but they are no bytes of text: the figure errs against the model.
        """
        if not self.held_out.batches:
            return {}
        total = jnp.float32(0)
        weight = 0.0
        with jax.set_mesh(self.mesh):
            for batch in self.held_out.batches:
                total += self._eval_step(params, self._place(batch))
                weight += float(batch["weights"].sum())
        nats = float(total)
        return {"eval_loss": nats / weight, "eval_bits_per_byte": nats / math.log(2) / self.held_out_bytes}

    def samples(self, params: dict) -> list[tuple[str, str]]:
        """(prompt, continuation) for every prompt of the experiment."""
        if not self.experiment.prompts:
            return []
        model = transformer.Transformer(self.experiment.model, self.compute)
        prompts = [[self.tokenizer.eot, *self.tokenizer.encode_ordinary(p)] for p in self.experiment.prompts]
        longest = min(SAMPLE_TOKENS, self.experiment.model.context - 64)
        requests = [Request(ids, longest, Sample(top_p=0.9), self.experiment.seed + i) for i, ids in enumerate(prompts)]
        with jax.set_mesh(self.mesh):
            out = generate(model, params, requests, size=self.tokenizer.size, stops=[self.tokenizer.eot])
        return [(p, self.tokenizer.decode(made.ids)) for p, made in zip(self.experiment.prompts, out)]


def compressors(text: bytes) -> dict[str, float]:
    """Bits per byte that general compressors reach on the same text: what a model must beat to have learned."""
    if not text:
        return {}
    sizes = {"gzip -9": len(gzip.compress(text, 9)), "xz -9e": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}
