"""Readers of files, one per format: JSON lines, JSON lists, Parquet, text. Plain, or packed as .gz or .zst.

Each takes a `Slice` and a `Report` and holds a bounded part of the file. A bad line or row group is skipped; after
damage in a compressed stream the rest of the file is lost.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from qwenjax.sources import slices
from qwenjax.sources.slices import Document, Report, Slice, text_document

PART = 16 << 10  # bytes, about, of each document that a text file is cut into when it is the whole source
BATCH = 8 << 20  # bytes, about, of the rows held at a time
HEAD = 64 << 10  # bytes that tell the kind of a .json
PACKED = (".gz", ".zst")
BROKEN = (EOFError, zlib.error, OSError)  # raised when a damaged stream is read

Row = tuple[str, Mapping]  # origin and fields


# ---- bytes ----


def open_unpacked(path: str) -> BinaryIO:
    """A buffered stream of a file's bytes, unpacked if its name ends in .gz or .zst (all members and frames)."""
    if path.endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"))
    if path.endswith(".zst"):
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(path), "zstd"), HEAD)
    return open(path, "rb")


def expansion_ratio(path: str) -> float:
    """Unpacked bytes per byte of a packed file, measured at its beginning."""
    with open(path, "rb") as raw:
        if path.endswith(".gz"):
            stream = gzip.GzipFile(fileobj=raw)
        else:
            import pyarrow as pa

            stream = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
        try:
            return max(1.0, len(stream.read(4 << 20)) / max(raw.tell(), 1))
        except BROKEN:
            return 1.0


def describe_damage(error: Exception, path: str) -> str:
    """What is wrong with a compressed stream, in words; an error of the disk is raised again."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    truncated = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return f"{'truncated' if truncated else 'corrupt'} {'gzip' if path.endswith('.gz') else 'zst'}"


# ---- JSON ----


def json_kind(file: Path, columns: tuple[str, ...], named: bool) -> str | None:
    """How a .json is read: 'jsonl' (many web corpora are named .json), 'list' of objects (chat data), None: as text.

    If it is one of a folder (not `named`), it has to hold one of the columns: a file of settings is text.
    """
    try:
        with open_unpacked(str(file)) as stream:
            head = stream.read(HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
            if not named and not any(json.dumps(column).encode() in head for column in columns):
                return None
            if re.match(rb"\[\s*\{", head):
                return "list"
            line = head if b"\n" in head else head + stream.readline(slices.LIMIT)
            return "jsonl" if isinstance(json.loads(line.splitlines()[0]), dict) else None
    except (*BROKEN, ValueError, IndexError, RecursionError):
        return None  # its reader reports what is wrong


def json_lines(piece: Slice, report: Report) -> Iterator[Row]:
    """The objects on the lines that begin in a slice; the origin is FILE@BYTE of the unpacked file."""
    at = piece.start
    with open_unpacked(piece.file) as lines:
        if at:  # a line belongs to the slice that holds its first byte: finish the one that began before
            lines.seek(at - 1)
            at += _skip_line(lines) - 1
        while piece.stop is None or at < piece.stop:
            try:
                line = lines.readline(slices.LIMIT + 1)
                if not line:
                    if not at:
                        report.note("empty file", piece.origin)
                    return
                here, at = f"{piece.origin}@{at}", at + len(line)
                if len(line) > slices.LIMIT and not line.endswith(b"\n"):
                    at += _skip_line(lines)
                    report.note(f"line over {slices.LIMIT >> 20} MiB", here)
                    continue
            except BROKEN as error:
                report.note(f"{describe_damage(error, piece.file)}, the rest of the file", f"{piece.origin}@{at}")
                return
            if piece.needs_row(here) and (row := _object(line, here, report)) is not None:
                yield here, row


def _skip_line(lines: BinaryIO) -> int:
    """Moves to the next line, in bounded memory; returns the bytes skipped."""
    skipped = 0
    while part := lines.readline(1 << 20):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _object(line: bytes, origin: str, report: Report) -> dict | None:
    """The object on a line, or None."""
    if not line.strip():
        report.note("blank line", origin)
        return None
    try:
        value = json.loads(line.decode("utf-8").removeprefix("\ufeff"))
    except UnicodeDecodeError:
        report.note(slices.NOT_UTF8, origin)
    except (ValueError, RecursionError):  # ValueError: also a number of thousands of digits
        report.note(slices.NUL_BYTES if b"\0" in line else "bad JSON line", origin)
    else:
        if isinstance(value, dict):
            return value
        report.note("JSON line that is not an object", origin)
    return None


def json_list(piece: Slice, report: Report) -> Iterator[Row]:
    """The objects of a JSON list, which is read at once; the origin is FILE#INDEX."""
    data = _whole_file(piece, report, f"JSON list over {slices.LIMIT >> 20} MiB; write it as JSON lines")
    try:
        items = json.loads(data.decode("utf-8").removeprefix("\ufeff")) if data else []
    except UnicodeDecodeError:
        report.note(slices.NOT_UTF8, piece.origin)
    except (ValueError, RecursionError):
        report.note("bad JSON", piece.origin)
    else:
        for i, item in enumerate(items):
            here = f"{piece.origin}#{i}"
            if not isinstance(item, dict):
                report.note("JSON item that is not an object", here)
            elif piece.needs_row(here):
                yield here, item


