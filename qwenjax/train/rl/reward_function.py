"""Scores from a user's Python function. It runs in its own process, so the run notices if it hangs or crashes.

    def score(prompts, responses, answers): ...

`prompts` are lists of turns, `responses` are texts, `answers` are the reference answers of the data or None. The
function returns one number for each response.
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
from qwenjax.common.processes import without_main

LOAD_TIMEOUT = 120.0  # seconds to import the function's module
LARGEST = float(np.finfo(np.float32).max)


class RewardFailed(RuntimeError):
    """The reward function failed, so a step could not be made. The state is as it was before the step."""


def is_function(spec: str) -> bool:
    """Whether the value of `rl.reward` names a Python function, not a path of a model."""
    module, _, name = spec.rpartition(":")
    return bool(module) and name.isidentifier() and not storage.remote(spec) and not Path(spec).exists()


class RewardFunction:
    """The function 'FILE.py:NAME' or 'MODULE:NAME', called in another process. `timeout` in seconds."""

    def __init__(self, spec: str, field: str, timeout: float):
        self.spec, self.field, self.timeout = spec, field, timeout
        self._process = self._pipe = None

    def start(self) -> None:
        """Loads the function, in process 0 of the run only. Raises ValueError if that fails."""
        if jax.process_index() == 0 and self._process is None:
            context = multiprocessing.get_context("spawn")  # a fork hangs if a thread of jax holds a lock
            self._pipe, other_end = context.Pipe()
            self._process = context.Process(target=_serve, args=(self.spec, other_end), daemon=True)
            with without_main():
                self._process.start()
            other_end.close()
            error = self._receive(LOAD_TIMEOUT, "loaded")
            if error is not None:
                self.close()
                raise ValueError(f"{self.field}={self.spec}: {error}")

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = self._pipe = None

    def __call__(self, examples: Sequence[dict], responses: Sequence[str]) -> np.ndarray:
        """float32 scores [b] of responses to `examples` {"prompt": turns, "answer": text or None}, in every process.

        Raises:
          RewardFailed: the function raises, hangs, ends its process, or does not return one finite number for each.
        """
        scores, failure = np.zeros(len(responses), np.float32), None
        if jax.process_index() == 0:
            try:
                scores = self._scores(examples, responses)
            except RewardFailed as error:
                failure = error
        scores, failed = multihost_utils.broadcast_one_to_all((scores, np.bool_(failure is not None)))
        if failed:
            raise failure or RewardFailed("the reward function failed in process 0, which says how")
        return np.asarray(scores)

    def _scores(self, examples, responses) -> np.ndarray:
        self.start()
        name = f"the function {self.field}={self.spec}"
        prompts, answers = ([example[key] for example in examples] for key in ("prompt", "answer"))
        self._pipe.send((prompts, list(responses), answers))
        scores = self._receive(self.timeout, "answered")
        if isinstance(scores, str):
            self.close()  # the next call loads the function again, which may have been corrected
            raise RewardFailed(f"{name} {scores}")
        if len(scores) != len(responses):
            raise RewardFailed(f"{name} gives {len(scores)} scores for {len(responses)} responses")
        for score, response in zip(scores, responses):
            if not isinstance(score, bool | int | float) or not abs(score) <= LARGEST:
                raise RewardFailed(
                    f"{name} gives {score!r}, which is no finite number, for the response {response[:200]!r}"
                )
        return np.asarray(scores, np.float32)

    def _receive(self, timeout: float, done: str):
        """What the other process sends: None once the function is loaded, a list of scores, or an error in words."""
        try:
            if not self._pipe.poll(timeout):
                return f"has not {done} within {timeout:g} seconds" + " (rl.reward_timeout)" * (done == "answered")
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            return f"ended its process (exit code {self._process.exitcode})"


def _serve(spec: str, pipe) -> None:
    """The other process: loads the function, then answers until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    try:
        function = _load(spec)
    except BaseException as error:  # a user's module may raise anything
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
        except BaseException as error:  # also a SystemExit
            pipe.send(f"raises {type(error).__name__}: {error}")


def _load(spec: str) -> Callable:
    module, _, name = spec.rpartition(":")
    if module.endswith(".py"):
        sys.path.insert(0, str(Path(module).resolve().parent))  # the file may import its neighbours
        function = runpy.run_path(module).get(name)
    else:
        sys.path.insert(0, "")
        function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise LookupError(f"there is no function {name} in {module}")
    return function
