"""Prefill once, then a `lax.while_loop` that decodes one token per row and step with a key/value cache.

Rows may have prompts of different lengths: prompts are padded on the right with position -1, and position p of a row
always sits in cache slot p, so a row gives the same tokens alone and in a batch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qwenjax.generate.sampling import Greedy, TopP
from qwenjax.model import transformer
from qwenjax.model.layers import Cache
from qwenjax.sharding import constrain


class Loop(NamedTuple):
    """Carry of the decode loop."""

    index: jax.Array  # tokens generated so far
    token: jax.Array  # [b] the newest token of each row
    position: jax.Array  # [b] its position
    done: jax.Array  # [b] bool
    out: jax.Array  # [b max_new]
    cache: Cache


@functools.partial(jax.jit, static_argnames=("model", "policy", "max_new", "stop", "size"))
def _decode(params, prompts, positions, rng, *, model, policy, max_new, stop, size):
    """[b t] prompts, right-padded with position -1 -> [b max_new] ids; after a stop id everything is that id."""
    params = jax.tree.map(lambda p: p.astype(model.compute.dtype), params)  # cast once, not once per token
    batch, width = prompts.shape

    def pick(hidden, index):
        scores = transformer.logits(params, hidden)
        # padding rows of the vocabulary have no text
        scores = jnp.where(jnp.arange(scores.shape[-1]) < size, scores, -jnp.inf)
        return policy(scores, jax.random.fold_in(rng, index))

    cache = transformer.empty_cache(model.cfg, batch, width + max_new, jnp.dtype(model.compute.dtype))
    hidden, cache = model.apply({"params": params}, prompts, positions, None, cache)
    last = jnp.max(positions, axis=1)
    first = pick(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], 0)

    def more(loop: Loop):
        return (loop.index < max_new) & ~jnp.all(loop.done)

    def one(loop: Loop) -> Loop:
        hidden, cache = model.apply({"params": params}, loop.token[:, None], loop.position[:, None], None, loop.cache)
        token = jnp.where(loop.done, loop.token, pick(hidden[:, 0], loop.index))
        done = loop.done | (token == stop)
        return Loop(loop.index + 1, token, loop.position + 1, done, loop.out.at[:, loop.index].set(token), cache)

    out = jnp.full((batch, max_new), stop, jnp.int32).at[:, 0].set(first)
    loop = jax.lax.while_loop(more, one, Loop(jnp.int32(1), first, last + 1, first == stop, out, cache))
    return constrain(loop.out, None, None)  # whole everywhere: every process reads it


def generate(
    model: transformer.Transformer,
    params: dict,
    prompts: list[list[int]],
    *,
    policy: Greedy | TopP,
    max_new: int,
    stop: int,
    size: int,
    seed: int = 0,
    multiple: int = 64,
) -> list[list[int]]:
    """Continuations of token-id prompts, each cut at the first `stop` id (which is left out).

    Args:
      size: ids at or above it (padding rows of the vocabulary) are never produced.
      multiple: prompts are padded to a multiple of this, so that few shapes compile.
    """
    if not prompts or not all(prompts):
        raise ValueError("a prompt needs at least one token; start from <|endoftext|> to generate from nothing")
    width = -(-max(map(len, prompts)) // multiple) * multiple
    ids, positions = np.zeros((2, len(prompts), width), np.int32)
    positions -= 1
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        positions[row, : len(prompt)] = range(len(prompt))
    rng = jax.random.key(seed)
    out = _decode(params, ids, positions, rng, model=model, policy=policy, max_new=max_new, stop=stop, size=size)
    rows = np.asarray(out).tolist()
    return [row[: row.index(stop)] if stop in row else row for row in rows]
