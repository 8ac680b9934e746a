"""What a training run prints and leaves behind, in every stage; `stage_report` has the words about its numbers."""

import math
import os
import time
from pathlib import Path
from statistics import median

import jax
import numpy as np
from jax.sharding import Mesh

from qwenjax import optim, telemetry
from qwenjax.common import storage
from qwenjax.common.figures import markdown
from qwenjax.common.jsonl import Log, read_rows
from qwenjax.config import RL_TASKS, Experiment
from qwenjax.telemetry import clock, human
from qwenjax.train.operations import goodput


def banner(experiment: Experiment, task, workdir: Path) -> str:
    """Model, run, devices and optimizer in six lines."""
    model, mesh, c = experiment.model, task.mesh, task.compute
    axes = " x ".join(f"{a} {n}" for a, n in mesh.shape.items())
    micro = f" in {experiment.accumulate} micro-steps" if experiment.accumulate > 1 else ""
    state = _bytes_per_device(task.program.shapes, task.program.shardings)
    return "\n".join(
        (
            f"experiment  {experiment.name} -> {workdir}",
            f"model       {model.params:,} parameters: {model.layers} layers, {model.embed} wide, {model.heads} heads "
            f"({model.kv} kv) of {model.head_size}, ffn {model.ffn}, vocabulary {model.vocab:,}",
            f"run         {experiment.steps:,} steps x {experiment.tokens_per_step:,} tokens{micro} = "
            f"{human(experiment.steps * experiment.tokens_per_step)} tokens, rows of {experiment.data.seq_len}",
            f"devices     {mesh.size} x {mesh.devices.flat[0].device_kind}, mesh {axes}; parameters and optimizer take "
            f"{human(state, 'B')} per device",
            f"compute     {c.dtype}, remat {c.remat}, attention {c.attention}, "
            f"projections {'fused' if c.fuse == 'yes' else 'separate'}, {'scanned' if c.scan else 'unrolled'} layers",
            f"optimizer   AdamW peak {experiment.optim.peak_lr:g}, {experiment.optim.schedule}, warm-up "
            f"{experiment.optim.warmup_steps}, decay {experiment.optim.weight_decay:g}",
        )
    )


def _bytes_per_device(shapes, shardings) -> int:
    """Bytes of a tree of arrays on one device."""
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, shapes, shardings)
    return sum(jax.tree.leaves(sizes))


def check_memory(experiment: Experiment, program) -> None:
    """Raises ValueError if parameters, gradients and optimizer alone exceed a device's memory."""
    device = jax.local_devices()[0]
    gradients = _bytes_per_device(program.shapes.params, program.shardings.params)
    need = _bytes_per_device(program.shapes, program.shardings) + gradients
    if device.platform == "cpu":
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    else:
        have = (device.memory_stats() or {}).get("bytes_limit", 0)
    if have and need > have:
        raise ValueError(
            f"{experiment.name} needs {human(need, 'B')} per device for parameters, gradients and optimizer alone; a "
            f"{device.device_kind} here has {human(have, 'B')}. Use more devices (mesh.fsdp), or a smaller model"
        )


def compiled(memory, seconds: float) -> str:
    """Compile time, and the memory that a step takes on a device."""
    peak = getattr(memory, "peak_memory_in_bytes", 0) or memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return f"compiled    in {seconds:.1f} s; a step takes {human(peak, 'B')} per device"


def progress_line(step: int, experiment: Experiment, numbers: dict, parts: list[str]) -> str:
    """The progress line; `parts`: those of the stage."""
    count = f"step {step:>{len(str(experiment.steps))}}/{experiment.steps}"
    mfu = [f"MFU {100 * numbers['mfu']:.0f}%"] if "mfu" in numbers else []
    speed = f"{human(numbers['tokens_per_second'])} tok/s"
    return "  ".join((count, *parts, speed, *mfu, f"ETA {clock(numbers['seconds_left'])}"))


