"""Completions of prompts: prompts are read in chunks, then a `lax.while_loop` makes a token per row and step.

Position p of a row is always in slot p of its cache, and a row's draws depend on its own seed and token count only: a
request gives the same result alone and in any batch. Dynamic NTK rotates all keys by other angles whenever a sequence
passes T, 2T, 4T, … tokens (report §2.3.2): the loop stops there and the rows concerned are read again. With
`frozen_ntk`, as in the released code, alpha stays that of the prompt and nothing is read twice.

Axes: b rows of the batch, d embed, v vocab, m length of the longest stop sequence.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qwenjax.generate import sampling
from qwenjax.generate.prefill import batch_size, bucket, prefill
from qwenjax.generate.sampling import Greedy, Picked, Sample
from qwenjax.generate.stops import Stop, Stops
from qwenjax.model import cache as caches
from qwenjax.model import rope, transformer
from qwenjax.sharding import constrain

STEPS = 32  # at most, between two returns to the host
STREAMING_STEPS = 4  # the same while tokens are streamed, or stop texts may come
NO_TOKEN = Picked(-1, 0.0, 0.0)
NEVER = np.iinfo(np.int32).max  # a position that no row reaches


@dataclass(frozen=True)
class Request:
    """One prompt, and how to continue it."""

    ids: Sequence[int]
    max_new_tokens: int = 512
    sampling: Greedy | Sample = field(default_factory=Greedy)
    seed: int = 0  # 0 to 2^32 - 1

    def __post_init__(self):
        if not len(self.ids):
            raise ValueError("a prompt needs at least one token; start from <|endoftext|> to generate from nothing")
        if self.max_new_tokens < 1 or not 0 <= self.seed < 1 << 32:
            raise ValueError(
                f"wanted max_new_tokens >= 1 and 0 <= seed < 2^32, got {self.max_new_tokens} and {self.seed}"
            )


@dataclass(frozen=True)
class GeneratedRow:
    """The continuation of one prompt, without the stop that ended it."""

    ids: list[int]
    logprobs: list[float]  # of each id under the distribution it was drawn from; 0 when greedy
    model_logprobs: list[float]  # of each id under the model's own, without temperature, truncation or penalties
    reason: str  # stop | length
    text: str | None = None  # when a stop text ended it: all before that text, which may end within a token
    stop: tuple[int, ...] = ()  # the ids that ended it, if ids did


class DecodeState(NamedTuple):
    """What changes from step to step; donated from call to call."""

    hidden: jax.Array  # [b d] from which the next token is chosen
    position: jax.Array  # [b] the position it will have
    count: jax.Array  # [b] tokens made so far
    done: jax.Array  # [b] bool
    recent: jax.Array  # [b m] latest tokens, to match stop sequences
    seen: jax.Array | None  # [b v] bool, ids in prompt and text, for the repetition penalty
    history: jax.Array | None  # [b slots] ids of prompt and text, for no_repeat_ngram
    cache: tuple[caches.Cache, ...]


class RowInputs(NamedTuple):
    """What stays the same for each row while it decodes."""

    sampling: sampling.SamplingArrays
    seed: jax.Array  # [b] uint32
    max_new_tokens: jax.Array  # [b]
    lengths: jax.Array | None  # [b] those of the prompts, which give a frozen alpha; None: the length as it grows
    border: jax.Array  # [b] the length beyond which the row must be read again
    stops: jax.Array  # [stops m], right-aligned, -1 before shorter ones
    banned: jax.Array | None  # [v] bool, ids that are never chosen


def generate(
    model: transformer.Transformer,
    params: dict,
    requests: Sequence[Request],
    *,
    size: int,
    stops: Sequence[Stop] = (),
    decode: Callable[[list[int]], str] | None = None,
    kv_cache: str = "plain",
    frozen_ntk: bool = False,
    banned: Sequence[int] = (),
    on_token: Callable[[int, list[int]], None] | None = None,
) -> list[GeneratedRow]:
    """Continuations of prompts, all in one batch.

    Args:
      model, params: as trained, or from `transformer.prepare`, which frequent callers do once.
      size: ids at or above it (padding rows of the vocabulary) are never produced.
      stops: what ends a completion and is left out of it: an id, a sequence of ids, or a text.
      decode: ids -> text, for stop texts.
      kv_cache: one of cache.KINDS: plain; int8, about half of bfloat16's memory; int8_released, as the released code
        quantises (docs/report.md, Int8 cache). frozen_ntk: see the module's docstring.
      banned: ids that are never produced.
      on_token: called with (index of the request, its next ids) as they come, never with ids of a stop.
    Raises:
      ValueError: an id beyond the model's vocabulary, a stop text without `decode`, an unknown kind of cache.
    """
    for request in requests:
        if not 0 <= min(request.ids) <= max(request.ids) < model.cfg.vocab:
            raise ValueError(f"a prompt has ids outside 0 to {model.cfg.vocab - 1}: {sorted(request.ids)}")
    if not requests:
        return []
    if not model.prepared:
        model, params = transformer.prepare(model, params)
    stops = Stops(stops, decode)
    batch, progress = batch_size(len(requests)), [_RequestState(request, stops) for request in requests]
    rows, seen = _row_inputs(model.cfg, requests, batch, stops, frozen_ntk, banned)
    needs = sampling.needs(rows.sampling)
    slots = bucket(max(len(request.ids) + request.max_new_tokens for request in requests), 64)
    history = _history(requests, batch, slots) if needs.ngrams else None
    state = _start(model, batch, slots, kv_cache, rows.stops.shape[1], seen if needs.penalise else None, history)
    most_steps = STEPS if on_token is None and not stops.texts else STREAMING_STEPS
    limit = most_steps if on_token is None else 1  # the first token at once

    unread = [range(len(progress))]  # groups of rows to read; later groups have one row, so few shapes compile
    while True:
        for group in unread:
            index, lengths = np.full(batch_size(len(group)), batch, np.int32), np.ones(batch_size(len(group)), np.int32)
            texts = [progress[i].text for i in group]
            index[: len(group)] = group
            lengths[: len(group)] = [len(text) for text in texts]
            state = _insert(state, index, lengths, *prefill(model, params, texts, kv_cache))
            if model.cfg.ntk and not frozen_ntk:
                rows.border[group] = [rope.ntk_border(len(text), model.cfg.context) for text in texts]
        done = np.array([p.reason != "" for p in progress] + [True] * (batch - len(progress)))
        if done.all():
            return [p.result() for p in progress]
        state = state._replace(done=jnp.asarray(done))
        state, out = _decode_steps(params, state, rows, limit, model=model, needs=needs, size=size)
        out = Picked(*(np.asarray(part) for part in out))
        for i in np.flatnonzero(~done):
            fresh = progress[i].add(Picked(*(part[i] for part in out)))
            if fresh and on_token is not None:
                on_token(int(i), fresh)
        unread = [[i] for i, p in enumerate(progress) if not p.reason and len(p.text) > rows.border[i]]
        limit = min(4 * limit, most_steps)


class _RequestState:
    """What the host knows of one request: its text so far, and whether it has ended."""

    def __init__(self, request: Request, stops: Stops):
        self.request, self.stops = request, stops
        self.text, self.ids = [int(i) for i in request.ids], []  # prompt and continuation; the continuation
        self.logprobs, self.model_logprobs = [], []
        self.reason, self.before_stop, self.stop, self.sent = "", None, (), 0

    def add(self, new: Picked) -> list[int]:
        """Appends a row's new tokens (-1: none); returns those that no stop can remove any more."""
        n = int((new.token >= 0).sum())
        ids = new.token[:n].tolist()
        self.text += ids
        self.ids += ids
        self.logprobs += new.logprob[:n].tolist()
        self.model_logprobs += new.model_logprob[:n].tolist()
        least = self.request.sampling.min_new_tokens
        cut, cut_text = self.stops.cut(self.ids, least), self.stops.cut_text(self.ids, least)
        if cut is not None:
            self.stop = tuple(self.ids[cut:])
        if cut_text is not None:
            (cut, self.before_stop), self.stop = cut_text, ()
        if cut is not None:
            self.reason = "stop"
            self.ids = self.ids[:cut]
        elif len(self.ids) == self.request.max_new_tokens:
            self.reason = "length"
        settled = len(self.ids) if self.reason else self.stops.settled(self.ids)
        fresh, self.sent = self.ids[self.sent : settled], max(settled, self.sent)
        return fresh

    def result(self) -> GeneratedRow:
        n = len(self.ids)
        logprobs, model_logprobs = self.logprobs[:n], self.model_logprobs[:n]
        return GeneratedRow(self.ids, logprobs, model_logprobs, self.reason, self.before_stop, self.stop)


