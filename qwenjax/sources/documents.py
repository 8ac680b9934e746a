"""Documents from files, folders, data sets of records and the Python on this machine.

    FILE             .jsonl .ndjson .json .parquet, or text; each but .parquet also as .gz or .zst
    FOLDER           all such files in it, and source code: each file of text one document
    python-stdlib    modules and reference of the running Python
    tfds:… hf:…      see `records`; a folder that TFDS has prepared needs no prefix

Input is cut into `Slice`s (a whole file, or a part of one) that any process can read on its own, so what a document is
called does not depend on who reads it. Broken input is skipped and counted in a `Report`, by reason and with the first
place it was seen; it stops nothing by itself.
"""

import importlib.util
import os
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

from qwenjax.config import Source
from qwenjax.sources import files, records
from qwenjax.sources.slices import Document, Report, Slice, text_document, rows_to_documents

STDLIB = "python-stdlib"
NOT_READ = "file type not read"  # what a folder holds beside text is told, but no fault
PROBES, PROBE = 32, 64 << 10  # places of a source, and bytes of text at each, from which its amount of text is judged
TEXT = """
    .txt .md .rst .tex .org .adoc .html .htm .xml .css .scss .sql .csv .tsv .json .yaml .yml .toml .ini .cfg
    .py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .cu .cuh .rs .go .java .kt .scala .swift .cs .js .jsx .ts .tsx .vue
    .rb .php .pl .pm .r .jl .lua .hs .ml .mli .el .clj .ex .exs .erl .dart .m .f90 .f .s .asm .sh .bash .ps1
    .cmake .mk .gradle .proto .tf .nix .vim
""".split()  # noqa: SIM905 - a list of 70 literals is no easier to read
# What is not text of the library: its tests, other people's packages, build settings with this machine's paths, and
# the encodings, an eighth of it all, which are tables of numbers.
NOT_STDLIB = ("test", "tests", "idle_test", "encodings", "*-packages", "__pycache__", "config-*", "_sysconfigdata*")


def as_source(source: str | Path | Source) -> Source:
    """What is read, and how: a path alone is read with the defaults."""
    if not isinstance(source, Source):
        return Source(text=str(source))
    if not source.text:
        raise ValueError(f"{source} names no text")
    return source


def documents(source: str | Path | Source, report: Report | None = None) -> Iterator[Document]:
    """Every document of a source, in a fixed order.

    Raises:
      ValueError: no such source, or not a single document in it (the report's counts say why).
    """
    report = Report() if report is None else report
    found = False
    for piece in slices(source, report):
        for document in read(piece, report):
            found = True
            yield document
    if not found:
        raise ValueError(no_documents([source], report))


def no_documents(sources: Sequence[str | Path | Source], report: Report) -> str:
    """The message of an empty corpus."""
    sources = [as_source(source) for source in sources]
    reasons = "; ".join(report.lines()) or "there is nothing to read"
    columns = " or ".join(dict.fromkeys(repr(name) for source in sources for name in source.column))
    return (
        f"no document in {', '.join(source.text for source in sources)}: {reasons}. "
        f"Wanted text files, or rows with text in their field {columns} (--column, or column=(…,), names another)"
    )


# ---- what there is to read ----


def slices(source: str | Path | Source, report: Report) -> list[Slice]:
    """The files of a source, whole, in reading order.

    Raises:
      ValueError: no such file, folder or data set.
    """
    source = as_source(source)
    pieces = _found(source, report)
    return _sample(pieces, source.limit) if source.limit and pieces else pieces


def _found(source: Source, report: Report) -> list[Slice]:
    if source.text == STDLIB:
        return _stdlib(source, report)
    path = Path(source.text)
    if source.text.startswith((records.TFDS, records.HF)) or records.is_prepared(path):
        return records.slices(source, report)
    if path.is_dir():
        return [p for file, origin in _walk(path, source, report) for p in _file(file, origin, source, report)]
    if not path.is_file():
        raise ValueError(f"no file or folder {path}; wanted one, or {STDLIB}, tfds:NAME@SPLIT, hf:OWNER/NAME@SPLIT")
    return _file(path, path.name, source, report, alone=True)


