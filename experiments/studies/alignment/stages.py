"""Stages of an alignment run: each a `python -m qwenjax.train` of its own, done once; progress over all of them."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwenjax.common import command_line
from qwenjax.common.jsonl import read_rows
from qwenjax.config import RL_TASKS, Experiment, lookup
from qwenjax.sweeps import finished

POLL = 1.0  # seconds between looks at a running stage
RL_WORK = 4  # measured: an iteration samples, reads with four models and updates two, but its rows are one response
LAST_WORDS = 12  # lines of a failed stage's log that are shown


@dataclass(frozen=True)
class Stage:
    """One training run of an experiment by name, with settings."""

    name: str  # its folder
    exp: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def experiment(self) -> Experiment:
        """What is run: with the settings as the command line gives them."""
        return lookup.experiment(self.exp, {name: str(value) for name, value in self.settings.items()})

    @property
    def work(self) -> float:
        """How long it takes, in tokens of training."""
        made = self.experiment
        return made.steps * made.tokens_per_step * (RL_WORK if made.task in RL_TASKS else 1)


@dataclass(frozen=True)
class Stages:
    """Stages of one seed, in a folder of their own.

    Attributes:
      data_root: where prepared data lie, shared by the seeds. progress: told the work that is done now.
    """

    folder: Path
    data_root: Path
    progress: Callable[[float], Any]

    def run(self, stage: Stage) -> Path:
        """Runs a stage, or goes on with it, unless it is finished; its workdir.

        Raises:
          ValueError: it failed; with its last words. KeyboardInterrupt: it was interrupted, and is saved.
        """
        workdir = self.folder / stage.name
        if finished(workdir, stage.experiment):
            return workdir
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{stage.name}.log"
        with log.open("a") as file:
            child = subprocess.Popen(self.command(stage), stdout=file, stderr=file)
            try:
                self._wait(child, workdir, stage)
            except KeyboardInterrupt:
                child.terminate()  # what asks a run to save; a second signal is harmless
                child.wait()
                raise
        if child.returncode == command_line.INTERRUPTED:
            raise KeyboardInterrupt
        if child.returncode:
            said = "\n  ".join(log.read_text(errors="replace").splitlines()[-LAST_WORDS:])
            raise ValueError(f"stage {stage.name} ended with code {child.returncode}; {log} ends with:\n  {said}")
        return workdir

    def command(self, stage: Stage) -> list[str]:
        """The command line of a stage."""
        settings = [part for name, value in stage.settings.items() for part in ("--set", f"{name}={value}")]
        where = [f"--workdir={self.folder / stage.name}", f"--data-root={self.data_root}"]
        return [sys.executable, "-m", "qwenjax.train", f"--exp={stage.exp}", *where, *settings]

    def _wait(self, child: subprocess.Popen, workdir: Path, stage: Stage) -> None:
        """Until the child has ended, reporting how far it is by its log of numbers."""
        steps, done = stage.experiment.steps, 0.0
        while True:
            try:
                child.wait(POLL)
            except subprocess.TimeoutExpired:
                rows = read_rows(workdir / "metrics.jsonl")
                share = rows[-1]["step"] / steps if rows else 0.0
            else:
                share = 1.0
            self.progress((max(share, done) - done) * stage.work)
            done = max(share, done)
            if child.returncode is not None:
                return


def say(text: str) -> None:
    """A line about progress."""
    print(text, file=sys.stderr, flush=True)
