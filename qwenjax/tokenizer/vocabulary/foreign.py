"""Any vocabulary, read only to count tokens: what the report's Figure 3 compares. `load_tokenizer` reads fewer.

What a file is shows in its first bytes, not in its name: `.tiktoken` ranks, a sentencepiece model (any, not only
ours), a `tokenizer.json` of the library tokenizers, or the vocabulary inside a GGUF file. Texts are counted as they
are, without the tokens that a model puts around them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenjax.common.processes import cores
from qwenjax.tokenizer import foreign_sentencepiece, gguf, hub
from qwenjax.tokenizer.bpe import QwenBPE, read_ranks
from qwenjax.tokenizer.gguf_head import read_head
from qwenjax.tokenizer.load import load_tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """A name for people, what it was read as, how many ids it has, and the number of tokens in some texts."""

    name: str
    kind: str
    size: int
    count: Callable[[Sequence[str]], int]


def open_vocabulary(spec: str) -> Vocabulary:
    """The vocabulary of 'qwen', of a path, or of NAME=PATH, where NAME is what people will read.

    Raises:
      ValueError: nothing there, no vocabulary that we know, a part of it that we cannot follow (named), or a library
        that is not installed.
    """
    name, _, place = spec.partition("=") if "=" in spec and not Path(spec).exists() else ("", "", spec)
    path = Path(place)
    if place == "qwen" or path.is_dir():
        ours = load_tokenizer(place)
        return Vocabulary(name or ours.name, f"ours ({type(ours).__name__})", ours.size, _ours(ours))
    if not path.is_file():
        raise ValueError(
            f"no tokenizer {place!r}: wanted 'qwen', or a .tiktoken, sentencepiece, tokenizer.json or GGUF file that "
            "exists, with or without NAME= before it"
        )
    name = name or path.name.removesuffix(path.suffix)
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"GGUF"):
        return _gguf(name, path)
    if head.lstrip()[:1] == b"{":
        return _tokenizer_json(name, path)
    if re.match(rb"\s*[A-Za-z0-9+/]+=* +\d+\s", head):
        return _tiktoken(name, path)
    return _sentencepiece(name, path.read_bytes(), str(path))


def _ours(tokenizer) -> Callable[[Sequence[str]], int]:
    return lambda texts: sum(map(len, tokenizer.encode_batch(texts)))


def _tiktoken(name: str, path: Path) -> Vocabulary:
    """Ranks. Tokens of several digits tell cl100k's pattern from Qwen's; the file itself does not say."""
    import tiktoken

    data = path.read_bytes()
    ranks = read_ranks(data, str(path))
    if not any(token.isdigit() and len(token) > 1 for token in ranks):
        return Vocabulary(name, "ranks, cut as Qwen does", len(ranks), _ours(QwenBPE(data, str(path))))
    engine = tiktoken.Encoding(name, pat_str=gguf.CL100K, mergeable_ranks=ranks, special_tokens={})

    def count(texts: Sequence[str]) -> int:
        return sum(map(len, engine.encode_ordinary_batch(list(texts), num_threads=cores())))

    return Vocabulary(name, "ranks, cut as cl100k does (it has tokens of several digits)", len(ranks), count)


def _sentencepiece(name: str, model: bytes, source: str, kind: str = "sentencepiece") -> Vocabulary:
    try:
        engine = foreign_sentencepiece.engine(model, source)
    except ValueError as error:
        raise ValueError(
            f"{source} is no vocabulary: neither .tiktoken ranks, tokenizer.json nor GGUF; and {error}"
        ) from None

    def count(texts: Sequence[str]) -> int:
        return sum(map(len, engine.encode(list(texts), num_threads=cores())))

    return Vocabulary(name, kind, len(engine), count)


def _tokenizer_json(name: str, path: Path) -> Vocabulary:
    engine = hub.engine(path.read_bytes(), str(path))
    return Vocabulary(name, "tokenizer.json", engine.get_vocab_size(), _counter(engine))


def _gguf(name: str, path: Path) -> Vocabulary:
    facts = gguf.vocabulary(read_head(path), str(path))
    if facts["model"] != "gpt2":
        kind = f"GGUF, sentencepiece {'unigram' if facts['model'] == 't5' else 'BPE'}"
        return _sentencepiece(name, gguf.sentencepiece(facts, str(path)), str(path), kind)
    engine = gguf.byte_level(facts, str(path))
    engine.encode_special_tokens = True  # the surface of a control token in a text is text
    said = facts.get("pre")
    kind = f"GGUF, cut as {said}" if said else "GGUF, cut as default (it does not say how)"
    return Vocabulary(name, kind, len(facts["tokens"]), _counter(engine))


def _counter(engine) -> Callable[[Sequence[str]], int]:
    """Counts with a tokenizer of the library tokenizers: nothing but the text."""

    def count(texts: Sequence[str]) -> int:
        return sum(len(coded.ids) for coded in engine.encode_batch_fast(list(texts), add_special_tokens=False))

    return count
