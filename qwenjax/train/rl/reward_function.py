"""Scores by a Python function of texts, in a process of its own: it may raise, hang or crash, and the run knows.

    def score(prompts, responses, answers): ...

`prompts` are lists of turns, `responses` texts, `answers` the rows' reference answers or None; wanted is one number for
each response. A hang cannot be stopped from within Python: a regular expression that backtracks holds the interpreter.
"""

import importlib
import multiprocessing
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from qwenjax.common import storage

LOADING = 120.0  # seconds that a function's module may take to load
LARGEST = float(np.finfo(np.float32).max)


class RewardFailed(RuntimeError):
    """A step could not be made, for a reason outside of the model; the state is as it was before."""


def is_function(spec: str) -> bool:
    """Whether `rl.reward` names a Python function rather than a model's path."""
    place, _, name = spec.rpartition(":")
    return bool(place) and name.isidentifier() and not storage.remote(spec) and not Path(spec).exists()


class RewardFunction:
    """A function of 'FILE.py:NAME' or 'MODULE:NAME', called in another process.

    Args:
      field: of the experiment, for messages. seconds: after which a call hangs.
    """

    def __init__(self, spec: str, field: str, seconds: float):
        self.spec, self.field, self.seconds = spec, field, seconds
        self._process = self._pipe = None

    def start(self) -> None:
        """Loads the function, in process 0 only. Raises ValueError if there is none."""
        if jax.process_index() == 0 and self._process is None:
            context = multiprocessing.get_context("spawn")  # a fork of a process whose jax threads hold locks hangs
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(self.spec, theirs), daemon=True)
            self._process.start()
            theirs.close()
            trouble = self._answer(LOADING, "loaded")
            if trouble is not None:
                self.close()
                raise ValueError(f"{self.field}={self.spec}: {trouble}")

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = self._pipe = None

    def __call__(self, rows: Sequence[dict], responses: Sequence[str]) -> np.ndarray:
        """float32 scores [b] of responses to prompts, the same in every process.

        Args:
          rows: {"prompt": turns, "answer": text or None} of each.
        Raises:
          Failed: the function raises, hangs, dies, or gives anything but one finite number each.
        """
        if jax.process_count() == 1:
            return self._scores(rows, responses)
        scores, failure = np.zeros(len(responses), np.float32), None
        if jax.process_index() == 0:
            try:
                scores = self._scores(rows, responses)
            except RewardFailed as error:
                failure = error
        scores, failed = multihost_utils.broadcast_one_to_all((scores, np.bool_(failure is not None)))
        if failed:
            raise failure or RewardFailed("the reward function failed in process 0, which says how")
        return np.asarray(scores)

    def _scores(self, rows, responses) -> np.ndarray:
        self.start()
        name = f"the function {self.field}={self.spec}"
        self._pipe.send(([row["prompt"] for row in rows], list(responses), [row["answer"] for row in rows]))
        answer = self._answer(self.seconds, "answered")
        if isinstance(answer, str):
            self.close()  # the next call loads it anew: it may have been mended
            raise RewardFailed(f"{name} {answer}")
        if len(answer) != len(responses):
            raise RewardFailed(f"{name} gives {len(answer)} scores for {len(responses)} responses")
        for score, response in zip(answer, responses):
            if not isinstance(score, bool | int | float) or not abs(score) <= LARGEST:
                raise RewardFailed(f"{name} gives {score!r}, no finite number, for the response {response[:200]!r}")
        return np.asarray(answer, np.float32)

    def _answer(self, seconds: float, what: str):
        """What the other process sends: None (loaded), a list, or what went wrong in words."""
        try:
            if not self._pipe.poll(seconds):
                return f"has not {what} within {seconds:g} seconds" + " (rl.reward_timeout)" * (what == "answered")
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            guard = "; a calling script needs an `if __name__ == '__main__':` guard" * (what == "loaded")
            return f"ended its process (exit code {self._process.exitcode}){guard}"


def _serve(spec: str, pipe) -> None:
    """The other process: loads, then answers until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        function = _load(spec)
    except BaseException as error:  # whatever a user's module does
        pipe.send(str(error) if isinstance(error, LookupError) else f"{type(error).__name__}: {error}")
        return
    pipe.send(None)
    while True:
        try:
            texts = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send([score.item() if hasattr(score, "item") else score for score in function(*texts)])
        except BaseException as error:  # likewise, a SystemExit too
            pipe.send(f"raises {type(error).__name__}: {error}")


def _load(spec: str) -> Callable:
    place, _, name = spec.rpartition(":")
    if place.endswith(".py"):
        sys.path.insert(0, str(Path(place).resolve().parent))  # what lies beside it can be imported
        found = runpy.run_path(place).get(name)
    else:
        sys.path.insert(0, "")
        found = getattr(importlib.import_module(place), name, None)
    if not callable(found):
        raise LookupError(f"there is no function {name} in {place}")
    return found
