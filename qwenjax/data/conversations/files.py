"""Files of chat data: reads rows of the schema, or any JSON objects, with their origins; writes rows durably.

An origin is 'NAME:LINE', or 'NAME[ENTRY]' (from 0) in a .json list or a .parquet.
"""

import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from qwenjax.common import jsonl
from qwenjax.common.storage import replace_durably
from qwenjax.data.conversations.schema import KINDS, ChatRow, Row, RowError, kind_of, to_json, validate
from qwenjax.sources.files import BROKEN, PACKED, describe_damage, expansion_ratio, open_unpacked
from qwenjax.sources.slices import Report

MAX_BYTES = 64 << 20  # of one line


def read_chat(path: str | Path, kind: str, report: Report | None = None, strict: bool = False) -> Iterator[Row]:
    """The valid rows of a file of one of `KINDS`: .jsonl (plain or packed), a .json list or .parquet.

    `report` counts what was left out; `strict` raises at the first bad row instead.

    Raises:
      ValueError: no such file, not a single valid row in it, or (strict) a bad row: the message has file and line.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; known: {', '.join(KINDS)}")
    report = Report() if report is None else report
    empty = True
    for origin, value in read_objects(path, report, strict):
        try:
            row = validate(value)
            if kind_of(row) != kind:
                detail = f"a {kind_of(row)}, not a {kind}; `qwenjax.data convert --to={kind}` may make it one"
                raise RowError(f"a {kind_of(row)}, not a {kind}", detail)
        except RowError as error:
            skip_row(error, origin, report, strict)
            continue
        empty = False
        yield row
    if empty:
        raise ValueError(f"no {kind} in {path}: {'; '.join(report.lines()) or 'it is empty'}")


def skip_row(error: RowError, origin: str, report: Report, strict: bool) -> None:
    """Counts a bad row, or raises it with its origin."""
    if strict:
        raise ValueError(f"{origin}: {error}") from None
    report.note(error.reason, error.at(origin))


def read_objects(
    path: str | Path, report: Report, strict: bool = False, progress: Callable[[int], object] = lambda size: None
) -> Iterator[tuple[str, object]]:
    """(origin, value) of every line, entry of a .json list, or row of a .parquet; `progress` gets bytes of lines."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}; wanted .jsonl (or .jsonl.gz, .jsonl.zst), a .json list or .parquet")
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    read = _list if name.endswith(".json") else _parquet if name.endswith(".parquet") else _lines
    origin = path.name
    try:
        for origin, value in read(path):
            if isinstance(value, bytes):
                progress(len(value))
                try:
                    value = _parse(value)
                except RowError as error:
                    skip_row(error, origin, report, strict)
                    continue
            yield origin, value
    except RowError as error:  # the whole file cannot be read
        skip_row(error, origin, report, strict)
    except BROKEN as error:
        what = describe_damage(error, path.name)
        skip_row(RowError(f"{what}, the rest of the file", f"{what} after this: {error}"), origin, report, strict)


def unpacked_size(path: str | Path) -> float:
    """Approximate bytes of the lines of a file, unpacked; 0 if there is no such file."""
    path = Path(path)
    if not path.is_file():
        return 0
    return path.stat().st_size * (expansion_ratio(str(path)) if path.suffix in PACKED else 1)


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Lines that are not blank. A line over the limit comes cut, so that it is never in memory as a whole."""
    with open_unpacked(str(path)) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_BYTES + 1), b""), start=1):
            end = line
            while len(line) > MAX_BYTES and end and not end.endswith(b"\n"):
                end = file.readline(1 << 20)
            if line.strip():
                yield f"{path.name}:{number}", line


def _list(path: Path) -> Iterator[tuple[str, object]]:
    with open_unpacked(str(path)) as file:
        value = _parse(file.read(MAX_BYTES + 1))
    for i, entry in enumerate(value if isinstance(value, list) else [value]):
        yield f"{path.name}[{i}]", entry


def _parquet(path: Path) -> Iterator[tuple[str, object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(1024) for row in batch.to_pylist())
            for number, row in enumerate(rows):
                present = {name: value for name, value in row.items() if value is not None}
                # Through JSON, so that dates and the like become text
                yield f"{path.name}[{number}]", json.loads(json.dumps(present, default=str))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise RowError("corrupt parquet, the rest of the file", f"corrupt parquet: {error}") from None


def _parse(text: bytes) -> object:
    if len(text) > MAX_BYTES:
        raise RowError(f"over {MAX_BYTES >> 20} MiB", "more JSON in one piece than that; write JSON lines")
    try:
        return json.loads(text.decode().removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise RowError("invalid UTF-8", f"byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise RowError("bad JSON", f"not JSON: {error}") from None


def write_chat(path: str | Path, rows: Iterable[ChatRow]) -> int:
    """Writes rows as .jsonl, gzipped if the name ends in .gz, complete or not at all; returns their number."""
    path = Path(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"cannot write {path.name}: wanted a name ending in .jsonl or .jsonl.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    number = 0
    try:
        with open(temporary, "wb") as raw:
            # No name or time in the header, so that the same rows give the same bytes
            file = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
            for row in rows:
                file.write(jsonl.encode(to_json(row)))
                number += 1
            file.close()
        replace_durably(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return number
