"""A trained reward model to score with: conversations in, calibrated scores out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import numpy as np

from qwenjax.api.checkpoint_path import detect
from qwenjax.api.parameters import read_reward_model
from qwenjax.api.scoring import TOKENS, batches
from qwenjax.chat_format import chatml
from qwenjax.config import Compute, ModelConfig
from qwenjax.generate.prefill import bucket, padded
from qwenjax.model import reward_head, transformer
from qwenjax.tokenizer import Tokenizer


@dataclass
class RewardModel:
    """Parameters, and everything that is needed to use them.

    Attributes:
      config: of the network without output embedding.
      params: its parameters.
      head: [d].
      gain, bias: with them, scores of the calibration's responses have mean 0 and deviation 1.
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
        """Scores [n], float32, of ids that end with the end token; they may be longer than the run's `data.seq_len`.

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
        scores = np.zeros(len(texts), np.float32)
        for (width,), group, rows in batches([(bucket(len(ids), 32),) for ids in texts], TOKENS):
            batch = padded([texts[i] for i in group], rows, width)
            scores[group] = np.asarray(self._scores(self.params, self.head, *batch))[: len(group)]
        return scores * self.gain + self.bias

    @cached_property
    def _scores(self):
        network = transformer.Transformer(self.config, self.compute)

        @jax.jit
        def scores(params, head, tokens, positions, lengths):
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
    saved = read_reward_model(source)
    compute = source.experiment.compute if dtype is None else Compute(dtype=dtype, remat="none")
    return RewardModel(
        reward_head.headless(source.config),
        saved.params,
        saved.head,
        saved.gain,
        saved.bias,
        source.tokenizer(),
        compute.resolved(jax.default_backend(), 1),
        saved.fingerprint,
    )
