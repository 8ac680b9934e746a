"""Logs of one JSON object a line, which a kill may cut short. No jax: a process that only waits reads them, too.

    metrics.jsonl          on a disk all of it, growing line by line; in a bucket its beginning
    metrics/00001.jsonl    and what follows

An object in a bucket cannot grow: the last part is written anew, once a minute at most, until the next one begins.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from qwenjax.common import storage

PART = 1 << 18  # characters in a part of a remote log, about: what is written once a minute, and read at every start
HOLD = 60.0  # seconds for which rows of a remote log may wait to be written


def read_rows(path: Path) -> list[dict]:
    """The rows of a log, wherever they lie; [] before there is one. A last line cut off by a kill is left out."""
    return [row for part in parts(path) for _, row in _lines(part.read_bytes())]


def parts(path: Path) -> list[Path]:
    """The files that a log consists of, oldest first."""
    numbered = [file for file in storage.files(path.with_suffix("")) if file.stem.isdigit()]
    return [*([path] if path.exists() else []), *numbered]


def _lines(raw: bytes) -> list[tuple[bytes, dict]]:
    """The whole lines of a part, and what they say."""
    found = []
    for line in raw.splitlines(keepends=True):
        try:
            found.append((line, json.loads(line)))
        except ValueError:  # no JSON, or not even text
            break
    return found


class Log:
    """A log that this process, and no other, adds to.

    Rows for which `keep` is false are dropped when it is opened: a resumed run writes them again. The newest part is
    cut first, so that a kill in between leaves no gap.
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
                storage.write(part, kept)

    def add(self, row: dict) -> None:
        """Adds a row: to a file at once; to a bucket a minute later at most, with the row that comes then."""
        line = (json.dumps(row) + "\n").encode()
        if storage.remote(self.path):
            self.text, self.waiting = self.text + line, True
            if time.monotonic() - self.written > HOLD:
                self.flush()
        else:
            with self.part.open("ab") as file:
                file.write(line)

    def flush(self) -> None:
        """Returns when all rows are written; those of a file are already."""
        if not self.waiting:
            return
        storage.write(self.part, self.text)
        self.written, self.waiting = time.monotonic(), False
        if len(self.text) > PART:
            number = 0 if self.part == self.path else int(self.part.stem)
            self.part, self.text = self.path.with_suffix("") / f"{number + 1:05d}.jsonl", b""
