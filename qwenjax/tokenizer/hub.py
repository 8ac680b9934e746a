"""Vocabularies of other people: a `tokenizer.json`, as the library tokenizers reads and the hubs keep it.

Its control tokens are the added tokens that it calls special; what it adds beside them (`<think>`, `<tool_call>`) is
text like any other. Tokens are bytes either in GPT-2's spelling (Qwen2 to 3, Llama 3, SmolLM2) or as sentencepiece
writes them, with `▁` for a blank and `<0x41>` for a byte (Llama 1 and 2).
"""

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from qwenjax.tokenizer.base import Tokenizer, whole_text
from qwenjax.tokenizer.vocabulary.merges import spelling


class HubTokenizer(Tokenizer):
    """A tokenizer.json with its own control tokens; `eot` is what it calls the end of a text.

    A vocabulary in sentencepiece's manner puts a blank before a text, and `decode` leaves it there, because it cannot
    tell the beginning of a text from its middle.
    """

    file = "tokenizer.json"

    def __init__(self, data: bytes, source: str = "the tokenizer.json"):
        """From the bytes of the file; `source` names it in errors.

        Raises:
          ValueError: no tokenizer.json, one whose tokens are not bytes, or one without an end of text.
        """
        self._engine = engine(data, source)
        # else the surface of a control token in a text would become the token
        self._engine.encode_special_tokens = True
        facts = json.loads(data)
        added = {token["id"]: token for token in facts["added_tokens"]}
        special = {token["content"]: index for index, token in added.items() if token["special"]}
        vocab = self._engine.get_vocab(with_added_tokens=True)
        read = _reader(facts["decoder"], source)
        pieces = [b""] * (max(vocab.values(), default=-1) + 1)
        for token, index in vocab.items():
            pieces[index] = token.encode() if index in added else read(token)
        super().__init__(data, f"hub-{len(pieces)}", pieces, special, _prefix(facts["post_processor"]))
        self._control = frozenset(special.values())

    @property
    def facts(self) -> dict[str, Any]:
        """What the file says, parsed."""
        return json.loads(self._vocabulary)

    def _normalize(self, text: str) -> str:
        return whole_text(text)  # the engine does the rest, if there is any

    def _ordinary(self, text: str) -> list[int]:
        return self._checked(text, self._engine.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """`encode_ordinary` of each text. The engine takes a thread per core, or RAYON_NUM_THREADS of them."""
        texts = [self._normalize(text) for text in texts]
        coded = self._engine.encode_batch_fast(texts, add_special_tokens=False)
        return [self._checked(text, own.ids) for text, own in zip(texts, coded)]

    def _checked(self, text: str, ids: list[int]) -> list[int]:
        """The ids, unless merges led to a control token: then those of the text cut within its surface."""
        if self._control.isdisjoint(ids):
            return ids
        surfaces = "|".join(re.escape(surface) for surface in self.special if len(surface) > 1)
        cuts = [found.start() + 1 for found in re.finditer(f"(?={surfaces})", text)] if surfaces else []
        if not cuts:
            raise ValueError(f"{self.name}: {text[:40]!r} cannot be written without a control token")
        return [i for a, b in pairwise([0, *cuts, len(text)]) for i in self._ordinary(text[a:b])]


def engine(data: bytes, source: str) -> Any:
    """The tokenizer of the library tokenizers, without a limit of length.

    Raises:
      ValueError: it is none, or the library is not installed.
    """
    library = tokenizers(source)
    try:
        made = library.Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{source} is no tokenizer.json of the library tokenizers: {error}") from None
    made.no_truncation()  # files of sentence encoders carry a limit, which would hide most of a long text
    made.no_padding()
    return made


def tokenizers(source: str) -> Any:
    """The library. Raises ValueError, with what to install, if it is absent."""
    try:
        import tokenizers
    except ImportError:
        raise ValueError(f"to read {source} run `pip install 'qwenjax[tokenizers]'`") from None
    return tokenizers


def _reader(decoder: dict | None, source: str) -> Callable[[str], bytes]:
    """From a token as the file shows it to its bytes."""
    kinds = {step["type"] for step in (decoder or {}).get("decoders", [decoder or {"type": "none"}])}
    if "ByteLevel" in kinds:
        of = {character: byte for byte, character in spelling().items()}

        def spelt(token: str) -> bytes:
            known = all(character in of for character in token)
            return bytes(map(of.__getitem__, token)) if known else token.encode()

        return spelt
    if "ByteFallback" in kinds:
        shown = any("▁" in json.dumps(step, ensure_ascii=False) for step in decoder.get("decoders", [decoder]))

        def written(token: str) -> bytes:
            if re.fullmatch("<0x[0-9A-F]{2}>", token):
                return bytes([int(token[3:5], 16)])
            return (token.replace("▁", " ") if shown else token).encode()

        return written
    raise ValueError(
        f"{source}: tokens that are decoded by {', '.join(sorted(kinds))} do not stand for bytes; vocabularies of "
        "ByteLevel and ByteFallback are read"
    )


def _prefix(processor: dict | None) -> list[int]:
    """The ids that a post-processor puts before a text."""
    if processor and processor["type"] == "Sequence":
        return [i for step in processor["processors"] for i in _prefix(step)]
    ids: list[int] = []
    if processor and processor["type"] == "TemplateProcessing":
        for step in processor["single"]:
            if "SpecialToken" not in step:
                break
            ids += processor["special_tokens"][step["SpecialToken"]["id"]]["ids"]
    return ids
