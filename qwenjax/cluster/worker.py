"""What runs on each VM of a pod: a command in the background, its log, and its exit code in a file.

~/qwenjax/launched/JOB/  command.json  log  pid  lock  exit     the command works in ~/qwenjax, its venv first in PATH

The processes of the job hold the lock. The system releases it however they end, also when the VM restarts.
"""

import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

NONE, RUNNING, FINISHED, LOST = "none", "running", "finished", "lost"  # lost: ended without leaving an exit code
# The shell survives a signal to its process group, so that it can write the exit code of the command.
WRAPPER = 'trap : TERM INT; "$@"; echo $? > "$0.new"; mv "$0.new" "$0"'
MARK = "qwenjax-status "


class JobState(NamedTuple):
    """The state of a job on one VM."""

    host: str
    state: str
    code: int | None = None  # exit code, once finished
    seconds: float = 0  # how long it ran, once finished
    stopped: bool = False  # by `stop`


def home() -> Path:
    """The folder that commands work in."""
    return Path.home() / "qwenjax"


def _folder(job: str) -> Path:
    return home() / "launched" / job


def start(job: str, command: list[str]) -> str:
    """Starts a command in the background, unless it runs already; returns a message."""
    folder, host = _folder(job), socket.gethostname()
    if state(job).state == RUNNING:
        running = json.loads((folder / "command.json").read_text())
        if running != command:
            raise ValueError(f"{host}: {job} is another command, {shlex.join(running)}; `stop` it, or use --job")
        return f"{host}: {job} runs already"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("exit", "stopped", "lock"):  # the old lock may still be held by a process that an earlier job left
        (folder / name).unlink(missing_ok=True)
    (folder / "command.json").write_text(json.dumps(command))
    path = os.pathsep.join([str(home() / "venv" / "bin"), os.environ.get("PATH", "/usr/bin:/bin")])
    with open(folder / "log", "a") as log, open(folder / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        log.write(f"=== {datetime.now():%Y-%m-%d %H:%M:%S} {host}: {shlex.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            ["/bin/sh", "-c", WRAPPER, str(folder / "exit"), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=home(),
            env=os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
    (folder / "pid").write_text(str(process.pid))
    return f"{host}: {job} started"


def state(job: str) -> JobState:
    """The state of a job on this VM."""
    folder, host = _folder(job), socket.gethostname()
    if not (folder / "pid").exists():
        return JobState(host, NONE)
    alive = _alive(folder)  # before `exit` is read: the exit code is written before the lock is released
    end, stopped = folder / "exit", (folder / "stopped").exists()
    if end.exists():
        seconds = end.stat().st_mtime - (folder / "pid").stat().st_mtime
        return JobState(host, FINISHED, int(end.read_text()), seconds, stopped)
    return JobState(host, RUNNING if alive else LOST, stopped=stopped)


def _alive(folder: Path) -> bool:
    """Whether a process of the job holds the lock."""
    with open(folder / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def stop(job: str, grace: float) -> JobState:
    """Asks a job to end (training saves first), and ends it after `grace` seconds if it has not."""
    folder = _folder(job)
    until = time.monotonic() + grace
    for number in (signal.SIGTERM, signal.SIGKILL):
        if state(job).state != RUNNING:
            break
        (folder / "stopped").touch()  # tells `launch --retry` not to start it again
        os.killpg(int((folder / "pid").read_text()), number)
        while state(job).state == RUNNING and (number == signal.SIGKILL or time.monotonic() < until):
            time.sleep(0.1)
    return state(job)


def show_state(one: JobState) -> str:
    """A state as a line that `states` reads."""
    return MARK + json.dumps(one._asdict())


def states(text: str) -> list[JobState]:
    """The states in the output of all VMs, among lines of ssh."""
    return [JobState(**json.loads(line.partition(MARK)[2])) for line in text.splitlines() if MARK in line]


def show_log(job: str, lines: int, follow: bool, prefix: bool) -> None:
    """Prints the last lines of the log; with `follow` also those to come, until the job ends, and how it has ended."""
    path = _folder(job) / "log"
    if not path.is_file():
        raise ValueError(f"{socket.gethostname()}: no job {job} was launched here")
    host = f"{socket.gethostname()}: " if prefix else ""
    with open(path, errors="replace") as log:
        new, alive = "".join(deque(log, maxlen=lines)), follow
        while new or alive:
            print("".join(host + line for line in new.splitlines(keepends=True)), end="", flush=True)
            time.sleep(0.5 if alive else 0)
            alive = follow and state(job).state == RUNNING  # before reading, so that the last lines of a job are read
            new = log.read() if follow else ""
    if follow:
        one = state(job)
        print(f"{host}=== {job} {one.state}" + (f", exit code {one.code}" if one.code is not None else ""))
