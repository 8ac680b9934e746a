"""Documents from files, folders and the Python on this machine.

Input is cut into `Slice`s (a whole file, or a byte range of a plain .jsonl) that any process can read on its own, so
what a document is called does not depend on who reads it. Broken input is skipped and counted in a `Report`, by
reason and with the first place it was seen; it stops nothing by itself.
"""

import gzip
import importlib.util
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

STDLIB = "python-stdlib"
LIMIT = 64 << 20  # bytes of one document; more is a data file, not a text
PART = 16 << 10  # bytes, about, of the documents that a text file named as a source of its own is cut into
TEXT = """
    .txt .md .rst .tex .org .adoc .html .htm .xml .css .scss .sql .csv .tsv .json .yaml .yml .toml .ini .cfg
    .py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .cu .cuh .rs .go .java .kt .scala .swift .cs .js .jsx .ts .tsx .vue
    .rb .php .pl .pm .r .jl .lua .hs .ml .mli .el .clj .ex .exs .erl .dart .m .f90 .f .s .asm .sh .bash .ps1
    .cmake .mk .gradle .proto .tf .nix .vim
""".split()  # noqa: SIM905 - a list of 70 literals is no easier to read
# What is not text of the library: its tests, other people's packages, build settings with this machine's paths, and
# the encodings, an eighth of it all, which are tables of numbers.
NOT_STDLIB = ("test", "tests", "idle_test", "encodings", "*-packages", "__pycache__", "config-*", "_sysconfigdata*")


@dataclass(frozen=True)
class Document:
    """One text and where it came from: `FILE`, `FILE@BYTE` (offset of its line) or `FILE:ENTRY`."""

    text: str
    origin: str


@dataclass(frozen=True)
class Slice:
    """A part of a source that one process reads: lines of `file` that begin in bytes [start, stop)."""

    kind: str  # jsonl | text | parts | topics
    file: str
    origin: str  # name without the folders above the source: the same on every machine
    size: int  # bytes of text, about; for balance and progress
    start: int = 0
    stop: int | None = None  # None: to the end


class Report(dict):
    """What was skipped: reason -> [count, origin of the first]."""

    def note(self, reason: str, origin: str, count: int = 1) -> None:
        self.setdefault(reason, [0, origin])[0] += count

    def merge(self, other: dict) -> None:
        for reason, (count, origin) in other.items():
            self.note(reason, origin, count)

    def lines(self) -> list[str]:
        """For people, most frequent first."""
        items = sorted(self.items(), key=lambda item: (-item[1][0], item[0]))
        return [f"skipped {count:,} x {reason} (first: {origin})" for reason, (count, origin) in items]


def documents(path: str | Path, report: Report | None = None) -> Iterator[Document]:
    """Every document of a .jsonl, .jsonl.gz, text file or folder, or of 'python-stdlib', in a fixed order.

    Raises:
      ValueError: no such path, or not a single document in it (the report's counts say why).
    """
    report = Report() if report is None else report
    found = False
    for piece in slices(path, report):
        for document in read(piece, report):
            found = True
            yield document
    if not found:
        raise ValueError(no_documents([str(path)], report))


def no_documents(paths: list[str], report: Report) -> str:
    """The message of an empty corpus."""
    reasons = "; ".join(report.lines()) or "there is nothing to read"
    return f"no document in {', '.join(paths)}: {reasons}. Wanted text files, or JSON lines with a string field 'text'"


def slices(path: str | Path, report: Report) -> list[Slice]:
    """The files of a source, whole, in reading order."""
    if str(path) == STDLIB:
        return _stdlib(report)
    path = Path(path)
    if path.is_dir():
        return [p for file, origin in _walk(path, report) for p in _file(file, origin, report)]
    if not path.is_file():
        raise ValueError(f"no file or folder {path}; wanted .jsonl, .jsonl.gz, a text file, a folder or '{STDLIB}'")
    # A file named on purpose is read whatever it is called. If it is text, it is a whole corpus in one piece: as a
    # single document it could be neither shuffled nor held out in part.
    return _file(path, path.name, report, "jsonl" if _kind(path.name) == "jsonl" else "parts")


def cut(piece: Slice, size: int) -> list[Slice]:
    """A whole plain .jsonl as slices of `size` bytes; anything else as it is."""
    if piece.kind != "jsonl" or piece.file.endswith(".gz"):
        return [piece]
    edges = [*range(0, piece.size, size), piece.size]
    return [replace(piece, size=b - a, start=a, stop=b) for a, b in pairwise(edges)]


def _kind(name: str) -> str | None:
    """How a file of this name is read; None: not at all."""
    if name.endswith((".jsonl", ".jsonl.gz")):
        return "jsonl"
    return "text" if Path(name).suffix.lower() in TEXT else None


def _file(file: Path, origin: str, report: Report, kind: str | None = None) -> list[Slice]:
    kind = kind or _kind(file.name)
    try:
        size = file.stat().st_size
    except OSError:
        report.note("unreadable file", origin)
        return []
    if kind is None:
        report.note(f"file type not read: {file.suffix or 'no suffix'}", origin)
        return []
    return [Slice(kind, str(file), origin, size * (4 if file.suffix == ".gz" else 1))]  # text packs about 4:1


