"""The interface of every tokenizer, and the part of it that does not depend on the engine.

A tokenizer is a table of byte strings (decoding joins them), an engine that encodes ordinary text, and control tokens,
which no ordinary text can produce. Those of other models may lack the control tokens of ChatML.
"""

import codecs
import functools
import hashlib
import itertools
import operator
import re
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from qwenjax.chat_format import chatml, provenance
from qwenjax.common import storage

if TYPE_CHECKING:
    import numpy as np

    from qwenjax.chat_format.template import ChatTemplate

EXTRA = "extra.tiktoken"  # an extended vocabulary also writes this
TEMPLATE_FILE = "tokenizer_config.json"  # holds the chat template of a model of others
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # of every vocabulary trained here
# Names of the end-of-text token in the vocabularies of all models
ENDS = (CONTROL[0], "<|end_of_text|>", "</s>", "<｜end▁of▁sentence｜>", "<eos>")

# Surfaces that are control tokens whatever a file says about them: no text of a user may produce them
CONTROL_SURFACES = frozenset(
    (*CONTROL, *ENDS, "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")
) | {"<|python_tag|>", "<s>", "<start_of_turn>", "<end_of_turn>", "<bos>", "[INST]", "[/INST]"}


class Tokenizer(ABC):
    """Text to ids and back. Pickles as its vocabulary bytes.

    Attributes:
      name: 'qwen' for the published vocabulary, else kind and size, as in 'spm-8192'.
      size: number of ids, control tokens included. Embedding rows at or above it are padding.
      special: surface (the token's text) -> id of the control tokens.
      added: surface -> id of all tokens that a chat template may write; `special` and others, such as <think>.
      eot: id of the token that ends a text, the first of `ENDS` in the vocabulary, else the one its files name.
      im_start, im_end: ids of the tokens around a turn; None if the vocabulary has no ChatML.
      prefix: ids that begin every text the model reads: a beginning-of-text token, or nothing.
      chat_template: that of the model's files; None: the model chats in ChatML, if at all.
      fingerprint: SHA-256 (hex) of the vocabulary; see `check_same`.
    """

    file: ClassVar[str]  # name of the vocabulary file that `save` writes

    chat_template: "ChatTemplate | None" = None

    def __init__(
        self,
        vocabulary: bytes,
        name: str,
        pieces: list[bytes],
        special: dict[str, int],
        prefix: Sequence[int] = (),
        end: str | None = None,
    ):
        """`pieces` are the bytes of each id. Subclasses take `vocabulary`, and a name for it in errors.

        Raises:
          ValueError: no control token ends a text: neither one of `ENDS` nor `end`.
        """
        end = next((surface for surface in (*ENDS, end) if surface in special), None)
        if end is None:
            raise ValueError(
                f"{name}: none of its {len(special)} control tokens ends a text (known: {', '.join(ENDS)})"
            )
        self.name = name
        self.size = len(pieces)
        self.special = self.added = special
        self.eot = special[end]
        self.im_start, self.im_end = (special.get(surface) for surface in CONTROL[1:])
        self.prefix = tuple(prefix)
        self.fingerprint = hashlib.sha256(vocabulary).hexdigest()
        self._files = {self.file: vocabulary}
        self._pieces = pieces

    @property
    def ordinary_size(self) -> int:
        """Ids without added tokens at the end: embeddings of other models may lack rows for those."""
        added = set(self.added.values())
        return next((i + 1 for i in reversed(range(self.size)) if i not in added), 0)

    def __reduce__(self):
        return type(self), tuple(self._files.values()), {"chat_template": self.chat_template}

    def __repr__(self):
        return f"{type(self).__name__}({self.name}, size={self.size}, fingerprint={self.fingerprint[:8]}…)"

    # ---- text to ids ----

    @abstractmethod
    def _normalize(self, text: str) -> str:
        """The text as control tokens are searched in it and as it is encoded."""

    @abstractmethod
    def _ordinary(self, text: str) -> list[int]:
        """Ids of normalised text, in which control surfaces are plain text."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """`encode_ordinary` of each text, on that many threads (default: one per core)."""

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of plain text, never a control token. Data and the contents of a chat are encoded with this."""
        return self._ordinary(self._normalize(text))

    def encode_array(self, text: str) -> "np.ndarray":
        """The same ids as `encode_ordinary`, as uint32 [n]: the fastest way for much text."""
        import numpy as np  # not at the top: encoding prompts does not need it

        return np.array(self.encode_ordinary(text), np.uint32)

    def encode(
        self,
        text: str,
        allowed_special: str | Collection[str] = "all",
        disallowed_special: str | Collection[str] = (),
    ) -> list[int]:
        """Ids of text in which surfaces of control tokens become the tokens. For text from users: `encode_ordinary`.

        Args:
          allowed_special: 'all' (as released), or the surfaces that become control tokens; others are plain text.
          disallowed_special: surfaces that raise ValueError; 'all' means all control tokens that are not allowed.
        """
        for name, choice in (("allowed_special", allowed_special), ("disallowed_special", disallowed_special)):
            if isinstance(choice, str) and choice != "all":
                raise ValueError(f"{name}={choice!r}: wanted 'all' or a collection of surfaces, e.g. {{{choice!r}}}")
        known = frozenset(self.added)
        allowed = known if allowed_special == "all" else known & frozenset(allowed_special)
        banned = known - allowed if disallowed_special == "all" else frozenset(disallowed_special)
        text = self._normalize(text)
        if banned and (match := _any_of(banned).search(text)):
            raise ValueError(
                f"the text contains {match.group()!r} at character {match.start()}, which disallowed_special forbids; "
                "to encode it as plain text pass disallowed_special=() and leave it out of allowed_special"
            )
        if not allowed:
            return self._ordinary(text)
        return self._encode_pieces(text, frozenset(allowed))

    # ---- conversations ----

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **arguments: Any
    ) -> list[int]:
        """Ids of a conversation: by the chat template of the model's files, or in ChatML (`chatml.encode_chat`).

        No text of a message becomes a control token.

        Args:
          arguments: of `ChatTemplate.render`: tools, enable_thinking, …
        Raises:
          ValueError: what the format does not have; with a template, the template's own words.
        """
        if self.chat_template is None:
            return chatml.encode_chat(self, messages, add_generation_prompt, **arguments)
        try:
            rendered = self.chat_template.render(messages, add_generation_prompt=add_generation_prompt, **arguments)
        except ValueError:
            raise
        except Exception as error:  # what a template raises is up to it
            raise ValueError(f"the model's chat template refuses the conversation: {error}") from error
        return self.encode_rendered(rendered)

    def encode_training(
        self, messages: Sequence[Mapping[str, Any]], loss_mask: str = "assistant", **arguments: Any
    ) -> tuple[list[int], list[int]]:
        """Ids of a training conversation, and for each whether predicting it carries loss (1) or not (0).

        See `encode_with_mask` of `chatml` and `template`; `arguments` are those of `encode_chat`.
        """
        if self.chat_template is None:
            return chatml.encode_with_mask(self, messages, loss_mask, **arguments)
        from qwenjax.chat_format import template

        try:
            return template.encode_with_mask(self, messages, loss_mask, **arguments)
        except ValueError:
            raise
        except Exception as error:  # what a template raises is up to it
            raise ValueError(f"the model's chat template refuses the conversation: {error}") from error

    def check_chat(self) -> None:
        """Raises ValueError if the model does not chat: no chat template, and no ChatML in the vocabulary."""
        if self.chat_template is None:
            chatml.check(self)

    @functools.cached_property
    def turn_end(self) -> int:
        """Id of the token that ends an assistant's turn. Raises ValueError if the model does not chat."""
        self.check_chat()
        if self.chat_template is None:
            return self.im_end
        from qwenjax.chat_format import template

        return template.turn_end(self)

    @property
    def chat_fingerprint(self) -> str:
        """Marks the ids of conversations: `fingerprint`, and with a chat template also what that says."""
        if self.chat_template is None:
            return self.fingerprint
        return hashlib.sha256(f"{self.fingerprint} {self.chat_template.fingerprint}".encode()).hexdigest()

    def turn_stops(self) -> list[list[int]]:
        """Ids, as sequences, that end an answer: of ChatML as released, or of the chat template."""
        return chatml.stop_sequences(self) if self.chat_template is None else [[self.turn_end]]

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of what a chat template wrote. Only tokens that the template itself wrote become control tokens."""
        return self._encode_pieces(text, frozenset(self.added))

    def locate_rendered(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The same ids, and the characters [begin, end) that each stands for."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for piece, begin, end, is_control in provenance.control_pieces(text, self._surfaces(frozenset(self.added))):
            own = [self.added[piece]] if is_control else self._piece(piece, begin == 0)
            offsets = [(0, end - begin)] if is_control else self._characters(piece, own)
            ids += own
            spans += [(begin + first, begin + last) for first, last in offsets]
        return ids, spans

    def _encode_pieces(self, text: str, allowed: frozenset[str]) -> list[int]:
        ids: list[int] = []
        for piece, begin, _, is_control in provenance.control_pieces(text, self._surfaces(allowed)):
            ids += [self.added[piece]] if is_control else self._piece(piece, begin == 0)
        return ids

    def _piece(self, text: str, opens: bool) -> list[int]:
        """Ids of plain text between control tokens; `opens`: nothing is before it. No added token is in it."""
        return self.encode_ordinary(text)

    def _characters(self, text: str, ids: list[int]) -> list[tuple[int, int]]:
        """The characters [begin, end) of a plain text that each of its ids stands for."""
        starts = [i for i, byte in enumerate(text.encode()) if byte & 0xC0 != 0x80]  # of characters, in bytes
        ends = list(itertools.accumulate(len(self.decode_bytes([i])) for i in ids))
        extra = (ends[-1] if ends else 0) - len(text.encode())  # a blank that sentencepiece puts before a text
        borders = [0, *(max(end - extra, 0) for end in ends)]
        first = [max(bisect_right(starts, border) - 1, 0) for border in borders[:-1]]
        return [(begin, bisect_left(starts, end)) for begin, end in zip(first, borders[1:])]

    def _surfaces(self, among: frozenset[str]) -> re.Pattern:
        """Matches these tokens: the surface as a group, with what the token takes from the text around it."""
        return _any_of(among)

    # ---- ids to text ----

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for, control tokens as their surface. ValueError: an id outside 0 … size-1."""
        ids = list(map(operator.index, ids))
        if ids and (min(ids) < 0 or max(ids) >= self.size):
            bad = next(i for i in ids if not 0 <= i < self.size)
            raise ValueError(f"id {bad} is not in the vocabulary of {self.name}, which has ids 0 … {self.size - 1}")
        return b"".join(map(self._pieces.__getitem__, ids))

    def decode(self, ids: Iterable[int], errors: str = "replace", skip_special: bool = False) -> str:
        """The text of ids, without control tokens if `skip_special`; `errors` as in `bytes.decode`."""
        if skip_special:
            control = set(self.special.values())
            ids = [i for i in ids if i not in control]
        return self.decode_bytes(ids).decode("utf-8", errors)

    def stream(self, errors: str = "replace", skip_special: bool = False) -> "StreamDecoder":
        """A decoder that takes one id at a time."""
        return StreamDecoder(self, errors, skip_special)

    # ---- files ----

    def save(self, directory: str | Path) -> Path:
        """Writes the vocabulary, which `load_tokenizer(directory)` reads; returns the path of `file`.

        Raises:
          ValueError: it has a chat template that its files cannot hold (of a GGUF with a sentencepiece vocabulary).
        """
        if self.chat_template is not None and TEMPLATE_FILE not in self._files:
            raise ValueError(
                f"the chat template of {self.name} would be lost: a {self.file} cannot hold it; start from the model's "
                "folder with a tokenizer.json instead of the GGUF"
            )
        folder = storage.path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self._files.items():
            (folder / name).write_bytes(data)
        return folder / self.file


