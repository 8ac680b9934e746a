"""Reading text into a model, a chunk at a time: for decoding, and to score texts of any length.

Texts are padded on the right with position -1, to few widths, so that few shapes compile. Each goes by its own length
(`lengths`), so that it is read alike alone and in a batch. Memory grows with the chunk, not with the text's square.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from qwenjax.model import cache as caches
from qwenjax.model import transformer

CHUNK = 512  # positions read at a time
SCORED = 32  # positions of each row whose logits exist at one time


def bucket(n: int, least: int) -> int:
    """The smallest of least · 1, 1.5, 2, 3, 4, 6, … that holds n."""
    power = least
    while 2 * power < n:
        power *= 2
    return next(size for size in (power, power * 3 // 2, 2 * power) if size >= n)


def batch_size(n: int) -> int:
    """Rows in which n texts are computed: the next power of two."""
    return 1 << (n - 1).bit_length()


def read(
    model: transformer.Transformer, params: dict, texts: Sequence[Sequence[int]], kind: str = "plain"
) -> tuple[jax.Array, tuple[caches.Cache, ...]]:
    """Hidden states of each text's last token, and the cache of all tokens.

    Args:
      model, params: from `transformer.prepare`.
      texts: ids, at least one each. kind: of cache, one of cache.KINDS.
    Returns: [r d] and each layer's cache [r k s h], r = batch_size(len(texts)), s at least the longest text.
    """
    ids, positions, lengths = _padded(texts)
    cache = _empty(model, len(ids), bucket(ids.shape[1], 16), kind)
    last = jnp.zeros((len(ids), model.cfg.embed), jnp.dtype(model.compute.dtype))
    for part in _parts(ids.shape[1]):
        last, cache = _read(params, cache, last, ids[:, part], positions[:, part], lengths, model=model)
    return last, cache


def log_probs(model: transformer.Transformer, params: dict, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Log-probability of every token but the first of each text, given those before it, with all context options.

    As training has it: over all rows of the vocabulary. Every position counts as in one whole forward pass.

    Args:
      model, params: as for `read`.
    """
    ids, positions, lengths = _padded(texts)
    targets = np.zeros_like(ids)
    targets[:, :-1] = ids[:, 1:]
    cache = _empty(model, len(ids), bucket(ids.shape[1], 16), "plain")
    out = []
    for part in _parts(ids.shape[1]):
        args = ids[:, part], positions[:, part], targets[:, part], lengths
        scored, cache = _score(params, cache, *args, model=model)
        out.append(scored)
    out = np.concatenate([np.asarray(scored) for scored in out], axis=1)
    return [row[: len(text) - 1] for row, text in zip(out, texts)]


def _padded(texts):
    """ids, positions [r w] and lengths [r]; w is a bucket, or a multiple of CHUNK."""
    longest = max(map(len, texts))
    width = bucket(longest, 16) if longest <= CHUNK else -(-longest // CHUNK) * CHUNK
    ids, positions = np.zeros((2, batch_size(len(texts)), width), np.int32)
    positions -= 1
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        positions[row, : len(text)] = range(len(text))
    return ids, positions, positions.max(axis=1) + 1


def _parts(width):
    return [slice(start, start + CHUNK) for start in range(0, width, CHUNK)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _empty(model, batch, length, kind):
    dtype = jnp.dtype(model.compute.dtype)
    return tuple(caches.empty(model.cfg, batch, length, dtype, kind) for _ in range(model.cfg.layers))


@functools.partial(jax.jit, static_argnames="model", donate_argnums=(1, 2))
def _read(params, cache, last, ids, positions, lengths, *, model):
    """One chunk: `last` [r d] takes the hidden states of the texts that end in it."""
    hidden, cache = model.apply({"params": params}, ids, positions, None, cache, lengths)
    ends = (positions == lengths[:, None] - 1) & (positions >= 0)
    here = jnp.take_along_axis(hidden, jnp.argmax(ends, axis=1)[:, None, None], axis=1)[:, 0]
    return jnp.where(ends.any(axis=1)[:, None], here, last), cache


@functools.partial(jax.jit, static_argnames="model", donate_argnums=1)
def _score(params, cache, ids, positions, targets, lengths, *, model):
    """One chunk: [r t] log-probabilities of the targets."""
    hidden, cache = model.apply({"params": params}, ids, positions, None, cache, lengths)

    def some(block):
        scores = transformer.logits(params, block[0])
        chosen = jnp.take_along_axis(scores, block[1][..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(scores, axis=-1)

    rows, width = ids.shape
    blocks = -(-width // SCORED)
    fill = blocks * SCORED - width
    hidden = jnp.pad(hidden, ((0, 0), (0, fill), (0, 0))).reshape(rows, blocks, SCORED, -1).swapaxes(0, 1)
    targets = jnp.pad(targets, ((0, 0), (0, fill))).reshape(rows, blocks, SCORED).swapaxes(0, 1)
    out = jax.lax.map(some, (hidden, targets)).swapaxes(0, 1).reshape(rows, -1)[:, :width]
    return out, cache
