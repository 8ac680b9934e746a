"""The KV cache: keys and values of earlier positions, plain or in 8 bits. Slot = position, heads before slots.

Heads come first, so that a decode step reads each head's keys from contiguous memory. Slots behind a row's last
position may hold anything: causality hides them until they are overwritten.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qwenjax.config import ModelConfig
from qwenjax.sharding import constrain

KINDS = ("plain", "int8", "int8_released")


class Int8(NamedTuple):
    """x ~ scale · (q - zero), one scale and zero per head and position."""

    q: jax.Array  # [b k s h] uint8
    scale: jax.Array  # [b k s 1] float32
    zero: jax.Array  # [b k s 1] float32


class ReleasedInt8(NamedTuple):
    """The same as the released code does it: all positions of one call share a scale, values are not rounded.

    Errors are larger, and depend on how a text is split into calls (docs/report.md, Int8 cache).
    """

    q: jax.Array
    scale: jax.Array
    zero: jax.Array


class Cache(NamedTuple):
    """The cache of one layer; or of all layers, with a leading axis `layers`."""

    k: jax.Array | Int8 | ReleasedInt8  # [b k s h], rotary applied
    v: jax.Array | Int8 | ReleasedInt8


def empty(cfg: ModelConfig, batch: int, length: int, dtype: jnp.dtype, kind: str = "plain") -> Cache:
    """One layer's cache for `length` positions of `batch` sequences; `dtype` of a plain one, `kind` of KINDS."""
    if kind not in KINDS:
        raise ValueError(f"no kind of cache {kind!r}; known: {', '.join(KINDS)}")
    shape = (batch, cfg.kv, length, cfg.head_size)

    def part():
        if kind == "plain":
            return _sharded(jnp.zeros(shape, dtype))
        scale = jnp.zeros((*shape[:-1], 1), jnp.float32)
        parts = (_sharded(x) for x in (jnp.zeros(shape, jnp.uint8), scale, scale))
        return (Int8 if kind == "int8" else ReleasedInt8)(*parts)

    return Cache(part(), part())


def write(cache: Cache, k: jax.Array, v: jax.Array, positions: jax.Array) -> Cache:
    """The cache with new entries [b t k h] at their positions [b t]; padding (-1) is dropped."""

    def put(old, new):
        slots = jnp.where(positions < 0, old.shape[2], positions)  # out of range, so mode="drop" skips it
        # vmap shows the partitioner that a row writes only into itself; with an index it would gather all rows
        row = jax.vmap(lambda old, new, slots: old.at[:, slots].set(new, mode="drop"))
        return _sharded(row(old, new.swapaxes(1, 2).astype(old.dtype), slots))

    def quantised(old, new):
        if isinstance(old, Int8):
            return Int8(*_quantise(new, jnp.min(new, -1, keepdims=True), jnp.max(new, -1, keepdims=True), 0.5))
        if isinstance(old, ReleasedInt8):
            real = (positions >= 0)[..., None, None]
            low = jnp.min(jnp.where(real, new, jnp.inf), axis=(1, 3), keepdims=True)
            high = jnp.max(jnp.where(real, new, -jnp.inf), axis=(1, 3), keepdims=True)
            return ReleasedInt8(*_quantise(new, low, high, 0.0))
        return new

    return jax.tree.map(put, cache, Cache(quantised(cache.k, k), quantised(cache.v, v)))


def insert(cache: tuple[Cache, ...], other: tuple[Cache, ...], rows: jax.Array) -> tuple[Cache, ...]:
    """Caches by layer with `rows` [r] taken from the other, of any number of slots; rows beyond the end: none."""

    def put(old, new):
        new = new[:, :, : old.shape[2]]  # what is cut off is padding
        return _sharded(old.at[rows, :, : new.shape[2]].set(new, mode="drop"))

    return jax.tree.map(put, cache, other)


def _sharded(x):
    return constrain(x, "batch", "kv_heads", None, None)


def _quantise(x, low, high, rounding):
    """[b t k h] and bounds that broadcast to it -> uint8 values, and per position [b t k 1] scale and zero."""
    x, low, high = (a.astype(jnp.float32) for a in (x, low, high))
    scale = jnp.maximum((high - low) / 255, 1e-12)  # a constant is its own zero point
    zero = -low / scale
    shape = (*x.shape[:-1], 1)
    q = jnp.clip(x / scale + zero + rounding, 0, 255).astype(jnp.uint8)
    return q, jnp.broadcast_to(scale, shape), jnp.broadcast_to(zero, shape)


def read(cache: Cache, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """All keys and values [b s k h]."""

    def values(part):
        if not isinstance(part, jax.Array):
            part = part.scale * (part.q.astype(jnp.float32) - part.zero)
        return part.astype(dtype).swapaxes(1, 2)

    return values(cache.k), values(cache.v)
