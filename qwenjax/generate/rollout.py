"""Responses to a batch of prompts, to learn from: `decode` without a host, as one pure function for a training step.

Weights are cast and gathered once, before the loop; then every device decodes its own rows. Rows that have ended wait
for the others, and the loop ends with the last. As in `decode` a row's draws depend on its seed and token count only.

Train = sample: the model is read as training reads it, without dynamic NTK and LogN. A trainer keeps prompts and
responses within the training length, and recomputes log-probabilities for its ratios (objectives/log_probs.py).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from qwenjax.generate.sampling import Greedy, Picked, Sample, needs, pick, rules
from qwenjax.model import cache as caches
from qwenjax.model import transformer
from qwenjax.sharding import constrain


class Rollout(NamedTuple):
    """Prompts and responses. Row: the prompt, right behind it its response, and padding."""

    tokens: jax.Array  # [b p+n] int32
    mask: jax.Array  # [b p+n] bool: the response's tokens, its stop token included
    lengths: jax.Array  # [b] int32, the prompt's tokens
    ended: jax.Array  # [b] bool: a stop token came; else the response was cut off after n
    logp: jax.Array  # [b p+n] float32, of each of the response's tokens under the model's full softmax; 0 elsewhere
    drawn_logp: jax.Array  # the same under the distribution it was drawn from; 0 when greedy


class _State(NamedTuple):
    step: jax.Array  # tokens made so far in rows that have not ended
    token: jax.Array  # [b] the latest, not read yet: at first the prompt's last
    ended: jax.Array  # [b] bool
    made: Picked  # [b n] each; token -1 where there is none
    cache: tuple[caches.Cache, ...]


def rollout(
    model: transformer.Transformer,
    params: dict,
    prompts: jax.Array,
    lengths: jax.Array,
    seeds: jax.Array,
    *,
    new: int,
    sampling: Sample | Greedy,
    stops: tuple[int, ...],
    size: int,
    pad: int,
) -> Rollout:
    """A response of 1 to `new` tokens to each prompt; pure, to be called under `jax.jit`.

    Args:
      model, params: as trained, not prepared. On a mesh they may be split in any way.
      prompts: [b p] int32, what lies behind a row's length is not read. lengths: [b] int32, 1 to p.
      seeds: [b] uint32; the same seed gives the same response as `decode.generate`, whatever else is in the batch.
      new: n, tokens of a response at most.
      stops: ids that end a response, as its last token.
      size: ids at or above it (padding rows of the vocabulary) are never drawn.
      pad: the id behind responses.
    Raises:
      ValueError: no token is asked for, or a repetition penalty: no softmax of the model alone draws like that.
    """
    if new < 1:
        raise ValueError(f"wanted new >= 1, got {new}")
    if sampling.repetition_penalty != 1:
        raise ValueError(f"rollouts draw from the model as it is trained: wanted repetition_penalty=1, got {sampling}")
    model, params = _ready(model, params)
    lengths, seeds = constrain(lengths, "batch"), constrain(seeds, "batch")
    batch, width = prompts.shape
    apply = functools.partial(model.apply, {"params": params})
    ending = jnp.array(stops, jnp.int32)
    draw = functools.partial(_draw, params, seeds, sampling, ending, size)

    columns = jnp.arange(width, dtype=jnp.int32)
    prompts = constrain(jnp.where(columns < lengths[:, None], prompts, pad), "batch", None)
    last = lengths - 1  # the loop reads it, so that draws are compiled once
    positions = jnp.where(columns < last[:, None], columns, -1)
    dtype = jnp.dtype(model.compute.dtype)
    cache = tuple(caches.empty(model.cfg, batch, width, dtype) for _ in range(model.cfg.layers))
    _, cache = apply(prompts, positions, None, cache)
    cache = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, new), (0, 0))), cache)  # slots of the response
    made = Picked(jnp.full((batch, new), -1, jnp.int32), *jnp.zeros((2, batch, new), jnp.float32))
    made = jax.tree.map(lambda x: constrain(x, "batch", None), made)
    token = jnp.take_along_axis(prompts, last[:, None], axis=1)[:, 0]
    state = _State(jnp.int32(0), token, jnp.zeros(batch, bool), made, cache)

    def one(state):
        position = jnp.where(state.ended, -1, last + state.step)
        hidden, cache = apply(state.token[:, None], position[:, None], None, state.cache)
        picked = draw(hidden[:, 0], state.step)
        kept = picked._replace(token=jnp.where(state.ended, -1, picked.token))
        made = jax.tree.map(lambda all, one: all.at[:, state.step].set(one), state.made, kept)
        ended = state.ended | jnp.isin(picked.token, ending)
        return _State(state.step + 1, picked.token, ended, made, cache)

    state = jax.lax.while_loop(lambda state: (state.step < new) & ~state.ended.all(), one, state)
    return _laid_out(prompts, lengths, state, pad)


def _ready(model, params):
    """Model and parameters as `transformer.prepare` makes them, but for the tensor axis whole on every device."""
    cpu = model.compute.fuse == "yes"  # where XLA would convert whole bfloat16 weights at each product
    dtype = "float32" if cpu else model.compute.dtype
    compute = dataclasses.replace(model.compute, dtype=dtype, attention="xla")  # which reads caches
    model = model.clone(compute=compute, dropout=0.0, prepared=True)
    params = transformer.unstack(params, model)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    axes = {"head": jax.sharding.PartitionSpec("embed", "vocab"), **nn.get_partition_spec(shapes)}

    def whole(w, names):
        return constrain(w, *(None if name == "embed" else name for name in names))

    return model, jax.tree.map(whole, params, {name: axes[name] for name in params})


def _draw(params, seeds, policy, stops, size, hidden, step) -> Picked:
    """Every row's next token, drawn from hidden states [b d]."""
    scores = constrain(transformer.logits(params, hidden), "batch", "vocab")
    scores = constrain(scores, "batch", None)  # put together once, as a cut sums over the vocabulary 64 times
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), step))(seeds)
    rows = rules([policy] * len(seeds))
    ending = jnp.zeros(scores.shape[-1], bool).at[stops].set(True)
    count = jnp.broadcast_to(step, len(seeds))
    return pick(scores, keys, rows, needs(rows), size=size, count=count, ending=ending)


def _laid_out(prompts, lengths, state, pad) -> Rollout:
    """Each response right behind its prompt."""
    width, new = prompts.shape[1], state.made.token.shape[1]
    place = jnp.arange(width + new, dtype=jnp.int32) - lengths[:, None]  # in the response; before 0 is the prompt
    made = jax.tree.map(lambda x: jnp.take_along_axis(x, jnp.clip(place, 0, new - 1), axis=1), state.made)
    mask = (place >= 0) & (place < new) & (made.token >= 0)
    return Rollout(
        tokens=jnp.where(mask, made.token, jnp.pad(prompts, ((0, 0), (0, new)), constant_values=pad)),
        mask=mask,
        lengths=lengths,
        ended=state.ended,
        logp=jnp.where(mask, made.model_logprob, 0),
        drawn_logp=jnp.where(mask, made.logprob, 0),
    )
