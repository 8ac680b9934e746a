"""events.jsonl: what befell a run besides its steps, one JSON object per line. Only process 0 writes.

{"event": "started" | "left out" | "rewind" | "time" | …, "time": seconds since 1970, …}. What follows from data and
parameters alone has the number of its first row; on resume it is cut back to the rows that the checkpoint has read, and
written again when they are, so that a killed run has the same as an uninterrupted one.
"""

import math
import time
from pathlib import Path

import jax

from qwenjax.common.jsonl import Log


class Events:
    """The log of them; rows that will be written again are not in it any more."""

    def __init__(self, workdir: Path, next_row: int):
        self.path = workdir / "events.jsonl"
        self.log = Log(self.path, lambda row: row.get("row", -1) < next_row) if jax.process_index() == 0 else None

    def write(self, event: str, **values) -> None:
        """Adds a line, at once; a number that is not finite becomes text, because JSON has none."""
        if self.log:
            sound = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            self.log.add({"event": event, "time": round(time.time(), 3), **sound})
            self.log.flush()
