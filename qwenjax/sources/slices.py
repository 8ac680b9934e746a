"""Document, Slice and Report; and from rows to documents: which fields are the text, which rows belong together."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from qwenjax.config import Source

LIMIT = 64 << 20  # bytes of one document; anything longer is data, not a text
MAX_NAMED = 12  # fields of a row that a message names
NUL_BYTES = "NUL bytes (binary, or UTF-16: save it as UTF-8)"
NOT_UTF8 = "invalid UTF-8 (save it as UTF-8)"


@dataclass(frozen=True)
class Document:
    """One text and its origin, the same everywhere: `FILE`, `FILE@BYTE` (of its line), `FILE#ROW` or `FILE:ENTRY`."""

    text: str
    origin: str


@dataclass(frozen=True)
class Slice:
    """A part of a source that one process reads: the rows or documents that begin in [start, stop) of `file`."""

    kind: str  # a key of `documents.ROWS` or `documents.TEXTS`
    file: str
    origin: str  # its name without the folders above the source: equal on every machine
    size: int  # bytes of text, estimated, for balance and progress
    start: int = 0  # in bytes (jsonl), row groups (parquet) or rows (records)
    stop: int | None = None  # None: one process reads to the end
    source: Source = field(default_factory=Source)  # how to read it
    share: float = 1.0  # of its documents that are kept

    def keeps(self, origin: str) -> bool:
        """Whether a document is in the sample. A hash of its origin decides, so the process that reads it does not."""
        if self.share >= 1:
            return True
        drawn = hashlib.blake2b(origin.encode("utf-8"), digest_size=8, key=b"limit").digest()
        return int.from_bytes(drawn, "little") < self.share * (1 << 64)

    def needs_row(self, origin: str) -> bool:
        """Whether a row has to be read at all. A group is kept or dropped by the origin of its first row."""
        return bool(self.source.group) or self.keeps(origin)


class Report(dict):
    """What was skipped: reason -> [count, origin of the first]."""

    def note(self, reason: str, origin: str, count: int = 1) -> None:
        self.setdefault(reason, [0, origin])[0] += count

    def merge(self, other: dict) -> None:
        for reason, (count, origin) in other.items():
            self.note(reason, origin, count)

    def lines(self, verb: str = "skipped") -> list[str]:
        """A line per reason, most frequent first; `verb` says what happened to the rows."""
        items = sorted(self.items(), key=lambda item: (-item[1][0], item[0]))
        return [f"{verb} {count:,} x {reason} (first: {origin})" for reason, (count, origin) in items]


def text_document(text: str | bytes, origin: str, report: Report) -> Iterator[Document]:
    """The document, or nothing if it is not text."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8").removeprefix("\ufeff")
        else:
            text.encode("utf-8")  # JSON may hold half a surrogate pair, which is not a character
    except UnicodeError:
        report.note(NUL_BYTES if isinstance(text, bytes) and b"\0" in text else NOT_UTF8, origin)
        return
    if "\0" in text:
        report.note(NUL_BYTES, origin)
    elif not text.strip():
        report.note("empty document", origin)
    else:
        yield Document(text, origin)


def rows_to_documents(rows: Iterable[tuple[str, Mapping]], piece: Slice, report: Report) -> Iterator[Document]:
    """The documents of a slice's rows, which come with their origins: one for each row, or for each group of rows."""
    source = piece.source
    texts, first, key, size = [], "", None, 0  # of the current group

    def current_group() -> Iterator[Document]:
        if size > LIMIT:
            report.note(f"group over {LIMIT >> 20} MiB", first)
        elif texts and piece.keeps(first):
            yield from text_document(source.join.join(texts), first, report)

    for origin, row, text in _rows_with_text(rows, source, report):
        if not source.group:
            if text is not None:
                yield from text_document(text, origin, report)
            continue
        mine = row.get(source.group)
        if mine is None or mine != key:
            yield from current_group()
            texts, first, key, size = [], origin, mine, 0
        if text is not None:
            size += len(text)
            if size <= LIMIT:  # a longer group is dropped: keep no more of it
                texts.append(text)
    yield from current_group()


def _rows_with_text(
    rows: Iterable[tuple[str, Mapping]], source: Source, report: Report
) -> Iterator[tuple[str, Mapping, str | None]]:
    """(origin, row, its columns joined); reports rows without text and, at the end, fields that no row had."""
    wanted = (*source.column, *filter(None, [source.group]))
    seen, names, first, without = set(), [], "", Report()
    for origin, row in rows:
        if not first:
            names, first = [str(name) for name in row], origin
        present = [name for name in wanted if row.get(name) is not None]
        seen.update(present)
        columns = [name for name in source.column if name in present]
        if not columns:
            without.note("no field " + " or ".join(map(repr, source.column)), origin)
        yield origin, row, _joined(row, columns, source.join, origin, report) if columns else None
    there = "there are: " + ", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")
    for reason, (count, origin) in without.items():
        report.note(reason if seen else f"{reason}; {there}", origin, count)
    for name in wanted:
        if seen and name not in seen:
            report.note(f"field {name!r}, which no row has; {there}", first)


def _joined(row: Mapping, columns: list[str], join: str, origin: str, report: Report) -> str | None:
    """The text of some columns; None if one is not text, which is reported."""
    texts = []
    for name in columns:
        value = row[name]
        try:
            texts.append(value.decode("utf-8") if isinstance(value, bytes) else value)
        except UnicodeDecodeError:
            report.note(NUL_BYTES if b"\0" in value else NOT_UTF8, origin)
            return None
        if not isinstance(texts[-1], str):
            report.note(f"field {name!r} is {_kind(value)}, not text", origin)
            return None
    return texts[0] if len(texts) == 1 else join.join(text for text in texts if text.strip())


def _kind(value: object) -> str:
    """What a value is, in the words of JSON."""
    if hasattr(value, "tolist"):  # NumPy
        value = value.tolist()
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)
