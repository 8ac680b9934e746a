"""A `tokenizer.json`, the format of the library tokenizers and of model hubs, as a tokenizer.

Its control tokens are the added tokens marked special. Other added tokens (`<think>`, `<tool_call>`) are found in plain
text too, but not in messages that a chat template writes (`encode_rendered`).
Tokens are bytes in GPT-2's spelling (Qwen2 to 3, Llama 3, SmolLM2), or as sentencepiece writes them, with `▁` for a
blank and `<0x41>` for a byte (Llama 1 and 2).
"""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, takewhile
from typing import Any

from qwenjax.tokenizer.base import TEMPLATE_FILE, Tokenizer, replace_surrogates
from qwenjax.tokenizer.bpe import bytes_to_unicode

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class HubTokenizer(Tokenizer):
    """A tokenizer.json with its own control tokens and end of text.

    `decode` keeps the blank that a vocabulary of sentencepiece's kind puts before a text.
    """

    file = "tokenizer.json"

    def __init__(self, data: bytes, config: bytes = b"{}", source: str = "the tokenizer.json"):
        """From the bytes of a tokenizer.json and of a tokenizer_config.json, as `hub_folder.read_folder` makes them."""
        self._engine = load_engine(data, source)
        # Else the surface of a control token in a text would become the token
        self._engine.encode_special_tokens = True
        self.config = json.loads(config)
        facts = json.loads(data)
        added = {token["id"]: token for token in facts["added_tokens"]}
        special = {token["content"]: index for index, token in added.items() if token["special"]}
        vocab = self._engine.get_vocab(with_added_tokens=True)
        to_bytes = _token_to_bytes(facts["decoder"], source)
        pieces = [b""] * (max(vocab.values(), default=-1) + 1)
        for token, index in vocab.items():
            pieces[index] = token.encode() if index in added else to_bytes(token)
        named = named_tokens(self.config)
        prefix = _prefix(facts["post_processor"])
        super().__init__(data, f"hub-{len(pieces)}", pieces, special, prefix, named.get("eos_token"))
        self.added = {token["content"]: index for index, token in added.items()}
        if self.config:
            self._files[TEMPLATE_FILE] = config
        if "chat_template" in self.config:
            from qwenjax.chat_format.template import ChatTemplate  # jinja2 is only needed for conversations

            self.chat_template = ChatTemplate(self.config["chat_template"], named)
        self._control = frozenset(special.values())
        self._opening_blank = '"first"' in json.dumps(facts["pre_tokenizer"])  # of sentencepiece, before a whole text
        self._strips = {token["content"]: (token["lstrip"], token["rstrip"]) for token in added.values()}

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

    def _piece(self, text: str, opens: bool) -> list[int]:
        holds_token = any(surface in text for surface in self.added if surface not in self.special)
        if opens and not holds_token:
            return self.encode_ordinary(text)
        engine = self._engine if not (holds_token or self._opening_blank) else self._bare(opens)
        return self._checked(text, engine.encode(self._normalize(text), add_special_tokens=False).ids, engine)

    def _characters(self, text: str, ids: list[int]) -> list[tuple[int, int]]:
        for opens in (True, False):  # the engine knows them, also where it normalises
            encoding = self._bare(opens).encode(self._normalize(text), add_special_tokens=False)
            if encoding.ids == ids:
                return encoding.offsets
        return super()._characters(text, ids)

    @functools.lru_cache(maxsize=8)  # noqa: B019 (tokenizers live as long as the process)
    def _surfaces(self, among: frozenset[str]) -> re.Pattern:
        shapes = []
        for surface in sorted(among, key=lambda surface: (-len(surface), surface)):
            before, after = self._strips[surface]  # blanks
            shapes.append(r"\s*" * before + f"({re.escape(surface)})" + r"\s*" * after)
        return re.compile("|".join(shapes))

    @functools.lru_cache(maxsize=2)  # noqa: B019 (tokenizers live as long as the process)
    def _bare(self, opens: bool) -> Any:
        """The engine without added tokens; if the text does not open the conversation, without a blank before it."""
        facts = self.facts | {"added_tokens": []}
        if not opens and self._opening_blank:
            facts["pre_tokenizer"] = json.loads(json.dumps(facts["pre_tokenizer"]).replace('"first"', '"never"'))
        return load_engine(json.dumps(facts).encode(), self.name)

    def _checked(self, text: str, ids: list[int], engine: Any = None) -> list[int]:
        """The ids; if merges produced a control token, those of the text cut inside the token's surface."""
        if self._control.isdisjoint(ids):
            return ids
        surfaces = "|".join(re.escape(surface) for surface in self.special if len(surface) > 1)
        cuts = [match.start() + 1 for match in re.finditer(f"(?={surfaces})", text)] if surfaces else []
        if not cuts:
            raise ValueError(f"{self.name}: {text[:40]!r} cannot be encoded without a control token")
        encode = (engine or self._engine).encode
        parts = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
        return [i for part in parts for i in self._checked(part, encode(part, add_special_tokens=False).ids, engine)]


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


def surface_of(token: Any) -> str | None:
    """The surface of a named token, which is a string or the fields of an added token."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, … as a chat template sees them; model-specific names (image_token) too."""
    names = {*NAMED, *(name for name in config if name.endswith("_token"))}
    found = {name: surface_of(config.get(name)) for name in sorted(names)}
    extra = config.get("extra_special_tokens")
    found |= {name: surface_of(token) for name, token in extra.items()} if isinstance(extra, dict) else {}
    return {name: surface for name, surface in found.items() if surface is not None}