class Meter:
    """Speed of the steps, from the time that `spent` counts for "step" and "data"."""

    def __init__(self, experiment: Experiment, mesh: Mesh, first: int, spent: goodput.Clock):
        self.experiment, self.spent, self.rate = experiment, spent, 0.0
        # all at once: each call of an optax schedule costs milliseconds outside jit
        steps = np.arange(experiment.steps)
        self.learning_rates = np.asarray(optim.schedule(experiment.optim, experiment.steps)(steps))
        peak = telemetry.peak_flops(mesh.devices.flat[0])
        # no single count of FLOPs fits an iteration of reinforcement learning, which samples, reads and updates
        self.peak = None if experiment.task in RL_TASKS else peak and peak * mesh.size
        self.restart(first)

    def tick(self, step: int) -> dict[str, float]:
        """Numbers after `step`: the learning rate it used, tokens/s, MFU, seconds left."""
        before, self.seconds = self.seconds, self.spent.seconds["step"] + self.spent.seconds["data"]
        rate = self.experiment.tokens_per_step / (self.seconds - before)
        # smoothed, and without the first step, which waits for caches and the first batch
        self.rate = rate if step <= self.first + 2 else 0.9 * self.rate + 0.1 * rate
        numbers = {
            "lr": float(self.learning_rates[step - 1]),
            "tokens_per_second": self.rate,
            "seconds_left": (self.experiment.steps - step) * self.experiment.tokens_per_step / self.rate,
        }
        if self.peak:
            flops = self.experiment.model.flops_per_token(self.experiment.data.seq_len)
            numbers["mfu"] = self.rate * flops / self.peak
        return numbers

    def restart(self, step: int) -> None:
        """Starts again at `step`, after a skipped batch or a rewind."""
        self.first, self.seconds = step, self.spent.seconds["step"] + self.spent.seconds["data"]


class Events:
    """events.jsonl: what happened in a run besides its steps, one JSON object per line. Only process 0 writes.

    {"event": "started" | "skipped" | "rewind" | "time", "time": seconds since 1970, …}. Events of a batch have its
    first "row": those that the checkpoint has not read are cut off on resume, and written again.
    """

    def __init__(self, workdir: Path, next_row: int):
        self.path = workdir / "events.jsonl"
        self.log = Log(self.path, lambda row: row.get("row", -1) < next_row) if jax.process_index() == 0 else None

    def write(self, event: str, **values) -> None:
        """Adds a line, at once. Numbers that are not finite become text, because JSON has none."""
        if self.log:
            finite = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            self.log.add({"event": event, "time": round(time.time(), 3), **finite})
            self.log.flush()


def write(workdir: Path, experiment: Experiment, task, stage, metrics: dict, spent: dict[str, float]) -> str:
    """Writes report.md with its picture. Returns the last lines that a finished run prints.

    `stage` is the task's `StageReport`, `metrics` the last evaluation, and `spent` of `goodput.total`.
    """
    rows = read_rows(workdir / "metrics.jsonl")
    device = task.mesh.devices.flat[0]
    speed = [r["tokens_per_second"] for r in rows if "tokens_per_second" in r]
    samples = read_rows(workdir / "samples.jsonl")
    texts = [r for r in samples if r["step"] == samples[-1]["step"]]
    starts = f", over {spent['processes']} starts" if spent["processes"] > 1 else ""
    shares = [(name, f"{100 * part:.1f} %") for name, part in goodput.shares(spent).items()]
    lines = [
        f"# {experiment.name}",
        "",
        f"{experiment.model.params:,} parameters, {experiment.steps:,} steps of {experiment.tokens_per_step:,} tokens "
        f"on {task.mesh.size} x {device.device_kind}; {clock(spent['wall'])}, {human(median(speed))} tokens/s; "
        f"jax {jax.__version__}. Settings: [config.json](config.json).",
        "",
        *stage.write(workdir, rows, metrics),
        "",
        *markdown((f"where the time went{starts}", "share"), shares),
        "",
        *(f"## {r['prompt']!r}\n\n```\n{r['prompt']}{r['text']}\n```\n" for r in texts),
    ]
    storage.write_atomically(workdir / "report.md", "\n".join(lines))
    closing = [
        f"done in {clock(spent['wall'])}" + (f": {stage.evaluation(metrics)}" if metrics else ""),
        f"read        {workdir}/report.md, {workdir}/{stage.picture}; numbers in {workdir}/metrics.jsonl",
        *(f"try next    {purpose}:\n            {command}" for purpose, command in stage.next_steps(workdir)),
    ]
    return "\n".join(closing)
