"""Two programs timed in turns on one machine, each in a process of its own.

A worker builds its program once (imports, compilation, warm-up) and then runs the steps that it is told to, while the
others wait. So a change of the machine's load affects both sides of a ratio alike, and neither side's threads or
allocator disturb the other.
"""

import importlib.util
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from qwenjax.common.command_line import positive
from qwenjax.common.processes import keep_freed_memory

# setup(specification) -> (facts about what was built, run(case, steps) that returns when all of the steps are done).
# Of the facts, "seconds" are those of one step of each case.
Setup = Callable[[Any], tuple[dict, Callable[[int, int], None]]]
TURN_SECONDS = 3.0  # of one turn: long for a timer, short for the drift of a machine's load


class BenchTurn(NamedTuple):
    """The time of one turn of a worker."""

    steps: int
    wall: float  # seconds
    cpu: float  # seconds, summed over the worker's threads; hardly depends on the load of the machine


Turn = Callable[[int, int], BenchTurn]  # of a worker, from the case and the number of steps


@contextmanager
def worker(name: str, setup: Setup, specification: Any, threads: int) -> Iterator[tuple[dict, Turn]]:
    """A child process that has built `setup(specification)`: yields the facts about it, and its turns.

    Raises:
      ValueError: the program could not be built, or a turn failed; the message is the child's.
    """
    context = multiprocessing.get_context("spawn")
    pipe, child_end = context.Pipe()
    child = context.Process(target=_serve, args=(child_end, threads), daemon=True)
    child.start()
    child_end.close()

    def ask(*question: Any) -> Any:
        try:
            pipe.send(question)
            answer = pipe.recv()
        except (EOFError, OSError):
            raise ValueError(f"the {name} worker ended early; its last lines of output are above") from None
        if isinstance(answer, ValueError):
            raise ValueError(f"{name}: {answer}")
        return answer

    try:
        yield ask(setup, specification), ask
    finally:
        child.kill()
        child.join()


def _serve(pipe: Connection, threads: int) -> None:
    """The child's side: builds, then answers every turn until the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C too, and ends this process
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not look like the result
    # A thread that spins while the other worker computes would steal its cores.
    os.environ |= {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads), "NPROC": str(threads)}
    keep_freed_memory()  # as training does; PyTorch gains as much, so the ratio is fair
    try:
        setup, specification = pipe.recv()
        facts, run = setup(specification)
        pipe.send(facts)
        while True:
            case, steps = pipe.recv()
            wall, cpu = time.perf_counter(), time.process_time()
            run(case, steps)
            pipe.send(BenchTurn(steps, time.perf_counter() - wall, time.process_time() - cpu))
    except ValueError as error:
        pipe.send(ValueError(str(error)))
    except EOFError:
        return


def take_turns(
    setups: dict[str, Setup], specification: Any, threads: int, rounds: int, line: Callable[[str, list], str]
) -> tuple[dict[str, dict], dict[str, list[list[BenchTurn]]]]:
    """Builds a worker for each side and runs them in turns, round after round. Progress on stderr.

    Args:
      setups: of the sides, by name.
      line: gives the progress of a side, from its name and its last turn of each case.
    Returns: facts by side; and turns by side and case.
    Raises:
      ValueError: a worker failed.
    """
    with ExitStack() as stack:
        facts, ask = {}, {}
        for side, setup in setups.items():  # one after the other, so that no compilation disturbs a warm-up
            log(f"{side}: building and warming up")
            facts[side], ask[side] = stack.enter_context(worker(side, setup, specification, threads))
        turns: dict[str, list[list[BenchTurn]]] = {side: [[] for _ in facts[side]["seconds"]] for side in facts}
        for number in range(rounds):
            # the order alternates, so that a steady drift of the machine favours neither side
            order = list(setups) if number % 2 == 0 else list(reversed(setups))
            for case in range(len(turns[order[0]])):
                for side in order:
                    steps = max(1, round(TURN_SECONDS / facts[side]["seconds"][case]))
                    turns[side][case].append(ask[side](case, steps))
            lines = ", ".join(line(side, [case[-1] for case in turns[side]]) for side in turns)
            log(f"round {number + 1}/{rounds}, tokens/s: {lines}")
    return facts, turns


def arguments(add, against: str) -> None:
    """Declares the options of a benchmark that can run `against` another library."""
    add("--against", choices=[against], help="measure this too, in turns, and print the ratio")
    add("--rounds", type=positive, default=5, metavar="N", help="turns of about 3 s for each side (default: 5)")
    add("--threads", type=positive, metavar="N", help="CPU threads for each side (default: one per core)")
    add("--json", action="store_true", help="print the result as JSON")


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
