"""Text from a model: prompts are read in chunks, then a `lax.while_loop` makes a token per row and step.

Position p of a row always sits in slot p of its cache, and a row's draws depend on its own seed and token count only:
a request gives the same alone and in any batch. The loop hands tokens to the host every few steps, for streaming and
for stop texts.

Dynamic NTK turns all keys anew whenever a sequence passes T, 2T, 4T, … tokens (report §2.3.2). In mode "exact" the loop
halts there and the rows concerned are read again, so that every step equals the last row of a fresh forward pass. In
mode "frozen", the released behaviour, alpha stays that of the prompt.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qwenjax.generate import sampling
from qwenjax.generate.prefill import batch_size, bucket, read
from qwenjax.generate.sampling import Greedy, Picked, Sample
from qwenjax.generate.stops import Stop, Stops
from qwenjax.model import cache as caches
from qwenjax.model import rope, transformer
from qwenjax.sharding import constrain

STEPS = 32  # at most, between two looks of the host
LISTENED = 4  # the same while someone listens, or stop texts may come
NONE = Picked(-1, 0.0, 0.0)
FAR = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Request:
    """One prompt and what is wanted of it."""

    ids: Sequence[int]
    max_new: int = 512
    sampling: Greedy | Sample = field(default_factory=Greedy)
    seed: int = 0  # 0 to 2^32 - 1

    def __post_init__(self):
        if not len(self.ids):
            raise ValueError("a prompt needs at least one token; start from <|endoftext|> to generate from nothing")
        if self.max_new < 1 or not 0 <= self.seed < 1 << 32:
            raise ValueError(f"wanted max_new >= 1 and 0 <= seed < 2^32, got {self.max_new} and {self.seed}")


@dataclass(frozen=True)
class GeneratedRow:
    """What came, without the stop that ended it."""

    ids: list[int]
    logprobs: list[float]  # of each id under the distribution it was drawn from; 0 when greedy
    model_logprobs: list[float]  # and under the model's own, without temperature, cuts or penalties
    reason: str  # stop | length
    text: str | None = None  # when a stop text ended it: all before that text, which may end within a token
    stop: tuple[int, ...] = ()  # the ids that ended it, if ids did


class DecodeState(NamedTuple):
    """What the loop changes; donated from call to call."""

    hidden: jax.Array  # [b d] from which the next token is chosen
    position: jax.Array  # [b] the position it will have
    count: jax.Array  # [b] tokens made so far
    done: jax.Array  # [b] bool
    recent: jax.Array  # [b m] latest tokens, to match stop sequences
    seen: jax.Array | None  # [b v] bool, ids in prompt and text, for the repetition penalty
    cache: tuple[caches.Cache, ...]


class Rows(NamedTuple):
    """What the loop is told about each row."""

    rules: sampling.Rules
    seed: jax.Array  # [b] uint32
    max_new: jax.Array  # [b]
    lengths: jax.Array | None  # [b] the prompts', by which a frozen alpha goes; None: the length as it grows
    border: jax.Array  # [b] the length beyond which the row must be read again
    stops: jax.Array  # [stops m], right-aligned, -1 before shorter ones


def generate(
    model: transformer.Transformer,
    params: dict,
    requests: Sequence[Request],
    *,
    size: int,
    stops: Sequence[Stop] = (),
    decode: Callable[[list[int]], str] | None = None,
    cache: str = "plain",
    mode: str = "exact",
    on_token: Callable[[int, list[int]], None] | None = None,
) -> list[GeneratedRow]:
    """Continuations of prompts, all in one batch.

    Args:
      model, params: as trained, or from `transformer.prepare`, which whoever calls often does once.
      size: ids at or above it (padding rows of the vocabulary) are never produced.
      stops: what ends a completion and is left out of it: an id, a sequence of ids, or a text.
      decode: ids -> text, for stop texts.
      cache: plain, int8 (about half of bfloat16's memory), or int8_released (spec §14.2).
      mode: exact or frozen; see the head of this file.
      on_token: called with (index of the request, its next ids) as they come, never with ids of a stop.
    Raises:
      ValueError: an id the model has no row for, a stop text without `decode`, an unknown cache or mode.
    """
    if mode not in ("exact", "frozen"):
        raise ValueError(f"no decode mode {mode!r}; known: exact, frozen")
    for request in requests:
        if not 0 <= min(request.ids) <= max(request.ids) < model.cfg.vocab:
            raise ValueError(f"a prompt has ids outside 0 to {model.cfg.vocab - 1}: {sorted(request.ids)}")
    if not requests:
        return []
    if not model.prepared:
        model, params = transformer.prepare(model, params)
    stops = Stops.of(stops, decode)
    batch, made = batch_size(len(requests)), [_Made(request, stops) for request in requests]
    rows, seen = _rows(model.cfg, made, batch, stops, mode)
    needs = sampling.needs(rows.rules)
    slots = bucket(max(len(request.ids) + request.max_new for request in requests), 64)
    state = _start(model, batch, slots, cache, rows.stops.shape[1], seen if needs.penalise else None)
    pace = STEPS if on_token is None and not stops.texts else LISTENED
    limit = pace if on_token is None else 1  # the first token at once

    stale = [range(len(made))]  # rows to be read together; later, as few shapes compile, one by one
    while True:
        for group in stale:
            index, lengths = np.full(batch_size(len(group)), batch, np.int32), np.ones(batch_size(len(group)), np.int32)
            index[: len(group)] = group
            lengths[: len(group)] = [len(made[i].text) for i in group]
            state = _join(state, index, lengths, *read(model, params, [made[i].text for i in group], cache))
            if model.cfg.ntk and mode == "exact":
                rows.border[group] = [rope.ntk_border(len(made[i].text), model.cfg.context) for i in group]
        done = np.array([m.reason != "" for m in made] + [True] * (batch - len(made)))
        if done.all():
            return [m.completion() for m in made]
        state = state._replace(done=jnp.asarray(done))
        state, out = _advance(params, state, rows, limit, model=model, needs=needs, size=size)
        out = Picked(*(np.asarray(part) for part in out))
        for i in np.flatnonzero(~done):
            fresh = made[i].add(Picked(*(part[i] for part in out)))
            if fresh and on_token is not None:
                on_token(int(i), fresh)
        stale = [[i] for i, m in enumerate(made) if not m.reason and len(m.text) > rows.border[i]]
        limit = min(4 * limit, pace)


class _Made:
    """What the host knows of one request: its text so far, and whether it has ended."""

    def __init__(self, request: Request, stops: Stops):
        self.request, self.stops = request, stops
        self.text, self.ids = [int(i) for i in request.ids], []  # prompt and continuation; the continuation
        self.logprobs, self.model_logprobs = [], []
        self.reason, self.before, self.stop, self.sent = "", None, (), 0

    def add(self, new: Picked) -> list[int]:
        """Takes a row's new tokens (-1: none); returns those that no stop can take back any more."""
        n = int((new.token >= 0).sum())
        ids = new.token[:n].tolist()
        self.text += ids
        self.ids += ids
        self.logprobs += new.logprob[:n].tolist()
        self.model_logprobs += new.model_logprob[:n].tolist()
        min_new = self.request.sampling.min_new
        cut, cut_text = self.stops.cut(self.ids, min_new), self.stops.cut_text(self.ids, min_new)
        if cut is not None:
            self.stop = tuple(self.ids[cut:])
        if cut_text is not None:
            (cut, self.before), self.stop = cut_text, ()
        if cut is not None:
            self.reason = "stop"
            self.ids = self.ids[:cut]
        elif len(self.ids) == self.request.max_new:
            self.reason = "length"
        settled = len(self.ids) if self.reason else self.stops.settled(self.ids)
        fresh, self.sent = self.ids[self.sent : settled], max(settled, self.sent)
        return fresh

    def completion(self) -> GeneratedRow:
        n = len(self.ids)
        return GeneratedRow(self.ids, self.logprobs[:n], self.model_logprobs[:n], self.reason, self.before, self.stop)


def _rows(cfg, made, batch, stops, mode):
    """What the loop is told, and [b v] which ids the prompts hold."""
    empty = batch - len(made)
    requests = [m.request for m in made]
    seen = np.zeros((batch, cfg.vocab), bool)
    for row, request in zip(seen, requests):
        row[list(request.ids)] = True
    rows = Rows(
        rules=sampling.rules([request.sampling for request in requests] + [Greedy()] * empty),
        seed=np.array([request.seed for request in requests] + [0] * empty, np.uint32),
        max_new=np.array([request.max_new for request in requests] + [0] * empty, np.int32),
        lengths=np.array([len(m.text) for m in made] + [1] * empty, np.int32) if mode == "frozen" else None,
        border=np.full(batch, FAR, np.int32),
        stops=stops.matrix(),
    )
    return rows, seen


@functools.partial(jax.jit, static_argnames=("model", "needs", "size"), donate_argnames="state")
def _advance(params, state: DecodeState, rows: Rows, limit, *, model, needs, size):
    """At most `limit` steps, fewer when all rows are done or one must be read again.

    Returns: the state, ids [b STEPS] (-1 where a row made none), and the two log-probabilities [b STEPS].
    """
    batch = len(state.position)
    single = (rows.stops[:, :-1] < 0).all(axis=1)
    ending = jnp.zeros(model.cfg.vocab, bool).at[jnp.where(single, rows.stops[:, -1], FAR)].set(True, mode="drop")

    def one(carry):
        step, state, out, _ = carry
        active = ~state.done
        keys = jax.vmap(lambda seed, n: jax.random.fold_in(jax.random.key(seed), n))(rows.seed, state.count)
        scores = transformer.logits(params, state.hidden)
        picked = sampling.pick(
            scores, keys, rows.rules, needs, size=size, count=state.count, seen=state.seen, ending=ending
        )
        token = picked.token
        recent = jnp.concatenate([state.recent[:, 1:], token[:, None]], axis=1)
        matched = ((recent[:, None] == rows.stops) | (rows.stops < 0)).all(axis=2).any(axis=1)
        stopped = matched & (state.count >= rows.rules.min_new)
        done = state.done | stopped | (state.count + 1 >= rows.max_new)
        out = jax.tree.map(lambda all, new, none: all.at[:, step].set(jnp.where(active, new, none)), out, picked, NONE)
        seen = state.seen if state.seen is None else state.seen.at[jnp.arange(batch), token].max(active)

        again = ~done & (state.position >= rows.border)
        fed = jnp.where(done | again, -1, state.position)
        lengths = state.position + 1 if rows.lengths is None else rows.lengths
        hidden, cache = model.apply({"params": params}, token[:, None], fed[:, None], None, state.cache, lengths)
        count, position = state.count + active, state.position + active
        return step + 1, DecodeState(hidden[:, 0], position, count, done, recent, seen, cache), out, again.any()

    def more(carry):
        step, state, _, again = carry
        return (step < limit) & ~again & ~state.done.all()

    none = Picked(jnp.full((batch, STEPS), -1, jnp.int32), *jnp.zeros((2, batch, STEPS), jnp.float32))
    _, state, out, _ = jax.lax.while_loop(more, one, (jnp.int32(0), state, none, jnp.bool_(False)))
    return state, jax.tree.map(lambda x: constrain(x, None, None), out)  # whole everywhere: every process reads it


@functools.partial(jax.jit, donate_argnums=0)
def _join(state: DecodeState, rows, lengths, hidden, cache):
    """The state with `rows` [r] (beyond the batch: none) as they were just read."""
    hidden = state.hidden.at[rows].set(hidden, mode="drop")
    position = state.position.at[rows].set(lengths, mode="drop")
    return state._replace(hidden=hidden, position=position, cache=caches.join(state.cache, cache, rows))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _start(model, batch, slots, kind, longest, seen):
    dtype = jnp.dtype(model.compute.dtype)
    return DecodeState(
        hidden=jnp.zeros((batch, model.cfg.embed), dtype),
        position=jnp.zeros(batch, jnp.int32),
        count=jnp.zeros(batch, jnp.int32),
        done=jnp.ones(batch, bool),
        recent=jnp.full((batch, longest), -2, jnp.int32),
        seen=seen,
        cache=tuple(caches.empty(model.cfg, batch, slots, dtype, kind) for _ in range(model.cfg.layers)),
    )
