"""Prefill: prompts of any length into a model's cache, a chunk at a time.

Texts are padded on the right with position -1, to few widths, so that few shapes compile. Dynamic NTK uses each text's
own length. Axes: r rows, d embed, k key/value heads, s slots, h head width.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from qwenjax.model import cache as caches
from qwenjax.model import transformer

CHUNK = 512  # positions read at a time


def bucket(n: int, least: int) -> int:
    """The smallest of least · 1, 1.5, 2, 3, 4, 6, … that is at least n."""
    power = least
    while 2 * power < n:
        power *= 2
    return next(size for size in (power, power * 3 // 2, 2 * power) if size >= n)


def batch_size(n: int) -> int:
    """Rows of the batch for n texts: the next power of two, so that few shapes compile."""
    return 1 << (n - 1).bit_length()


def prefill(
    model: transformer.Transformer, params: dict, texts: Sequence[Sequence[int]], kv_cache: str = "plain"
) -> tuple[jax.Array, tuple[caches.Cache, ...]]:
    """Hidden states [r d] of each text's last token, and each layer's cache [r k s h] of all tokens.

    Args:
      model, params: from `transformer.prepare`.
      texts: ids, at least one each; r = batch_size(len(texts)).
      kv_cache: one of cache.KINDS.
    """
    longest = max(map(len, texts))
    width = bucket(longest, 16) if longest <= CHUNK else -(-longest // CHUNK) * CHUNK
    ids, positions, lengths = padded(texts, batch_size(len(texts)), width)
    cache = _empty(model, len(ids), bucket(ids.shape[1], 16), kv_cache)
    last = jnp.zeros((len(ids), model.cfg.embed), jnp.dtype(model.compute.dtype))
    for start in range(0, ids.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        last, cache = _prefill_chunk(params, cache, last, ids[:, part], positions[:, part], lengths, model=model)
    return last, cache


def padded(texts: Sequence[Sequence[int]], rows: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts in the first of `rows` rows, padded on the right: ids and positions [rows width], lengths [rows]."""
    ids, positions = np.zeros((2, rows, width), np.int32)
    positions -= 1
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        positions[row, : len(text)] = range(len(text))
    return ids, positions, positions.max(axis=1) + 1


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _empty(model, batch, length, kind):
    dtype = jnp.dtype(model.compute.dtype)
    return tuple(caches.empty(model.cfg, batch, length, dtype, kind) for _ in range(model.cfg.layers))


@functools.partial(jax.jit, static_argnames="model", donate_argnums=(1, 2))
def _prefill_chunk(params, cache, last, ids, positions, lengths, *, model):
    """Reads one chunk, and puts the hidden states of the texts that end in it into `last` [r d]."""
    hidden, cache = model.apply({"params": params}, ids, positions, None, cache, lengths)
    ends = (positions == lengths[:, None] - 1) & (positions >= 0)
    here = jnp.take_along_axis(hidden, jnp.argmax(ends, axis=1)[:, None, None], axis=1)[:, 0]
    return jnp.where(ends.any(axis=1)[:, None], here, last), cache
