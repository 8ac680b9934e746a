"""Documents from files, folders, data sets of records and the Python on this machine.

`python -m qwenjax.data tokenize --help` names them; a folder that TFDS has prepared needs no prefix. Any process
can read a `Slice` on its own. Broken input is skipped, and counted in a `Report`.
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
from qwenjax.sources.slices import Document, Report, Slice, rows_to_documents, text_document

STDLIB = "python-stdlib"
NOT_READ = "file type not read"  # other files in a folder are reported, and are no error
PROBES, PROBE = 32, 64 << 10  # points of a source, and bytes of text at each, that tell how much text it has
TEXT = """
    .txt .md .rst .tex .org .adoc .html .htm .xml .css .scss .sql .csv .tsv .json .yaml .yml .toml .ini .cfg
    .py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .cu .cuh .rs .go .java .kt .scala .swift .cs .js .jsx .ts .tsx .vue
    .rb .php .pl .pm .r .jl .lua .hs .ml .mli .el .clj .ex .exs .erl .dart .m .f90 .f .s .asm .sh .bash .ps1
    .cmake .mk .gradle .proto .tf .nix .vim
""".split()  # noqa: SIM905 - a list of 70 literals is no easier to read
# Not text of the library: its tests, installed packages, build settings with this machine's paths, and the encodings,
# an eighth of it all, which are tables of numbers.
NOT_STDLIB = ("test", "tests", "idle_test", "encodings", "*-packages", "__pycache__", "config-*", "_sysconfigdata*")


def as_source(source: str | Path | Source) -> Source:
    """What is read, and how; a path is read with the defaults."""
    if not isinstance(source, Source):
        return Source(text=str(source))
    if not source.text:
        raise ValueError(f"{source} names no text")
    return source


def documents(source: str | Path | Source, report: Report | None = None) -> Iterator[Document]:
    """Every document of a source, in a fixed order; ValueError without a single one."""
    report = Report() if report is None else report
    document = None
    for piece in slices(source, report):
        for document in read(piece, report):
            yield document
    if document is None:
        raise ValueError(no_documents([source], report))


def no_documents(sources: Sequence[str | Path | Source], report: Report) -> str:
    """The message of an empty corpus."""
    sources = [as_source(source) for source in sources]
    texts = ", ".join(source.text for source in sources)
    reasons = "; ".join(report.lines()) or "there is nothing to read"
    columns = " or ".join(dict.fromkeys(repr(name) for source in sources for name in source.column))
    wanted = f"text files, or rows with text in their field {columns} (--column, or column=(…,), names another)"
    return f"no document in {texts}: {reasons}. Wanted {wanted}"


# ---- what there is to read ----


def slices(source: str | Path | Source, report: Report) -> list[Slice]:
    """The files of a source, a slice each, in reading order; ValueError if there is no such source."""
    source = as_source(source)
    pieces = _all_slices(source, report)
    return _sample(pieces, source.limit) if source.limit and pieces else pieces


def _all_slices(source: Source, report: Report) -> list[Slice]:
    if source.text == STDLIB:
        return _stdlib(source, report)
    path = Path(source.text)
    if source.text.startswith((records.TFDS, records.HF)) or records.is_prepared(path):
        return records.slices(source, report)
    if path.is_dir():
        return [p for file, origin in _walk(path, source, report) for p in _file_slices(file, origin, source, report)]
    if not path.is_file():
        raise ValueError(f"no file or folder {path}; wanted one, or {STDLIB}, tfds:NAME@SPLIT, hf:OWNER/NAME@SPLIT")
    return _file_slices(path, path.name, source, report, named=True)


def cut(piece: Slice, size: int) -> list[Slice]:
    """A slice cut into slices of about `size` bytes, if it can be read from the middle; else itself."""
    if piece.stop is None or piece.source.group or piece.size <= size:  # the rows of a group stay together
        return [piece]
    length = piece.stop - piece.start
    step = max(1, size * length // piece.size)
    edges = [*range(piece.start, piece.stop, step), piece.stop]
    return [replace(piece, size=max(1, (b - a) * piece.size // length), start=a, stop=b) for a, b in pairwise(edges)]


def modified(piece: Slice) -> int:
    """When the file of a slice was last written, in nanoseconds; 0 if that is unknown."""
    try:
        return os.stat(records.open_records(piece.file).path if piece.kind == "records" else piece.file).st_mtime_ns
    except OSError:
        return 0


def _file_slices(file: Path, origin: str, source: Source, report: Report, named: bool = False) -> list[Slice]:
    """The slice of one file, or none. A file that is the whole source (`named`) is read whatever its suffix."""
    origin = os.fsencode(origin).decode("utf-8", "backslashreplace")  # a file's name may be invalid UTF-8
    try:
        status = file.stat()
    except OSError:
        report.note("unreadable file", origin)
        return []
    if not stat.S_ISREG(status.st_mode):
        report.note("not a regular file", origin)
        return []
    packed = file.suffix in files.PACKED
    name, size, stop = Path(file.stem if packed else file.name), status.st_size, None
    kind = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}.get(name.suffix)
    if name.suffix == ".json":
        kind = files.json_kind(file, source.column, named)
    if kind == "parquet" and not packed:
        stop, size = files.parquet_text(file, source.column)
    elif kind is None:
        inside = origin.partition("/")[2]
        asked_for = any(fnmatchcase(inside, pattern) and not pattern.endswith("*") for pattern in source.include)
        if not (named or asked_for or name.suffix.lower() in TEXT):
            report.note(f"{NOT_READ}: {name.suffix or 'no suffix'}", origin)
            return []
        # a corpus in one text file is cut: a single document could be neither shuffled nor held out in part
        kind = "parts" if named else "text"
    if packed:
        size = int(size * (files.expansion_ratio(str(file)) if source.limit else 4))  # text packs about 4:1
    elif kind == "jsonl":
        stop = size
    return [Slice(kind, str(file), origin, size, 0, stop or None, source)]


def _walk(folder: Path, source: Source, report: Report, skip: tuple[str, ...] = ()) -> Iterator[tuple[Path, str]]:
    """(file, origin) below a folder, sorted, without hidden names and names that match `skip`."""
    top = folder.resolve()

    def kept(root: str, names: list[str], end: str = "") -> list[str]:
        """The names in a folder that are read; a folder is left out if an `exclude` matches its path and '/'."""
        inside = Path(root).relative_to(top)
        paths = {name: (inside / name).as_posix() + end for name in names}
        return sorted(
            name
            for name, path in paths.items()
            if not any(fnmatchcase(name, pattern) for pattern in (".*", *skip))
            and not any(fnmatchcase(path, pattern) for pattern in source.exclude)
            and (end or not source.include or any(fnmatchcase(path, pattern) for pattern in source.include))
        )

    for root, folders, names in os.walk(top, onerror=lambda e: report.note("unreadable folder", str(e.filename))):
        folders[:] = kept(root, folders, "/")
        for name in folders:
            if Path(root, name).is_symlink():
                report.note("link to a folder, not followed", f"{top.name}/{Path(root, name).relative_to(top)}")
        for name in kept(root, names):
            yield Path(root, name), f"{top.name}/{Path(root, name).relative_to(top).as_posix()}"


def _stdlib(source: Source, report: Report) -> list[Slice]:
    """The modules of the standard library, and the language reference that `help()` prints."""
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
    """The slices, each with the share of its documents that together gives about `limit` bytes of text."""
    density = _density([piece for piece in pieces if piece.kind in ("jsonl", "list")])
    sizes = [piece.size * (density if piece.kind in ("jsonl", "list") else 1) for piece in pieces]
    share = min(1.0, limit / max(sum(sizes), 1))
    return [replace(piece, size=max(1, int(size * share)), share=share) for piece, size in zip(pieces, sizes)]


def _density(pieces: list[Slice]) -> float:
    """Bytes of text per byte of JSON, measured at points spread evenly over the slices."""
    total, begin, text, json_bytes = sum(piece.size for piece in pieces), 0, 0, 0
    for piece in pieces:
        first, last = (-(-at * PROBES // total) for at in (begin, begin + piece.size))
        for point in range(first, last if piece.stop else min(last, first + 1)):  # a packed file is read from its start
            measured = _probe(piece, (point * total / PROBES - begin) / piece.size)
            text, json_bytes = text + measured[0], json_bytes + measured[1]
        begin += piece.size
    return text / json_bytes if text else 1.0


def _probe(piece: Slice, at: float) -> tuple[int, int]:
    """Bytes of text, and of the JSON around it, of some documents from the fraction `at` of the file on."""
    first, text = None, 0
    for document in read(replace(piece, start=int(at * (piece.stop or 0))), Report()):
        if piece.kind == "jsonl":
            offset = int(document.origin.rpartition("@")[2])
            first = offset if first is None else first
            if text >= PROBE:
                return text, offset - first
        text += len(document.text.encode("utf-8"))
    return text, piece.size - (first or 0)