def _whole_file(piece: Slice, report: Report, too_long: str) -> bytes | None:
    """The bytes of a file, or None if it is damaged or over the limit of a document, which is reported."""
    try:
        with open_unpacked(piece.file) as stream:
            data = stream.read(slices.LIMIT + 1)
    except BROKEN as error:
        report.note(describe_damage(error, piece.file), piece.origin)
        return None
    if len(data) > slices.LIMIT:
        report.note(too_long, piece.origin)
        return None
    return data


# ---- Parquet ----


def parquet_text(file: Path, columns: tuple[str, ...]) -> tuple[int, int]:
    """(row groups, bytes of text in them) of a Parquet file, from its footer; (0, 0) without one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        footer = pq.read_metadata(file)
    except (pa.ArrowException, OSError):
        return 0, 0  # its reader reports what is wrong
    groups = [footer.row_group(g) for g in range(footer.num_row_groups)]
    chunks = [group.column(c) for group in groups for c in range(group.num_columns)]
    return len(groups), sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)


def parquet(piece: Slice, report: Report) -> Iterator[Row]:
    """The rows of some row groups, in batches of bounded size; the origin is FILE#ROW."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # without pre_buffer and with a buffer, a row group is read page by page
        file = pq.ParquetFile(piece.file, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        report.note(f"corrupt parquet ({str(error).splitlines()[0]})", piece.origin)
        return
    with file:
        names = file.schema_arrow.names
        columns = [name for name in dict.fromkeys((*piece.source.column, piece.source.group)) if name in names]
        groups = [file.metadata.row_group(g) for g in range(file.num_row_groups)]
        if not file.metadata.num_rows:
            report.note("empty file", piece.origin)
        at, blank = sum(group.num_rows for group in groups[: piece.start]), dict.fromkeys(names)
        for g in range(piece.start, len(groups) if piece.stop is None else piece.stop):
            end, width = at + groups[g].num_rows, groups[g].total_byte_size // max(groups[g].num_rows, 1)
            try:
                size = max(1, min(1024, BATCH // max(width, 1)))
                for batch in file.iter_batches(size, row_groups=[g], columns=columns):
                    wanted = [i for i in range(batch.num_rows) if piece.needs_row(f"{piece.origin}#{at + i}")]
                    values = _rows(batch.take(wanted) if len(wanted) < batch.num_rows else batch)
                    for i, row in zip(wanted, values):
                        yield f"{piece.origin}#{at + i}", blank | row if blank else row
                        blank = {}  # only the first row has to name all columns
                    at += batch.num_rows
            except (pa.ArrowException, OSError):
                report.note("damaged row group (its rows)", f"{piece.origin}#{at}", end - at)
            at = end


def _rows(batch) -> list[dict]:
    """Rows of an Arrow record batch, with text as bytes: invalid UTF-8 is then reported row by row."""
    import pyarrow as pa

    if not batch.num_columns:
        return [{}] * batch.num_rows
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            column = column.cast(kind).cast(pa.large_binary() if pa.types.is_large_string(kind) else pa.binary())
        columns[name] = column.to_pylist()
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


# ---- text ----


def text(piece: Slice, report: Report) -> Iterator[Document]:
    """A file as one document."""
    if piece.keeps(piece.origin):
        data = _whole_file(piece, report, f"file over {slices.LIMIT >> 20} MiB is not one document")
        if data is not None:
            yield from text_document(data, piece.origin, report)


def parts(piece: Slice, report: Report) -> Iterator[Document]:
    """A text file as documents of about `PART` bytes that end where a line ends; the origin is FILE@BYTE."""
    at = 0
    with open_unpacked(piece.file) as stream:
        while True:
            try:
                part = stream.read(PART) + stream.readline(1 << 20)
                for _ in range(3):  # a very long line may be cut here, but not inside a character
                    if part.endswith(b"\n") or not (after := stream.peek(1)[:1]) or after[0] & 0xC0 != 0x80:
                        break
                    part += stream.read(1)
            except BROKEN as error:
                report.note(f"{describe_damage(error, piece.file)}, the rest of the file", f"{piece.origin}@{at}")
                return
            if not part:
                break
            if piece.keeps(here := f"{piece.origin}@{at}"):
                yield from text_document(part, here, report)
            at += len(part)
    if not at:
        report.note("empty file", piece.origin)
