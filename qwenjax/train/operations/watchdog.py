"""Detects steps that never end: on a pod a hung run costs as much as a running one, and prints nothing."""

import faulthandler
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

MIN_SECONDS, MEDIANS = 600.0, 20  # the default limit of a step is the larger of 600 s and 20 median steps
EXIT_FACTOR = 3  # after so many times the limit the process gives up
WRITE_SECONDS = 10.0  # that writing the stacks may take


class Watchdog:
    """Prints all Python stacks when a step takes longer than `seconds`, and exits with 1 after three times as long.

    `seconds` of None stands for 20 times the median step, at least 10 minutes; 0 for no limit. Compiling, evaluation,
    sampling and saving are outside `step` and have no limit.
    """

    def __init__(self, workdir: Path, seconds: float | None = None, exit: Callable[[int], None] = os._exit):
        self.workdir, self.seconds, self.exit = workdir, seconds, exit
        self.durations: deque[float] = deque(maxlen=100)

    @contextmanager
    def step(self, step: int, row: int) -> Iterator[None]:
        """A context around one step, whose batch starts at `row`."""
        start, ended = time.monotonic(), threading.Event()
        if self.seconds != 0:
            threading.Thread(target=self._watch, args=(ended, step, row), name="watchdog", daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            self.durations.append(time.monotonic() - start)

    def limit(self) -> float:
        """Seconds that a step may take."""
        if self.seconds is not None:
            return self.seconds
        return max(MIN_SECONDS, MEDIANS * statistics.median(list(self.durations) or [0]))

    def _watch(self, ended: threading.Event, step: int, row: int) -> None:
        limit = self.limit()
        if ended.wait(limit):
            return
        self._dump(step, row, limit)
        if ended.wait((EXIT_FACTOR - 1) * limit):
            return
        text = f"error: step {step} has not ended in {EXIT_FACTOR * limit:.0f} s; giving up. The same command resumes"
        print(text, file=sys.stderr, flush=True)
        self.exit(1)

    def _dump(self, step: int, row: int, limit: float) -> None:
        process = f".{jax.process_index()}" if jax.process_count() > 1 else ""
        path = self.workdir / f"stacks-{step}{process}.txt"
        text = (
            f"watchdog    step {step} (rows from {row:,}) has run for {limit:.0f} s; all stacks follow, also "
            f"in {path}. Waiting until {EXIT_FACTOR * limit:.0f} s, then this process gives up"
        )
        print(text, file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        with tempfile.TemporaryFile("w+") as file:  # faulthandler needs a local file
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            stacks = file.read()
        # the disk or bucket of the run may be what hangs, so another thread writes: this one must be able to give up
        writer = threading.Thread(target=path.write_text, args=(stacks,), daemon=True)
        writer.start()
        writer.join(WRITE_SECONDS)
