"""`--restarts=N`: starts the same command again after a crash or a preemption, while that makes sense."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from qwenjax.common import command_line
from qwenjax.common.jsonl import read_rows

CHILD = "QWENJAX_RESTARTED"  # set in the environment of a process that is started again when it fails
PERMANENT = 78  # exit code of such a process if it would fail the same way again (EX_CONFIG of sysexits.h)
PEERS_LOST = 75  # if other processes of its run are missing or lost (EX_TEMPFAIL)
MAX_WAIT = 300.0  # seconds between two starts


def exit_code(why: int = command_line.FAILED) -> int:
    """The exit code of a failure: `why` for a parent that may start again, else the usual one."""
    return why if os.environ.get(CHILD) else command_line.FAILED


def began(workdir: Path) -> bool:
    """Whether this process reached its first step."""
    started = [row for row in read_rows(workdir / "events.jsonl") if row.get("event") == "started"]
    return bool(started) and started[-1]["pid"] == os.getpid()


def supervise(argv: list[str], restarts: int, workdir: Path, wait: float = 5.0) -> int:
    """Runs `python -m qwenjax.train` with `argv` until it is done or a restart is pointless. Returns the exit code.

    A restart is pointless after bad usage, data or settings that do not fit, divergence, or a second crash at the same
    step. SIGTERM and SIGINT are passed on, and end the restarts. `wait` seconds double while a run does not move.
    """
    command = [sys.executable, "-m", "qwenjax.train", *argv]
    signals: list[int] = []
    child: subprocess.Popen | None = None

    def pass_on(number, frame):
        signals.append(number)
        if child and child.poll() is None:
            child.send_signal(number)

    old = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    last_step, delay, crashes = -1, wait, 0
    try:
        for left in range(restarts, -1, -1):
            # in a session of its own, so that Ctrl-C in a terminal reaches it only once, through this process
            child = subprocess.Popen(command, env=os.environ | {CHILD: "1"}, start_new_session=True)
            if signals:
                child.send_signal(signals[-1])
            ended = child.wait()
            if ended in (command_line.DONE, command_line.USAGE) or signals:
                return command_line.INTERRUPTED if signals and ended < 0 else ended
            step = _last_step(workdir)
            how = f"signal {-ended}" if ended < 0 else f"exit code {ended}"
            if ended == PERMANENT:
                return _report(f"not started again: it would end the same way ({how})")
            moved, last_step = step != last_step, step
            delay = wait if moved else min(2 * delay, MAX_WAIT)
            if ended not in (command_line.INTERRUPTED, PEERS_LOST):
                crashes = 1 if moved else crashes + 1
            if crashes > 1:
                return _report(f"not started again: it ended twice at step {step} without progress ({how})")
            if left:
                _report(f"ended at step {step} ({how}); starting again in {delay:.0f} s, {left - 1} restarts left")
                end = time.monotonic() + delay
                while time.monotonic() < end:
                    if signals:
                        return command_line.INTERRUPTED
                    time.sleep(0.1)
        return _report(f"not started again: that was the last of {restarts} restarts")
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _last_step(workdir: Path) -> int:
    """The last step in metrics.jsonl, which is cut back at every start; 0 before there is one."""
    return max((row["step"] for row in read_rows(workdir / "metrics.jsonl")), default=0)


def _report(text: str) -> int:
    print(f"restarts    {text}", file=sys.stderr, flush=True)
    return command_line.FAILED
