"""A trained reward model to score with: conversations in, calibrated scores out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from qwenjax.api.checkpoint_path import detect
from qwenjax.api.parameters import RewardParams, read_reward_model
from qwenjax.api.scoring import TOKENS, batches
from qwenjax.chat_format import chatml
from qwenjax.config import Compute, ModelConfig
from qwenjax.generate.prefill import bucket, padded
from qwenjax.model import reward_head, transformer
from qwenjax.tokenizer import Tokenizer


@dataclass
class RewardModel:
    """Parameters, and everything that is needed to use them. `config`: of the network without output embedding."""

    config: ModelConfig
    saved: RewardParams
    tokenizer: Tokenizer
    compute: Compute

    def score(self, conversations: Sequence[Sequence[chatml.Message]]) -> np.ndarray:
        """Scores [n], float32, of conversations. Raises ValueError for one that does not end with the assistant."""
        for i, messages in enumerate(conversations):
            if not messages or messages[-1]["role"] != "assistant":
                raise ValueError(f"conversation {i} does not end with the assistant, whose turn is what is scored")
        return self.score_ids([self.tokenizer.encode_chat(m, add_generation_prompt=False) for m in conversations])

    def score_ids(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Scores [n], float32, of ids that end with the end token.

        Raises ValueError for a text that is empty, or longer than the model's context.
        """
        if not all(len(ids) for ids in texts):
            raise ValueError("a text without tokens has no end to read a score at")
        if long := [i for i, ids in enumerate(texts) if len(ids) > self.config.context]:
            raise ValueError(
                f"text {long[0]} has {len(texts[long[0]]):,} tokens; the reward model's context is "
                f"{self.config.context:,}: give it shorter texts"
            )
        saved, network = self.saved, transformer.Transformer(self.config, self.compute)
        scores = np.zeros(len(texts), np.float32)
        for (width,), group, rows in batches([(bucket(len(ids), 32),) for ids in texts], TOKENS):
            batch = padded([texts[i] for i in group], rows, width)
            scores[group] = np.asarray(_scores(saved.params, saved.head, *batch, network=network))[: len(group)]
        return scores * saved.gain + saved.bias


@partial(jax.jit, static_argnames="network")
def _scores(params, head, tokens, positions, lengths, *, network):
    return reward_head.scores(network, {"params": params}, head, tokens, positions, lengths - 1)


def load_reward(path: str | Path, dtype: str | None = None) -> RewardModel:
    """The reward model of a run; `dtype` of the computation: None is that of training."""
    source = detect(path)
    saved = read_reward_model(source)  # refuses other models, which may have no experiment
    compute = source.experiment.compute if dtype is None else Compute(dtype=dtype, remat="none")
    compute = compute.resolved(jax.default_backend(), 1)
    return RewardModel(reward_head.headless(source.config), saved, source.tokenizer(), compute)
