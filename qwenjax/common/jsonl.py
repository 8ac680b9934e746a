"""JSON lines: files of rows, and logs that grow row by row. No jax: a process that only waits reads them, too.

An object in a bucket cannot grow. A log there has parts, metrics.jsonl, metrics/00001.jsonl, …; the last one is
written anew, once a minute at most, until the next one begins. A kill may cut the last line of a log short.
"""

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from qwenjax.common import storage

PART = 1 << 18  # bytes in a part of a remote log, about: each is written once a minute and read at every start
HOLD = 60.0  # seconds that rows of a remote log may wait before they are written


def encode(row: dict) -> bytes:
    """A row as a line of UTF-8; lone surrogates, which UTF-8 cannot write, stay escaped as in JSON."""
    return json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Writes a file of rows, atomically."""
    storage.write_atomically(path, b"".join(map(encode, rows)))


def read_rows(path: Path) -> list[dict]:
    """The rows of a file or of all parts of a log; [] if there is none. A last line cut off by a kill is left out."""
    return [row for part in parts(path) for _, row in _lines(part.read_bytes())]


def parts(path: Path) -> list[Path]:
    """The files that a log consists of, oldest first."""
    numbered = [file for file in storage.files(path.with_suffix("")) if file.stem.isdigit()]
    return [*([path] if path.exists() else []), *numbered]


def _lines(raw: bytes) -> list[tuple[bytes, dict]]:
    """The complete lines of a part, raw and parsed."""
    rows = []
    for line in raw.splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:  # cut off in the middle
            break
        if line.endswith(b"\n"):  # else a later row would go on in it
            rows.append((line, row))
    return rows


class Log:
    """A log that only this process adds to.

    Opening it drops the rows for which `keep` is false: a resumed run writes them again. The newest part is cut
    first, so that a kill in between leaves no gap.
    """

    def __init__(self, path: Path, keep: Callable[[dict], bool]):
        self.path = self.part = path
        self.text, self.written, self.waiting = b"", -math.inf, False
        for part in reversed(parts(path)):
            raw = part.read_bytes()
            kept = b"".join(line for line, row in _lines(raw) if keep(row))
            if kept and not self.text:
                self.part, self.text = part, kept
            if not kept and part != path:
                part.unlink()
            elif kept != raw:
                storage.write_atomically(part, kept)

    def add(self, row: dict) -> None:
        """Adds a row: to a file at once; to a bucket with the first row that comes a minute after the last write."""
        line = encode(row)
        if storage.remote(self.path):
            self.text, self.waiting = self.text + line, True
            if time.monotonic() - self.written > HOLD:
                self.flush()
        else:
            with self.part.open("ab") as file:
                file.write(line)

    def flush(self) -> None:
        """Returns when all rows are written; a file has them already."""
        if not self.waiting:
            return
        storage.write_atomically(self.part, self.text)
        self.written, self.waiting = time.monotonic(), False
        if len(self.text) > PART:
            number = 0 if self.part == self.path else int(self.part.stem)
            self.part, self.text = self.path.with_suffix("") / f"{number + 1:05d}.jsonl", b""
