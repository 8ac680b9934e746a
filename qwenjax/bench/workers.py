"""Two programs timed in turns on one machine, each in a process of its own.

A worker builds its program once (imports, compilation, warm-up) and then runs the steps that it is told to, while the
others wait. So a change of the machine's load affects both sides of a ratio alike, and neither side's threads or
allocator disturb the other. The parent and a worker exchange lines of JSON; what libraries print goes to stderr.
"""

import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import NamedTuple

from qwenjax.common.processes import keep_freed_memory

# setup(specification) -> (facts about what was built, run(steps) that returns when all of them are done)
Setup = Callable[[dict], tuple[dict, Callable[[int], None]]]
TURN_SECONDS = 3.0  # of one turn: long for a timer, short for the drift of a machine's load


class BenchTurn(NamedTuple):
    """The time of one turn of a worker."""

    steps: int
    wall: float  # seconds
    cpu: float  # seconds, summed over the worker's threads; hardly depends on the load of the machine


class BenchWorker:
    """A child process built by `setup` ("package.module:function", see `Setup`); a context manager.

    Raises:
      ValueError: the program could not be built, or a turn failed; the message is the child's.
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
            raise ValueError(f"the {self.name} worker ended early; its last lines of output are above") from None

    def _hear(self) -> dict:
        line = self._child.stdout.readline()
        if not line:
            raise ValueError(f"the {self.name} worker ended early; its last lines of output are above")
        message = json.loads(line)
        if "error" in message:
            raise ValueError(f"{self.name}: {message['error']}")
        return message


def take_turns(
    module: str, sides: Iterable[str], specification: dict, threads: int, rounds: int, line: Callable[[str, list], str]
) -> tuple[dict[str, dict], dict[str, list[list[BenchTurn]]]]:
    """Builds a worker for each side and runs them in turns, round after round. Progress on stderr.

    Args:
      module: where the setups are, named like the sides.
      line: gives the progress of a side, from its name and its last turn of each case.
    Returns: facts by side, of which "seconds" are those of one step of each case; and turns by side and case.
    Raises:
      ValueError: a worker failed.
    """
    with ExitStack() as stack:
        workers, facts = [], {}
        for side in sides:  # one after the other: a compilation must not disturb the measurements of the next worker
            log(f"{side}: building and warming up")
            workers.append(stack.enter_context(BenchWorker(side, f"{module}:{side}", specification, threads)))
            facts[side] = workers[-1].facts()
        turns: dict[str, list[list[BenchTurn]]] = {side: [[] for _ in facts[side]["seconds"]] for side in facts}
        for number in range(rounds):
            for case in range(len(turns[workers[0].name])):  # a worker goes through its cases in this order
                # the order alternates, so that a steady drift of the machine favours neither side
                for worker in workers if number % 2 == 0 else reversed(workers):
                    steps = max(1, round(TURN_SECONDS / facts[worker.name]["seconds"][case]))
                    turns[worker.name][case].append(worker.turn(steps))
            lines = ", ".join(line(side, [case[-1] for case in turns[side]]) for side in turns)
            log(f"round {number + 1}/{rounds}, tokens/s: {lines}")
    return facts, turns


def check_installed(against: str | None) -> None:
    """Raises ValueError if the other side is asked for and PyTorch or transformers is not installed."""
    if against and not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        raise ValueError(f"--against={against} needs torch and transformers: pip install 'qwenjax[parity]'")


def log(line: str) -> None:
    """Prints a line of progress."""
    print(line, file=sys.stderr, flush=True)


def rate(turn: BenchTurn, tokens: int, clock: str = "wall") -> float:
    """Tokens per second by the "wall" or "cpu" clock; `tokens` are those of a step."""
    return turn.steps * tokens / getattr(turn, clock)


def ratio(ours: list[BenchTurn], theirs: list[BenchTurn], clock: str) -> dict[str, float]:
    """Our rate divided by theirs within each round, in which both have the same machine load."""
    return spread([rate(a, 1, clock) / rate(b, 1, clock) for a, b in zip(ours, theirs)])


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


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
