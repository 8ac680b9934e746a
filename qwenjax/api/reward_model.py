"""A trained reward model to score with: conversations in, calibrated scores out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from qwenjax import checkpoint
from qwenjax.api.checkpoint_path import CheckpointPath, detect
from qwenjax.chat_format import chatml
from qwenjax.config import Compute, ModelConfig
from qwenjax.generate.prefill import bucket
from qwenjax.model import reward_head, transformer
from qwenjax.tokenizer import Tokenizer

ROWS = 16  # texts scored together


@dataclass
class RewardModel:
    """Parameters and what is needed to use them.

    Attributes:
      config: of the network without output embedding. params: its parameters. head: [d].
      gain, bias: with them scores of the calibration's responses have mean 0 and deviation 1.
      fingerprint: of the stored checkpoint.
    """

    config: ModelConfig
    params: dict
    head: jax.Array
    gain: float
    bias: float
    tokenizer: Tokenizer
    compute: Compute
    fingerprint: str

    def score(self, conversations: Sequence[Sequence[chatml.Message]]) -> np.ndarray:
        """Scores [n], float32, of conversations that end with the assistant's turn.

        Raises:
          ValueError: one ends otherwise, or is longer than the model's context.
        """
        for i, messages in enumerate(conversations):
            if not messages or messages[-1]["role"] != "assistant":
                raise ValueError(f"conversation {i} does not end with the assistant, whose turn is what is scored")
        return self.score_ids([self.tokenizer.encode_chat(m, add_generation_prompt=False) for m in conversations])

    def score_ids(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Scores [n] of ids that end with the end token; those longer than a run's `data.seq_len` are read, too.

        Raises:
          ValueError: one is empty, or longer than the model's context.
        """
        if not all(len(ids) for ids in texts):
            raise ValueError("a text without tokens has no end to read a score at")
        long = [i for i, ids in enumerate(texts) if len(ids) > self.config.context]
        if long:
            raise ValueError(
                f"text {long[0]} has {len(texts[long[0]]):,} tokens; the reward model's context is "
                f"{self.config.context:,}: give it shorter texts"
            )
        out = np.zeros(len(texts), np.float32)
        order = np.argsort([len(ids) for ids in texts], kind="stable")  # alike ones together: less padding
        for at in range(0, len(texts), ROWS):
            some = order[at : at + ROWS]
            tokens = np.zeros((ROWS, bucket(max(len(texts[i]) for i in some), 32)), np.int32)
            lengths = np.ones(ROWS, np.int32)
            for row, i in enumerate(some):
                tokens[row, : len(texts[i])], lengths[row] = texts[i], len(texts[i])
            out[some] = np.asarray(self._scores(self.params, self.head, tokens, lengths))[: len(some)]
        return out * self.gain + self.bias

    @cached_property
    def _scores(self):
        network = transformer.Transformer(self.config, self.compute)

        @jax.jit
        def scores(params, head, tokens, lengths):
            at = jnp.arange(tokens.shape[1])[None]
            positions = jnp.where(at < lengths[:, None], at, -1)
            return reward_head.scores(network, {"params": params}, head, tokens, positions, lengths - 1)

        return scores


def load_reward(path: str | Path, dtype: str | None = None) -> RewardModel:
    """The reward model of a run, its checkpoints or one of these.

    Args:
      dtype: of the computation; None: as it was trained.
    Raises:
      ValueError: there is none, or it is another kind of model.
    """
    source = detect(path)
    params, head = source.scorer()
    run = source.experiment
    compute = run.compute if dtype is None else Compute(dtype=dtype, remat="none")
    gain, bias = calibration(source)
    compute = compute.resolved(jax.default_backend(), 1)
    return RewardModel(
        reward_head.headless(source.config), params, head, gain, bias, source.tokenizer(), compute, identity(source)
    )


def calibration(source: CheckpointPath) -> tuple[float, float]:
    """(gain, bias) that were stored with a reward model."""
    gain, bias = source.meta["calibration"]
    return gain, bias


def identity(source: CheckpointPath) -> str:
    """16 digits that tell a checkpoint of ours from any other: of its arrays' hashes and its calibration."""
    return checkpoint.digest({name: source.meta.get(name) for name in ("hashes", "calibration")})[:16]
