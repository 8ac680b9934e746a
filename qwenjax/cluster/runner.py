"""Runs command lines, or prints them, and explains the errors of gcloud, xpk and kubectl."""

import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

INSTALL_HINTS = {
    "gcloud": "install the Google Cloud CLI (cloud.google.com/sdk/docs/install), then `gcloud auth login`",
    "xpk": "`pip install xpk`; it needs gcloud and kubectl",
    "kubectl": "`gcloud components install kubectl gke-gcloud-auth-plugin`",
    "docker": "install Docker (docs.docker.com/engine/install); then `gcloud auth configure-docker`",
    "git": "install git, or give --source with what pip can install",
}
# Kinds of failure, by what a failed command writes to stderr. The first match counts.
FAILURE_KINDS = (
    ("signed-out", ("gcloud auth login", "reauthentication", "do not currently have an active account")),
    ("busy", ("per minute", "too many requests")),
    ("quota", ("quota limit", "quota exceeded", "exceeded quota", "quota '", "insufficient quota")),
    ("denied", ("permission_denied", "permission denied", "does not have permission", "forbidden", "not been used in")),
    ("exists", ("already_exists", "already exists")),
    ("preempted", ("preempted",)),
    ("absent", ("not_found", "was not found", "could not be found")),
    ("unreachable", ("could not ssh", "connection refused", "timed out", "connection reset", "broken pipe", "port 22")),
    ("busy", ("resource_exhausted", "no more capacity", "stockout", "unavailable", "deadline_exceeded", "try again")),
)
ADVICE = {
    "signed-out": "sign in with `gcloud auth login`, then run the same command again",
    "quota": "the TPU quota of this project does not allow it: ask for more (cloud console, IAM & Admin, Quotas), "
    "or choose another zone, type or capacity; waiting does not help",
    "denied": "the account (`gcloud config get account`) may not do this in the project: it needs the role TPU Admin "
    "(roles/tpu.admin), and the project the API (`gcloud services enable tpu.googleapis.com --project=ID`)",
    "absent": "it does not exist in that project and zone; `python -m qwenjax.cluster status` lists what does",
    "unreachable": "the VM does not answer: it may still be booting, or a firewall may close port 22",
    "preempted": "the slice was preempted; `launch --retry=N` creates it again and continues",
}
TRANSIENT = ("busy", "unreachable")  # failures that may pass


class CommandFailed(ValueError):
    """A command failed; `kind` is one of FAILURE_KINDS, or "failed" for anything else."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def failure_kind(stderr: str, code: int) -> str:
    """What a command's failure means, from its error output and exit code (255: ssh lost the connection)."""
    low = stderr.lower()
    for name, marks in FAILURE_KINDS:
        if any(mark in low for mark in marks):
            return name
    return "unreachable" if code == 255 else "failed"


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


class Runner:
    """Runs command lines one after another; with `dry` it prints them instead, as a shell script with comments."""

    def __init__(self, dry: bool = False, sleep: Callable[[float], None] = time.sleep):
        self.dry = dry
        self.sleep = sleep

    def note(self, text: str) -> None:
        """Announces what comes next: a comment in the script, or a line of progress."""
        if self.dry:
            print(f"# {text}")
        else:
            say(text)

    def run(self, *commands: list[str]) -> None:
        """Runs commands with this process's stdout and stderr. CommandFailed: absent, or an exit code other than 0."""
        for command in commands:
            self.output_of(command, capture=False)

    def run_with_retries(self, *commands: list[str]) -> None:
        """Runs commands; one that fails transiently again, after 30 seconds, then twice as long …, five times."""
        for command in commands:
            for wait in (30, 60, 120, 240, 480, None):
                try:
                    self.run(command)
                    break
                except CommandFailed as error:
                    if error.kind not in TRANSIENT or wait is None:
                        raise
                    say(f"{error}\ntrying again in {wait} s")
                    self.sleep(wait)

    def output_of(self, command: list[str], capture: bool = True) -> str:
        """Runs a command as `run` does, but returns its stdout ("" in a dry run)."""
        line = shlex.join(command)
        if self.dry:
            print(line)
            return ""
        if not shutil.which(command[0]):
            raise CommandFailed("missing", f"{command[0]} is not installed: {INSTALL_HINTS[command[0]]}")
        if not capture:
            say(f"+ {line}")
        process = subprocess.Popen(command, stdout=subprocess.PIPE if capture else None, stderr=subprocess.PIPE)
        last: deque[bytes] = deque(maxlen=100)
        copier = threading.Thread(target=_copy, args=(process.stderr, last, capture), daemon=True)
        copier.start()
        try:
            out = process.stdout.read().decode(errors="replace") if capture else ""
            code = process.wait()
        except BaseException:  # an interruption ends the command, too
            process.terminate()
            process.wait()
            raise
        copier.join(timeout=5)
        if code:
            stderr = b"".join(last).decode(errors="replace").strip()
            kind = failure_kind(stderr, code)
            lines = [f"exit code {code} from: {line}", stderr if capture else "", ADVICE.get(kind, "")]
            raise CommandFailed(kind, "\n".join(filter(None, lines)))
        return out


def _copy(stream, last: deque, quiet: bool) -> None:
    """Passes stderr on in pieces, not lines: a question that waits for an answer does not end in a newline."""
    while piece := stream.read1(4096):
        last.append(piece)
        if not quiet:
            sys.stderr.write(piece.decode(errors="replace"))
            sys.stderr.flush()
