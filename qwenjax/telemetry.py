"""Numbers of a run: metrics.jsonl, TensorBoard, MFU, and the curves of its report."""

import math
import timeit
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qwenjax.common import figures, storage
from qwenjax.common.jsonl import Log
from qwenjax.xla import hardware


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s that MFU is measured against: of the data sheet (None: unknown), or on CPU the best of some matmuls."""
    if device.platform != "cpu":
        return hardware.peak_flops(device.device_kind)
    x, product = jnp.ones((1024, 1024), jnp.float32), jax.jit(jnp.matmul)
    seconds = min(timeit.repeat(lambda: product(x, x).block_until_ready(), number=1, repeat=20))
    return 2 * 1024**3 / seconds / jax.local_device_count()


def human(n: float, unit: str = "") -> str:
    """1234567 -> '1.23M'."""
    for step, suffix in ((1e12, "T"), (1e9, "G" if unit else "B"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= step:
            return f"{n / step:.3g}{suffix}{unit}"
    return f"{n:.3g}{unit}"


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    if not math.isfinite(seconds):
        return "?"
    hours, rest = divmod(int(seconds + 0.5), 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Sink:
    """Writes the metrics of a run to metrics.jsonl and, on a disk, to TensorBoard. Only process 0 writes.

    Both are cut back to the restored step, so that a resumed run leaves the same as an uninterrupted one.
    """

    def __init__(self, workdir: Path, step: int):
        self.active = jax.process_index() == 0
        if self.active:
            self.log = Log(workdir / "metrics.jsonl", lambda row: step > 0 and row["step"] <= step)
            self.board = _tensorboard(workdir / "tensorboard", step)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Adds the metrics of a step."""
        if not self.active:
            return
        self.log.add({"step": step, **metrics})
        if self.board:
            for name, value in metrics.items():
                self.board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Returns when everything is written. Comes before a checkpoint, to which a resumed run cuts the log back."""
        if self.active:
            self.log.flush()

    def close(self) -> None:
        """Flushes and closes; nothing can be written afterwards."""
        self.flush()
        if self.active and self.board:
            self.board.close()


def _tensorboard(directory: Path, step: int):
    if storage.remote(directory):  # tensorboardX sends the whole file each time, and hangs without a network
        return None
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=step + 1 if step else None)


class Panel(NamedTuple):
    """One figure of a report: metrics over the steps, and constants to compare them with."""

    title: str
    unit: str
    names: tuple[str, ...]
    baselines: Mapping[str, float] = MappingProxyType({})


LOSS = Panel("training loss", "loss (nats per token)", ("loss",))


def plot(rows: list[dict], path: Path, panels: Sequence[Panel]) -> None:
    """Draws panels from rows of metrics.jsonl into a PNG, two side by side; baselines are dashed lines."""
    lines = -(-len(panels) // 2)
    figure, axes = figures.canvas(10, 3.6 * lines, 2, lines)
    for axis, panel in zip(axes, panels):
        for name, color in zip(panel.names, figures.COLORS):
            points = [(r["step"], r[name]) for r in rows if name in r]
            if points:
                axis.plot(*zip(*points), color=color, lw=1, label=name, marker="o", ms=2)
        for (name, value), color in zip(panel.baselines.items(), figures.COLORS[:0:-1]):
            axis.axhline(value, ls="--", lw=1, color=color, label=f"{name} {value:.2f}")
        axis.set(xlabel="step", ylabel=panel.unit, title=panel.title)
        axis.grid(alpha=0.3)
        if len(panel.names) > 1 or panel.baselines:
            axis.legend(frameon=False)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figures.save(figure, path)
