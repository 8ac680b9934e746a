"""Ways to choose the next token, as values (`Greedy`, `Sample`) and as arithmetic on logits; pure.

Every row may be sampled in its own way: the ways become arrays, so that a new mix compiles nothing. Order of the steps,
as in transformers: repetition penalty, no_repeat_ngram, min_new_tokens, temperature, top_k, top_p, min_p. Axes: b rows
of the batch, v vocab, t positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Greedy:
    """Always the most likely token."""

    repetition_penalty: float = 1.0  # positive logits of ids in the text are divided by it, negative multiplied
    min_new_tokens: int = 0  # nothing stops the text before so many
    no_repeat_ngram: int = 0  # no sequence of so many ids occurs twice; 0: off

    def __post_init__(self):
        _check_common(self)


@dataclass(frozen=True)
class Sample:
    """A token drawn from the model's distribution, after temperature and truncation; by default from all of it."""

    temperature: float = 1.0  # logits are divided by it
    top_k: int = 0  # only the k most likely; 0: all
    top_p: float = 1.0  # only the fewest most likely whose probabilities reach p, the one that crosses it included
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    no_repeat_ngram: int = 0
    min_p: float = 0.0  # only tokens whose probability is at least this share of the likeliest one's

    def __post_init__(self):
        if not (self.temperature > 0 and 0 < self.top_p <= 1 and self.top_k >= 0 and 0 <= self.min_p <= 1):
            raise ValueError(
                "wanted temperature > 0 (Greedy() is 0), 0 < top_p <= 1, top_k >= 0 and 0 <= min_p <= 1, got "
                f"temperature={self.temperature}, top_p={self.top_p}, top_k={self.top_k}, min_p={self.min_p}"
            )
        _check_common(self)


def _check_common(sampling):
    if not (sampling.repetition_penalty > 0 and sampling.min_new_tokens >= 0 and sampling.no_repeat_ngram >= 0):
        raise ValueError(
            "wanted repetition_penalty > 0, min_new_tokens >= 0 and no_repeat_ngram >= 0, got "
            f"repetition_penalty={sampling.repetition_penalty}, min_new_tokens={sampling.min_new_tokens}, "
            f"no_repeat_ngram={sampling.no_repeat_ngram}"
        )


