"""Running command lines, or only printing them; and what the errors of gcloud, xpk and kubectl mean for the user."""

import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

INSTALL = {
    "gcloud": "install the Google Cloud CLI (cloud.google.com/sdk/docs/install), then `gcloud auth login`",
    "xpk": "`pip install xpk`, and gcloud and kubectl beside it",
    "kubectl": "`gcloud components install kubectl gke-gcloud-auth-plugin`",
    "docker": "install Docker (docs.docker.com/engine/install); then `gcloud auth configure-docker`",
    "git": "install git, or give --source with what pip can install",
}
# What a failed command said -> the kind of failure. The first match counts.
KINDS = (
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
    "preempted": "the slice was preempted; `launch --retry=N` makes it anew and goes on",
}
PASSING = ("busy", "unreachable")  # worth trying again as it is


class CommandFailed(ValueError):
    """A command did not succeed; `kind` is one of KINDS, or "failed" for anything else."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def kind(said: str, code: int) -> str:
    """What a command's failure means, from its error output and exit code (255: ssh lost the connection)."""
    low = said.lower()
    for name, marks in KINDS:
        if any(mark in low for mark in marks):
            return name
    return "unreachable" if code == 255 else "failed"


def tell(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


class Runner:
    """Runs command lines one after another; with `dry` prints them instead, as a shell script with comments.

    `sleep` is what waits between tries; tests give their own.
    """

    def __init__(self, dry: bool = False, sleep: Callable[[float], None] = time.sleep):
        self.dry = dry
        self.sleep = sleep

    def note(self, text: str) -> None:
        """Says what comes next: a comment in the script, or a line of progress."""
        if self.dry:
            print(f"# {text}")
        else:
            tell(text)

    def run(self, command: list[str]) -> None:
        """Runs a command; its output goes where ours goes.

        Raises:
          Failed: it is not installed, or exits with another code than 0.
        """
        self._start(command, capture=False)

    def read(self, command: list[str]) -> str:
        """Runs a command and returns what it prints; "" when only printing. Raises Failed as `run` does."""
        return self._start(command, capture=True)

    def insist(self, command: list[str], tries: int = 6, wait: float = 30) -> None:
        """Runs a command, again after `wait` seconds, then twice as long …, while what it fails of may pass."""
        for left in reversed(range(tries)):
            try:
                return self.run(command)
            except CommandFailed as error:
                if error.kind not in PASSING or not left:
                    raise
                tell(f"{error}\ntrying again in {wait:.0f} s ({left} tries left)")
                self.sleep(wait)
                wait = min(2 * wait, 600)

    def _start(self, command: list[str], capture: bool) -> str:
        line = shlex.join(command)
        if self.dry:
            print(line)
            return ""
        if not shutil.which(command[0]):
            raise CommandFailed("missing", f"{command[0]} is not installed: {INSTALL.get(command[0], 'install it')}")
        if not capture:
            tell(f"+ {line}")
        process = subprocess.Popen(command, stdout=subprocess.PIPE if capture else None, stderr=subprocess.PIPE)
        last: deque[bytes] = deque(maxlen=100)
        watch = threading.Thread(target=_copy, args=(process.stderr, last, capture), daemon=True)
        watch.start()
        try:
            out = process.stdout.read().decode(errors="replace") if capture else ""
            code = process.wait()
        except BaseException:  # an interruption: let the command end, too
            process.terminate()
            process.wait()
            raise
        watch.join(timeout=5)
        if code:
            said = b"".join(last).decode(errors="replace").strip()
            what = kind(said, code)
            advice = ADVICE.get(what)
            shown = f"\n{said}" if capture and said else ""
            raise CommandFailed(what, f"exit code {code} from: {line}{shown}" + (f"\n{advice}" if advice else ""))
        return out


def _copy(stream, last: deque, quiet: bool) -> None:
    """Passes error output on as it comes, in pieces: a question that waits for an answer ends in no newline."""
    while piece := stream.read1(4096):
        last.append(piece)
        if not quiet:
            sys.stderr.write(piece.decode(errors="replace"))
            sys.stderr.flush()
