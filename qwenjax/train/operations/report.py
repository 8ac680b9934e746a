"""What a training run prints and leaves behind, in every stage: banner, progress line, events, samples, report.

`stage_report` has the words about the numbers of a stage.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

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

BLOCK = 1024  # learning rates computed together


def banner(experiment: Experiment, task, workdir: Path) -> str:
    """Model, run, devices and optimizer in six lines."""
    model, mesh, c = experiment.model, task.mesh, task.compute
    device = mesh.devices.flat[0]
    axes = " x ".join(f"{a} {n}" for a, n in mesh.shape.items())
    heads = f"{model.heads} heads" + (f" ({model.kv} kv)" if model.kv != model.heads else "")
    mask = optim.decay_mask(task.program.shapes.params)
    not_decayed = sorted({path[-1].key for path, yes in jax.tree_util.tree_flatten_with_path(mask)[0] if not yes})
    micro = f" in {experiment.accumulate} micro-steps" if experiment.accumulate > 1 else ""
    state = _bytes_per_device(task.program.shapes, task.program.shardings)
    return "\n".join(
        (
            f"experiment  {experiment.name} -> {workdir}",
            f"model       {model.params:,} parameters: {model.layers} layers, {model.embed} wide, {heads} of "
            f"{model.head_size}, ffn {model.ffn}, vocabulary {model.vocab:,}",
            f"run         {experiment.steps:,} steps x {experiment.tokens_per_step:,} tokens{micro} = "
            f"{human(experiment.steps * experiment.tokens_per_step)} tokens, rows of {experiment.data.seq_len}",
            f"devices     {mesh.size} x {device.device_kind}, mesh {axes}; "
            f"parameters and optimizer take {human(state, 'B')} per device",
            f"compute     {c.dtype}, remat {c.remat}, attention {c.attention}, "
            f"projections {'fused' if c.fuse == 'yes' else 'separate'}, {'scanned' if c.scan else 'unrolled'} layers",
            f"optimizer   AdamW peak {experiment.optim.peak_lr:g}, {experiment.optim.schedule}, warm-up "
            f"{experiment.optim.warmup_steps}, decay {experiment.optim.weight_decay:g} on all"
            + (f" but {', '.join(not_decayed)}" if not_decayed else ""),
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
            f"{experiment.name} needs {human(need, 'B')} per device for parameters, gradients and optimizer alone; "
            f"a {device.device_kind} here has {human(have, 'B')}. Use more devices (mesh.fsdp splits them), "
            "or a smaller model, e.g. --exp=quickstart"
        )


def compiled(memory, seconds: float) -> str:
    """Compile time, and the memory that a step takes on a device."""
    peak = getattr(memory, "peak_memory_in_bytes", 0) or memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return f"compiled    in {seconds:.1f} s; a step takes {human(peak, 'B')} per device"


def progress_line(step: int, experiment: Experiment, numbers: dict, parts: list[str]) -> str:
    """The progress line; `parts`: those of the stage."""
    parts = [
        f"step {step:>{len(str(experiment.steps))}}/{experiment.steps}",
        *parts,
        f"{human(numbers['tokens_per_second'])} tok/s",
    ]
    if "mfu" in numbers:
        parts.append(f"MFU {100 * numbers['mfu']:.0f}%")
    return "  ".join((*parts, f"ETA {clock(numbers['seconds_left'])}"))


def skipped_batch(step: int, row: int, next_row: int, seen: dict, limits: dict) -> str:
    """One line on a skipped batch."""
    why = ", ".join(f"{name} {seen[name]:.4g} (limit {limits[name]:.4g})" for name in seen)
    return f"step {step}: skipped rows {row:,} to {next_row - 1:,}: {why}"


def not_finite(step: int, rows: tuple[int, int], numbers: dict, where: str, saved: list[int]) -> str:
    """The error of a step whose loss is not finite. rows: first, and first of the next batch; where: the first lies."""
    newest = f"the newest checkpoint is step {saved[0]}. " if saved else "no checkpoint had been written yet. "
    return (
        f"step {step} is not finite (loss {numbers['loss']}, gradient norm {numbers['grad_norm']}); it read rows "
        f"{rows[0]} to {rows[1] - 1} ({where}). The state before it was kept: {newest}"
        "Lower --set optim.peak_lr=… or look at these rows with `python -m qwenjax.data show`"
    )


class Meter:
    """Speed over the latest stretch of steps; evaluation, sampling and saving do not count."""

    def __init__(self, experiment: Experiment, mesh: Mesh, first: int):
        self.experiment = experiment
        schedule = optim.schedule(experiment.optim, experiment.steps)
        # a thousand at once: each call of an optax schedule costs milliseconds outside jit
        self.learning_rates = lru_cache(1)(lambda block: np.asarray(schedule(np.arange(BLOCK) + block * BLOCK)))
        peak = telemetry.peak_flops(mesh.devices.flat[0])
        # no single count of FLOPs fits an iteration of reinforcement learning, which samples, reads and updates
        self.peak = None if experiment.task in RL_TASKS else peak and peak * mesh.size
        self.first, self.began, self.paused_seconds = first, time.perf_counter(), 0.0
        self.rate = 0.0

    def tick(self, step: int) -> dict[str, float]:
        """Numbers after `step`: the learning rate it used, tokens/s, MFU, seconds left."""
        now = time.perf_counter()
        seconds = now - self.began - self.paused_seconds
        self.began, self.paused_seconds = now, 0.0
        rate = self.experiment.tokens_per_step / seconds
        # smoothed, and without the first step, which waits for caches and the first batch
        self.rate = rate if step <= self.first + 2 else 0.9 * self.rate + 0.1 * rate
        numbers = {
            "lr": float(self.learning_rates((step - 1) // BLOCK)[(step - 1) % BLOCK]),
            "tokens_per_second": self.rate,
            "seconds_left": (self.experiment.steps - step) * self.experiment.tokens_per_step / self.rate,
        }
        if self.peak:
            flops = self.experiment.model.flops_per_token(self.experiment.data.seq_len)
            numbers["mfu"] = self.rate * flops / self.peak
        return numbers

    def restart(self, step: int) -> None:
        """Starts the clock again at `step`, after a skipped batch or a rewind."""
        self.first, self.began, self.paused_seconds = step, time.perf_counter(), 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.paused_seconds += time.perf_counter() - start


class Events:
    """events.jsonl: what happened in a run besides its steps, one JSON object per line. Only process 0 writes.

    {"event": "started" | "skipped" | "rewind" | "time", "time": seconds since 1970, …}. Events that follow from data
    and parameters alone have the "row" where their batch starts. On resume those of rows that the checkpoint has not
    read are cut off, and written again when the rows are read, so a killed run has the same as an uninterrupted one.
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