def check_same(
    tokenizer: Tokenizer, fingerprint: str, what: str, advice: str, other: str = "another tokenizer"
) -> None:
    """Raises ValueError if `what` was made with a tokenizer of another fingerprint (named `other`); `advice` helps."""
    if fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"{what} was made with {other} (fingerprint {fingerprint[:12]}), not with {tokenizer.name} "
            f"({tokenizer.fingerprint[:12]}), so its ids mean other text: {advice}"
        )


class StreamDecoder:
    """Decodes one id at a time; the texts of `push` and `finish` concatenate to `decode` of all ids.

    A character whose bytes spread over several tokens (common in Chinese and emoji) appears with its last byte.
    """

    def __init__(self, tokenizer: Tokenizer, errors: str = "replace", skip_special: bool = False):
        self._tokenizer = tokenizer
        self._skip = set(tokenizer.special.values()) if skip_special else ()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    def push(self, token: int) -> str:
        """The text that this id completes; empty within a character."""
        return "" if token in self._skip else self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def finish(self) -> str:
        """What `errors` makes of an incomplete character at the end. Afterwards the decoder can be used again."""
        return self._decoder.decode(b"", final=True)


@functools.lru_cache(maxsize=64)
def _any_of(surfaces: frozenset[str]) -> re.Pattern:
    """Matches any of the surfaces, as one group; the longest, if one is the beginning of another."""
    return re.compile("(" + "|".join(map(re.escape, sorted(surfaces, key=lambda s: (-len(s), s)))) + ")")


def replace_surrogates(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot encode, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
