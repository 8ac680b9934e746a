"""A model to talk to: logits, completions, conversations, scores.

Texts are encoded plainly: `<|im_end|>` typed by a user cannot end a turn. Whoever wants control tokens in a prompt
gives ids, of `model.tokenizer.encode`.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwenjax.api import likelihood, scoring
from qwenjax.api.generation_defaults import GenerationDefaults
from qwenjax.api.options import SAMPLING
from qwenjax.api.streaming import Stream
from qwenjax.chat_format import chatml
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
    ids: list[int]  # without the stop
    logprob: float  # of these ids, under the model's own distribution
    reason: str  # why it ended: 'stop', or 'length', the limit of tokens
    stop: tuple[int, ...] = ()  # the ids that ended it; none where a text did


@dataclass
class Model:
    """Parameters and all that is needed to use them.

    Attributes:
      params: as `transformer.init_params`, in the dtype that was asked for.
      tokenizer: None if none lay with the weights; then prompts are ids.
      habits: what the files say about how the model is used.
      window: the longest text, in tokens, that `generate` and `chat` accept, the answer included; None is no limit.
        By default what the model was trained for, or no limit where dynamic NTK extends it.
    """

    config: ModelConfig
    params: dict
    tokenizer: Tokenizer | None
    compute: Compute
    mesh: Mesh | None = None
    habits: GenerationDefaults = field(default_factory=GenerationDefaults)
    window: int | None = field(init=False)

    def __post_init__(self):
        config, scaling = self.config, self.config.rope_scaling
        known = math.floor(max(config.context, (scaling.original or config.context) * scaling.factor))
        self.window = None if config.ntk else known
        self.network = transformer.Transformer(config, self.compute)

    def __repr__(self):
        size = f"{self.config.params / 1e6:,.0f}M parameters"
        return f"Model({size}, {self.config.layers} layers, context {self.config.context}, {self.tokenizer!r})"

    # ---- numbers ----

    def logits(self, ids: Any) -> jax.Array:
        """Scores of the next token after each position: int [b t] -> float32 [b t v], all context options on.

        Raises:
          ValueError: not rows of ids of one length, or an id beyond the embedding.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"wanted ids [b t], rows of equal length, got {ids.dtype} of shape {ids.shape}")
        self._check_ids(ids)
        with self._placed():
            return _logits(self.params, ids.astype(np.int32), model=self.network)

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Prompt]) -> list[float]:
        """Summed log-probability, nats, of each continuation after its prompt.

        Of two texts, blanks at the end of the prompt belong to the continuation, and the whole is encoded at once, as
        the model would see it. An empty prompt stands for the beginning of a text.

        Raises:
          ValueError: not as many of either, or a pair of ids and text.
        """
        if len(prompts) != len(continuations):
            raise ValueError(f"{len(prompts)} prompts and {len(continuations)} continuations: wanted as many")
        pairs = [self._pair(p, c) for p, c in zip(prompts, continuations)]
        with self._placed():
            return scoring.score(self.network, self.params, pairs)

    def likelihoods(
        self, texts: Sequence[Sequence[int]], progress: Callable[[int], None] = lambda tokens: None
    ) -> list[likelihood.Likelihood]:
        """Log-probability of every token of texts of ids, however long; see `likelihood.likelihoods`."""
        with self._placed():
            return likelihood.likelihoods(self.network, self.params, texts, self._size, progress)

    def _pair(self, prompt: Prompt, continuation: Prompt) -> tuple[list[int], list[int]]:
        if isinstance(prompt, str) != isinstance(continuation, str):
            raise ValueError("a prompt and its continuation are both text or both ids")
        if not isinstance(prompt, str):
            ids = [*prompt], [*continuation]
        else:
            start = prompt.rstrip()
            whole = self.vocabulary.encode_ordinary(prompt + continuation)
            given = self.vocabulary.encode_ordinary(start)
            ids = [*self._prefix, *given], whole[len(given) :]
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
          sampling: a policy of `generate.sampling`; None: as the release samples, or greedily if it does not say.
          stop: texts or sequences of ids that end a completion and are no part of it; a model's own end of text does.
          seeds: one for each prompt, or of the first, the next having the next. A prompt's draws are its own: they do
            not depend on the others.
          on_text: told the row and each piece of text as it comes; pieces join to the completion.
        Raises:
          ValueError: an empty prompt, or one that is longer than the window.
        """
        one = isinstance(prompts, str)
        listed = [prompts] if one else list(prompts)
        done = self.complete(listed, sampling, max_new_tokens, stop, seeds, on_text)
        if one:
            return done[0].text
        return [c.text if isinstance(p, str) else c.ids for p, c in zip(listed, done)]

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Greedy | Sample | None = None,
        max_new_tokens: int = 256,
        stop: str | Sequence[Stop] = (),
        seeds: int | Sequence[int] = 0,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Completion]:
        """As `generate`, with ids, log-probability and why each completion ended."""
        seeds = range(seeds, seeds + len(prompts)) if isinstance(seeds, int) else seeds
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: wanted one each, or a single number")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: wanted at least 1")
        sampling = self.sampling if sampling is None else sampling
        requests = []
        for i, (prompt, seed) in enumerate(zip(prompts, seeds)):
            ids = self.encode(prompt)
            requests.append(decode.Request(ids, self._room(ids, max_new_tokens, i), sampling, seed))
        return self._run(requests, [*self._ends(), *_listed(stop)], on_text)

    def chat(
        self,
        messages: Sequence[chatml.Message],
        sampling: Greedy | Sample | None = None,
        max_new_tokens: int = 512,
        stop: str | Sequence[Stop] = (),
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """The answer to a conversation [{"role": …, "content": …}], in ChatML.

        Raises:
          ValueError: a model without ChatML, messages that it does not have, or more of them than the window holds.
        """
        ids = self.encode_chat(messages)
        stops = [*chatml.stop_sequences(self.vocabulary), *self._ends()]
        stops += _listed(stop)
        sampling = self.sampling if sampling is None else sampling
        request = decode.Request(ids, self._room(ids, max_new_tokens, None), sampling, seed)
        return self._run([request], stops, on_text and (lambda row, text: on_text(text)))[0].text

    @property
    def sampling(self) -> Greedy | Sample:
        """The policy of the release's generation_config.json; without one, greedy."""
        return self.policy()

    def policy(self, **changes: float) -> Greedy | Sample:
        """A policy like the release's but for temperature, top_p, top_k or repetition_penalty.

        Where the release does not sample, a temperature, top_p or top_k asks for it; temperature 0 is greedy.
        """
        said = self.habits.sampling
        values = {key: said[key] for key in SAMPLING if key in said} | changes
        sample = said.get("do_sample", False) or changes.keys() & {"temperature", "top_k", "top_p"}
        if sample and values.get("temperature", 1.0) >= 0.01:  # as the releases' server draws the line
            return Sample(**values)
        return Greedy(values.get("repetition_penalty", 1.0))

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt as the model reads it: of a text, with what stands before every text.

        Raises:
          ValueError: it is empty, or an id is beyond the embedding.
        """
        if isinstance(prompt, str):
            ids = [*self._prefix, *self.vocabulary.encode_ordinary(prompt)]
        else:
            ids = [*prompt]
        if not ids:
            raise ValueError(
                "the prompt is empty: a model goes on from at least one token; to begin a new text give the ids "
                "[[model.tokenizer.eot]]"
            )
        self._check_ids(np.array(ids, np.int64))
        return ids

    def encode_chat(self, messages: Sequence[chatml.Message]) -> list[int]:
        """Ids of a conversation up to where the assistant speaks. Raises ValueError without ChatML."""
        return self.vocabulary.encode_chat(messages)

    # ---- within ----

    def _run(self, requests: list[decode.Request], stops: Sequence[Stop], on_text) -> list[Completion]:
        streams = [Stream(self.vocabulary, functools.partial(on_text, i)) for i in range(len(requests)) if on_text]
        with self._placed():
            done = decode.generate(
                *self._prepared,
                requests,
                size=self._size,
                stops=stops,
                decode=None if self.tokenizer is None else self.tokenizer.decode,
                on_token=(lambda row, ids: streams[row].push(ids)) if streams else None,
            )
        found = [self._completion(c) for c in done]
        for stream, completion in zip(streams, found):
            stream.finish(completion.text)
        return found

    @functools.cached_property
    def _prepared(self) -> tuple[transformer.Transformer, dict]:
        """The network and parameters as decoding wants them: a copy, made when first needed."""
        return transformer.prepare(self.network, self.params)

    def _completion(self, made: decode.GeneratedRow) -> Completion:
        text = made.text
        if text is None:
            text = "" if self.tokenizer is None else self.tokenizer.decode(made.ids)
        return Completion(text, made.ids, math.fsum(made.model_logprobs), made.reason, made.stop)

    @property
    def vocabulary(self) -> Tokenizer:
        """The tokenizer. Raises ValueError if there is none."""
        if self.tokenizer is None:
            raise ValueError("no tokenizer lies with these weights: give ids, or put its file beside them")
        return self.tokenizer

    @property
    def _size(self) -> int:
        """Ids that may be written: the embedding has padding rows behind those of the tokenizer."""
        return self.config.vocab if self.tokenizer is None else self.tokenizer.size

    @property
    def _prefix(self) -> Sequence[int]:
        return (self.vocabulary.eot,) if self.habits.ours else self.vocabulary.prefix

    def _ends(self) -> list[int]:
        """Ids that end a text, by tokenizer and files."""
        own = () if self.tokenizer is None else (self.tokenizer.eot,)
        return sorted({*own, *self.habits.ends})

    def _room(self, ids: list[int], max_new: int, row: int | None) -> int:
        """Tokens that may follow a prompt."""
        if self.window is None or len(ids) < self.window:
            return max_new if self.window is None else min(max_new, self.window - len(ids))
        which = "the conversation" if row is None else f"prompt {row}"
        raise ValueError(
            f"{which} has {len(ids):,} tokens, and the model's window is {self.window:,}, the answer included: shorten "
            "it, or load the model with ntk=True, logn=True, which lets it read on (report §2.3.2)"
        )

    def _check_ids(self, ids: np.ndarray) -> None:
        size = self.config.vocab
        if ids.size and not 0 <= ids.min() <= ids.max() < size:
            bad = ids[(ids < 0) | (ids >= size)].flat[0]
            raise ValueError(f"id {bad} is not in the vocabulary, which has ids 0 … {size - 1}")

    def _placed(self):
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def _listed(stop: str | Sequence[Stop]) -> list[Stop]:
    return [stop] if isinstance(stop, str) else list(stop)


@functools.partial(jax.jit, static_argnames="model")
def _logits(params, ids, *, model):
    lengths = jnp.full(ids.shape[0], ids.shape[1], jnp.int32)
    hidden, _ = model.apply({"params": params}, ids, lengths=lengths)
    return transformer.logits(params, hidden)
