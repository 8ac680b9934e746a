"""Loss spikes: which batches a run skips, and when it rewinds.

Beyond the limits a step leaves parameters and optimizer as they are. After several spikes in a row the run rewinds to
an earlier checkpoint and goes on with the rows after those that it has read since (PaLM, arXiv 2204.02311, §5.1).
"""

from collections.abc import Sequence
from statistics import median

import numpy as np

from qwenjax.config import Recovery
from qwenjax.train import step as steps

SIGMA = 1.4826  # times the median absolute deviation: the standard deviation of normally distributed values
FLOOR = 0.01  # least standard deviation, as a share of the median: noise of a loss that hardly moves is no spike


class Diverged(RuntimeError):
    """Training diverged, beyond what `experiment.recovery` may do about it. The last checkpoint is from before."""


class NonFinite(Diverged):
    """The loss or its gradient became infinite or NaN. The last checkpoint is from before."""


class SpikeDetector:
    """Running statistics of loss and gradient norm, and the latest spikes. `state` is JSON and holds everything."""

    def __init__(self, recovery: Recovery, state: dict | None = None):
        self.recovery = recovery
        self.state = state or {
            "loss": [],  # of the latest steps, at most `recovery.window`
            "grad_norm": [],
            "spikes": [],  # (steps done, batches read) at each of the latest
            "batches": 0,  # read so far
            "rewinds": 0,  # from spikes near `rewound_from`
            "rewound_from": -1,  # the latest step that the run rewound from
        }

    def limits(self) -> np.ndarray:
        """float32 [2]: the largest loss and gradient norm that are no spike, as soon as the window is full."""
        histories = (self.state["loss"], self.state["grad_norm"])
        if not self.recovery.deviations or len(histories[0]) < self.recovery.window:
            return steps.UNLIMITED
        return np.array([_limit(values, self.recovery.deviations) for values in histories], np.float32)

    def add_step(self, step: int, numbers: dict[str, float]) -> None:
        """Adds an ordinary step, the `step`-th, to the statistics."""
        self.state["batches"] += 1
        for name in ("loss", "grad_norm"):
            self.state[name] = [*self.state[name], numbers[name]][-self.recovery.window :]
        if step > self.state["rewound_from"] + self.recovery.window:
            self.state["rewinds"] = 0

    def add_spike(self, step: int) -> int | None:
        """Adds a spike in the batch after `step` steps. Returns the step to rewind before if there are too many."""
        state = self.state
        batch, state["batches"] = state["batches"], state["batches"] + 1
        recent = [(at, b) for at, b in state["spikes"] if b > batch - self.recovery.among]
        state["spikes"] = [*recent, (step, batch)]
        if len(state["spikes"]) < self.recovery.spikes:
            return None
        if state["rewinds"] >= self.recovery.rewinds:
            raise Diverged(
                f"{len(state['spikes'])} of the last {self.recovery.among} batches were spikes at step {step}, after "
                f"{state['rewinds']} rewinds near this step. The checkpoints are from before. Lower "
                "--set optim.peak_lr=…, look at the rows in events.jsonl with `python -m qwenjax.data show`, or, if "
                "the data are like this, raise --set recovery.deviations=…"
            )
        return min(at for at, _ in state["spikes"])

    def rewound(self, restored: dict | None, step: int) -> "SpikeDetector":
        """The detector after rewinding from `step` to a checkpoint that holds the state `restored`."""
        detector = SpikeDetector(self.recovery, restored)
        rewound_from = max(step, self.state["rewound_from"])
        detector.state |= {"spikes": [], "rewinds": self.state["rewinds"] + 1, "rewound_from": rewound_from}
        return detector


def _limit(values: Sequence[float], deviations: float) -> float:
    """`deviations` robust standard deviations above the median."""
    middle = median(values)
    sigma = SIGMA * median(abs(v - middle) for v in values)
    return middle + deviations * max(sigma, FLOOR * abs(middle))


def rewind_target(saved: Sequence[int], before: int, rewinds: int, save_every: int) -> int:
    """The newest checkpoint from before the spikes, or an older one for each rewind that has not helped; 0: the start.

    Only scheduled checkpoints count: a run that was interrupted, and saved, must rewind as an uninterrupted one does.
    """
    older = sorted((s for s in saved if s <= before and s % save_every == 0), reverse=True)
    return older[min(rewinds, len(older) - 1)] if older else 0


def skip_batch(run, row: int, numbers: dict[str, float]) -> None:
    """Logs the batch from `row` on as skipped, and rewinds the `loop.Run` if there were too many.

    Raises Diverged if rewinding has not helped, and NonFinite if the run has no recovery.
    """
    run.sink.flush()
    if not run.experiment.recovery.deviations:
        run.checkpoints.wait()
        saved = run.checkpoints.steps()
        raise NonFinite(
            f"step {run.step + 1} is not finite (loss {numbers['loss']}, gradient norm {numbers['grad_norm']}); it "
            f"read rows {row} to {run.next_row - 1} ({run.task.describe(row)}). The newest checkpoint is step "
            f"{saved[0] if saved else 'none'}. Lower --set optim.peak_lr=… or look at these rows with "
            "`python -m qwenjax.data show`"
        )
    limits = dict(zip(("loss", "grad_norm"), run.spikes.limits().tolist()))
    seen = {name: numbers[name] for name in limits}
    run.events.write("skipped", step=run.step, row=row, next_row=run.next_row, **seen, limits=str(limits))
    why = ", ".join(f"{name} {seen[name]:.4g} (limit {limits[name]:.4g})" for name in seen)
    run.say(f"step {run.step}: skipped rows {row:,} to {run.next_row - 1:,}: {why}")
    before = run.spikes.add_spike(run.step)
    if before is not None:
        _rewind(run, row, before)
    run.meter.restart(run.step)


def _rewind(run, row: int, before: int) -> None:
    """Goes back to a checkpoint from before step `before`, and on with the rows after those that were read."""
    run.checkpoints.wait()
    rewinds, save_every = run.spikes.state["rewinds"], run.experiment.save_every
    run.checkpoints.forget(rewind_target(run.checkpoints.steps(), before, rewinds, save_every))
    step = run.step
    meta = run.restore()
    run.spikes = run.spikes.rewound(meta.get("spikes"), step)
    run.clock.undo(step - run.step)
    run.sink.close()
    skipped = run.next_row - meta.get("next_row", 0)
    run.events.write("rewind", step=step, row=row, to=run.step, next_row=run.next_row, skipped=skipped)
    run.open_logs()
