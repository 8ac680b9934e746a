"""Identities of the whole decoder: decoding = full forward, isolation, dropout, layouts, sizes."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from qwenjax import config
from qwenjax.config import Compute, ModelConfig
from qwenjax.model import transformer
from qwenjax.model.transformer import Transformer

CFG = ModelConfig(vocab=61, layers=2, embed=32, heads=4, ffn=48, context=64)
EXACT = Compute(dtype="float32", remat="none").resolved("cpu", 1)
FAMILIES = {
    "qwen1": CFG,
    "qwen2": replace(CFG, kv_heads=2, tie_embeddings=True, rope_base=1e6),
    "qwen3": replace(CFG, kv_heads=1, qkv_bias=False, qk_norm=True, head_dim=16),
    "llama": replace(CFG, kv_heads=2, qkv_bias=False),
    "as before": replace(CFG, gated=False, norm="layer", rope_dtype="bfloat16"),  # what the report chose against
}


@functools.partial(jax.jit, static_argnums=0)
def init(cfg, key):
    return nn.meta.unbox(transformer.init_params(cfg, key))


@functools.cache
def make(cfg, seed=0):
    """Parameters away from their initialisation, so that biases and scales matter."""
    params = init(cfg, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return tree.unflatten([x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves])


@functools.partial(jax.jit, static_argnames=("cfg", "compute"))
def run(cfg, params, tokens, *args, compute=EXACT):
    hidden, cache = Transformer(cfg, compute).apply({"params": params}, tokens, *args)
    return transformer.logits(params, hidden), cache


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(9), (2, 12), 0, CFG.vocab)


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_then_decode_equals_full_forward(family, tokens):
    cfg = FAMILIES[family]
    params = make(cfg)
    full, _ = run(cfg, params, tokens)
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    cache = transformer.empty_cache(cfg, 2, 12, jnp.float32)
    parts = []
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 12)):  # single tokens, and a chunk
        part, cache = run(cfg, params, tokens[:, start:stop], positions[:, start:stop], None, cache)
        parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, atol=1e-5, rtol=0)


def test_padding_on_the_right_does_not_reach_the_cache_or_the_real_positions(tokens):
    params = make(CFG)
    full, _ = run(CFG, params, tokens)
    positions = jnp.where(jnp.arange(12) < jnp.array([[12], [7]]), jnp.arange(12), -1)
    cache = transformer.empty_cache(CFG, 2, 16, jnp.float32)
    padded, cache = run(CFG, params, tokens, positions, None, cache)
    np.testing.assert_allclose(padded[1, :7], full[1, :7], atol=1e-5, rtol=0)
    assert not cache.k[:, 1, :, 7:].any()
    step, _ = run(CFG, params, tokens[:, 7:8], jnp.array([[12], [7]]), None, cache)
    np.testing.assert_allclose(step[1, 0], full[1, 7], atol=1e-5, rtol=0)


def test_packed_documents_do_not_see_each_other(tokens):
    params = make(CFG)
    row = tokens[:1]
    segments = jnp.array([[0] * 5 + [1] * 7])
    positions = jnp.array([[*range(5), *range(7)]])
    packed, _ = run(CFG, params, row, positions, segments)
    first, _ = run(CFG, params, row[:, :5])
    second, _ = run(CFG, params, row[:, 5:])
    np.testing.assert_allclose(packed[:, :5], first, atol=1e-5, rtol=0)
    np.testing.assert_allclose(packed[:, 5:], second, atol=1e-5, rtol=0)
    plain, _ = run(CFG, params, row)
    assert np.abs(plain[:, 5:] - second).max() > 0.1  # and plain packing does let them see


def test_a_change_reaches_later_positions_only(tokens):
    params = make(CFG)
    before, _ = run(CFG, params, tokens)
    after, _ = run(CFG, params, tokens.at[:, 6].set((tokens[:, 6] + 1) % CFG.vocab))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before - after)[:, 6:].max(axis=-1) > 0).all()


@pytest.mark.parametrize("family", ["qwen1", "qwen3"])
def test_scan_remat_and_fusing_do_not_change_the_result(family, tokens):
    cfg = FAMILIES[family]
    params = make(cfg)

    def value_and_grad(compute):
        def loss(p):
            return jnp.sum(run(cfg, p, tokens, compute=compute)[0] ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    want = value_and_grad(EXACT)
    changes = ({"scan": False, "remat": "matmuls"}, {"fuse": "no", "remat": "full"}, {"remat": "attention"})
    for change in changes:
        got = value_and_grad(replace(EXACT, **change))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()), err_msg=str(change))


def test_dropout_acts_only_when_asked_and_by_its_key(tokens):
    params = make(CFG)
    model = Transformer(CFG, EXACT, 0.3)

    @jax.jit
    def call(seed):
        return model.apply({"params": params}, tokens, rngs={"dropout": jax.random.key(seed)})[0]

    plain, _ = Transformer(CFG, EXACT).apply({"params": params}, tokens)
    np.testing.assert_array_equal(call(1), call(1))
    assert np.abs(call(1) - call(2)).max() > 0.1
    assert np.abs(call(1) - plain).max() > 0.1


def test_initialisation_is_the_released_one():
    cfg = ModelConfig(vocab=2000, layers=8, embed=128, heads=4, ffn=256)
    params = init(cfg, jax.random.key(0))
    attn, mlp = params["blocks"]["attn"], params["blocks"]["mlp"]
    for w in (params["embed"], params["head"], attn["q"], attn["k"], attn["v"], mlp["gate"], mlp["up"]):
        assert abs(float(w.std()) - 0.02) < 0.0003
    for w in (attn["o"], mlp["down"]):  # N(0, 0.02 / sqrt(2 L)), L = 8
        assert abs(float(w.std()) - 0.02 / 4) < 0.0001
    assert not any(attn[b].any() for b in ("q_bias", "k_bias", "v_bias"))
    assert (params["norm"]["scale"] == 1).all()
    assert float(jnp.abs(attn["q"][0] - attn["q"][1]).max()) > 0.01  # layers differ


@pytest.mark.parametrize(
    "model", [config.QWEN_1B8, config.QWEN_7B, config.QWEN_14B, config.QWEN_72B, *FAMILIES.values()]
)
def test_parameter_tree_has_exactly_the_counted_parameters(model):
    shapes = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)) == model.params


def test_embedding_gradient_is_summed_in_float32():
    """A token that occurs 4096 times: a bf16 sum of ones would stop at 256."""
    tokens = jnp.zeros((1, 4096), jnp.int32)
    grad = jax.grad(lambda e: jnp.sum(transformer.lookup(e, tokens, 4, "bfloat16").astype(jnp.float32)))(
        jnp.ones((4, 2))
    )
    np.testing.assert_array_equal(grad, [[4096, 4096], [0, 0], [0, 0], [0, 0]])


def test_segments_and_cache_together_are_refused(tokens):
    with pytest.raises(ValueError, match="one document"):
        run(
            CFG,
            make(CFG),
            tokens,
            None,
            jnp.zeros((2, 12), jnp.int32),
            transformer.empty_cache(CFG, 2, 12, jnp.float32),
        )


WINDOWS = {"mixed": (3, 0), "one": (5, 5)}


@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
def test_windows_hide_what_lies_further_back_than_layers_reach(windows, tokens):
    """One layer sees `window` positions; the first change that reaches nobody behind it lies before all of them."""
    cfg = replace(CFG, windows=windows)
    params = make(CFG)
    before, _ = run(cfg, params, tokens)
    after, _ = run(cfg, params, tokens.at[:, 0].set((tokens[:, 0] + 1) % CFG.vocab))
    reached = np.abs(before - after).max(axis=(0, 2)) > 1e-6
    last = 11 if 0 in windows else sum(w - 1 for w in windows)
    assert reached.tolist() == [i <= last for i in range(12)]
    prepared = transformer.prepare(Transformer(cfg, EXACT), params)
    np.testing.assert_allclose(
        prepared[0].apply({"params": prepared[1]}, tokens)[0], hidden(cfg, params, tokens), atol=1e-5
    )


def hidden(cfg, params, tokens):
    return Transformer(cfg, EXACT).apply({"params": params}, tokens)[0]


def test_windows_that_differ_are_refused_by_kernels(tokens):
    with pytest.raises(ValueError, match="one window for all layers"):
        run(replace(CFG, windows=(3, 0)), make(CFG), tokens, compute=replace(EXACT, attention="splash"))


def test_windows_double_every_four_layers():
    assert config.doubling_windows(2048, 9) == (2048,) * 4 + (4096,) * 4 + (8192,)
    assert config.doubling_windows(8, 3, every=1) == (8, 16, 32)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fuse", ["yes", "no"])
def test_prepared_parameters_give_the_same(family, fuse, tokens):
    cfg, params = FAMILIES[family], make(FAMILIES[family])
    model, prepared = transformer.prepare(Transformer(cfg, replace(EXACT, fuse=fuse)), params)
    hidden, _ = jax.jit(model.apply)({"params": prepared}, tokens)
    np.testing.assert_allclose(transformer.logits(prepared, hidden), run(cfg, params, tokens)[0], atol=1e-5)


def test_ntk_and_logn_act_on_readers_only_and_each_row_by_its_own_length(tokens):
    cfg = replace(CFG, context=4, ntk=True, logn=True)
    params = make(CFG)
    plain, _ = run(CFG, params, tokens)
    np.testing.assert_array_equal(run(cfg, params, tokens)[0], plain)  # training
    positions = jnp.where(jnp.arange(12) < jnp.array([[12], [7]]), jnp.arange(12), -1)
    both, _ = run(cfg, params, tokens, positions, None, None, jnp.array([12, 7]))
    one, _ = run(cfg, params, tokens[1:, :7], None, None, None, jnp.array([7]))
    np.testing.assert_allclose(both[1, :7], one[0], atol=1e-5)
    assert np.abs(both[0, 4:] - plain[0, 4:]).max() > 0.1
