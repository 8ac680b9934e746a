"""Weights in 8 and 4 bits: by hand, against the paper's formula, and bounds of the error."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenjax.model.quantise import LEVELS, block_size, dequantise, quantise


def test_int8_by_hand():
    """absmax 2: units of 2/127. 0.5 is 31.75 of them, -1 is -63.5 (half to even: -64)."""
    q = quantise(jnp.array([[2.0, 0.5, -1.0, 0.0]]), "int8")
    assert q["codes"].tolist() == [[127, 32, -64, 0]]
    assert q["codes"].dtype == jnp.int8
    np.testing.assert_allclose(q["scale"], [[2 / 127]], rtol=1e-7)
    np.testing.assert_allclose(dequantise(q), [[2.0, 64 / 127, -128 / 127, 0.0]], rtol=1e-6)


def test_nf4_by_hand():
    """absmax 4: in units of it -1, 0, 0.5 and 1. 0.5 lies between levels 12 (0.441) and 13 (0.563)."""
    q = quantise(jnp.array([[-4.0, 0.0, 2.0, 4.0]]), "nf4")
    assert q["codes"].tolist() == [[0 | 7 << 4, 12 | 15 << 4]]
    assert q["codes"].dtype == jnp.uint8
    np.testing.assert_allclose(dequantise(q), [[-4.0, 0.0, 4 * LEVELS[12], 4.0]], rtol=1e-6)


def test_nf4_levels_are_the_normal_quantiles_of_the_paper():
    """Of 2^k + 1 quantiles: 8 of one half and 9 of the other, with one zero between them, scaled to 1 (QLoRA, §3)."""
    ppf = jax.scipy.special.ndtri
    last = 0.5 * ((1 - 1 / (2 * 15)) + (1 - 1 / (2 * 16)))  # where 1 would be at infinity
    up, down = jnp.linspace(0.5, last, 9), jnp.linspace(0.5, last, 8)
    want = np.concatenate([-ppf(down[::-1])[:-1], ppf(up)]) / ppf(last)
    np.testing.assert_allclose(LEVELS, want, atol=1e-6)
    assert (len(LEVELS), LEVELS[0], LEVELS[7], LEVELS[15]) == (16, -1, 0, 1)


def test_nf4_serves_normal_values_better_than_even_steps_do():
    w = jax.random.normal(jax.random.key(0), (256, 256))
    blocks = w.reshape(256, 4, 64)
    most = jnp.abs(blocks).max(axis=-1, keepdims=True)
    even = (jnp.round(blocks / most * 7) * most / 7).reshape(w.shape)
    error, usual = (float(jnp.mean((x - w) ** 2)) for x in (dequantise(quantise(w, "nf4")), even))
    assert error < 0.8 * usual


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("shape", [(3, 5, 128), (2, 44), (4, 172), (2, 2, 2, 6)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_value_is_further_off_than_half_a_step(kind, shape, dtype):
    w = jax.random.normal(jax.random.key(1), shape).astype(dtype)
    q = jax.jit(lambda w: quantise(w, kind))(w)
    size = block_size(shape[-1])
    assert q["scale"].shape == (*shape[:-1], shape[-1] // size)
    assert q["scale"].dtype == jnp.float32
    assert q["codes"].shape == (*shape[:-1], shape[-1] // (2 if kind == "nf4" else 1))
    error = jnp.abs(dequantise(q) - w.astype(jnp.float32)).reshape(*q["scale"].shape, size)
    half = 0.5 if kind == "int8" else max(b - a for a, b in itertools.pairwise(LEVELS)) / 2
    assert (error <= half * q["scale"][..., None] * (1 + 1e-5)).all()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_what_was_quantised_stays_as_it_is(kind):
    q = quantise(jax.random.normal(jax.random.key(2), (7, 128)), kind)
    again = quantise(dequantise(q), kind)
    np.testing.assert_array_equal(q["codes"], again["codes"])
    np.testing.assert_allclose(q["scale"], again["scale"], rtol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_an_outlier_harms_its_own_block_only_and_zeros_stay_zero(kind):
    w = jax.random.normal(jax.random.key(3), (1, 192)).at[0, 128:].set(0)
    before, after = (dequantise(quantise(x, kind)) for x in (w, w.at[0, 3].set(1e4)))
    np.testing.assert_array_equal(before[0, 64:], after[0, 64:])
    assert not after[0, 128:].any()
    assert not after[0, 4:64].any()  # all of it is small beside 10,000


def test_blocks_divide_rows():
    assert [block_size(n) for n in (13696, 5504, 128, 96, 44, 172, 16, 67)] == [64, 64, 64, 48, 44, 43, 16, 1]


def test_what_cannot_be_quantised_is_refused():
    with pytest.raises(ValueError, match="'int4' is unknown; known: int8, nf4"):
        quantise(jnp.ones((2, 4)), "int4")
    with pytest.raises(ValueError, match=r"\(2, 5\) has rows of odd width"):
        quantise(jnp.ones((2, 5)), "nf4")