def _history(requests, batch, slots):
    """[b slots] the prompts' ids."""
    history = np.full((batch, slots), -1, np.int32)
    for row, request in zip(history, requests):
        row[: len(request.ids)] = request.ids
    return history


def _row_inputs(cfg, requests, batch, stops, frozen_ntk, banned):
    """The requests as arrays, with unused rows at the end; and [b v] which ids the prompts contain."""
    unused = batch - len(requests)
    seen = np.zeros((batch, cfg.vocab), bool)
    for row, request in zip(seen, requests):
        row[list(request.ids)] = True
    rows = RowInputs(
        sampling=sampling.sampling_arrays([request.sampling for request in requests] + [Greedy()] * unused),
        seed=np.array([request.seed for request in requests] + [0] * unused, np.uint32),
        max_new_tokens=np.array([request.max_new_tokens for request in requests] + [0] * unused, np.int32),
        lengths=np.array([len(request.ids) for request in requests] + [1] * unused, np.int32) if frozen_ntk else None,
        border=np.full(batch, NEVER, np.int32),
        stops=stops.matrix(),
        banned=np.isin(np.arange(cfg.vocab), banned) if len(banned) else None,
    )
    return rows, seen


@functools.partial(jax.jit, static_argnames=("model", "needs", "size"), donate_argnames="state")
def _decode_steps(params, state: DecodeState, rows: RowInputs, limit, *, model, needs, size):
    """At most `limit` steps, fewer when all rows are done or one must be read again: state and `Picked` [b STEPS]."""
    batch = len(state.position)
    single = (rows.stops[:, :-1] < 0).all(axis=1)
    ending = jnp.zeros(model.cfg.vocab, bool).at[jnp.where(single, rows.stops[:, -1], NEVER)].set(True, mode="drop")

    def one_step(carry):
        step, state, out, _ = carry
        active = ~state.done
        keys = jax.vmap(lambda seed, n: jax.random.fold_in(jax.random.key(seed), n))(rows.seed, state.count)
        scores = transformer.logits(params, state.hidden)
        never = {"ending": ending, "banned": rows.banned}
        if needs.ngrams:
            n = rows.sampling.no_repeat_ngram
            never["repeats"] = sampling.repeated(state.history, state.position, n, model.cfg.vocab)
        picked = sampling.pick(
            scores, keys, rows.sampling, needs, size=size, count=state.count, seen=state.seen, **never
        )
        token = picked.token
        recent = jnp.concatenate([state.recent[:, 1:], token[:, None]], axis=1)
        matched = ((recent[:, None] == rows.stops) | (rows.stops < 0)).all(axis=2).any(axis=1)
        stopped = matched & (state.count >= rows.sampling.min_new_tokens)
        done = state.done | stopped | (state.count + 1 >= rows.max_new_tokens)
        out = jax.tree.map(
            lambda all, new, none: all.at[:, step].set(jnp.where(active, new, none)), out, picked, NO_TOKEN
        )
        seen = state.seen if state.seen is None else state.seen.at[jnp.arange(batch), token].max(active)
        history = state.history
        if history is not None:
            history = history.at[jnp.arange(batch), jnp.where(active, state.position, NEVER)].set(token, mode="drop")

        read_again = ~done & (state.position >= rows.border)
        fed = jnp.where(done | read_again, -1, state.position)  # padding, which leaves the cache as it is
        lengths = state.position + 1 if rows.lengths is None else rows.lengths
        hidden, cache = model.apply({"params": params}, token[:, None], fed[:, None], None, state.cache, lengths)
        count, position = state.count + active, state.position + active
        return (
            step + 1,
            DecodeState(hidden[:, 0], position, count, done, recent, seen, history, cache),
            out,
            read_again.any(),
        )

    def more(carry):
        step, state, _, read_again = carry
        return (step < limit) & ~read_again & ~state.done.all()

    none = Picked(jnp.full((batch, STEPS), -1, jnp.int32), *jnp.zeros((2, batch, STEPS), jnp.float32))
    _, state, out, _ = jax.lax.while_loop(more, one_step, (jnp.int32(0), state, none, jnp.bool_(False)))
    return state, jax.tree.map(lambda x: constrain(x, None, None), out)  # replicated: every process reads all of it


@functools.partial(jax.jit, donate_argnums=0)
def _insert(state: DecodeState, rows, lengths, hidden, cache):
    """The state with `rows` [r] (beyond the batch: none) as they were just read."""
    hidden = state.hidden.at[rows].set(hidden, mode="drop")
    position = state.position.at[rows].set(lengths, mode="drop")
    return state._replace(hidden=hidden, position=position, cache=caches.insert(state.cache, cache, rows))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _start(model, batch, slots, kind, longest_stop, seen, history):
    dtype = jnp.dtype(model.compute.dtype)
    return DecodeState(
        hidden=jnp.zeros((batch, model.cfg.embed), dtype),
        position=jnp.zeros(batch, jnp.int32),
        count=jnp.zeros(batch, jnp.int32),
        done=jnp.ones(batch, bool),
        recent=jnp.full((batch, longest_stop), -2, jnp.int32),
        seen=seen,
        history=history,
        cache=tuple(caches.empty(model.cfg, batch, slots, dtype, kind) for _ in range(model.cfg.layers)),
    )
