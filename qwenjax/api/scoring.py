"""Log-probabilities that a model gives to texts, many at a time, in bounded memory.

`score` sums over continuations of prompts: each batch is one forward pass. `likelihoods` reads texts of any length in
pieces through the key/value cache: attention scores take [heads x piece x length], logits [piece x vocabulary].
Axes: b texts, t positions, d embed, v vocabulary.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qwenjax.generate.prefill import batch_size, bucket, padded
from qwenjax.model import transformer

TOKENS = 8192  # of a batch of `score` and of reward models, padding included
LOGITS = 512  # positions whose logits exist at one time
PIECE = 512  # tokens of a call of `likelihoods`: enough for fast products; short texts share them
SCORES = 1 << 30  # bytes of attention scores of a call, at most


class Likelihood(NamedTuple):
    """Of one text of n tokens; entry i is about token i + 1, given tokens 0 … i."""

    logprobs: np.ndarray  # [n - 1] float32, nats
    greedy: np.ndarray  # [n - 1] bool: it was the most likely token


def batches(shapes: Sequence[tuple[int, ...]], tokens: int) -> Iterator[tuple[tuple[int, ...], list[int], int]]:
    """Texts of one padded shape together, so that few programs compile: (shape, which texts, rows of the batch).

    `shapes` begin with the padded length. A batch has at most `tokens`, padding included, or one longer text.
    """
    for shape in sorted(set(shapes), reverse=True):
        same = [i for i, other in enumerate(shapes) if other == shape]
        most = 1 << (max(1, tokens // shape[0]).bit_length() - 1)
        for first in range(0, len(same), most):
            group = same[first : first + most]
            yield shape, group, batch_size(len(group))


# ---- continuations of prompts ----


def score(
    model: transformer.Transformer, params: dict, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[float]:
    """Summed log-probability, nats, of each continuation after its prompt; both are ids.

    Padding rows of the vocabulary count in the normalisation, as in the training loss. An empty continuation has 0.
    Raises ValueError for an empty prompt.
    """
    if empty := [i for i, (prompt, _) in enumerate(pairs) if not len(prompt)]:
        raise ValueError(f"prompt {empty[0]} is empty: give it at least the token that texts begin with")
    shapes = [(bucket(len(p) + len(c) - 1, 32), bucket(len(c), 4)) for p, c in pairs]
    scores = [0.0] * len(pairs)
    for (width, longest), group, rows in batches(shapes, TOKENS):
        tokens, positions, lengths = padded([[*pairs[i][0], *pairs[i][1]][:-1] for i in group], rows, width)
        inputs = tokens, positions, lengths + 1  # the whole text gives dynamic NTK its base, as in `likelihoods`
        targets, counted, _ = padded([pairs[i][1] for i in group], rows, longest)
        start = np.zeros(rows, np.int32)
        start[: len(group)] = [len(pairs[i][0]) - 1 for i in group]
        sums = _sums(params, *inputs, targets, counted >= 0, start, model=model)
        for i, value in zip(group, np.asarray(sums).tolist()):
            scores[i] = value
    return scores


@functools.partial(jax.jit, static_argnames="model")
def _sums(params, ids, positions, lengths, targets, counted, start, *, model):
    """Sums [b] of log-probabilities of `targets` [b c] where `counted`, predicted from position `start` on."""
    hidden, _ = model.apply({"params": params}, ids, positions, lengths=lengths)
    at = jnp.minimum(start[:, None] + jnp.arange(targets.shape[1]), ids.shape[1] - 1)
    hidden = jnp.take_along_axis(hidden, at[..., None], axis=1)

    def one(xs):
        h, y = xs
        scores = transformer.logits(params, h)
        return jnp.take_along_axis(scores, y[:, None], axis=1)[:, 0] - jax.nn.logsumexp(scores, axis=-1)

    total = targets.size
    size = min(LOGITS, total)
    flat = [x.reshape(total, *x.shape[2:]) for x in (hidden, targets)]
    parts = [jnp.pad(x, [(0, -total % size)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, size, *x.shape[1:]) for x in flat]
    logprobs = jax.lax.map(one, tuple(parts)).reshape(-1)[:total]
    return jnp.sum(jnp.where(counted, logprobs.reshape(targets.shape), 0.0), axis=1)


# ---- every token of long texts ----


def likelihoods(
    network: transformer.Transformer,
    params: dict,
    texts: Sequence[Sequence[int]],
    size: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> list[Likelihood]:
    """Log-probability of every token, short texts side by side; neighbours change nothing.

    Args:
      size: ids from it on, padding rows of the embedding, have no probability.
      progress: told how many tokens were read.
    Raises:
      ValueError: a text without tokens, or with ids that the tokenizer does not have.
    """
    for text in texts:
        if not len(text) or min(text) < 0 or max(text) >= size:
            raise ValueError(f"wanted texts of at least one token, with ids 0 to {size - 1}; got {list(text[:8])}")
    pieces = [_piece(network.cfg.heads, len(text)) for text in texts]
    shapes = [(-(-len(text) // piece) * piece, piece) for text, piece in zip(texts, pieces)]
    out: dict[int, Likelihood] = {}
    for (width, piece), group, rows in batches(shapes, PIECE):
        side_by_side = padded([texts[i] for i in group], rows, width)
        logprobs, greedy = _read(network, params, side_by_side, piece, size, progress)
        for row, i in enumerate(group):
            last = len(texts[i]) - 1
            out[i] = Likelihood(logprobs[row, :last], greedy[row, :last])
    return [out[i] for i in range(len(texts))]


def _piece(heads: int, length: int) -> int:
    """Tokens per text and call for texts up to `length`."""
    longest = bucket(length, 16)
    most = max(16, SCORES // (4 * heads * longest))
    return min(longest, PIECE, 1 << (most.bit_length() - 1))


def _read(network, params, padded_texts, piece, size, progress) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and whether greedy [b t], piece by piece; the cache grows as the texts go on."""
    tokens, positions, lengths = padded_texts
    targets = np.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    cache = transformer.empty_cache(network.cfg, len(tokens), piece, jnp.dtype(network.compute.dtype))
    capacity, out = piece, []
    for start in range(0, tokens.shape[1], piece):
        if start + piece > capacity:
            capacity = bucket(start + piece, piece)
            cache = _grown(cache, capacity)
        part = (slice(None), slice(start, start + piece))
        cache, *scored = _call(
            params, cache, tokens[part], targets[part], positions[part], lengths, network=network, size=size
        )
        out.append([np.asarray(x) for x in scored])
        progress(int((positions[part] >= 0).sum()))
    return tuple(np.concatenate(x, axis=1) for x in zip(*out))


@functools.partial(jax.jit, static_argnums=1)
def _grown(cache, capacity):
    """The cache with `capacity` positions, which are its last axis but one."""

    def grow(x):
        return jnp.pad(x, [(0, capacity - n if axis == x.ndim - 2 else 0) for axis, n in enumerate(x.shape)])

    return jax.tree.map(grow, cache)


@functools.partial(jax.jit, static_argnames=("network", "size"), donate_argnames="cache")
def _call(params, cache, tokens, targets, positions, lengths, *, network, size):
    """One piece [b t] and its targets -> cache, log-probabilities of the targets, whether they are the likeliest."""
    hidden, cache = network.apply({"params": params}, tokens, positions, None, cache, lengths)
    scores = transformer.logits(params, hidden)
    scores = jnp.where(jnp.arange(scores.shape[-1]) < size, scores, -jnp.inf)
    of = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    return cache, of - jax.nn.logsumexp(scores, axis=-1), jnp.argmax(scores, axis=-1) == targets
