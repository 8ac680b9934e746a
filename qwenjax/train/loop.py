"""The one training loop: every stage runs through `fit`, and every side effect of a run is in this file's calls.

workdir/  config.json  checkpoints/  metrics.jsonl  samples.jsonl  tokenizer/  loss.png  report.md
"""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils

from qwenjax import checkpoint, config, sharding, telemetry
from qwenjax.config import Experiment
from qwenjax.train import report
from qwenjax.train.pretrain import Pretrain
from qwenjax.train.step import State

TASKS = {"pretrain": Pretrain}
# What may change between the two halves of a resumed run without changing what is learned.
FREE = ("log_every", "eval_every", "sample_every", "save_every", "keep", "keep_every", "prompts", "mesh", "compute")


class NonFinite(RuntimeError):
    """The loss or its gradient became infinite or NaN; the last checkpoint is from before."""


class Outcome(NamedTuple):
    finished: bool  # False: interrupted and saved; run again to resume
    step: int
    metrics: dict[str, float]  # the last evaluation


def fit(
    experiment: Experiment,
    workdir: Path | str | None = None,
    *,
    data_root: Path | str = "data",
    profile: tuple[int, int] | None = None,
) -> Outcome:
    """Trains an experiment in `workdir` (default runs/NAME), resuming what is there.

    Args:
      data_root: where shards and tokenizers made from text are kept.
      profile: steps (start, stop) to record with the XLA profiler into workdir/profile.
    Raises:
      ValueError: the experiment, its data, its mesh or the workdir do not fit; nothing was lost.
      NonFinite: training diverged. checkpoint.SaveFailed: a checkpoint could not be written.
    """
    began = time.time()
    workdir = Path(workdir or Path("runs") / experiment.name)
    progress = telemetry.Progress()
    lead = jax.process_index() == 0
    say = progress.say if lead else (lambda text: None)

    mesh = sharding.make_mesh(experiment.mesh)
    task = TASKS[experiment.task](experiment, mesh)
    report.check_memory(experiment, task.program)
    _claim(workdir, experiment)
    say(report.banner(experiment, task, workdir))
    for line in task.prepare(Path(data_root)):
        say(line)
    if lead:
        task.tokenizer.save(workdir / "tokenizer")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the workdir is set up")
    started = time.time()
    step_fn = task.program.step.lower(task.program.shapes, task.abstract_batch).compile()
    say(report.compiled(step_fn, time.time() - started))

    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", experiment.keep, experiment.keep_every)
    state, next_row = _start(experiment, task, checkpoints, say)
    first = int(state.step)
    sink = telemetry.Sink(workdir, first)
    texts = report.Samples(workdir, first)
    meter = report.Meter(experiment, mesh, first)
    metrics: dict[str, float] = {}

    def judge(step: int) -> None:
        metrics.update(task.evaluate(state.params))
        sink.write(step, metrics)
        say(report.judged(step, metrics, task.baselines))

    def save(step: int) -> None:
        meta = {
            "next_row": next_row,
            "experiment": config.to_dict(experiment),
            "tokenizer_fingerprint": task.tokenizer.fingerprint,
        }
        rest = {"step": state.step, "opt_state": state.opt_state}
        checkpoints.save(step, state.params, rest, meta, workdir / "tokenizer")

    stream = task.batches(next_row)
    with _interruptible() as interrupted:
        step = first
        while step < experiment.steps:
            if profile and step in profile:
                _profile(workdir, step == profile[0], say)
            row = next_row
            next_row, batch = next(stream)
            state, on_device = step_fn(state, batch)
            step += 1
            numbers = {k: v.item() for k, v in jax.device_get(on_device).items()}
            if not numbers.pop("finite"):
                raise NonFinite(_diverged(step, row, next_row, numbers, task, checkpoints))
            numbers |= meter.tick(step)
            if lead:
                progress.show(report.line(step, experiment, numbers), force=step in (first + 1, experiment.steps))
            if step % experiment.log_every == 0 or step in (1, experiment.steps):
                sink.write(step, numbers)
            last = step == experiment.steps
            with meter.paused():
                if last or (experiment.eval_every and step % experiment.eval_every == 0):
                    judge(step)
                if last or (experiment.sample_every and step % experiment.sample_every == 0):
                    texts.add(step, task.samples(state.params), say)
                stop = _stop(interrupted)
                if last or stop or step % experiment.save_every == 0:
                    save(step)
            if stop and not last:
                checkpoints.close()
                sink.close()
                say(f"interrupted: step {step} is saved in {workdir}; the same command goes on from there")
                return Outcome(False, step, metrics)
    stream.close()
    if step == first:  # the run was complete already
        judge(step)
    checkpoints.close()
    sink.close()
    if lead:
        say(report.write(workdir, experiment, task, metrics, time.time() - began))
    return Outcome(True, step, metrics)


