"""Sampling policies as values, and the arithmetic on scores that they stand for: pure, one row per sequence.

A batch may mix policies: they become arrays (`Rules`), so that mixing compiles nothing anew. Order of the steps, as in
the library the releases were run with: repetition penalty, min_new, temperature, top_k, top_p.
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

    repetition_penalty: float = 1.0  # scores of ids already in the text: positive ones divided, negative multiplied
    min_new: int = 0  # tokens before which nothing may stop the text

    def __post_init__(self):
        _check_common(self)


@dataclass(frozen=True)
class Sample:
    """Drawn from the model's distribution, sharpened and cut; the defaults leave it as it is.

    The released chat models sample with top_p=0.8 and repetition_penalty=1.1, base models with top_p=0.8 (spec §6.4).
    """

    temperature: float = 1.0  # scores are divided by it
    top_k: int = 0  # only the k most likely; 0: all
    top_p: float = 1.0  # only the fewest most likely whose probabilities reach p, the one that crosses it included
    repetition_penalty: float = 1.0
    min_new: int = 0

    def __post_init__(self):
        if not (self.temperature > 0 and 0 < self.top_p <= 1 and self.top_k >= 0):
            raise ValueError(
                f"wanted temperature > 0, 0 < top_p <= 1 and top_k >= 0, got {self}; use Greedy() for temperature 0"
            )
        _check_common(self)


def _check_common(policy):
    if not (policy.repetition_penalty > 0 and policy.min_new >= 0):
        raise ValueError(f"wanted repetition_penalty > 0 and min_new >= 0, got {policy}")


class Rules(NamedTuple):
    """The policies of a batch, each [b]; temperature 0 is greedy."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    repetition_penalty: jax.Array
    min_new: jax.Array


def rules(policies: Sequence[Greedy | Sample]) -> Rules:
    """Arrays of the policies, in order."""
    greedy = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
    rows = [{**greedy, **vars(policy)} for policy in policies]
    return Rules(*(np.array([row[name] for row in rows], _dtype(name)) for name in Rules._fields))


def _dtype(name):
    return np.int32 if name in ("top_k", "min_new") else np.float32


class Needs(NamedTuple):
    """Which steps any row of a batch needs; what none needs is not compiled in."""

    draw: bool
    top_k: bool
    top_p: bool
    penalise: bool


def needs(rules: Rules) -> Needs:
    """Of rules still on the host."""
    return Needs(
        draw=bool((rules.temperature > 0).any()),
        top_k=bool((rules.top_k > 0).any()),
        top_p=bool((rules.top_p < 1).any()),
        penalise=bool((rules.repetition_penalty != 1).any()),
    )


class Picked(NamedTuple):
    """A token for each row, and how likely it was."""

    token: jax.Array  # [b] int32
    logprob: jax.Array  # [b] under the distribution it was drawn from; 0 when greedy
    model_logprob: jax.Array  # [b] under the model's own, over all rows of the vocabulary as in training


def pick(
    scores: jax.Array,
    keys: jax.Array,
    rules: Rules,
    needs: Needs,
    *,
    size: int,
    count: jax.Array,
    seen: jax.Array | None = None,
    ending: jax.Array | None = None,
) -> Picked:
    """Chooses the next token of every row.

    Args:
      scores: [b v] float32 logits.
      keys: [b] random keys, fresh for every token.
      size: ids at or above it (padding rows of the vocabulary have no text) are never chosen.
      count: [b] tokens made before this one, for min_new.
      seen: [b v] bool, ids already in the text; only read when penalising.
      ending: [v] bool, ids that would stop the text.
    """
    given = scores
    if needs.penalise:
        penalty = rules.repetition_penalty[:, None]
        scores = jnp.where(seen, jnp.where(scores > 0, scores / penalty, scores * penalty), scores)
    hidden = jnp.arange(scores.shape[-1]) >= size
    if ending is not None:
        hidden |= ending & (count < rules.min_new)[:, None]
    scores = jnp.where(hidden, -jnp.inf, scores)
    logprob = jnp.zeros(len(scores), jnp.float32)
    if needs.draw:
        greedy = rules.temperature == 0
        drawn = scores / jnp.where(greedy, 1.0, rules.temperature)[:, None]
        drawn = truncate(drawn, rules.top_k if needs.top_k else None, rules.top_p if needs.top_p else None)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[1:]))(keys)
        scores = jnp.where(greedy[:, None], scores, drawn + noise)
        token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        logprob = jnp.where(greedy, 0.0, _at(jax.nn.log_softmax(drawn), token))
    else:
        token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return Picked(token, logprob, _at(given, token) - jax.nn.logsumexp(given, axis=-1))


def _at(values, token):
    return jnp.take_along_axis(values, token[:, None], axis=-1)[:, 0]


def truncate(logits: jax.Array, top_k: jax.Array | None, top_p: jax.Array | None) -> jax.Array:
    """[b v] with everything outside the top k at -inf, then everything outside the nucleus of what is left.

    The crossing token stays, as in the released helper (spec §6.3). Equal scores stay or go together. None: no cut.
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
    """float32 as uint32 of the same order."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _greatest(enough, rows):
    """[rows 1] the greatest threshold with `enough` above it, bit by bit: 32 sums are quicker than a sort of 152k."""

    def bit(i, found):
        more = found | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(enough(more), more, found)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros((rows, 1), jnp.uint32))
