"""A reward model to score with: the same scores however texts are put together, and clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from qwenjax.api.parameters import RewardParams
from qwenjax.api.reward_model import RewardModel
from qwenjax.config import Compute
from qwenjax.model import reward_head, transformer

COMPUTE = Compute(dtype="float32", remat="none", attention="xla", fuse="no")
HEAD = np.random.default_rng(0).normal(size=32).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> RewardModel:
    params = tiny_model.params()
    saved = RewardParams(params, HEAD, 2.0, -0.5, "0" * 16)
    return RewardModel(reward_head.headless(tiny_model.CONFIG), saved, tiny_model.tokenizer(), COMPUTE)


def talk(*answers: str) -> list[list[dict]]:
    empty = {"role": "system", "content": ""}
    return [[empty, {"role": "user", "content": "a"}, {"role": "assistant", "content": text}] for text in answers]


def by_hand(model: RewardModel, messages: list[dict]) -> float:
    """gain · (hidden state of the last <|im_end|>, read alone, times the head) + bias."""
    ids = model.tokenizer.encode_chat(messages, add_generation_prompt=False)
    ids = ids[: len(ids) - ids[::-1].index(model.tokenizer.im_end)]
    network = transformer.Transformer(model.config, COMPUTE)
    hidden, _ = jax.jit(network.apply)({"params": model.saved.params}, jnp.asarray([ids]))
    return float(2.0 * np.dot(np.asarray(hidden)[0, -1], HEAD) - 0.5)


def test_a_score_is_read_at_the_last_end_token_and_calibrated(model):
    texts = talk("yes", "no, not at all")
    np.testing.assert_allclose(model.score(texts), [by_hand(model, text) for text in texts], rtol=1e-4, atol=1e-4)


def test_scores_do_not_depend_on_company_or_order(model):
    """More texts than are scored together, of different lengths."""
    texts = talk(*("x" * (n % 7 + 1) for n in range(20)))
    together = model.score(texts)
    np.testing.assert_allclose(together[::-1], model.score(texts[::-1]), atol=1e-5)
    np.testing.assert_allclose(together[3], model.score(texts[3:4])[0], atol=1e-5)
    np.testing.assert_allclose(together[3], together[10], atol=1e-5)  # the same text
    assert len(np.unique(together.round(4))) == 7
    assert model.score([]).shape == (0,)


def test_what_has_no_answer_or_is_too_long_is_refused(model):
    good = talk("yes")[0]
    with pytest.raises(ValueError, match="conversation 1 does not end with the assistant"):
        model.score([good, good[:2]])
    with pytest.raises(ValueError, match="conversation 0 does not end with the assistant"):
        model.score([[]])
    with pytest.raises(ValueError, match=r"text 0 has 65 tokens; the reward model's context is 64"):
        model.score_ids([[1] * 65])
    with pytest.raises(ValueError, match="a text without tokens"):
        model.score_ids([[1, 2], []])
