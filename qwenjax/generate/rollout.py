"""Responses to a batch of prompts, to learn from: decoding as one pure function, which a training step can contain.

Weights are cast and gathered once, before the loop; then every device decodes its own rows, without dynamic NTK and
LogN, as in training. As in decode.py, a row's draws depend on its seed and token count only.

Axes: b rows, p longest prompt, n `max_new_tokens`, v vocab.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from qwenjax.generate.sampling import Greedy, Picked, Sample, needs, pick, sampling_arrays
from qwenjax.model import cache as caches
from qwenjax.model import transformer
from qwenjax.sharding import constrain


class Rollout(NamedTuple):
    """Prompts and responses. A row is a prompt, its response right behind it, and padding."""

    tokens: jax.Array  # [b p+n] int32
    mask: jax.Array  # [b p+n] bool: the response's tokens, its stop token included
    lengths: jax.Array  # [b] int32, tokens of the prompt
    ended: jax.Array  # [b] bool: a stop token came; else the response was cut off after n
    logp: jax.Array  # [b p+n] float32, of each of the response's tokens under the model's full softmax; 0 elsewhere
    drawn_logp: jax.Array  # the same under the distribution it was drawn from; 0 when greedy


class _RolloutState(NamedTuple):
    step: jax.Array  # tokens made so far in rows that have not ended
    token: jax.Array  # [b] the latest, which the model has not read yet: at first the prompt's last
    ended: jax.Array  # [b] bool
    response: Picked  # [b n] each; token -1 where there is none
    cache: tuple[caches.Cache, ...]


def rollout(
    model: transformer.Transformer,
    params: dict,
    prompts: jax.Array,
    lengths: jax.Array,
    seeds: jax.Array,
    *,
    max_new_tokens: int,
    sampling: Sample | Greedy,
    stops: tuple[int, ...],
    size: int,
    pad: int,
) -> Rollout:
    """A response of 1 to `max_new_tokens` tokens to each prompt; pure, to be called under `jax.jit`.

    Args:
      model, params: as trained, not prepared. On a mesh they may be split in any way.
      prompts: [b p] int32; what is behind a row's length is ignored. lengths: [b] int32, 1 to p.
      seeds: [b] uint32; the same seed gives the same response as `decode.generate`, whatever else is in the batch.
      stops: ids that end a response, as its last token.
      size: ids at or above it (padding rows of the vocabulary) are never drawn.
      pad: the id behind responses.
    Raises:
      ValueError: max_new_tokens below 1, or a repetition penalty, with which no update could learn.
    """
    if max_new_tokens < 1:
        raise ValueError(f"wanted max_new_tokens >= 1, got {max_new_tokens}")
    if sampling.repetition_penalty != 1:
        raise ValueError(f"rollouts sample from the model that is trained: use repetition_penalty=1, got {sampling}")
    model, params = transformer.prepare(model, params)
    params = _gathered(model, params)
    lengths, seeds = constrain(lengths, "batch"), constrain(seeds, "batch")
    batch, width = prompts.shape
    apply = functools.partial(model.apply, {"params": params})
    draw = functools.partial(_draw, params, seeds, sampling, jnp.array(stops, jnp.int32), size)

    columns = jnp.arange(width, dtype=jnp.int32)
    prompts = constrain(jnp.where(columns < lengths[:, None], prompts, pad), "batch", None)
    last = lengths - 1  # the loop reads the last token, so that sampling is compiled once
    positions = jnp.where(columns < last[:, None], columns, -1)
    dtype = jnp.dtype(model.compute.dtype)
    cache = tuple(caches.empty(model.cfg, batch, width, dtype) for _ in range(model.cfg.layers))
    _, cache = apply(prompts, positions, None, cache)
    more_slots, shape = ((0, 0), (0, 0), (0, max_new_tokens), (0, 0)), (batch, max_new_tokens)
    cache = jax.tree.map(lambda x: jnp.pad(x, more_slots), cache)
    empty = Picked(jnp.full(shape, -1, jnp.int32), *jnp.zeros((2, *shape), jnp.float32))
    empty = jax.tree.map(lambda x: constrain(x, "batch", None), empty)
    token = jnp.take_along_axis(prompts, last[:, None], axis=1)[:, 0]
    state = _RolloutState(jnp.int32(0), token, jnp.zeros(batch, bool), empty, cache)

    def one_step(state):
        position = jnp.where(state.ended, -1, last + state.step)
        hidden, cache = apply(state.token[:, None], position[:, None], None, state.cache)
        picked = draw(hidden[:, 0], state.step)
        new = picked._replace(token=jnp.where(state.ended, -1, picked.token))
        response = jax.tree.map(lambda all, one: all.at[:, state.step].set(one), state.response, new)
        ended = state.ended | jnp.isin(picked.token, jnp.array(stops, jnp.int32))
        return _RolloutState(state.step + 1, picked.token, ended, response, cache)

    state = jax.lax.while_loop(lambda state: (state.step < max_new_tokens) & ~state.ended.all(), one_step, state)
    return _layout(prompts, lengths, state, pad)


def _gathered(model, params):
    """A prepared model's parameters, gathered over every mesh axis but tensor: the loop then moves no weights."""
    model = model.clone(compute=dataclasses.replace(model.compute, attention="xla"))  # takes any length, as `init` does
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    axes = {"head": jax.sharding.PartitionSpec("embed", "vocab"), **nn.get_partition_spec(shapes)}

    def gather(w, names):
        return constrain(w, *(None if name == "embed" else name for name in names))

    return jax.tree.map(gather, params, {name: axes[name] for name in params})


def _draw(params, seeds, sampling, stops, size, hidden, step) -> Picked:
    """Every row's next token, drawn from hidden states [b d]."""
    scores = constrain(transformer.logits(params, hidden), "batch", "vocab")
    scores = constrain(scores, "batch", None)  # gathered once, because truncation sums over the vocabulary 64 times
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), step))(seeds)
    arrays = sampling_arrays([sampling] * len(seeds))
    ending = jnp.zeros(scores.shape[-1], bool).at[stops].set(True)
    count = jnp.broadcast_to(step, len(seeds))
    return pick(scores, keys, arrays, needs(arrays), size=size, count=count, ending=ending)


def _layout(prompts, lengths, state, pad) -> Rollout:
    """Each response right behind its prompt."""
    width, n = prompts.shape[1], state.response.token.shape[1]
    index = jnp.arange(width + n, dtype=jnp.int32) - lengths[:, None]  # in the response; below 0 is the prompt
    response = jax.tree.map(lambda x: jnp.take_along_axis(x, jnp.clip(index, 0, n - 1), axis=1), state.response)
    mask = (index >= 0) & (index < n) & (response.token >= 0)
    return Rollout(
        tokens=jnp.where(mask, response.token, jnp.pad(prompts, ((0, 0), (0, n)), constant_values=pad)),
        mask=mask,
        lengths=lengths,
        ended=state.ended,
        logp=jnp.where(mask, response.model_logprob, 0),
        drawn_logp=jnp.where(mask, response.logprob, 0),
    )