class SamplingArrays(NamedTuple):
    """How each row of a batch is sampled, each [b]; temperature 0 is greedy."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    repetition_penalty: jax.Array
    min_new_tokens: jax.Array
    no_repeat_ngram: jax.Array
    min_p: jax.Array


def sampling_arrays(samplings: Sequence[Greedy | Sample]) -> SamplingArrays:
    """The values as arrays, in order."""
    greedy = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    rows = [{**greedy, **vars(sampling)} for sampling in samplings]
    dtypes = dict.fromkeys(("top_k", "min_new_tokens", "no_repeat_ngram"), np.int32)
    return SamplingArrays(*(np.array([r[x] for r in rows], dtypes.get(x, np.float32)) for x in SamplingArrays._fields))


class Needs(NamedTuple):
    """Which steps some row of a batch needs; a step that no row needs is not compiled."""

    draw: bool
    top_k: bool
    top_p: bool
    penalise: bool
    min_p: bool
    ngrams: bool


def needs(arrays: SamplingArrays) -> Needs:
    """The steps that these arrays, still on the host, ask for."""
    return Needs(
        draw=bool((arrays.temperature > 0).any()),
        top_k=bool((arrays.top_k > 0).any()),
        top_p=bool((arrays.top_p < 1).any()),
        penalise=bool((arrays.repetition_penalty != 1).any()),
        min_p=bool((arrays.min_p > 0).any()),
        ngrams=bool((arrays.no_repeat_ngram > 0).any()),
    )


class Picked(NamedTuple):
    """A token for each row, and how likely it was."""

    token: jax.Array  # [b] int32
    logprob: jax.Array  # [b] under the distribution it was drawn from; 0 when greedy
    model_logprob: jax.Array  # [b] under the model's own, over all rows of the vocabulary as in training


def pick(
    scores: jax.Array,
    keys: jax.Array,
    arrays: SamplingArrays,
    needs: Needs,
    *,
    size: int,
    count: jax.Array,
    seen: jax.Array | None = None,
    ending: jax.Array | None = None,
    banned: jax.Array | None = None,
    repeats: jax.Array | None = None,
) -> Picked:
    """Chooses the next token of every row.

    Args:
      scores: [b v] float32 logits.
      keys: [b] random keys, fresh for every token.
      size: ids at or above it (padding rows of the vocabulary have no text) are never chosen.
      count: [b] tokens made before this one, for min_new_tokens.
      seen: [b v] bool, ids already in the text; only for the repetition penalty.
      ending: [v] bool, ids that would stop the text.
      banned: [v] bool, ids that are never chosen. repeats: [b v] bool, ids that would repeat an n-gram.
    """
    raw = scores
    if needs.penalise:
        penalty = arrays.repetition_penalty[:, None]
        scores = jnp.where(seen, jnp.where(scores > 0, scores / penalty, scores * penalty), scores)
    excluded = jnp.arange(scores.shape[-1]) >= size
    if ending is not None:
        excluded |= ending & (count < arrays.min_new_tokens)[:, None]
    for never in (banned, repeats):
        excluded = excluded if never is None else excluded | never
    scores = jnp.where(excluded, -jnp.inf, scores)
    logprob = jnp.zeros(len(scores), jnp.float32)
    if needs.draw:
        greedy = arrays.temperature == 0
        drawn = scores / jnp.where(greedy, 1.0, arrays.temperature)[:, None]
        drawn = truncate(drawn, arrays.top_k if needs.top_k else None, arrays.top_p if needs.top_p else None)
        if needs.min_p:
            least = jnp.max(drawn, axis=-1, keepdims=True) + jnp.log(arrays.min_p)[:, None]
            drawn = jnp.where(drawn >= least, drawn, -jnp.inf)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[1:]))(keys)
        scores = jnp.where(greedy[:, None], scores, drawn + noise)
        token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        logprob = jnp.where(greedy, 0.0, _at(jax.nn.log_softmax(drawn), token))
    else:
        token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return Picked(token, logprob, _at(raw, token) - jax.nn.logsumexp(raw, axis=-1))


def repeated(history: jax.Array, length: jax.Array, n: jax.Array, vocab: int) -> jax.Array:
    """[b v] bool: ids that would make an n-gram that is in the text already.

    Args:
      history: [b t] ids of the text; length: [b] of them; n: [b], 0 is off.
    """

    def row(ids, length, n):
        places = jnp.arange(len(ids))

        def same(k, matched):  # whether the k-th id before a place is the k-th last one of the text
            before = jnp.where(places >= k, ids[places - k], -1)
            return matched & ((k >= n) | (before == ids[length - k]))

        matched = jax.lax.fori_loop(1, jnp.maximum(n, 1), same, (places < length) & (places >= n - 1) & (n > 0))
        return jnp.zeros(vocab, bool).at[jnp.where(matched, ids, vocab)].set(True, mode="drop")

    return jax.vmap(row)(history, length, n)


def _at(values, token):
    return jnp.take_along_axis(values, token[:, None], axis=-1)[:, 0]


def truncate(logits: jax.Array, top_k: jax.Array | None, top_p: jax.Array | None) -> jax.Array:
    """Logits [b v], with -inf outside the top k, and then outside the nucleus (top p) of the rest.

    The token that crosses p stays, as in the released helper. Equal logits stay or go together. None: not truncated.
    """
    order, rows = _ordered(logits), len(logits)
    if top_k is not None:
        k = jnp.where(top_k > 0, top_k, logits.shape[-1])[:, None]
        least = _greatest(lambda t: jnp.sum(order >= t, axis=-1, keepdims=True) >= k, rows)
        logits = jnp.where(order >= least, logits, -jnp.inf)
    if top_p is not None:
        probs, p = jax.nn.softmax(logits, axis=-1), top_p[:, None]
        reached = _greatest(lambda t: jnp.sum(jnp.where(order >= t, probs, 0), axis=-1, keepdims=True) >= p, rows)
        logits = jnp.where((order >= reached) | (p == 1), logits, -jnp.inf)
    return logits


def _ordered(x):
    """float32 -> uint32 in the same order."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)  # one zero, not two
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _greatest(enough, rows):
    """[rows 1] uint32: the greatest threshold with `enough` above it, found bit by bit.

    32 sums over 152k entries are quicker than sorting them.
    """

    def bit(i, threshold):
        higher = threshold | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(enough(higher), higher, threshold)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros((rows, 1), jnp.uint32))
