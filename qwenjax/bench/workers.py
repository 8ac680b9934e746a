"""Two programs timed fairly on one machine: each lives in its own process, and they take turns.

A worker builds its program once (imports, compilation, warm-up) and then runs as many steps as it is told, while the
others wait. So a change of the machine's load meets both sides of a ratio, and neither side's thread pool, allocator
or garbage disturbs the other. The parent and a worker exchange lines of JSON; what libraries print goes to stderr.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from qwenjax.train.memory import keep_freed_memory

# setup(specification) -> (facts about what was built, run(steps) that returns when all of them are done)
Setup = Callable[[dict], tuple[dict, Callable[[int], None]]]


class BenchTurn(NamedTuple):
    """What one worker's turn took."""

    steps: int
    wall: float  # seconds
    cpu: float  # seconds, summed over the worker's threads; hardly depends on what else the machine does


class BenchWorker:
    """A child process built by `setup` ("package.module:function", see `Setup`); a context manager.

    Raises:
      ValueError: the child could not be built, or a turn failed; with the child's own words.
    """

    def __init__(self, name: str, setup: str, specification: dict, threads: int):
        self.name = name
        # A thread that spins while the other worker computes would steal its cores.
        environment = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads), "NPROC": str(threads)}
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__, setup],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
            text=True,
        )
        self._say(specification)

    def __enter__(self) -> "BenchWorker":
        return self

    def __exit__(self, *_) -> None:
        self._child.kill()
        self._child.communicate()

    def facts(self) -> dict:
        """Waits until the worker is built; call once, before the first turn."""
        return self._hear()

    def turn(self, steps: int) -> BenchTurn:
        """Lets the worker run."""
        self._say({"steps": steps})
        return BenchTurn(**self._hear())

    def _say(self, message: dict) -> None:
        try:
            print(json.dumps(message), file=self._child.stdin, flush=True)
        except BrokenPipeError:
            raise ValueError(f"the {self.name} worker ended early; its last words are above") from None

    def _hear(self) -> dict:
        line = self._child.stdout.readline()
        if not line:
            raise ValueError(f"the {self.name} worker ended early; its last words are above")
        message = json.loads(line)
        if "error" in message:
            raise ValueError(f"{self.name}: {message['error']}")
        return message


def serve(setup: Setup) -> None:
    """The child's side: builds, then answers every line from the parent until there are no more."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library's print must not look like a reply

    def reply(message: dict) -> None:
        print(json.dumps(message), file=replies, flush=True)

    keep_freed_memory()  # as training does; PyTorch gains as much, so the ratio is fair
    try:
        facts, run = setup(json.loads(sys.stdin.readline()))
    except ValueError as error:
        reply({"error": str(error)})
        return
    reply(facts)
    for line in sys.stdin:
        steps = json.loads(line)["steps"]
        wall, cpu = time.perf_counter(), time.process_time()
        run(steps)
        reply(BenchTurn(steps, time.perf_counter() - wall, time.process_time() - cpu)._asdict())


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    try:
        serve(getattr(importlib.import_module(module), function))
    except KeyboardInterrupt:  # the parent got it too, and reports
        sys.exit(3)
