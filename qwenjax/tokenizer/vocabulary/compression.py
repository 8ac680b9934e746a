"""How many tokens each of several vocabularies needs for texts of each language (report §2.2, Figure 3).

Counting needs no end-of-text token and no bytes of tokens, so `open_vocabulary` reads more kinds of vocabularies than
`load_tokenizer`, such as XLM-R's, the base of the report's figure.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path

from qwenjax.common.progress import meter
from qwenjax.sources.documents import STDLIB, documents
from qwenjax.sources.files import json_lines
from qwenjax.sources.slices import Report, Slice
from qwenjax.tokenizer import gguf, hub, load_tokenizer, sentencepiece
from qwenjax.tokenizer.base import replace_surrogates
from qwenjax.tokenizer.bpe import QwenBPE, read_ranks

# The report's languages in its order, with their three-letter codes (of Arabic and Chinese the standard forms)
LANGUAGES = {
    "th": "tha", "he": "heb", "ar": "arb", "ko": "kor", "vi": "vie", "zh": "cmn", "ja": "jpn", "tr": "tur",
    "id": "ind", "pl": "pol", "ru": "rus", "nl": "nld", "pt": "por", "it": "ita", "de": "deu", "es": "spa",
    "fr": "fra", "en": "eng",
}  # fmt: skip
CODE = "code"
_CODES = {three: two for two, three in LANGUAGES.items()} | {"ara": "ar", "zho": "zh"}

Encode = Callable[[str], Sized]  # text -> its ids, without those that a model puts around a text


@dataclass(frozen=True)
class Vocabulary:
    """A name for people, what the vocabulary was read as, its number of ids, and its encoder."""

    name: str
    kind: str
    size: int
    encode: Encode


@dataclass
class Language:
    """The counts of a language; `tokens[v]` by vocabulary, the base first."""

    code: str
    documents: int
    bytes: int
    tokens: tuple[int, ...]

    def relative(self, vocabulary: int) -> float:
        """Tokens per token of the base."""
        return self.tokens[vocabulary] / self.tokens[0]


@dataclass(frozen=True)
class Comparison:
    """Vocabularies, the base first, and languages in the report's order; `notes` say what was skipped."""

    vocabularies: tuple[Vocabulary, ...]
    languages: tuple[Language, ...]
    notes: tuple[str, ...]


def compare(specs: list[str], text: str | Path, limit: int) -> Comparison:
    """Counts the tokens of each language's text, `limit` bytes at most, by each vocabulary; the first is the base.

    Raises:
      ValueError: a vocabulary that cannot be read, two of one name, or no text of any of the languages.
    """
    vocabularies = [open_vocabulary(spec) for spec in specs]
    names = [vocabulary.name for vocabulary in vocabularies]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two vocabularies are called {twice.pop()!r}; name one of them: NAME=TOKENIZER")
    report = Report()
    rows = {code: Language(code, 0, 0, (0,) * len(specs)) for code in (*LANGUAGES, CODE)}
    with meter("counting", unit="B") as step:
        for code, document in texts(text, report, limit):
            row, size = rows[code], len(document.encode())
            row.documents += 1
            row.bytes += size
            row.tokens = tuple(n + len(v.encode(document)) for n, v in zip(row.tokens, vocabularies))
            step(size)
    missing = [code for code in LANGUAGES if not rows[code].documents]
    if len(missing) == len(LANGUAGES):
        raise ValueError("; ".join([f"{text} has no text of a language of the report", *report.lines()]))
    notes = report.lines() + ([f"no text for {', '.join(missing)}"] if missing else [])
    return Comparison(tuple(vocabularies), tuple(row for row in rows.values() if row.documents), tuple(notes))


# ---- vocabularies ----


def open_vocabulary(spec: str) -> Vocabulary:
    """The vocabulary of 'qwen', of a path, or of NAME=PATH.

    Raises:
      ValueError: no such file, not a vocabulary, a part of it that is unknown (named), or a missing library.
    """
    name, _, place = spec.partition("=") if "=" in spec and not Path(spec).exists() else ("", "", spec)
    path = Path(place)
    if place == "qwen" or path.is_dir():
        tokenizer = load_tokenizer(place)
        kind = f"ours ({type(tokenizer).__name__})"
        return Vocabulary(name or tokenizer.name, kind, tokenizer.size, tokenizer.encode_ordinary)
    if not path.is_file():
        raise ValueError(
            f"no tokenizer {place!r}: wanted 'qwen', or a .tiktoken, sentencepiece, tokenizer.json or GGUF file that "
            "exists, with or without NAME= before it"
        )
    return Vocabulary(name or path.stem, *_read(path, str(path)))


