"""Rotary embedding, RMSNorm, projections, SwiGLU: by hand and by identity."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenjax.config import Compute, ModelConfig, RopeScaling
from qwenjax.model import layers, rope


def model(head_dim, base=1e4, **changes):
    return ModelConfig(vocab=8, layers=1, embed=8, heads=1, ffn=8, head_dim=head_dim, rope_base=base, **changes)


def test_rope_by_hand():
    """Head of 4, base 100: frequencies 1 and 1/10; halves (x0 x1 | x2 x3) turn as (x0,x2) and (x1,x3)."""
    np.testing.assert_allclose(rope.inverse_frequencies(4, 100.0), [1.0, 0.1])
    cos, sin = rope.cos_sin(jnp.array([[0, 2]]), model(4, 100.0))
    x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    turned = rope.rotate(jnp.concatenate([x, x], axis=1), cos, sin)
    np.testing.assert_allclose(turned[0, 0, 0], [1, 2, 3, 4])
    c, s, c2, s2 = np.cos(2), np.sin(2), np.cos(0.2), np.sin(0.2)
    want = [1 * c - 3 * s, 2 * c2 - 4 * s2, 3 * c + 1 * s, 4 * c2 + 2 * s2]
    np.testing.assert_allclose(turned[0, 1, 0], want, rtol=1e-6)


def test_rope_scores_depend_on_distance_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 64))

    def score(p, s):
        return jnp.sum(
            rope.rotate(q, *rope.cos_sin(jnp.array([[p]]), model(64)))
            * rope.rotate(k, *rope.cos_sin(jnp.array([[s]]), model(64)))
        )

    np.testing.assert_allclose(score(7, 3), score(107, 103), rtol=1e-4)


def test_rope_angles_are_float32_even_for_bf16_activations():
    cos, sin = rope.cos_sin(jnp.array([[2047]]), model(128))
    assert cos.dtype == sin.dtype == jnp.float32
    x = jnp.ones((1, 1, 1, 128), jnp.bfloat16)
    exact = rope.rotate(x.astype(jnp.float32), cos, sin)
    got = rope.rotate(x, cos, sin)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))  # rounded once, at the end


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rope_by_permutation_gives_the_same_bits_and_its_gradient_is_the_turn_back(dtype):
    x, g = jax.random.normal(jax.random.key(0), (2, 2, 5, 3, 16)).astype(dtype)
    cos, sin = rope.cos_sin(jnp.arange(10, dtype=jnp.int32).reshape(2, 5) * 97, model(16))
    halves, permuted = (jax.jit(way)(x, cos, sin) for way in (rope._by_halves, rope._by_permutation))
    np.testing.assert_array_equal(halves, permuted)
    plain = jax.vjp(lambda x: rope._by_halves(x.astype(jnp.float32), cos, sin), x)[1](g.astype(jnp.float32))[0]
    ours = jax.vjp(lambda x: rope.rotate(x, cos, sin), x)[1](g)[0]
    assert ours.dtype == dtype
    np.testing.assert_allclose(
        ours.astype(jnp.float32), plain.astype(jnp.float32), rtol=1e-6 if dtype == jnp.float32 else 1e-2, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradient_of_the_gated_product_equals_autodiff(dtype):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(2, 5, 24), (2, 5, 24), (8, 24), (2, 5, 8)]
    *args, g = (jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes))

    def plain(gate, up, down):
        return jnp.einsum("btf,df->btd", up * jax.nn.silu(gate), down)

    exact = jax.vjp(plain, *(a.astype(jnp.float32) for a in args))[1](g.astype(jnp.float32))
    np.testing.assert_array_equal(layers.gated(*args), plain(*args))
    for mine, autodiff, wanted in zip(jax.vjp(layers.gated, *args)[1](g), jax.vjp(plain, *args)[1](g), exact):
        assert mine.dtype == dtype
        off, usual = (jnp.abs(a.astype(jnp.float32) - wanted).max() for a in (mine, autodiff))
        assert off <= (1e-5 if dtype == jnp.float32 else 1.2 * usual)  # rounded no more often than by autodiff


def test_rms_norm_by_hand_and_its_cast_order():
    x = jnp.array([[3.0, 4.0]])  # mean square 12.5
    np.testing.assert_allclose(
        layers.rms_norm(x, jnp.array([1.0, 2.0]), 0.0), [[3 / 12.5**0.5, 8 / 12.5**0.5]], rtol=1e-6
    )
    x16, scale = jax.random.normal(jax.random.key(0), (5, 64)).astype(jnp.bfloat16), jnp.full(64, 1.3)
    x32 = x16.astype(jnp.float32)
    normed = (x32 / jnp.sqrt(jnp.mean(x32**2, -1, keepdims=True) + 1e-6)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(layers.rms_norm(x16, scale, 1e-6), normed * jnp.bfloat16(1.3))


def test_layer_norm_by_hand():
    x = jnp.array([[3.0, 5.0]])  # mean 4, deviation 1
    found = layers.LayerNorm(0.0).apply({"params": {"scale": jnp.array([1.0, 2.0]), "bias": jnp.array([0.5, 0])}}, x)
    np.testing.assert_allclose(found, [[-1 + 0.5, 2]], rtol=1e-6)


def test_gelu_by_hand():
    cfg = ModelConfig(vocab=8, layers=1, embed=1, heads=1, ffn=1, head_dim=2, gated=False)
    one = jnp.ones((1, 1))
    out = layers.GELU(cfg).apply({"params": {"up": 2 * one, "down": 5 * one}}, jnp.ones((1, 1, 1)))
    np.testing.assert_allclose(out, 5 * 2 * (1 + math.erf(2 / 2**0.5)) / 2, rtol=1e-6)


def test_rotary_frequencies_in_bfloat16_have_eight_bits():
    cfg = ModelConfig(vocab=8, layers=1, embed=8, heads=1, ffn=1, rope_dtype="bfloat16")
    cos, _ = rope.cos_sin(jnp.full((1, 1), 1000), cfg)
    rounded = rope.inverse_frequencies(8, 10_000.0).astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(cos[0, 0, 0], jnp.cos(1000 * rounded), atol=1e-6)
    assert (
        float(jnp.abs(cos - rope.cos_sin(jnp.full((1, 1), 1000), replace(cfg, rope_dtype="float32"))[0]).max()) > 0.01
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_fused_projection_equals_separate_ones(dtype):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (2, 3, 16), dtype)
    weights = [jax.random.normal(k, shape) for k, shape in zip(keys[1:], [(16, 4, 8), (16, 2, 8), (16, 5)])]
    apart, fused = (layers.project(x, *weights, fuse=fuse) for fuse in (False, True))
    for a, b, w in zip(apart, fused, weights):
        assert a.shape == b.shape == (2, 3, *w.shape[1:])
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(
            a.astype(jnp.float32), b.astype(jnp.float32), rtol=1e-2 if dtype == jnp.bfloat16 else 1e-5, atol=1e-5
        )


def test_swiglu_gate_is_the_gate():
    cfg = ModelConfig(vocab=8, layers=1, embed=1, heads=1, ffn=1, head_dim=2)
    mlp = layers.SwiGLU(cfg, Compute(dtype="float32").resolved("cpu", 1))
    one = jnp.ones((1, 1))
    out = mlp.apply({"params": {"gate": 2 * one, "up": 3 * one, "down": 5 * one}}, jnp.ones((1, 1, 1)))
    np.testing.assert_allclose(out, 5 * 3 * (2 / (1 + np.exp(-2.0))), rtol=1e-6)


def test_ntk_alpha_steps_exactly_at_the_borders():
    """1 up to T, then 3, 7, 15; also where a float32 logarithm would round (T = 2048, lengths up to 2^20)."""
    lengths = jnp.array([1, 31, 32, 33, 64, 65, 128, 129, 256, 257])
    assert rope.ntk_alpha(lengths, 32).tolist() == [1, 1, 1, 3, 3, 7, 7, 15, 15, 31]
    assert rope.ntk_alpha(2048 * 2 ** jnp.arange(10), 2048).tolist() == [2 ** (i + 1) - 1 for i in range(10)]
    assert rope.ntk_alpha(2048 * 2 ** jnp.arange(10) + 1, 2048).tolist() == [2 ** (i + 2) - 1 for i in range(10)]
    assert [rope.ntk_border(n, 32) for n in (1, 32, 33, 64, 65, 129)] == [32, 32, 64, 64, 128, 256]


def test_ntk_raises_the_base_of_each_row_by_its_own_length():
    """Head of 4, base 100, T = 8: alpha^(4/2) is 9 for length 9, so the second frequency is (900)^(-1/2) = 1/30."""
    cfg = model(4, 100.0, context=8, ntk=True)
    positions = jnp.array([[6], [6]])
    cos, sin = rope.cos_sin(positions, cfg, jnp.array([8, 9]))
    np.testing.assert_allclose(jnp.arctan2(sin, cos)[:, 0, 0, 1], [0.6, 0.2], rtol=1e-5)
    for without in (
        rope.cos_sin(positions, cfg),
        rope.cos_sin(positions, model(4, 100.0, context=8), jnp.array([8, 9])),
    ):
        np.testing.assert_allclose(jnp.arctan2(without[1], without[0])[:, 0, 0, 1], [0.6, 0.6], rtol=1e-5)


def test_linear_scaling_divides_positions():
    scaled = rope.cos_sin(jnp.array([[12]]), model(8, rope_scaling=RopeScaling("linear", 4.0)))
    np.testing.assert_allclose(scaled, rope.cos_sin(jnp.array([[3]]), model(8)), rtol=1e-6)


def test_yarn_by_hand():
    """Head of 8, base 10^4, 628 = 200π positions: frequency 10^-i makes 100 · 10^-i turns: 100, 10, 1, 0.1.

    With more than 50 kept and fewer than 0.5 divided: indices 0.3 and 2.3, so floor 0 and ceiling 3: the shares kept
    are 1, 2/3, 1/3, 0. Cosines and sines grow by 0.1 ln 4 + 1.
    """
    cfg = model(8, 1e4, rope_scaling=RopeScaling("yarn", 4.0, 628, beta_fast=50.0, beta_slow=0.5))
    np.testing.assert_allclose(rope.yarn_kept(cfg), [1, 2 / 3, 1 / 3, 0], rtol=1e-6)
    cos, sin = rope.cos_sin(jnp.array([[1]]), cfg)
    want = [1, 0.1 * (2 / 3 + 1 / 12), 0.01 * (1 / 3 + 2 / 12), 0.00025]
    np.testing.assert_allclose(jnp.arctan2(sin, cos)[0, 0, 0], want, rtol=1e-5)
    np.testing.assert_allclose(jnp.hypot(sin, cos)[0, 0, 0], 0.1 * np.log(4) + 1, rtol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaled_rope_equals_transformers(kind):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    parameters = {"rope_type": kind, "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 512}
    cfg = transformers.Qwen2Config(
        hidden_size=64, num_attention_heads=1, max_position_embeddings=2048, rope_parameters=parameters
    )
    theirs = Qwen2RotaryEmbedding(cfg)
    ours = model(64, 1e6, context=512, rope_scaling=RopeScaling(kind, 4.0))
    positions = jnp.array([[0, 1, 511, 2047]])
    cos, sin = rope.cos_sin(positions, ours)
    np.testing.assert_allclose(
        jnp.hypot(cos, sin)[0, 0, 0, 0], theirs.attention_scaling if kind == "yarn" else 1, rtol=1e-6
    )
    angles = np.asarray(positions)[0, :, None] * theirs.inv_freq.numpy()
    np.testing.assert_allclose(cos[0, :, 0] / theirs.attention_scaling, np.cos(angles), atol=2e-4)
    np.testing.assert_allclose(sin[0, :, 0] / theirs.attention_scaling, np.sin(angles), atol=2e-4)


def test_logn_by_hand():
    """T = 4: positions 0 to 3 are 1, then log_4(p + 1): position 15 is 2."""
    scale = rope.logn(jnp.array([[-1, 0, 3, 4, 15]]), 4)[0, :, 0, 0]
    np.testing.assert_allclose(scale, [1, 1, 1, np.log(5) / np.log(4), 2], rtol=1e-6)
