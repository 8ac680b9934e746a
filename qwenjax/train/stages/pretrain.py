"""Pretraining (report §2.4): next-token prediction on packed rows, judged in bits per byte of held-out text."""

import gzip
import lzma
import math
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from qwenjax import telemetry
from qwenjax.config import INIT_FROM, Experiment
from qwenjax.data.batches import text
from qwenjax.data.shards import prepare as preparation
from qwenjax.telemetry import LOSS, Panel
from qwenjax.train import step as steps
from qwenjax.train.task import Task


def batch_shapes(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of one step's batch."""
    shape = (experiment.data.batch_size, experiment.data.seq_len)
    names = {"inputs": np.int32, "targets": np.int32, "positions": np.int32, "weights": np.float32}
    if experiment.data.document_mask:
        names["segments"] = np.int32
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in names.items()}


class Pretrain(Task):
    """Next-token prediction."""

    headline = "eval_bits_per_byte"

    def __init__(self, experiment: Experiment, mesh: Mesh):
        super().__init__(experiment, mesh)
        loss, parts = self.backbone.loss(), self.backbone.random
        self.program = steps.build(experiment, loss, mesh, batch_shapes(experiment), parts)
        self.nll = jax.jit(self.backbone.loss(learning=False))

    def prepare(self, root: Path) -> list[str]:
        data = self.experiment.data
        given = self.load_tokenizer() if data.tokenizer == INIT_FROM else None
        self.tokenizer, self.shards, lines = preparation.prepare(data, self.experiment.seed, root, tokenizer=given)
        self.check_tokenizer(self.tokenizer)
        weights = [source.weight for source in data.sources]
        self.mixture = text.TextMixture(self.shards, weights, data.seq_len, self.experiment.seed)
        self.read = partial(self.mixture.batch, eot=self.tokenizer.eot, isolate=data.document_mask)
        size = data.batch_size // self.experiment.accumulate
        self.held_out = text.validation_rows(self.shards, data.seq_len, data.eval_tokens, size, data.document_mask)
        eot = self.tokenizer.eot  # separates documents and is no text of theirs
        held_out = b"".join(self.tokenizer.decode_bytes(part[part != eot].tolist()) for part in self.held_out.tokens)
        self.held_out_bytes = len(held_out)
        self.baselines = compressors(held_out)
        epochs = self.mixture.epochs(self.experiment.steps * data.batch_size)
        read = ", ".join(f"{n:.2f}" for n in epochs)
        lines.append(f"this run reads {read} epochs; it is judged on {len(held_out):,} bytes of held-out text")
        return [f"data        {line}" for line in lines]

    def describe(self, row: int) -> str:
        source, epoch, window, _ = self.mixture.locate(row)
        return f"row {row}: source {source}, epoch {epoch}, window {window}"

    def evaluate(self, state: steps.State) -> dict[str, float]:
        """Loss in nats per token and bits per byte over the held-out text, every token predicted once.

        End-of-text tokens are predicted too, but they are no bytes of text: the figure errs against the model.
        """
        nats, tokens = self.held_out_nats(state)
        if not tokens:
            return {}
        return {"eval_loss": nats / tokens, "eval_bits_per_byte": nats / math.log(2) / self.held_out_bytes}

    def samples(self, state: steps.State) -> list[tuple[str, str]]:
        prompts = [[self.tokenizer.eot, *self.tokenizer.encode_ordinary(p)] for p in self.experiment.prompts]
        return list(zip(self.experiment.prompts, self.write(state, prompts, [self.tokenizer.eot])))

    def summary_line(self, metrics: dict[str, float]) -> str:
        others = ", ".join(f"{name} {value:.3f}" for name, value in self.baselines.items())
        ours = metrics["eval_bits_per_byte"]
        return f"held-out loss {metrics['eval_loss']:.4f}, {ours:.3f} bits per byte ({others})"

    def report(self, workdir: Path, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        held = Panel("held-out text", "bits per byte", ("eval_bits_per_byte",), self.baselines)
        telemetry.plot(rows, workdir / "loss.png", [LOSS, held])
        table = [("this model", metrics.get("eval_bits_per_byte", math.nan)), *self.baselines.items()]
        return [
            "![loss](loss.png)",
            "",
            f"| held-out text, {self.held_out_bytes:,} bytes | bits per byte |",
            "| --- | --- |",
            *(f"| {name} | {value:.3f} |" for name, value in table),
        ]

    def closing(self, metrics: dict[str, float]) -> str:
        ours = metrics["eval_bits_per_byte"]
        better = [name for name, value in self.baselines.items() if ours < value]
        return f"{ours:.3f} bits per byte on held-out text" + (
            f", less than {' and '.join(better)} need" if better else ""
        )

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        steps_ = self.experiment.steps
        return [
            (
                "longer, from here, with a fresh schedule",
                f"python -m qwenjax.train --exp={workdir} --set init_from={workdir} "
                f"--set steps={2 * steps_} --workdir={workdir}-longer",
            ),
            (
                "what a step read, and from which documents",
                f"python -m qwenjax.data show --exp={workdir} --step={steps_ // 2}",
            ),
            (
                "your own text, in a larger model",
                "python -m qwenjax.train --exp=mid --set data.sources.0.text=PATH --workdir=runs/mine",
            ),
        ]


def compressors(text: bytes) -> dict[str, float]:
    """Bits per byte that general compressors reach on the same text: what a model must beat to have learned."""
    if not text:
        return {}
    sizes = {"gzip -9": len(gzip.compress(text, 9)), "xz -9e": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}
