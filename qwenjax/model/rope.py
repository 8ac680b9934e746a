"""Rotary position embedding (report §2.3.1): half-rotation, inverse frequencies in float32.

The report keeps the frequency table in FP32 for accuracy; here the angles, their sines and the rotation itself are
float32 whatever the activations' dtype, as in the released code (spec §3.2).
"""

import jax
import jax.numpy as jnp


def inverse_frequencies(head_dim: int, base: float) -> jax.Array:
    """[h/2] float32: base^(-2i/h)."""
    return 1.0 / (base ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim))


def tables(positions: jax.Array, head_dim: int, base: float) -> tuple[jax.Array, jax.Array]:
    """[b t] int32 -> cosines and sines [b t 1 h/2], float32, of every position's angles."""
    angles = positions[..., None, None].astype(jnp.float32) * inverse_frequencies(head_dim, base)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """[b t n h] turned by its positions: x·cos + concat(-x2, x1)·sin, where x1 and x2 are the halves of the head."""
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)
