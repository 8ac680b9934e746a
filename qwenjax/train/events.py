"""events.jsonl: what befell a run besides its steps, one JSON object per line. Only process 0 writes.

{"event": "started" | "left out" | "rewind" | "time" | …, "time": seconds since 1970, …}. What follows from data and
parameters alone has the number of its first row; on resume it is cut back to the rows that the checkpoint has read, and
written again when they are, so that a killed run has the same as an uninterrupted one.
"""

import json
import math
import time
from pathlib import Path

import jax

from qwenjax.jsonl import read_rows


class Events:
    """The file, and what was in it when this process started."""

    def __init__(self, workdir: Path, next_row: int):
        self.path = workdir / "events.jsonl"
        self.active = jax.process_index() == 0
        self.kept = [row for row in read_rows(self.path) if row.get("row", -1) < next_row]
        if self.active:
            tmp = self.path.with_suffix(".tmp")
            tmp.write_text("".join(json.dumps(row) + "\n" for row in self.kept))
            tmp.replace(self.path)

    def write(self, event: str, **values) -> None:
        """Adds a line; a number that is not finite becomes text, because JSON has none."""
        if self.active:
            sound = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            with self.path.open("a") as file:
                file.write(json.dumps({"event": event, "time": round(time.time(), 3), **sound}) + "\n")