def _walk(folder: Path, report: Report, skip: tuple[str, ...] = ()) -> Iterator[tuple[Path, str]]:
    """(file, origin) below a folder, sorted; hidden names and names like one of `skip` are left out."""
    top = folder.resolve()

    def kept(names: list[str]) -> list[str]:
        return sorted(name for name in names if not any(fnmatch(name, pattern) for pattern in (".*", *skip)))

    def failed(error: OSError) -> None:
        report.note("unreadable folder", str(error.filename))

    for root, folders, files in os.walk(top, onerror=failed):
        folders[:] = kept(folders)
        for name in kept(files):
            file = Path(root, name)
            yield file, f"{top.name}/{file.relative_to(top).as_posix()}"


def _stdlib(report: Report) -> list[Slice]:
    """The standard library's modules, and the language reference that `help()` prints, entry by entry."""
    folder = Path(sysconfig.get_path("stdlib"))
    topics = importlib.util.find_spec("pydoc_data.topics")
    pieces = []
    for file, origin in _walk(folder, report, NOT_STDLIB):
        if file.suffix == ".py":
            origin = STDLIB + origin[len(folder.resolve().name) :]
            kind = "topics" if topics and origin.endswith("pydoc_data/topics.py") else "text"
            pieces.append(Slice(kind, str(file), origin, file.stat().st_size))
    return pieces


def read(piece: Slice, report: Report) -> Iterator[Document]:
    """The documents of one slice."""
    try:
        if piece.kind == "jsonl":
            yield from _json_lines(piece, report)
        elif piece.kind == "topics":
            from pydoc_data.topics import topics

            for name in sorted(topics):
                yield from _checked(topics[name], f"{piece.origin}:{name}", report)
        elif piece.kind == "parts":
            yield from _parts(piece, report)
        elif piece.size > LIMIT:
            report.note(f"file over {LIMIT >> 20} MiB is not one document", piece.origin)
        else:
            yield from _checked(Path(piece.file).read_bytes(), piece.origin, report)
    except OSError as error:
        report.note(f"unreadable file ({error.strerror or error})", piece.origin)


def _parts(piece: Slice, report: Report) -> Iterator[Document]:
    """A text file as documents of about PART bytes that end where a line ends."""
    with open(piece.file, "rb") as lines:
        at = 0
        while part := lines.read(PART):
            part += lines.readline(1 << 20)
            while len(part) > 1 and not part.endswith(b"\n") and (after := lines.read(1)):
                if after[0] & 0xC0 != 0x80:  # not inside a character: a line without end may be cut here
                    lines.seek(-1, os.SEEK_CUR)
                    break
                part += after
            yield from _checked(part, f"{piece.origin}@{at}", report)
            at += len(part)


def _json_lines(piece: Slice, report: Report) -> Iterator[Document]:
    at = piece.start
    with (gzip.open if piece.file.endswith(".gz") else open)(piece.file, "rb") as lines:
        if at:  # a line belongs to the slice that holds its first byte: finish the one that began before
            lines.seek(at - 1)
            at += _skip_line(lines) - 1
        while piece.stop is None or at < piece.stop:
            try:
                line = lines.readline(LIMIT + 1)
                if not line:
                    return
                here, at = f"{piece.origin}@{at}", at + len(line)
                if len(line) > LIMIT and not line.endswith(b"\n"):
                    at += _skip_line(lines)
                    report.note(f"line over {LIMIT >> 20} MiB", here)
                    continue
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                reason = "truncated gzip" if isinstance(error, EOFError) else "corrupt gzip"
                report.note(f"{reason}, the rest of the file", f"{piece.origin}@{at}")
                return
            yield from _json_document(line, here, report)


def _skip_line(lines: BinaryIO) -> int:
    """Moves to the start of the next line, in bounded memory; the bytes skipped."""
    skipped = 0
    while part := lines.readline(1 << 20):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _json_document(line: bytes, origin: str, report: Report) -> Iterator[Document]:
    if not line.strip():
        report.note("blank line", origin)
        return
    try:
        value = json.loads(line.decode("utf-8").removeprefix("\ufeff"))
    except UnicodeDecodeError:
        report.note("invalid UTF-8", origin)
        return
    except (json.JSONDecodeError, RecursionError):
        report.note("NUL bytes (binary)" if b"\0" in line else "bad JSON line", origin)
        return
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        report.note("no string field 'text'", origin)
        return
    yield from _checked(value["text"], origin, report)


def _checked(text: str | bytes, origin: str, report: Report) -> Iterator[Document]:
    """The document, unless it is not text."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8").removeprefix("\ufeff")
        else:
            text.encode("utf-8")  # JSON may carry half a surrogate pair, which is no character
    except UnicodeError:
        report.note("NUL bytes (binary)" if isinstance(text, bytes) and b"\0" in text else "invalid UTF-8", origin)
        return
    if "\0" in text:
        report.note("NUL bytes (binary)", origin)
    elif not text.strip():
        report.note("empty document", origin)
    else:
        yield Document(text, origin)
