"""What a training run prints and leaves behind: banner, progress line, samples, the closing report."""

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
from qwenjax.common.jsonl import Log, read_rows
from qwenjax.config import RL_TASKS, Experiment
from qwenjax.telemetry import clock, human
from qwenjax.train.operations import goodput

BLOCK = 1024  # learning rates computed together


def banner(experiment: Experiment, task, workdir: Path) -> str:
    """What is about to run, in a dozen lines."""
    model, mesh, c = experiment.model, task.mesh, task.compute
    device = mesh.devices.flat[0]
    axes = " x ".join(f"{a} {n}" for a, n in mesh.shape.items())
    heads = f"{model.heads} heads" + (f" ({model.kv} kv)" if model.kv != model.heads else "")
    mask = optim.decay_mask(task.program.shapes.params)
    kept = sorted({path[-1].key for path, yes in jax.tree_util.tree_flatten_with_path(mask)[0] if not yes})
    micro = f" in {experiment.accumulate} micro-steps" if experiment.accumulate > 1 else ""
    state = sum(map(_bytes_per_device, *map(jax.tree.leaves, (task.program.shapes, task.program.shardings))))
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
            f"projections {'fused' if c.fuse == 'yes' else 'apart'}, {'scanned' if c.scan else 'unrolled'} layers",
            f"optimizer   AdamW peak {experiment.optim.peak_lr:g}, {experiment.optim.schedule}, warm-up "
            f"{experiment.optim.warmup_steps}, decay {experiment.optim.weight_decay:g} on all"
            + (f" but {', '.join(kept)}" if kept else ""),
        )
    )


def _bytes_per_device(shape: jax.ShapeDtypeStruct, sharding) -> int:
    block = sharding.shard_shape(shape.shape)
    size = shape.dtype.itemsize
    for n in block:
        size *= n
    return size


def check_memory(experiment: Experiment, program) -> None:
    """Raises ValueError if parameters, gradients and optimizer alone exceed a device's memory."""
    device = jax.local_devices()[0]
    shapes, places = jax.tree.leaves(program.shapes), jax.tree.leaves(program.shardings)
    params = sum(map(_bytes_per_device, *map(jax.tree.leaves, (program.shapes.params, program.shardings.params))))
    need = sum(map(_bytes_per_device, shapes, places)) + params  # the gradients
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
    """Compile time and what one step takes of a device's memory."""
    peak = getattr(memory, "peak_memory_in_bytes", 0) or memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return f"compiled    in {seconds:.1f} s; a step takes {human(peak, 'B')} per device"


def line(step: int, experiment: Experiment, numbers: dict, said: list[str]) -> str:
    """The progress line; `said`: what the task has to say."""
    parts = [
        f"step {step:>{len(str(experiment.steps))}}/{experiment.steps}",
        *said,
        f"{human(numbers['tokens_per_second'])} tok/s",
    ]
    if "mfu" in numbers:
        parts.append(f"MFU {100 * numbers['mfu']:.0f}%")
    return "  ".join((*parts, f"ETA {clock(numbers['seconds_left'])}"))


def left_out(step: int, row: int, next_row: int, seen: dict, limits: dict) -> str:
    """One line on a batch that was left out."""
    why = ", ".join(f"{name} {seen[name]:.4g} (usual: up to {limits[name]:.4g})" for name in seen)
    return f"step {step}: rows {row:,} to {next_row - 1:,} were left out: {why}"


class Meter:
    """Speed over the latest stretch of steps; evaluation, sampling and saving do not count."""

    def __init__(self, experiment: Experiment, mesh: Mesh, first: int):
        self.experiment = experiment
        schedule = optim.schedule(experiment.optim, experiment.steps)
        # a thousand at once: each call of an optax schedule costs milliseconds outside jit
        self.learning_rates = lru_cache(1)(lambda block: np.asarray(schedule(np.arange(BLOCK) + block * BLOCK)))
        peak = telemetry.peak_flops(mesh.devices.flat[0])
        # an iteration of reinforcement learning samples, measures and updates: no single count of FLOPs is its own
        self.peak = None if experiment.task in RL_TASKS else peak and peak * mesh.size
        self.first, self.began, self.away = first, time.perf_counter(), 0.0
        self.rate = 0.0

    def tick(self, step: int) -> dict[str, float]:
        """Numbers after `step`: learning rate it used, tokens/s, MFU, seconds left."""
        now = time.perf_counter()
        seconds = now - self.began - self.away
        self.began, self.away = now, 0.0
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
        """Measures anew from `step` on: what came before it was no step, or not the one before."""
        self.first, self.began, self.away = step, time.perf_counter(), 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.away += time.perf_counter() - start


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


def write(workdir: Path, experiment: Experiment, task, metrics: dict, spent: dict[str, float]) -> str:
    """Writes report.md with its pictures and returns the closing words. `spent`: seconds, of goodput.total."""
    seconds = spent["wall"]
    rows = read_rows(workdir / "metrics.jsonl")
    device = task.mesh.devices.flat[0]
    speed = sorted(r["tokens_per_second"] for r in rows if "tokens_per_second" in r)
    samples = read_rows(workdir / "samples.jsonl")
    last = max((r["step"] for r in samples), default=0)
    texts = [r for r in samples if r["step"] == last]
    starts = f", over {spent['processes']} starts" if spent["processes"] > 1 else ""
    lines = [
        f"# {experiment.name}",
        "",
        f"{experiment.model.params:,} parameters, {experiment.steps:,} steps of {experiment.tokens_per_step:,} tokens "
        f"on {task.mesh.size} x {device.device_kind}; {clock(seconds)}"
        + (f", {human(speed[len(speed) // 2])} tokens/s" if speed else "")
        + f"; jax {jax.__version__}. Settings: [config.json](config.json).",
        "",
        *task.report(workdir, rows, metrics),
        "",
        f"| where the time went{starts} | share |",
        "| --- | --- |",
        *(f"| {name} | {100 * part:.1f} % |" for name, part in goodput.shares(spent).items()),
        "",
        *(f"## {r['prompt']!r}\n\n```\n{r['prompt']}{r['text']}\n```\n" for r in texts),
    ]
    storage.write_atomically(workdir / "report.md", "\n".join(lines))
    pictures = "".join(f", {workdir}/{name}" for name in task.pictures)
    closing = [
        f"done in {clock(seconds)}" + (f": {task.closing(metrics)}" if metrics else ""),
        f"read        {workdir}/report.md{pictures}; numbers in {workdir}/metrics.jsonl",
    ]
    for i, (wish, command) in enumerate(task.next_steps(workdir), 1):
        closing += [f"{'try next' if i == 1 else '':<12}{i}. {wish}:", f"               {command}"]
    return "\n".join(closing)
