"""Tokens per language, by vocabulary (report §2.2, Figure 3)."""

import gzip
import itertools
import json
import math
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qwenjax.common.progress import meter
from qwenjax.sources.documents import STDLIB, Report, documents
from qwenjax.tokenizer.vocabulary.foreign import Vocabulary, open_vocabulary

# The report's languages in its order, with the three-letter codes that also name them (of Arabic and Chinese, those
# of the standard forms).
LANGUAGES = {
    "th": "tha", "he": "heb", "ar": "arb", "ko": "kor", "vi": "vie", "zh": "cmn", "ja": "jpn", "tr": "tur",
    "id": "ind", "pl": "pol", "ru": "rus", "nl": "nld", "pt": "por", "it": "ita", "de": "deu", "es": "spa",
    "fr": "fra", "en": "eng",
}  # fmt: skip
CODE = "code"
_CODES = {three: two for two, three in LANGUAGES.items()} | {"ara": "ar", "zho": "zh"}
_SCRIPTS = {"zh-hans", "zh-hans-cn", "zh-cn"}  # the usual script of a language may be written out
BATCH = 1 << 20  # bytes of text that are handed to an engine at a time


@dataclass(frozen=True)
class Language:
    """What was counted: `tokens[v]` by vocabulary, the base first."""

    code: str
    documents: int
    bytes: int
    tokens: tuple[int, ...]

    def relative(self, vocabulary: int) -> float:
        """Tokens for each token of the base."""
        return self.tokens[vocabulary] / self.tokens[0]


@dataclass(frozen=True)
class Comparison:
    """Vocabularies, the base first, and languages in the report's order; `notes` say what was left out."""

    vocabularies: tuple[Vocabulary, ...]
    languages: tuple[Language, ...]
    notes: tuple[str, ...]


def compare(specs: list[str], text: str | Path, limit: int) -> Comparison:
    """Counts the tokens of each language's text, `limit` bytes at most, by each vocabulary; the first is the base.

    Raises:
      ValueError: a vocabulary that cannot be read, two of one name, or no text of any of the languages.
    """
    vocabularies = []
    with meter("reading vocabularies", len(specs), "file") as step:
        for spec in specs:
            vocabularies.append(open_vocabulary(spec))
            step(1)
    names = [vocabulary.name for vocabulary in vocabularies]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two vocabularies are called {twice.pop()!r}; give one a name of its own: NAME=TOKENIZER")
    report = Report()
    counted: dict[str, list] = {}
    with meter("counting", unit="B") as step:
        for code, batch, size in _batches(texts(text, report, limit)):
            row = counted.setdefault(code, [0, 0, [0] * len(vocabularies)])
            row[0] += len(batch)
            row[1] += size
            for v, vocabulary in enumerate(vocabularies):
                row[2][v] += vocabulary.count(batch)
            step(size)
    languages = tuple(
        Language(code, counted[code][0], counted[code][1], tuple(counted[code][2]))
        for code in (*LANGUAGES, CODE)
        if code in counted
    )
    if not counted.keys() & LANGUAGES.keys():
        raise ValueError("; ".join([f"{text} has no text of a language of the report", *report.lines()]))
    missing = [code for code in LANGUAGES if code not in counted]
    notes = report.lines() + ([f"no text for {', '.join(missing)}"] if missing else [])
    return Comparison(tuple(vocabularies), languages, tuple(notes))


def _batches(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, list[str], int]]:
    """(language, texts, their bytes), some texts of a language at a time."""
    waiting: dict[str, list[str]] = {}
    sizes: Counter[str] = Counter()
    for code, text in pairs:
        waiting.setdefault(code, []).append(text)
        sizes[code] += len(text.encode())
        if sizes[code] >= BATCH:
            yield code, waiting.pop(code), sizes.pop(code)
    for code, batch in waiting.items():
        yield code, batch, sizes[code]


# ---- texts by language ----


def texts(path: str | Path, report: Report, limit: int) -> Iterator[tuple[str, str]]:
    """(language, document in NFC) of a folder with an entry per language or of a file that names it in each line.

    Of each language documents are read until there are `limit` bytes. NFC is the form of text on the web; the UDHR's
    Vietnamese is decomposed, which would count against vocabularies that do not normalise, and XLM-R's.

    Raises:
      ValueError: no such path, or a file that is no .jsonl.
    """
    path = Path(path)
    read: dict[str, int] = {}

    def upto_limit(code: str, documents: Iterable[str]) -> Iterator[tuple[str, str]]:
        for text in documents:
            text = unicodedata.normalize("NFC", text)
            read[code] = read.get(code, 0) + len(text.encode())
            yield code, text
            if read[code] >= limit:
                return

    if path.is_dir():
        for entry in sorted(path.iterdir()):
            name = entry.name.split(".")[0].lower()
            code = CODE if name == CODE else language(name)
            if code is None:
                report.note("file of another language", entry.name)
            elif read.get(code, 0) < limit:
                yield from upto_limit(code, _documents(entry, report))
    elif path.is_file() and path.name.endswith((".jsonl", ".jsonl.gz")):
        for code, text in _lines(path, report):
            if read.get(code, 0) < limit:
                yield from upto_limit(code, [text])
    else:
        raise ValueError(f"no texts at {path}; wanted a folder with a file per language, or a .jsonl or .jsonl.gz file")
    if CODE not in read:
        yield from upto_limit(CODE, _documents(STDLIB, report))


