"""Sampling policies by hand; the decode loop against the full forward, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from qwenjax.config import Compute, MeshShape, ModelConfig
from qwenjax.generate.decode import generate
from qwenjax.generate.sampling import Greedy, TopP
from qwenjax.model import transformer
from qwenjax.sharding import make_mesh

CFG = ModelConfig(vocab=64, layers=2, embed=32, heads=4, ffn=48, context=64)
MODEL = transformer.Transformer(CFG, Compute(dtype="float32", remat="none").resolved("cpu", 1))
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
ARGS = {"stop": 0, "size": 60, "multiple": 8}


@pytest.fixture(scope="module")
def params():
    params = nn.meta.unbox(transformer.init_params(CFG, jax.random.key(0)))
    return jax.tree.map(lambda x: x * 4, params)  # far from uniform, so that greedy is decided


def greedy_by_full_forward(params, prompt, n):
    apply = jax.jit(lambda ids: transformer.logits(params, MODEL.apply({"params": params}, ids)[0]))
    ids = np.zeros((1, len(prompt) + n), np.int32)
    ids[0, : len(prompt)] = prompt
    out = []
    for i in range(len(prompt), len(prompt) + n):
        token = int(jnp.argmax(apply(ids)[0, i - 1, : ARGS["size"]]))
        if token == ARGS["stop"]:
            break
        ids[0, i] = token
        out.append(token)
    return out


def test_greedy_equals_the_full_forward_alone_and_in_a_batch(params):
    together = generate(MODEL, params, PROMPTS, policy=Greedy(), max_new=12, **ARGS)
    for prompt, out in zip(PROMPTS, together):
        assert out == greedy_by_full_forward(params, prompt, 12)
        assert out == generate(MODEL, params, [prompt], policy=Greedy(), max_new=12, **ARGS)[0]
    assert len({tuple(x) for x in together}) > 1


def test_stops_at_the_stop_id_and_leaves_it_out(params):
    def call(stop):
        return generate(
            MODEL, params, PROMPTS[:1], policy=TopP(0.9), max_new=12, seed=3, stop=stop, size=60, multiple=8
        )[0]

    full = call(61)  # an id that is never produced
    assert len(full) == 12
    assert call(full[4]) == full[: full.index(full[4])]


def test_padding_rows_of_the_vocabulary_are_never_sampled(params):
    flat = jax.tree.map(jnp.zeros_like, params)  # uniform logits: every id is as likely
    outs = generate(MODEL, flat, [[1]] * 32, policy=TopP(1.0), max_new=16, stop=63, size=5, multiple=8)
    assert {i for out in outs for i in out} == {0, 1, 2, 3, 4}


def test_same_seed_same_text_and_sharded_equals_unsharded(params):
    call = lambda seed: generate(MODEL, params, PROMPTS, policy=TopP(0.9), max_new=8, seed=seed, **ARGS)  # noqa: E731
    assert call(1) == call(1) != call(2)
    with jax.set_mesh(make_mesh(MeshShape(fsdp=4, tensor=2), 64)):
        assert call(1) == call(1)
        assert len(call(1)) == 3


def test_an_empty_prompt_is_refused(params):
    with pytest.raises(ValueError, match="at least one token"):
        generate(MODEL, params, [[]], policy=Greedy(), max_new=4, **ARGS)


def test_top_p_keeps_the_token_that_crosses():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    kept = lambda p: np.isfinite(TopP(p).truncate(logits)[0]).tolist()  # noqa: E731
    assert kept(0.4) == [True, False, False, False]
    assert kept(0.5001) == [True, True, False, False]
    assert kept(0.79) == [True, True, False, False]
    assert kept(0.81) == [True, True, True, False]
    assert kept(1.0) == [True] * 4


def test_top_p_samples_the_renormalised_distribution():
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.1, 0.6, 0.3])), (20_000, 3))
    out = TopP(0.8)(logits, jax.random.key(0))
    np.testing.assert_allclose(np.bincount(out, minlength=3) / 20_000, [0, 2 / 3, 1 / 3], atol=0.015)
    sharp = TopP(1.0, temperature=0.5)(logits, jax.random.key(0))  # p^2: 1, 36, 9 of 46
    np.testing.assert_allclose(np.bincount(sharp, minlength=3) / 20_000, np.array([1, 36, 9]) / 46, atol=0.015)


@pytest.mark.parametrize("bad", [{"p": 0.0}, {"p": 1.5}, {"temperature": 0.0}])
def test_impossible_policies_are_refused(bad):
    with pytest.raises(ValueError, match="wanted 0 < p <= 1"):
        TopP(**bad)
