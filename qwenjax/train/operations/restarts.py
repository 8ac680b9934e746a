"""`--restarts=N`: the same command again after a crash or a preemption, and when that makes no sense any more."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from qwenjax.common import command_line
from qwenjax.common.jsonl import read_rows

CHILD = "QWENJAX_RESTARTED"  # in the environment of a process that is started again when it fails
HOPELESS = 78  # what such a process ends with if it will fail the same way next time (EX_CONFIG of sysexits.h),
PEERS = 75  # and if others of its run are missing or lost (EX_TEMPFAIL)
LONGEST = 300.0  # seconds between two starts, at most


def code(why: int = command_line.FAILED) -> int:
    """The exit code of a failure: the usual one, but to a parent that may start again, why."""
    return why if os.environ.get(CHILD) else command_line.FAILED


def began(workdir: Path) -> bool:
    """Whether this process came as far as its first step."""
    started = [row for row in read_rows(workdir / "events.jsonl") if row.get("event") == "started"]
    return bool(started) and started[-1]["pid"] == os.getpid()


def supervise(argv: list[str], restarts: int, workdir: Path, wait: float = 5.0) -> int:
    """Runs `python -m qwenjax.train` with `argv`, again and again, until it is done or there is no point.

    No point: bad usage, data or settings that do not fit, divergence, or a second crash at the same step. SIGTERM and
    SIGINT are handed on, and end it. The wait between two starts is `wait` seconds, and doubles while every start ends
    at the same step. Returns the exit code.
    """
    command = [sys.executable, "-m", "qwenjax.train", *without_restarts(argv)]
    told: list[int] = []
    child: subprocess.Popen | None = None

    def hand_on(number, frame):
        told.append(number)
        if child and child.poll() is None:
            child.send_signal(number)

    old = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    last, delay, crashes = -1, wait, 0
    try:
        for left in range(restarts, -1, -1):
            # a group of its own: Ctrl-C in a terminal reaches it once, through us
            child = subprocess.Popen(command, env=os.environ | {CHILD: "1"}, start_new_session=True)
            if told:
                child.send_signal(told[-1])
            ended = child.wait()
            if ended in (command_line.DONE, command_line.USAGE) or told:
                return command_line.INTERRUPTED if told and ended < 0 else ended
            reached = _reached(workdir)
            how = f"signal {-ended}" if ended < 0 else f"exit code {ended}"
            if ended == HOPELESS:
                return _say(f"not started again: it would end the same way ({how})")
            moved, last = reached != last, reached
            delay = wait if moved else min(2 * delay, LONGEST)
            if ended not in (command_line.INTERRUPTED, PEERS):
                crashes = 1 if moved else crashes + 1
            if crashes > 1:
                return _say(f"not started again: it ended twice at step {reached} without progress ({how})")
            if left:
                _say(f"ended at step {reached} ({how}); starting again in {delay:.0f} s, {left - 1} restarts left")
                _sleep(delay, told)
                if told:
                    return command_line.INTERRUPTED
        return _say(f"not started again: that was the last of {restarts} restarts")
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def without_restarts(argv: list[str]) -> list[str]:
    """The command line without --restarts=N or --restarts N, in any abbreviation that argparse takes."""
    kept, skip = [], False
    for word in argv:
        name, equals, _ = word.partition("=")
        if skip:
            skip = False
        elif len(name) > 3 and "--restarts".startswith(name):
            skip = not equals
        else:
            kept.append(word)
    return kept


def _sleep(seconds: float, told: list[int]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not told:
        time.sleep(0.1)


def _reached(workdir: Path) -> int:
    """The last step in metrics.jsonl, which is cut back at every start; 0 before there is one."""
    return max((row["step"] for row in read_rows(workdir / "metrics.jsonl")), default=0)


def _say(text: str) -> int:
    print(f"restarts    {text}", file=sys.stderr, flush=True)
    return command_line.FAILED