def _read(path: Path, source: str) -> tuple[str, int, Encode]:
    """What a file is, by its first bytes; its number of ids; its encoder."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"GGUF"):
        facts = gguf.vocabulary(gguf.read_head(path), source)
        if facts["model"] == "gpt2":
            kind = f"GGUF, split as {facts.get('pre') or 'default (the file does not say how)'}"
            return kind, len(facts["tokens"]), _encode_with(gguf.byte_level(facts, source))
        kind = f"GGUF, sentencepiece {'unigram' if facts['model'] == 't5' else 'BPE'}"
        engine = sentencepiece.load_engine(gguf.sentencepiece(facts, source), source)
        return kind, len(engine), engine.encode
    data = path.read_bytes()
    if head.lstrip()[:1] == b"{":
        engine = hub.load_engine(data, source)
        return "tokenizer.json", engine.get_vocab_size(), _encode_with(engine)
    if re.match(rb"\s*[A-Za-z0-9+/]+=* +\d+\s", head):
        return _ranks(data, source)
    try:
        engine = sentencepiece.load_engine(data, source)
    except ValueError as error:
        known = "neither .tiktoken ranks, tokenizer.json nor GGUF"
        raise ValueError(f"{path} is not a vocabulary: {known}; and {error}") from None
    return "sentencepiece", len(engine), engine.encode


def _ranks(data: bytes, source: str) -> tuple[str, int, Encode]:
    """Ranks. The file does not say how text is split, but only cl100k's pattern allows tokens of several digits."""
    import tiktoken

    ranks = read_ranks(data, source)
    if not any(token.isdigit() and len(token) > 1 for token in ranks):
        return "ranks, split as Qwen does", len(ranks), QwenBPE(data, source).encode_ordinary
    engine = tiktoken.Encoding(source, pat_str=gguf.CL100K, mergeable_ranks=ranks, special_tokens={})
    return "ranks, split as cl100k does (it has tokens of several digits)", len(ranks), engine.encode_ordinary


def _encode_with(engine) -> Encode:
    """The encoder of a tokenizer of the library tokenizers: only the text, in which control surfaces are text."""
    engine.encode_special_tokens = True
    return lambda text: engine.encode(text, add_special_tokens=False).ids


# ---- texts by language ----


def texts(path: str | Path, report: Report, limit: int) -> Iterator[tuple[str, str]]:
    """(language, document in NFC) from a folder with an entry per language, or a file that names it in each line.

    Documents of a language are read until there are `limit` bytes. Without NFC, as of text on the web, the UDHR's
    decomposed Vietnamese would be unfair to vocabularies that do not normalise.

    Raises:
      ValueError: no such path, or a file that is not .jsonl.
    """
    path = Path(path)
    read: Counter[str] = Counter()  # bytes

    def upto_limit(code: str, documents: Iterable[str]) -> Iterator[tuple[str, str]]:
        for text in documents:
            if read[code] >= limit:
                return
            text = unicodedata.normalize("NFC", text)
            read[code] += len(text.encode())
            yield code, text

    if path.is_dir():
        for entry in sorted(path.iterdir()):
            name = entry.name.split(".")[0].lower()
            code = CODE if name == CODE else language(name)
            if code is None:
                report.note("file of another language", entry.name)
            else:
                yield from upto_limit(code, _documents(entry, report))
    elif path.is_file() and path.name.endswith((".jsonl", ".jsonl.gz")):
        for code, text in _lines(path, report):
            yield from upto_limit(code, [text])
    else:
        raise ValueError(f"no texts at {path}; wanted a folder with a file per language, or a .jsonl or .jsonl.gz file")
    if not read[CODE]:
        yield from upto_limit(CODE, _documents(STDLIB, report))


def _documents(source: str | Path, report: Report) -> Iterator[str]:
    """The texts of a source; notes a source without any."""
    try:
        for document in documents(source, report):
            yield document.text
    except ValueError as error:
        report.note("file without text", str(error))


def language(code: str) -> str | None:
    """The report's language of a BCP 47 or ISO 639-3 code; None for another language or an unusual script."""
    first, *rest = code.lower().replace("_", "-").split("-")
    if any(len(part) == 4 and part.isalpha() and part != "hans" for part in rest):  # a script
        return None
    return first if first in LANGUAGES else _CODES.get(first)


def _lines(path: Path, report: Report) -> Iterator[tuple[str, str]]:
    """(language, text) of the lines of a .jsonl file that name their language."""
    for origin, row in json_lines(Slice("jsonl", str(path), path.name, path.stat().st_size), report):
        text, tag = row.get("text"), next((row[key] for key in ("bcp47", "iso6393", "language") if row.get(key)), None)
        if tag is None or not isinstance(text, str) or text != replace_surrogates(text):
            report.note('line without "text" and "bcp47", "iso6393" or "language"', origin)
            continue
        code = language(str(tag))
        # The UDHR's own code begins with the language's; others are dialects under its tag, or second texts
        other = str(row.get("code", "")) and not str(row["code"]).startswith(str(row.get("iso6393", "")))
        if code is None or other:
            report.note("text of another language", origin)
        elif text.strip():
            yield code, text