def cut(piece: Slice, size: int) -> list[Slice]:
    """A slice as slices of about `size` bytes, if a process can begin to read in the middle of it."""
    if piece.stop is None or piece.source.group or piece.size <= size:  # a group ends where another begins
        return [piece]
    length = piece.stop - piece.start
    step = max(1, size * length // piece.size)
    edges = [*range(piece.start, piece.stop, step), piece.stop]
    return [replace(piece, size=max(1, (b - a) * piece.size // length), start=a, stop=b) for a, b in pairwise(edges)]


def modified(piece: Slice) -> int:
    """When the file of a slice was last written, in nanoseconds; 0 if there is no saying."""
    try:
        return os.stat(records.open_records(piece.file).path if piece.kind == "records" else piece.file).st_mtime_ns
    except OSError:
        return 0


def _file(file: Path, origin: str, source: Source, report: Report, alone: bool = False) -> list[Slice]:
    """The slice of one file. One named on purpose (`alone`) is read whatever it is called."""
    origin = os.fsencode(origin).decode("utf-8", "backslashreplace")  # a file's name may be no UTF-8
    try:
        status = file.stat()
    except OSError:
        report.note("unreadable file", origin)
        return []
    if not stat.S_ISREG(status.st_mode):
        report.note("no regular file", origin)
        return []
    packed = file.suffix in files.PACKED
    name, size, stop = Path(file.stem if packed else file.name), status.st_size, None
    kind = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}.get(name.suffix)
    if name.suffix == ".json":
        kind = files.json_kind(file, source.column, alone)
    if kind == "parquet" and not packed:
        stop, size = files.parquet_text(file, source.column)
    elif kind is None and (alone or name.suffix.lower() in TEXT or _included_by_name(origin, name, source)):
        # As a single document, a whole corpus in one text file could be neither shuffled nor held out in part.
        kind = "parts" if alone else "text"
    elif kind is None:
        report.note(f"{NOT_READ}: {name.suffix or 'no suffix'}", origin)
        return []
    if packed:
        size = int(size * (files.expansion_ratio(str(file)) if source.limit else 4))  # text packs about 4:1
    elif kind == "jsonl":
        stop = size
    return [Slice(kind, str(file), origin, size, 0, stop or None, source)]


def _included_by_name(origin: str, name: Path, source: Source) -> bool:
    """Whether a pattern asks for files of just this name or suffix, which then need not be known as text."""
    inside = origin.partition("/")[2]
    return any(fnmatchcase(inside, pattern) and not pattern.endswith("*") for pattern in source.include)


def _walk(folder: Path, source: Source, report: Report, skip: tuple[str, ...] = ()) -> Iterator[tuple[Path, str]]:
    """(file, origin) below a folder, sorted; hidden names and names like one of `skip` are left out."""
    top = folder.resolve()

    def kept(root: str, names: list[str], end: str = "") -> list[str]:
        """The names in a folder that are read; a folder itself is left out if a pattern fits its path and '/'."""
        inside = Path(root).relative_to(top)
        paths = {name: (inside / name).as_posix() + end for name in names}
        return sorted(
            name
            for name, path in paths.items()
            if not any(fnmatchcase(name, pattern) for pattern in (".*", *skip))
            and not any(fnmatchcase(path, pattern) for pattern in source.exclude)
            and (end or not source.include or any(fnmatchcase(path, pattern) for pattern in source.include))
        )

    def failed(error: OSError) -> None:
        report.note("unreadable folder", str(error.filename))

    for root, folders, names in os.walk(top, onerror=failed):
        folders[:] = kept(root, folders, "/")
        for name in folders:
            if Path(root, name).is_symlink():
                report.note("link to a folder, not followed", f"{top.name}/{Path(root, name).relative_to(top)}")
        for name in kept(root, names):
            file = Path(root, name)
            yield file, f"{top.name}/{file.relative_to(top).as_posix()}"


def _stdlib(source: Source, report: Report) -> list[Slice]:
    """The standard library's modules, and the language reference that `help()` prints, entry by entry."""
    folder = Path(sysconfig.get_path("stdlib"))
    topics = importlib.util.find_spec("pydoc_data.topics")
    pieces = []
    for file, origin in _walk(folder, source, report, NOT_STDLIB):
        if file.suffix == ".py":
            origin = STDLIB + origin[len(folder.resolve().name) :]
            kind = "topics" if topics and origin.endswith("pydoc_data/topics.py") else "text"
            pieces.append(Slice(kind, str(file), origin, file.stat().st_size, source=source))
    return pieces


# ---- reading ----


def _topics(piece: Slice, report: Report) -> Iterator[Document]:
    """The language reference that `help()` prints, entry by entry."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        if piece.keeps(origin := f"{piece.origin}:{name}"):
            yield from text_document(topics[name], origin, report)


ROWS = {"jsonl": files.json_lines, "list": files.json_list, "parquet": files.parquet, "records": records.read}
TEXTS = {"text": files.text, "parts": files.parts, "topics": _topics}


def read(piece: Slice, report: Report) -> Iterator[Document]:
    """The documents of one slice."""
    try:
        if piece.kind in ROWS:
            yield from rows_to_documents(ROWS[piece.kind](piece, report), piece, report)
        else:
            yield from TEXTS[piece.kind](piece, report)
    except OSError as error:
        report.note(f"unreadable file ({error.strerror or error})", piece.origin)


# ---- a sample ----


def _sample(pieces: list[Slice], limit: int) -> list[Slice]:
    """The slices with the share of their documents that makes about `limit` bytes of text."""
    density = _density([piece for piece in pieces if piece.kind in ("jsonl", "list")])
    sizes = [piece.size * (density if piece.kind in ("jsonl", "list") else 1) for piece in pieces]
    share = min(1.0, limit / max(sum(sizes), 1))
    return [replace(piece, size=max(1, int(size * share)), share=share) for piece, size in zip(pieces, sizes)]


def _density(pieces: list[Slice]) -> float:
    """Bytes of text in a byte of JSON, measured at places spread evenly over the slices."""
    total, begin, text, json_bytes = sum(piece.size for piece in pieces), 0, 0, 0
    for piece in pieces:
        first, last = (-(-at * PROBES // total) for at in (begin, begin + piece.size))
        for place in range(first, last if piece.stop else min(last, first + 1)):  # a packed file has only a beginning
            found = _probe(piece, (place * total / PROBES - begin) / piece.size)
            text, json_bytes = text + found[0], json_bytes + found[1]
        begin += piece.size
    return text / json_bytes if text else 1.0


def _probe(piece: Slice, at: float) -> tuple[int, int]:
    """Bytes of text, and of the JSON around it, of documents from a place on: a fraction `at` of the file."""
    first, text = None, 0
    for document in read(replace(piece, start=int(at * (piece.stop or 0))), Report()):
        if piece.kind == "jsonl":
            offset = int(document.origin.rpartition("@")[2])
            first = offset if first is None else first
            if text >= PROBE:
                return text, offset - first
        text += len(document.text.encode("utf-8"))
    return text, piece.size - (first or 0)
