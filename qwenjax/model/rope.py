"""Rotary position embedding (report §2.3.1): half-rotation, inverse frequencies in float32.

The report keeps the frequency table in FP32 for accuracy; here the angles, their sines and the rotation itself are
float32 whatever the activations' dtype, as in the released code (spec §3.2).
"""

import jax
import jax.numpy as jnp
import numpy as np


def inverse_frequencies(head_dim: int, base: float) -> jax.Array:
    """[h/2] float32: base^(-2i/h)."""
    return 1.0 / (base ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim))


def tables(positions: jax.Array, head_dim: int, base: float) -> tuple[jax.Array, jax.Array]:
    """[b t] int32 -> cosines and sines [b t 1 h/2], float32, of every position's angles."""
    angles = positions[..., None, None].astype(jnp.float32) * inverse_frequencies(head_dim, base)
    return jnp.cos(angles), jnp.sin(angles)


@jax.custom_vjp
def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """[b t n h] turned by its positions: x·cos + concat(-x2, x1)·sin, where x1 and x2 are the halves of the head.

    Both ways below give the same bits. The gradient is the turn back; positions have none.
    """
    return jax.lax.platform_dependent(x, cos, sin, tpu=_by_permutation, default=_by_halves)


rotate.defvjp(lambda x, cos, sin: (rotate(x, cos, sin), (cos, sin)), lambda t, g: (rotate(g, t[0], -t[1]), None, None))


def _by_halves(x, cos, sin):
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


def _by_permutation(x, cos, sin):
    """The halves changed by a product with a matrix of 0 and ±1, which is exact.

    Halves of a head are 64 of a TPU's 128 lanes: cutting and joining them takes three passes over memory, the product
    one. Worth 4 % of a 14B step on v5e (compiler estimate).
    """
    half = x.shape[-1] // 2
    eye = np.eye(half, dtype=np.float32)
    swap = np.block([[np.zeros_like(eye), eye], [-eye, np.zeros_like(eye)]])
    turned = jnp.einsum("btnh,hg->btng", x, swap.astype(x.dtype), precision=jax.lax.Precision.HIGHEST)
    cos, sin = (jnp.concatenate([part, part], axis=-1) for part in (cos, sin))
    return (x.astype(jnp.float32) * cos + turned.astype(jnp.float32) * sin).astype(x.dtype)