def _documents(source: str | Path, report: Report) -> Iterator[str]:
    """The texts of a source; one without any is noted."""
    try:
        for document in documents(source, report):
            yield document.text
    except ValueError as error:
        report.note("file without text", str(error))


def language(code: str) -> str | None:
    """The report's language that a BCP 47 or ISO 639-3 code means, unless it is in another than its usual script."""
    first, *rest = code.lower().replace("_", "-").split("-")
    if any(len(part) == 4 and part.isalpha() for part in rest) and "-".join((first, *rest)) not in _SCRIPTS:
        return None
    return first if first in LANGUAGES else _CODES.get(first)


def _lines(path: Path, report: Report) -> Iterator[tuple[str, str]]:
    """(language, text) of the lines of a .jsonl file that name their language."""
    with (gzip.open if path.name.endswith(".gz") else open)(path, "rb") as lines:
        for number in itertools.count(1):
            try:
                line = lines.readline()
            except (EOFError, gzip.BadGzipFile, zlib.error):
                report.note("damaged gzip, the rest of the file", f"{path.name}, line {number}")
                break
            if not line:
                break
            try:
                row = json.loads(line)
                text, tag = row["text"], next(row[key] for key in ("bcp47", "iso6393", "language") if row.get(key))
                text.encode()
            except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
                report.note('line without "text" and "bcp47", "iso6393" or "language"', f"{path.name}, line {number}")
                continue
            code = language(str(tag))
            # The UDHR's own code begins with the language's; others are dialects under its tag, and second texts.
            other = str(row.get("code", "")) and not str(row["code"]).startswith(str(row.get("iso6393", "")))
            if code is None or other:
                report.note("text of another language", f"{path.name}, line {number}")
            elif text.strip():
                yield code, text


# ---- what is printed ----


def as_json(compared: Comparison) -> str:
    """All numbers as JSON."""
    names = [vocabulary.name for vocabulary in compared.vocabularies]
    return json.dumps(
        {
            "base": names[0],
            "vocabularies": [{"name": v.name, "read_as": v.kind, "size": v.size} for v in compared.vocabularies],
            "languages": [
                {
                    "language": row.code,
                    "documents": row.documents,
                    "bytes": row.bytes,
                    "tokens": dict(zip(names, row.tokens)),
                    "relative": {name: round(row.relative(v), 4) for v, name in enumerate(names)},
                    "bytes_per_token": {name: round(row.bytes / n, 4) for name, n in zip(names, row.tokens)},
                }
                for row in compared.languages
            ],
            "notes": compared.notes,
        },
        ensure_ascii=False,
        indent=1,
    )


def as_text(compared: Comparison) -> str:
    """What the vocabularies are, then two tables in Markdown."""
    base, *others = compared.vocabularies
    names = [vocabulary.name for vocabulary in compared.vocabularies]
    relative = [
        (row.code, f"{row.bytes:,}", *(f"{row.relative(v):.2f}" for v in range(1, len(names))))
        for row in compared.languages
    ]
    means = [
        math.exp(sum(math.log(row.relative(v)) for row in compared.languages) / len(compared.languages))
        for v in range(1, len(names))
    ]
    relative.append(("geometric mean", "", *(f"{mean:.2f}" for mean in means)))
    density = [(row.code, *(f"{row.bytes / n:.2f}" for n in row.tokens)) for row in compared.languages]
    return "\n".join(
        [
            *(f"{v.name}: {v.size:,} ids, {v.kind}" for v in compared.vocabularies),
            *compared.notes,
            "",
            f"Tokens relative to {base.name} (lower is better):",
            "",
            *_table(("language", "bytes", *(v.name for v in others)), relative),
            "",
            "Bytes per token (higher is better):",
            "",
            *_table(("language", *names), density),
        ]
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [[cell.ljust(w) if c == 0 else cell.rjust(w) for c, (cell, w) in enumerate(zip(row, widths))]
             for row in (head, *rows)]  # fmt: skip
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return ["| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])]
