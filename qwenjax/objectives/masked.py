"""Masked sums, means and variances, which every alignment objective uses.

A mask is bool and has the shape of what it masks. What lies outside may be anything, NaN included: it affects neither a
result nor a gradient.
"""

import jax
import jax.numpy as jnp

Weighted = tuple[jax.Array, jax.Array]  # (sum, weight): divided once, over the whole batch


def zero_outside(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x in float32, 0 outside the mask; used before arithmetic whose derivative may be infinite there."""
    return jnp.where(mask, jnp.asarray(x, jnp.float32), 0)


def masked_sum(x: jax.Array, mask: jax.Array) -> Weighted:
    """(sum of x, number of entries) inside the mask, float32 scalars: the form of every loss and metric here."""
    return jnp.sum(zero_outside(x, mask)), jnp.sum(mask, dtype=jnp.float32)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean inside the mask; 0 if the mask is empty."""
    total, count = masked_sum(x, mask)
    return total / jnp.maximum(count, 1)


def masked_variance(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Unbiased variance (over n - 1) inside the mask; 0 for fewer than two entries.

    In two passes: E[x²] - E[x]² in float32 would lose a small variance beside a large mean.
    """
    squares, count = masked_sum(zero_outside(x - masked_mean(x, mask), mask) ** 2, mask)
    return squares / jnp.maximum(count - 1, 1)


def whiten(x: jax.Array, mask: jax.Array) -> jax.Array:
    """(x - mean) / std inside the mask; 0 outside. Of a whole batch: alone, each response would be average.

    The variance is over n - 1, plus 1e-8 as in the code of Ziegler et al. 2019 (arXiv 1909.08593), which divides by n.
    """
    mean = masked_mean(x, mask)
    return zero_outside((x - mean) * jax.lax.rsqrt(masked_variance(x, mask) + 1e-8), mask)


def explained_variance(values: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
    """1 - Var(R - V) / Var(R) inside the mask: 1 for a perfect value model; 0 if the returns are constant."""
    spread = masked_variance(returns, mask)
    ratio = masked_variance(returns - values, mask) / jnp.where(spread > 0, spread, 1)
    return jnp.where(spread > 0, 1 - ratio, 0)


def is_last(mask: jax.Array) -> jax.Array:
    """[t] -> [t] bool: True at the last unmasked position only, wherever the padding is; nowhere if there is none."""
    return mask & (jnp.cumsum(mask[::-1])[::-1] == 1)