class Samples:
    """samples.jsonl: what the model wrote, by step; cut back on resume as metrics.jsonl is."""

    def __init__(self, workdir: Path, step: int):
        lead = jax.process_index() == 0
        self.log = Log(workdir / "samples.jsonl", lambda row: step > 0 and row["step"] <= step) if lead else None

    def add(self, step: int, texts: list[tuple[str, str]], say) -> None:
        if self.log:
            for prompt, text in texts:
                self.log.add({"step": step, "prompt": prompt, "text": text})
            self.log.flush()
        for prompt, text in texts[:1]:
            say(
                f"step {step}: sample of {prompt!r}\n" + "\n".join("    " + x for x in (prompt + text).splitlines()[:8])
            )


def write(workdir: Path, experiment: Experiment, task, stage, metrics: dict, spent: dict[str, float]) -> str:
    """Writes report.md with its picture. Returns the last lines that a finished run prints.

    Args:
      stage: the task's `StageReport`.
      metrics: the last evaluation.
      spent: seconds, of goodput.total.
    """
    seconds = spent["wall"]
    rows = read_rows(workdir / "metrics.jsonl")
    device = task.mesh.devices.flat[0]
    speed = sorted(r["tokens_per_second"] for r in rows if "tokens_per_second" in r)
    samples = read_rows(workdir / "samples.jsonl")
    last = max((r["step"] for r in samples), default=0)
    texts = [r for r in samples if r["step"] == last]
    starts = f", over {spent['processes']} starts" if spent["processes"] > 1 else ""
    shares = [(name, f"{100 * part:.1f} %") for name, part in goodput.shares(spent).items()]
    lines = [
        f"# {experiment.name}",
        "",
        f"{experiment.model.params:,} parameters, {experiment.steps:,} steps of {experiment.tokens_per_step:,} tokens "
        f"on {task.mesh.size} x {device.device_kind}; {clock(seconds)}"
        + (f", {human(speed[len(speed) // 2])} tokens/s" if speed else "")
        + f"; jax {jax.__version__}. Settings: [config.json](config.json).",
        "",
        *stage.write(workdir, rows, metrics),
        "",
        *markdown((f"where the time went{starts}", "share"), shares),
        "",
        *(f"## {r['prompt']!r}\n\n```\n{r['prompt']}{r['text']}\n```\n" for r in texts),
    ]
    storage.write_atomically(workdir / "report.md", "\n".join(lines))
    closing = [
        f"done in {clock(seconds)}" + (f": {stage.outcome(metrics)}" if metrics else ""),
        f"read        {workdir}/report.md, {workdir}/{stage.picture}; numbers in {workdir}/metrics.jsonl",
    ]
    for i, (purpose, command) in enumerate(stage.next_steps(workdir), 1):
        closing += [f"{'try next' if i == 1 else '':<12}{i}. {purpose}:", f"               {command}"]
    return "\n".join(closing)
