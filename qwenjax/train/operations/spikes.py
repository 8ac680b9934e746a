"""Loss spikes: which batches a run leaves out, and when it goes back. Decisions are pure functions of what was seen.

A leap is judged on device, inside the step: beyond the limits that `Guard.limits` gives, parameters and optimizer stay
as they were and the batch is left out. That does not count as a step; only `next_row` moves on. Leap upon leap means
that the parameters had gone wrong before: the run goes back to a checkpoint from before, and on with the rows behind
the ones it has read since (as PaLM did, arXiv 2204.02311, §5.1). What is usual is part of every checkpoint, so a
run killed at any moment sees, decides and ends the same.
"""

from collections.abc import Sequence
from statistics import median

import numpy as np

from qwenjax.config import Recovery
from qwenjax.train.step import UNLIMITED

SIGMA = 1.4826  # times the median absolute deviation: the standard deviation, of normally distributed values
FLOOR = 0.01  # of the median: least standard deviation; a loss that hardly moves must not make trifles leap


class Diverged(RuntimeError):
    """Training left the range in which it learns; the last checkpoint is from before."""


class Guard:
    """What is usual, and what has leapt. `state` is JSON, and all there is to know."""

    def __init__(self, recovery: Recovery, state: dict | None = None):
        self.recovery = recovery
        self.state = state or {"loss": [], "grad_norm": [], "leaps": [], "batches": 0, "rewinds": 0, "trouble": -1}

    def limits(self) -> np.ndarray:
        """float32 [2]: the largest loss and gradient norm that are still usual. UNLIMITED until enough was seen, and
        without recovery."""
        seen = (self.state["loss"], self.state["grad_norm"])
        if not self.recovery.deviations or len(seen[0]) < self.recovery.window:
            return UNLIMITED
        return np.array([_limit(values, self.recovery.deviations) for values in seen], np.float32)

    def usual(self, step: int, numbers: dict[str, float]) -> None:
        """Takes note of an ordinary step, the `step`-th."""
        self.state["batches"] += 1
        for name in ("loss", "grad_norm"):
            self.state[name] = [*self.state[name], numbers[name]][-self.recovery.window :]
        if step > self.state["trouble"] + self.recovery.window:
            self.state["rewinds"] = 0

    def leapt(self, step: int) -> int | None:
        """Takes note of a leap in the batch after `step` steps. The step to go back before, once there are too many.

        Raises:
          Diverged: going back has not helped.
        """
        state = self.state
        batch, state["batches"] = state["batches"], state["batches"] + 1
        state["leaps"] = [(at, b) for at, b in state["leaps"] if b > batch - self.recovery.among] + [(step, batch)]
        if len(state["leaps"]) < self.recovery.spikes:
            return None
        if state["rewinds"] >= self.recovery.rewinds:
            raise Diverged(
                f"{len(state['leaps'])} of the last {self.recovery.among} batches leapt at step {step}, after "
                f"{state['rewinds']} rewinds in this place. The checkpoints are from before. Lower "
                "--set optim.peak_lr=…, look at the rows in events.jsonl with `python -m qwenjax.data show`, or, if "
                "this is what the data are like, raise --set recovery.deviations=…"
            )
        return min(at for at, _ in state["leaps"])

    def rewound(self, restored: dict | None, step: int) -> "Guard":
        """The guard to go on with from a checkpoint that has `restored`, after the trouble at `step`."""
        guard = Guard(self.recovery, restored)
        trouble = max(step, self.state["trouble"])
        guard.state |= {"leaps": [], "rewinds": self.state["rewinds"] + 1, "trouble": trouble}
        return guard


def _limit(values: Sequence[float], deviations: float) -> float:
    """The largest value within so many robust standard deviations above the median."""
    middle = median(values)
    sigma = SIGMA * median(abs(v - middle) for v in values)
    return middle + deviations * max(sigma, FLOOR * abs(middle))


def target(steps: Sequence[int], before: int, rewinds: int, save_every: int) -> int:
    """The checkpoint to go back to from trouble that began after `before` steps; 0, the start of the run, without any.

    The newest from before it, or one older, if there is, for each rewind that has not helped. Only checkpoints of the
    schedule count: a run that was interrupted, and saved, must go back as an uninterrupted one does.
    """
    older = sorted((s for s in steps if s <= before and s % save_every == 0), reverse=True)
    return older[min(rewinds, len(older) - 1)] if older else 0
