"""Pretraining (report §2.4): next-token prediction on packed rows, evaluated in bits per byte of held-out text."""

import gzip
import lzma
import math
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from qwenjax.config import INIT_FROM, Experiment
from qwenjax.data.batches import text
from qwenjax.data.shards import prepare as preparation
from qwenjax.train import step as steps
from qwenjax.train.task import Task


class Pretrain(Task):
    """Next-token prediction."""

    def __init__(self, experiment: Experiment, mesh: Mesh):
        super().__init__(experiment, mesh)
        data = experiment.data
        batch = text.batch_shapes(data.batch_size, data.seq_len, data.document_mask)
        self.program = steps.build(experiment, self.backbone.loss(), mesh, batch, self.backbone.init_params)
        self.nll = jax.jit(self.backbone.loss(learning=False))

    def prepare(self, root: Path) -> list[str]:
        data = self.experiment.data
        tokenizer = self.load_tokenizer() if data.tokenizer == INIT_FROM else None
        self.tokenizer, self.shards, lines = preparation.prepare(data, self.experiment.seed, root, tokenizer=tokenizer)
        self.check_vocab(self.tokenizer)
        weights = [source.weight for source in data.sources]
        self.mixture = text.TextMixture(self.shards, weights, data.seq_len, self.experiment.seed)
        self.read = partial(self.mixture.batch, eot=self.tokenizer.eot, document_mask=data.document_mask)
        size = data.batch_size // self.experiment.accumulate
        self.held_out = text.validation_batches(self.shards, data.seq_len, data.eval_tokens, size, data.document_mask)
        eot = self.tokenizer.eot  # separates documents and is not part of their text
        held_out = b"".join(self.tokenizer.decode_bytes(part[part != eot].tolist()) for part in self.held_out.tokens)
        self.held_out_bytes = len(held_out)
        self.compressors = compressed_bits(held_out)
        return self.data_lines(lines, f"{len(held_out):,} bytes of text")

    def describe(self, row: int) -> str:
        source, epoch, window, _ = self.mixture.locate(row)
        return f"row {row}: source {source}, epoch {epoch}, window {window}"

    def evaluate(self, state: steps.State) -> dict[str, float]:
        """Loss in nats per token and bits per byte over the held-out text, every token predicted once.

        End-of-text tokens are predicted too, but add no bytes of text: the bits per byte are slightly too high.
        """
        nats, tokens = self.held_out_nats(state)
        if not tokens:
            return {}
        return {"eval_loss": nats / tokens, "eval_bits_per_byte": nats / math.log(2) / self.held_out_bytes}

    def samples(self, state: steps.State) -> list[tuple[str, str]]:
        prompts = [[self.tokenizer.eot, *self.tokenizer.encode_ordinary(p)] for p in self.experiment.prompts]
        return list(zip(self.experiment.prompts, self.complete(state, prompts, [self.tokenizer.eot])))


def compressed_bits(text: bytes) -> dict[str, float]:
    """Bits per byte of general compressors on the same text: a model that has learned needs fewer."""
    if not text:
        return {}
    sizes = {"gzip -9": len(gzip.compress(text, 9)), "xz -9e": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}
