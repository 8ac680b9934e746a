"""Entropy of attention: where it can be worked out, against a head at a time, and what LogN does to it."""

import math
from dataclasses import replace

import eval_doubles as doubles
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from qwenjax.eval.task import ResultCache, Settings
from qwenjax.eval.tasks.entropy import ROWS, entropies, measure, plot, table
from qwenjax.model import transformer

TEXT = "To be, or not to be: that is the question, said no byte. "


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 4)
    return str(path)


def test_who_looks_everywhere_alike_has_the_logarithm_of_where(text, tmp_path):
    result = measure(doubles.model(blank=True), Settings(text, lengths=(8, 32)), ResultCache(tmp_path, {}))
    for length in (8, 32):
        found = result["rows"]["plain"][str(length)]
        np.testing.assert_allclose(found, [np.mean(np.log(np.arange(1, length + 1)))] * 2, rtol=1e-5)


def test_only_the_last_queries_count(monkeypatch):
    monkeypatch.setattr("qwenjax.eval.tasks.entropy.QUERIES", 3)
    found = doubles.model(blank=True)
    got = entropies(found.params, jnp.zeros((1, 10), jnp.int32), found.network)
    np.testing.assert_allclose(got, [np.mean(np.log([8, 9, 10]))] * 2, rtol=1e-5)


def test_a_key_head_serves_its_group():
    cfg = replace(doubles.CONFIG, heads=4, kv_heads=2, layers=1, context=64)
    params = nn.unbox(transformer.init_params(cfg, jax.random.key(1)))
    params = jax.tree.map(lambda x: 3 * x, params)
    model = doubles.model().network.clone(cfg=cfg)
    tokens = jax.random.randint(jax.random.key(2), (1, 9), 0, 256)
    _, seen = model.apply({"params": params}, tokens, mutable=["intermediates"])
    (q,), (k,) = (seen["intermediates"]["blocks"]["attn"][name] for name in "qk")
    by_hand = []
    for head in range(4):
        scores = np.asarray(q[0, 0, :, head] @ k[0, 0, :, head // 2].T) / math.sqrt(cfg.head_size)
        for i, row in enumerate(scores):
            p = np.exp(row[: i + 1]) / np.exp(row[: i + 1]).sum()
            by_hand.append(-(p * np.log(p)).sum())
    np.testing.assert_allclose(entropies(params, tokens, model), [np.mean(by_hand)], rtol=1e-4)


def test_logn_makes_attention_sharper_beyond_the_training_length_alone(text, tmp_path):
    rows = measure(doubles.model(), Settings(text, lengths=(8, 64)), ResultCache(tmp_path, {}))["rows"]
    assert rows[ROWS[2]]["8"] == rows[ROWS[1]]["8"] == rows[ROWS[0]]["8"]
    assert np.mean(rows[ROWS[2]]["64"]) < np.mean(rows[ROWS[1]]["64"])


def test_what_is_printed_and_drawn(text, tmp_path):
    parts = ResultCache(tmp_path / "out", {})
    result = {"model": "double", **measure(doubles.model(), Settings(text, lengths=(8, 16)), parts)}
    said = table(result).splitlines()
    assert said[2].split() == ["8", "16"]
    assert [line.split("  ")[0] for line in said[3:]] == [*ROWS, "ln(length)"]
    plot(result, tmp_path / "entropy.png")
    assert (tmp_path / "entropy.png").read_bytes().startswith(b"\x89PNG")


def test_a_text_that_is_too_short_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="fewer than a window of 4,096"):
        measure(doubles.model(), Settings(text, lengths=(4096,)), ResultCache(tmp_path, {}))
