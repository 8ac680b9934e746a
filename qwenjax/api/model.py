"""A language model for use: logits, scores, completions, conversations.

Texts are encoded without control tokens: for these, give the ids of `model.tokenizer.encode`. Axes: b texts, t
positions, v vocabulary.
"""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwenjax.api import scoring
from qwenjax.api.generation_defaults import GenerationDefaults
from qwenjax.api.streaming import Stream
from qwenjax.config import Compute, ModelConfig
from qwenjax.generate import decode
from qwenjax.generate.sampling import Greedy, Sample
from qwenjax.generate.stops import Stop
from qwenjax.model import transformer
from qwenjax.tokenizer import Tokenizer

Prompt = str | Sequence[int]


class Completion(NamedTuple):
    """What a model wrote after one prompt."""

    text: str
    ids: list[int]  # without the stop sequence
    logprob: float  # of these ids, under the model's own distribution, nats
    reason: str  # why it ended: 'stop', or 'length' at the limit of tokens
    stop: tuple[int, ...] = ()  # the ids that ended it; () where a text did


@dataclass
class Model:
    """Parameters, and everything that is needed to use them."""

    config: ModelConfig
    params: dict  # as `transformer.init_params`, in the dtype that was asked for
    tokenizer: Tokenizer | None  # None if the checkpoint has none; then prompts are ids
    compute: Compute
    mesh: Mesh | None = None
    generation_defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    kv_cache: str = "plain"  # one of `model.cache.KINDS`
    frozen_ntk: bool = False  # keep the prompt's alpha while decoding, as the released code does (generate/decode.py)
    # Tokens of the longest text that `generate` and `chat` accept, the answer included: the length that the model was
    # trained for; None is no limit, as with dynamic NTK
    window: int | None = field(init=False)

    def __post_init__(self):
        config, scaling = self.config, self.config.rope_scaling
        trained = math.floor(max(config.context, (scaling.original or config.context) * scaling.factor))
        if scaling.kind == "dynamic":  # every token beyond the context would turn all keys before it
            trained = config.context
        self.window = None if config.ntk else trained
        self.network = transformer.Transformer(config, self.compute)

    def __repr__(self):
        size = f"{self.config.params / 1e6:,.0f}M parameters"
        return f"Model({size}, {self.config.layers} layers, context {self.config.context}, {self.tokenizer!r})"

    # ---- logits and scores ----

    def logits(self, ids: Any) -> jax.Array:
        """Logits of the next token after each position: int [b t] -> float32 [b t v], with all context extensions.

        Raises ValueError for ids of another shape or beyond the embedding.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"wanted ids [b t], texts of equal length, got {ids.dtype} of shape {ids.shape}")
        self._check_ids(ids)
        with self._in_mesh():
            return _logits(self.params, ids.astype(np.int32), model=self.network)

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Prompt]) -> list[float]:
        """Summed log-probability, nats, of each continuation after its prompt.

        Two texts are encoded together, as the model would see them; blanks at the end of the prompt, and a token that
        crosses the border, belong to the continuation. An empty prompt stands for the beginning of a text.

        Raises ValueError for a pair of ids and text.
        """
        if len(prompts) != len(continuations):
            raise ValueError(f"{len(prompts)} prompts and {len(continuations)} continuations: wanted as many")
        pairs = [self._pair(p, c) for p, c in zip(prompts, continuations)]
        with self._in_mesh():
            return scoring.score(self.network, self.params, pairs)

    def likelihoods(
        self, texts: Sequence[Sequence[int]], progress: Callable[[int], None] = lambda tokens: None
    ) -> list[scoring.Likelihood]:
        """Log-probability of every token of texts of ids, of any length; see `scoring.likelihoods`."""
        with self._in_mesh():
            return scoring.likelihoods(self.network, self.params, texts, self._vocab_size, progress)

    def _pair(self, prompt: Prompt, continuation: Prompt) -> tuple[list[int], list[int]]:
        if isinstance(prompt, str) != isinstance(continuation, str):
            raise ValueError("a prompt and its continuation are both text or both ids")
        if not isinstance(prompt, str):
            ids = [*prompt], [*continuation]
        else:
            both = self.vocabulary.encode_ordinary(prompt + continuation)
            start = self.vocabulary.encode_ordinary(prompt.rstrip())
            # A token may cross the border: the pair is cut behind the last token that both have
            most = min(len(start), len(both) - bool(continuation))
            same = next((i for i in range(most) if start[i] != both[i]), most)
            ids = [*self._prefix, *both[:same]], both[same:]
        self._check_ids(np.array([*ids[0], *ids[1]], np.int64))
        return ids if ids[0] else ([self.vocabulary.eot], ids[1])

    # ---- text ----

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        sampling: Greedy | Sample | None = None,
        max_new_tokens: int = 256,
        stop: str | Sequence[Stop] = (),
        seeds: int | Sequence[int] = 0,
        on_text: Callable[[int, str], None] | None = None,
    ) -> Any:
        """What follows each prompt: a string for a string, strings for strings, lists of ids for lists of ids.

        Args:
          sampling: of `generate.sampling`; None: as the release samples, or greedy if it does not say.
          stop: texts or sequences of ids that end a completion and are left out of it. The model's own end tokens
            always end one.
          seeds: one for each prompt; or that of the first, and prompt i has seeds + i.
          on_text: called with the prompt's number and each piece of text as it comes; pieces join to the completion.
        Raises:
          ValueError: an empty prompt, or one that is longer than the window.
        """
        several = [prompts] if isinstance(prompts, str) else list(prompts)
        done = self.complete(several, sampling, max_new_tokens, stop, seeds, on_text)
        if isinstance(prompts, str):
            return done[0].text
        return [c.text if isinstance(p, str) else c.ids for p, c in zip(several, done)]

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Greedy | Sample | None = None,
        max_new_tokens: int = 256,
        stop: str | Sequence[Stop] = (),
        seeds: int | Sequence[int] = 0,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Completion]:
        """Like `generate`, with ids, log-probability and why each completion ended."""
        seeds = range(seeds, seeds + len(prompts)) if isinstance(seeds, int) else seeds
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: wanted one each, or a single number")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: wanted at least 1")
        sampling = sampling or self.sampling
        requests = []
        for i, (prompt, seed) in enumerate(zip(prompts, seeds)):
            ids = self.encode(prompt)
            limit = min(max_new_tokens, self.room(ids, f"prompt {i}"))
            requests.append(decode.Request(ids, limit, sampling, seed))
        eot = () if self.tokenizer is None else (self.tokenizer.eot,)
        stops = [*sorted({*eot, *self.generation_defaults.eos_ids}), *_as_list(stop)]
        return self._run(requests, stops, on_text)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling: Greedy | Sample | None = None,
        max_new_tokens: int = 512,
        stop: str | Sequence[Stop] = (),
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
        **arguments: Any,
    ) -> str:
        """The answer to a conversation [{"role": …, "content": …}], in the model's own chat format or in ChatML.

        `arguments` go to the chat template: tools, enable_thinking, … Raises ValueError for a model that does not chat,
        or messages that its format does not have or the window does not hold.
        """
        ids = self.encode_chat(messages, **arguments)
        stops = [*self.vocabulary.turn_stops(), *_as_list(stop)]
        emit = on_text and (lambda row, text: on_text(text))
        return self.complete([ids], sampling, max_new_tokens, stops, [seed], emit)[0].text

    @property
    def sampling(self) -> Greedy | Sample:
        """How the release's generation_config.json samples; greedy without one."""
        return self.generation_defaults.sampler()

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt as the model reads it; those of a text have what begins every text in front.

        Raises ValueError if there are none, or one is beyond the embedding.
        """
        if isinstance(prompt, str):
            ids = [*self._prefix, *self.vocabulary.encode_ordinary(prompt)]
        else:
            ids = [*prompt]
        if not ids:
            raise ValueError(
                "the prompt is empty: a model continues at least one token; to begin a new text give the ids "
                "[[model.tokenizer.eot]]"
            )
        self._check_ids(np.array(ids, np.int64))
        return ids

    def room(self, ids: Sequence[int], name: str = "the prompt") -> int:
        """How many tokens may follow a prompt. Raises ValueError, with both numbers, if it fills the window."""
        if self.window is None:
            return sys.maxsize
        if len(ids) >= self.window:
            raise ValueError(
                f"{name} has {len(ids):,} tokens, and the model's window is {self.window:,}, the answer included: "
                "shorten it, or load the model with ntk=True, logn=True, which extends the window (report §2.3.2)"
            )
        return self.window - len(ids)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **arguments: Any) -> list[int]:
        """Ids of a conversation, up to where the assistant answers; see `Tokenizer.encode_chat`."""
        return self.vocabulary.encode_chat(messages, **arguments)

    # ---- details ----

    def _run(self, requests: list[decode.Request], stops: Sequence[Stop], on_text) -> list[Completion]:
        streams = [Stream(self.vocabulary, functools.partial(on_text, i)) for i in range(len(requests)) if on_text]
        with self._in_mesh():
            done = decode.generate(
                *self._prepared,
                requests,
                size=self._vocab_size,
                stops=stops,
                decode=None if self.tokenizer is None else self.tokenizer.decode,
                kv_cache=self.kv_cache,
                frozen_ntk=self.frozen_ntk,
                banned=self.generation_defaults.banned,
                on_token=(lambda row, ids: streams[row].push(ids)) if on_text else None,
            )
        completions = []
        for one in done:
            text = one.text if one.text is not None else self.tokenizer.decode(one.ids) if self.tokenizer else ""
            completions.append(Completion(text, one.ids, math.fsum(one.model_logprobs), one.reason, one.stop))
        for stream, completion in zip(streams, completions):
            stream.finish(completion.text)  # half a character, or the beginning of a stop that did not come
        return completions

    @functools.cached_property
    def _prepared(self) -> tuple[transformer.Transformer, dict]:
        """The network and parameters in the form for decoding: a copy, made on first use."""
        return transformer.prepare(self.network, self.params)

    @property
    def vocabulary(self) -> Tokenizer:
        """The tokenizer. Raises ValueError if there is none."""
        if self.tokenizer is None:
            raise ValueError("no tokenizer found; put tokenizer.json into the folder, or give ids instead of text")
        return self.tokenizer

    @property
    def _vocab_size(self) -> int:
        """Ids that may be generated: the embedding has padding rows after those of the tokenizer."""
        return self.config.vocab if self.tokenizer is None else min(self.tokenizer.size, self.config.vocab)

    @property
    def _prefix(self) -> Sequence[int]:
        return (self.vocabulary.eot,) if self.generation_defaults.from_run else self.vocabulary.prefix

    def _check_ids(self, ids: np.ndarray) -> None:
        size = self.config.vocab
        if ids.size and not 0 <= ids.min() <= ids.max() < size:
            bad = ids[(ids < 0) | (ids >= size)].flat[0]
            raise ValueError(f"id {bad} is not in the vocabulary, which has ids 0 … {size - 1}")

    def _in_mesh(self):
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def _as_list(stop: str | Sequence[Stop]) -> list[Stop]:
    return [stop] if isinstance(stop, str) else list(stop)


@functools.partial(jax.jit, static_argnames="model")
def _logits(params, ids, *, model):
    lengths = jnp.full(ids.shape[0], ids.shape[1], jnp.int32)
    hidden, _ = model.apply({"params": params}, ids, lengths=lengths)
    return transformer.logits(params, hidden)
