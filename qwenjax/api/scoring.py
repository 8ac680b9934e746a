"""Log-probabilities of given continuations, for many pairs at once: sorted by length, so that few shapes compile."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from qwenjax.model import transformer

TOKENS = 8192  # of a batch, padding included
LOGITS = 512  # positions whose logits exist at one time


def score(
    model: transformer.Transformer,
    params: dict,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    progress: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Summed log-probability, nats, of each continuation after its prompt: the pair (prompt, continuation) of ids.

    Padding rows of the vocabulary count in the normalisation, as in the training loss. The head is applied at the
    continuation's positions only. An empty continuation has 0.

    Raises:
      ValueError: an empty prompt, after which there is nothing to go by.
    """
    if empty := [i for i, (prompt, _) in enumerate(pairs) if not prompt]:
        raise ValueError(f"prompt {empty[0]} is empty: give it at least the token that texts begin with")
    sizes = [(_rounded(len(p) + len(c) - 1, 32), _rounded(len(c), 4)) for p, c in pairs]
    scores = [0.0] * len(pairs)
    for shape in sorted(set(sizes)):
        own = [i for i, size in enumerate(sizes) if size == shape]
        most = 1 << int(math.log2(max(1, TOKENS // shape[0])))
        for first in range(0, len(own), most):
            batch = own[first : first + most]
            rows = 1 << (len(batch) - 1).bit_length()
            ids, lengths, start, counts = _filled([pairs[i] for i in batch], rows, shape[0])
            got = _sums(params, ids, lengths, start, counts, model=model, width=shape[1])
            for i, value in zip(batch, np.asarray(got).tolist()):
                scores[i] = value
            progress(len(batch))
    return scores


def _rounded(length: int, least: int) -> int:
    """The length, or the next of few: eighths of powers of two, at least `least`."""
    length = max(length, least)
    step = max(least, (1 << length.bit_length()) // 8)
    return -(-length // step) * step


def _filled(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], rows: int, width: int) -> tuple[np.ndarray, ...]:
    """Ids [rows width + 1], padded; each row's length without its last token, where its continuation begins to be
    predicted, and of how many tokens it is."""
    ids = np.zeros((rows, width + 1), np.int32)
    lengths, start, counts = np.ones((3, rows), np.int32)
    start -= 1
    counts -= 1
    for row, (prompt, continuation) in enumerate(pairs):
        whole = [*prompt, *continuation]
        ids[row, : len(whole)] = whole
        lengths[row], start[row], counts[row] = max(len(whole) - 1, 1), len(prompt) - 1, len(continuation)
    return ids, lengths, start, counts


@functools.partial(jax.jit, static_argnames=("model", "width"))
def _sums(params, ids, lengths, start, counts, *, model, width):
    """[b] sums of log-probabilities over each row's `counts` targets from position `start` on, at most `width`."""
    inputs, targets = ids[:, :-1], ids[:, 1:]
    places = jnp.arange(inputs.shape[1])[None]
    positions = jnp.where(places < lengths[:, None], places, -1)
    hidden, _ = model.apply({"params": params}, inputs, positions, lengths=lengths)
    at = start[:, None] + jnp.arange(width)[None]
    real = jnp.arange(width)[None] < counts[:, None]
    at = jnp.minimum(at, inputs.shape[1] - 1)
    hidden = jnp.take_along_axis(hidden, at[..., None], axis=1)
    targets = jnp.take_along_axis(targets, at, axis=1)

    def one(xs):
        h, y = xs
        scores = transformer.logits(params, h)
        return jnp.take_along_axis(scores, y[:, None], axis=1)[:, 0] - jax.nn.logsumexp(scores, axis=-1)

    total = hidden.shape[0] * width
    size = min(LOGITS, total)
    pad = -total % size
    cut = [jnp.pad(x.reshape(total, *x.shape[2:]), [(0, pad)] + [(0, 0)] * (x.ndim - 2)) for x in (hidden, targets)]
    found = jax.lax.map(one, tuple(x.reshape(-1, size, *x.shape[1:]) for x in cut)).reshape(-1)[:total]
    return jnp.sum(jnp.where(real, found.reshape(real.shape), 0.0), axis=1)