def _start(experiment: Experiment, task, checkpoints: checkpoint.Checkpoints, say) -> tuple[State, int]:
    """Where a run starts: its own newest whole checkpoint, else `init_from`, else random parameters."""
    program = task.program
    placed = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), program.shapes, program.shardings
    )
    rest = {"step": placed.step, "opt_state": placed.opt_state}
    restored = checkpoints.restore(placed.params, rest)
    for trouble in checkpoints.damaged:
        say(f"checkpoint  {trouble}")
    if restored:
        _same_tokenizer(restored.meta, task.tokenizer, checkpoints.directory)
        say(f"resuming    from step {restored.step}, row {restored.meta['next_row']:,}")
        return State(restored.rest["step"], restored.params, restored.rest["opt_state"]), restored.meta["next_row"]
    if experiment.init_from:
        path = checkpoint.newest(experiment.init_from)
        loaded = checkpoint.load(path, placed.params)
        _same_tokenizer(loaded.meta, task.tokenizer, path)
        say(f"starting    from the parameters of {path}")
        return program.start(loaded.params), 0
    return program.init(), 0


def _same_tokenizer(meta: dict, tokenizer, path) -> None:
    if meta["tokenizer_fingerprint"] != tokenizer.fingerprint:
        raise ValueError(
            f"{path} was trained with another tokenizer than {tokenizer.name} "
            f"({meta['tokenizer_fingerprint'][:12]}… there, {tokenizer.fingerprint[:12]}… here): "
            "its ids mean other text"
        )


def _claim(workdir: Path, experiment: Experiment) -> None:
    """Writes config.json, or checks that the one there is of the same run.

    Raises:
      ValueError: the workdir belongs to another experiment; the differing fields are named.
    """
    path = workdir / "config.json"
    if path.exists():
        old = config.to_dict(config.from_dict(json.loads(path.read_text())))
        new = config.to_dict(experiment)
        differing = [k for k in new if k not in FREE and old[k] != new[k]]
        if differing:
            listed = "\n  ".join(
                f"{k}: {a!r} there, {b!r} now" for k in differing for a, b in _differences(old[k], new[k])
            )
            raise ValueError(
                f"{workdir} holds another experiment ({old['name']}):\n  {listed}\n"
                f"Use another --workdir, or start from its parameters with --set init_from={workdir}"
            )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        tmp = path.with_suffix(".tmp")
        tmp.write_text(json.dumps(config.to_dict(experiment), indent=2) + "\n")
        tmp.replace(path)


def _differences(old, new) -> Iterator[tuple]:
    if isinstance(old, dict) and isinstance(new, dict):
        for k in new:
            if old.get(k) != new[k]:
                yield {k: old.get(k)}, {k: new[k]}
    else:
        yield old, new


def _diverged(step, row, after, numbers, task, checkpoints) -> str:
    checkpoints.wait()
    whole = checkpoints.steps()
    return (
        f"step {step} is not finite (loss {numbers['loss']}, gradient norm {numbers['grad_norm']}); it read rows "
        f"{row} to {after - 1} ({task.describe(row)}). The state before it was kept: "
        + (f"the newest checkpoint is step {whole[0]}. " if whole else "no checkpoint had been written yet. ")
        + "Lower --set optim.peak=… or look at these rows with `python -m qwenjax.data show`"
    )


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turns SIGTERM and Ctrl-C into a flag that the loop reads between steps; a second Ctrl-C stops at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number, frame):
        if flag.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.set()

    old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _stop(flag: threading.Event) -> bool:
    """Whether to stop; all processes agree, or some would wait for ever in the next collective."""
    if jax.process_count() == 1:
        return flag.is_set()
    return bool(multihost_utils.process_allgather(jax.numpy.asarray(flag.is_set())).any())


def _profile(workdir: Path, start: bool, say) -> None:
    if start:
        jax.profiler.start_trace(str(workdir / "profile"))
    else:
        jax.profiler.stop_trace()
        say(f"profile     written to {workdir / 'profile'}; view it with xprof or TensorBoard")
