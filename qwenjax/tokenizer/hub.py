"""A `tokenizer.json`, the format of the library tokenizers and of model hubs, as a tokenizer.

Its control tokens are the added tokens marked special; other added tokens (`<think>`, `<tool_call>`) are ordinary text.
Tokens are bytes in GPT-2's spelling (Qwen2 to 3, Llama 3, SmolLM2), or as sentencepiece writes them, with `▁` for a
blank and `<0x41>` for a byte (Llama 1 and 2).
"""

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from typing import Any

from qwenjax.tokenizer.base import Tokenizer, replace_surrogates
from qwenjax.tokenizer.bpe import bytes_to_unicode


class HubTokenizer(Tokenizer):
    """A tokenizer.json with its own control tokens and end of text.

    `decode` keeps the blank that a vocabulary of sentencepiece's kind puts before a text.
    """

    file = "tokenizer.json"

    def __init__(self, data: bytes, source: str = "the tokenizer.json"):
        self._engine = load_engine(data, source)
        # Else the surface of a control token in a text would become the token
        self._engine.encode_special_tokens = True
        facts = json.loads(data)
        added = {token["id"]: token for token in facts["added_tokens"]}
        special = {token["content"]: index for index, token in added.items() if token["special"]}
        vocab = self._engine.get_vocab(with_added_tokens=True)
        to_bytes = _token_to_bytes(facts["decoder"], source)
        pieces = [b""] * (max(vocab.values(), default=-1) + 1)
        for token, index in vocab.items():
            pieces[index] = token.encode() if index in added else to_bytes(token)
        super().__init__(data, f"hub-{len(pieces)}", pieces, special, _prefix(facts["post_processor"]))
        self._control = frozenset(special.values())

    @property
    def facts(self) -> dict[str, Any]:
        """The parsed file."""
        return json.loads(self._files[self.file])

    def _normalize(self, text: str) -> str:
        return replace_surrogates(text)  # the engine applies the file's own normalizer

    def _ordinary(self, text: str) -> list[int]:
        return self._checked(text, self._engine.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """`encode_ordinary` of each text. The engine uses one thread per core, or RAYON_NUM_THREADS."""
        texts = [self._normalize(text) for text in texts]
        encodings = self._engine.encode_batch_fast(texts, add_special_tokens=False)
        return [self._checked(text, encoding.ids) for text, encoding in zip(texts, encodings)]

    def _checked(self, text: str, ids: list[int]) -> list[int]:
        """The ids; if merges produced a control token, those of the text cut inside the token's surface."""
        if self._control.isdisjoint(ids):
            return ids
        surfaces = "|".join(re.escape(surface) for surface in self.special if len(surface) > 1)
        cuts = [match.start() + 1 for match in re.finditer(f"(?={surfaces})", text)] if surfaces else []
        if not cuts:
            raise ValueError(f"{self.name}: {text[:40]!r} cannot be encoded without a control token")
        return [i for a, b in pairwise([0, *cuts, len(text)]) for i in self._ordinary(text[a:b])]


def load_engine(data: bytes, source: str) -> Any:
    """The tokenizer of the library tokenizers, without truncation and padding; `source` names it in errors."""
    library = tokenizers(source)
    try:
        engine = library.Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{source} is not a tokenizer.json of the library tokenizers: {error}") from None
    engine.no_truncation()  # files of sentence encoders have a limit, which would hide most of a long text
    engine.no_padding()
    return engine


def tokenizers(source: str) -> Any:
    """The library tokenizers, or a ValueError with what to install."""
    try:
        import tokenizers
    except ImportError:
        raise ValueError(f"{source} needs the library tokenizers: run `pip install 'qwenjax[tokenizers]'`") from None
    return tokenizers


def _token_to_bytes(decoder: dict | None, source: str) -> Callable[[str], bytes]:
    """A function from a token as the file writes it to its bytes."""
    steps = (decoder or {}).get("decoders", [decoder or {"type": "none"}])
    kinds = {step["type"] for step in steps}
    if not kinds & {"ByteLevel", "ByteFallback"}:
        raise ValueError(
            f"{source}: tokens with the decoder {', '.join(sorted(kinds))} do not stand for bytes; "
            "only ByteLevel and ByteFallback can be read"
        )
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    blank = "▁" if "▁" in json.dumps(steps, ensure_ascii=False) else " "

    def byte_level(token: str) -> bytes:
        known = all(character in byte_of for character in token)
        return bytes(map(byte_of.__getitem__, token)) if known else token.encode()

    def byte_fallback(token: str) -> bytes:
        byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
        return bytes.fromhex(byte[1]) if byte else token.replace(blank, " ").encode()

    return byte_level if "ByteLevel" in kinds else byte_fallback


def _prefix(processor: dict | None) -> list[int]:
    """The ids that a post-processor puts before a text."""
    if not processor:
        return []
    if processor["type"] == "Sequence":
        return [i for step in processor["processors"] for i in _prefix(step)]
    opening = takewhile(lambda step: "SpecialToken" in step, processor.get("single", ()))
    return [i for step in opening for i in processor["special_tokens"][step["SpecialToken"]["id"]]["ids"]]
