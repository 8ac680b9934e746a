"""Log-probabilities that a model gives to texts, of any length, in bounded memory.

A text is read in pieces through the key/value cache: position p of a piece sees what it would see in one forward pass
over the whole text, because rotary angles, NTK and LogN go by positions and by the text's own length. So
attention scores take [heads x piece x length] and logits [piece x vocabulary], not the squares.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qwenjax.generate.prefill import bucket
from qwenjax.model import transformer

PIECE = 512  # tokens of a call, as many as make products quick; short texts share them
SCORES = 1 << 30  # bytes of attention scores of a call, at most


class Likelihood(NamedTuple):
    """Of one text of n tokens; entry i is about token i + 1, given tokens 0 … i."""

    logprobs: np.ndarray  # [n - 1] float32, nats
    greedy: np.ndarray  # [n - 1] bool: it was the most likely token of all


def likelihoods(
    network: transformer.Transformer,
    params: dict,
    texts: Sequence[Sequence[int]],
    size: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> list[Likelihood]:
    """Reads texts of ids, the short ones side by side; each counts as if it were alone, all context options on.

    Args:
      size: ids from it on, padding rows of the embedding, have no probability.
      progress: told how many tokens were read.
    Raises:
      ValueError: a text without tokens, or with ids that the tokenizer does not have.
    """
    for text in texts:
        if not len(text) or min(text) < 0 or max(text) >= size:
            raise ValueError(f"wanted texts of at least one token, with ids 0 to {size - 1}; got {list(text[:8])}")
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    found: dict[int, Likelihood] = {}
    while order:
        piece = _piece(network.cfg.heads, len(texts[order[0]]))
        rows = PIECE // piece if len(texts[order[0]]) <= piece else 1
        group, order = order[:rows], order[rows:]
        found.update(zip(group, _read(network, params, [texts[i] for i in group], rows, piece, size, progress)))
    return [found[i] for i in range(len(texts))]


def _piece(heads: int, length: int) -> int:
    """Tokens per row and call for texts up to `length`: a power of two, as all shapes here, so that few compile."""
    room = _power(length)
    most = max(16, SCORES // (4 * heads * room))
    return min(room, PIECE, 1 << (most.bit_length() - 1))


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _read(network, params, texts, rows, piece, size, progress) -> list[Likelihood]:
    """Texts side by side in `rows` rows, piece by piece; the cache grows as they go on."""
    lengths = np.zeros(rows, np.int32)
    lengths[: len(texts)] = [len(text) for text in texts]
    width = -(-max(lengths) // piece) * piece
    tokens, positions = np.zeros((rows, width + 1), np.int32), np.full((rows, width), -1, np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
        positions[row, : len(text)] = range(len(text))
    cache = transformer.empty_cache(network.cfg, rows, piece, jnp.dtype(network.compute.dtype))
    room, logprobs, greedy = piece, [], []
    for start in range(0, width, piece):
        if start + piece > room:
            room = bucket(start + piece, piece)
            cache = _grown(cache, room)
        at = slice(start, start + piece)
        cache, *scored = _call(
            params,
            cache,
            tokens[:, at],
            tokens[:, start + 1 : start + piece + 1],
            positions[:, at],
            lengths,
            network=network,
            size=size,
        )
        for kept, new in zip((logprobs, greedy), scored):
            kept.append(np.asarray(new))
        progress(int((positions[:, at] >= 0).sum()))
    logprobs, greedy = np.concatenate(logprobs, axis=1), np.concatenate(greedy, axis=1)
    return [Likelihood(logprobs[row, : len(text) - 1], greedy[row, : len(text) - 1]) for row, text in enumerate(texts)]


@functools.partial(jax.jit, static_argnums=1)
def _grown(cache, room):
    """The cache with `room` positions, which are its last axis but one."""

    def grow(x):
        return jnp.pad(x, [(0, room - n if axis == x.ndim - 2 else 0) for axis, n in enumerate(x.shape)])

    return jax.tree.map(grow, cache)


@functools.partial(jax.jit, static_argnames=("network", "size"), donate_argnames="cache")
def _call(params, cache, tokens, targets, positions, lengths, *, network, size):
    """[r c] tokens, and what follows each -> the cache; of what follows: log-probabilities [r c], and if likeliest."""
    hidden, cache = network.apply({"params": params}, tokens, positions, None, cache, lengths)
    scores = transformer.logits(params, hidden)
    scores = jnp.where(jnp.arange(scores.shape[-1]) < size, scores, -jnp.inf)
    of = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    return cache, of - jax.nn.logsumexp(scores, axis=-1), jnp.argmax(scores, axis=-1) == targets
