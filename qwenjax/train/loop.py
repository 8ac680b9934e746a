"""The one training loop: every stage runs through `fit`, and every side effect of a run is in this file's calls.

workdir/  config.json  checkpoints/  metrics.jsonl  events.jsonl  samples.jsonl  tokenizer/  report.md and its pictures
"""

import os
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
from qwenjax.common import storage
from qwenjax.common.jsonl import read_rows
from qwenjax.config import Experiment
from qwenjax.train import start
from qwenjax.train.operations import goodput, profiler, report, spikes
from qwenjax.train.operations.events import Events
from qwenjax.train.operations.spikes import Diverged
from qwenjax.train.operations.watchdog import Watchdog
from qwenjax.train.rl.function import RewardFailed
from qwenjax.train.rl.task import RLTask
from qwenjax.train.stages.dpo import Dpo
from qwenjax.train.stages.pretrain import Pretrain
from qwenjax.train.stages.reward import Reward
from qwenjax.train.stages.sft import Sft
from qwenjax.train.workdir import locate

TASKS = {
    "pretrain": Pretrain,
    "sft": Sft,
    "reward": Reward,
    "dpo": Dpo,
    "ppo": RLTask,
    "grpo": RLTask,
    "reinforce": RLTask,
}


class NonFinite(Diverged):
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
    watchdog: float | None = None,
) -> Outcome:
    """Trains an experiment in `workdir` (default runs/NAME), resuming what is there.

    Args:
      data_root: where shards and tokenizers made from text are kept.
      profile: (start, stop): the XLA profiler records the steps after start, until stop are done, in workdir/profile.
      watchdog: seconds after which a step is held to hang; None: by the steps before it, 0: never.
    Raises:
      ValueError: the experiment, its data, its mesh or the workdir do not fit; nothing was lost.
      Diverged: training did, beyond what `experiment.recovery` may do about it.
      Failed: a reward function did; the state before that step is saved.
      checkpoint.SaveFailed: a checkpoint could not be written.
    """
    clock = goodput.Clock(time.time())
    workdir = locate(experiment, workdir)
    progress = telemetry.Progress()
    lead = jax.process_index() == 0
    say = progress.say if lead else (lambda text: None)

    mesh = sharding.make_mesh(experiment.mesh, experiment.model.embed)
    task = TASKS[experiment.task](experiment, mesh)
    report.check_memory(experiment, task.program)
    start.claim(workdir, experiment)
    say(report.banner(experiment, task, workdir))
    for line in task.prepare(Path(data_root)):
        say(line)
    if lead:
        task.tokenizer.save(workdir / "tokenizer")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the workdir is set up")
    guarded = experiment.recovery.deviations > 0
    with clock("compile"):
        step_fn, memory = task.compile()
    if memory is not None:
        say(report.compiled(memory, clock.seconds["compile"]))

    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", experiment.keep, experiment.keep_every)
    state, meta = start.state(task, checkpoints, say)
    next_row, step = meta.get("next_row", 0), int(state.step)
    first = step
    guard = spikes.Guard(experiment.recovery, meta.get("usual"))
    redone = goodput.redone(read_rows(workdir / "metrics.jsonl"), step, experiment.tokens_per_step)
    sink = telemetry.Sink(workdir, step)
    events = Events(workdir, next_row)
    texts = report.Samples(workdir, step)
    meter = report.Meter(experiment, mesh, step)
    metrics: dict[str, float] = {}

    def judge() -> None:
        metrics.update(task.evaluate(state))
        sink.write(step, metrics)
        say(f"step {step}: " + (task.summary_line(metrics) if metrics else "nothing is held out to judge on"))

    def save() -> None:
        sink.flush()  # what a run that resumes from here takes for granted
        meta = {
            "next_row": next_row,
            "experiment": config.to_dict(experiment),
            "tokenizer_fingerprint": task.tokenizer.fingerprint,
            **task.saved(state),
        }
        rest = {"step": state.step, "opt_state": state.opt_state}
        checkpoints.save(
            step, state.params, rest, meta | ({"usual": guard.state} if guarded else {}), workdir / "tokenizer"
        )

    @contextmanager
    def keeping(row: int) -> Iterator[None]:
        """Saves before the run ends by what is no fault of the model: it goes on with `row`."""
        nonlocal next_row
        try:
            yield
        except RewardFailed:
            next_row = row
            if step not in checkpoints.steps():
                save()
            checkpoints.wait()  # also for the one of this step that is being written
            raise

    def leave_out(row: int, numbers: dict[str, float]) -> None:
        """The batch leapt, and the state is as before it; if there were too many, so is the run."""
        nonlocal state, step, guard, sink, texts
        sink.flush()
        if not guarded:
            raise NonFinite(_diverged(step + 1, row, next_row, numbers, task, checkpoints))
        limits = dict(zip(("loss", "grad_norm"), guard.limits().tolist()))
        seen = {name: numbers[name] for name in limits}
        events.write("left out", step=step, row=row, next_row=next_row, **seen, limits=str(limits))
        say(report.left_out(step, row, next_row, seen, limits))
        before = guard.leapt(step)
        if before is not None:
            checkpoints.wait()
            back = spikes.target(checkpoints.steps(), before, guard.state["rewinds"], experiment.save_every)
            checkpoints.forget(back)
            state = None  # makes room for the one that comes
            state, meta = start.state(task, checkpoints, say)
            guard = guard.rewound(meta.get("usual"), step)
            clock.undo(step - int(state.step))
            sink.close()
            read, step = step, int(state.step)
            events.write(
                "rewind", step=read, row=row, to=step, next_row=next_row, skipped=next_row - meta.get("next_row", 0)
            )
            sink, texts = telemetry.Sink(workdir, step), report.Samples(workdir, step)
        meter.restart(step)

    stream = task.batches(next_row)
    watch = Watchdog(workdir, watchdog)
    record = profiler.Recorder(storage.local_copy(workdir / "profile"), profile, say)
    clock.ready()
    events.write("started", step=step, pid=os.getpid(), **redone)
    if step == 0 and experiment.init_from and experiment.eval_every:
        with meter.paused(), clock("eval"):  # what it starts from
            judge()
    with _interruptible() as interrupted, record:
        while step < experiment.steps:
            record.before(step)
            row = next_row
            with watch.step(step + 1, row), profiler.mark(step + 1):
                with clock("data"), jax.profiler.TraceAnnotation(profiler.INPUT):
                    next_row, batch = next(stream)
                with clock("step"):
                    with keeping(row):  # the state is as it was before this step
                        state, on_device = step_fn(state, batch, guard.limits())
                    numbers = {k: v.item() for k, v in jax.device_get(on_device).items()}
                stop = _stop(interrupted)
            clock.steps += 1
            if not numbers.pop("applied"):
                leave_out(row, numbers)
                continue
            step += 1
            guard.usual(step, numbers)
            numbers = meter.tick(step) | numbers | {"next_row": next_row}
            if lead:
                progress.show(
                    report.line(step, experiment, numbers, task.line(numbers)),
                    force=step in (first + 1, experiment.steps),
                )
            if step % experiment.log_every == 0 or step in (1, experiment.steps):
                sink.write(step, numbers)
            last = step == experiment.steps
            with meter.paused():
                with clock("eval"):
                    if last or (experiment.eval_every and step % experiment.eval_every == 0):
                        with keeping(next_row):
                            judge()
                    if last or (experiment.sample_every and step % experiment.sample_every == 0):
                        texts.add(step, task.samples(state), say)
                if last or stop or step % experiment.save_every == 0:
                    with clock("checkpoint"):
                        save()
                    events.write("time", step=step, seconds=clock.reading())
            if stop and not last:
                break
    storage.upload(workdir / "profile")
    stream.close()
    watch.close()
    if step == first == experiment.steps:  # the run was complete already
        judge()
    with clock("checkpoint"):
        checkpoints.close()
    sink.close()
    task.close()
    spent = goodput.total(read_rows(events.path), clock.reading())
    events.write("time", step=step, seconds=clock.reading())
    say(goodput.line(spent))
    if step < experiment.steps:
        say(f"interrupted: step {step} is saved in {workdir}; the same command goes on from there")
    elif lead:
        say(report.write(workdir, experiment, task, metrics, spent))
    return Outcome(step == experiment.steps, step, metrics)


def _diverged(step, row, after, numbers, task, checkpoints) -> str:
    checkpoints.wait()
    whole = checkpoints.steps()
    return (
        f"step {step} is not finite (loss {numbers['loss']}, gradient norm {numbers['grad_norm']}); it read rows "
        f"{row} to {after - 1} ({task.describe(row)}). The state before it was kept: "
        + (f"the newest checkpoint is step {whole[0]}. " if whole else "no checkpoint had been written yet. ")
        + "Lower --set optim.peak_lr=… or look at these rows with `python -m qwenjax.data show`"
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
