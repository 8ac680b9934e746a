"""The one training loop: every stage runs through `fit`, and every side effect of a run is in this file's calls.

workdir/  config.json  checkpoints/  metrics.jsonl  events.jsonl  samples.jsonl  tokenizer/  report.md and its pictures
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from qwenjax import checkpoint, config, sharding, telemetry
from qwenjax.common import storage
from qwenjax.common.jsonl import Log, read_rows
from qwenjax.common.progress import StatusLine
from qwenjax.config import RL_TASKS, Experiment
from qwenjax.train.operations import goodput, profiler, report, spikes
from qwenjax.train.operations.stage_report import DpoReport, PretrainReport, RewardReport, SftReport
from qwenjax.train.operations.watchdog import Watchdog
from qwenjax.train.rl.report import RLReport
from qwenjax.train.rl.reward_function import RewardFailed
from qwenjax.train.rl.task import RLTask
from qwenjax.train.stages.dpo import Dpo
from qwenjax.train.stages.pretrain import Pretrain
from qwenjax.train.stages.reward import Reward
from qwenjax.train.stages.sft import Sft
from qwenjax.train.step import State

TASKS = {"pretrain": Pretrain, "sft": Sft, "reward": Reward, "dpo": Dpo} | dict.fromkeys(RL_TASKS, RLTask)
REPORTS = {"pretrain": PretrainReport, "sft": SftReport, "reward": RewardReport, "dpo": DpoReport}
REPORTS |= dict.fromkeys(RL_TASKS, RLReport)


# Fields that may change between the two halves of a resumed run, as they do not change what is learned.
FREE = {"log_every", "eval_every", "sample_every", "save_every", "keep", "keep_every", "prompts"}
FREE |= {"mesh", "compute", "recovery"}


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
      profile: (start, stop): the XLA profiler records the steps after start until stop, in workdir/profile.
      watchdog: seconds after which a step counts as hung; None: by the steps before it, 0: never.
    Raises:
      ValueError: the experiment, its data, its mesh or the workdir do not fit; nothing was lost.
      spikes.Diverged: training did, beyond what `experiment.recovery` may do about it.
      RewardFailed: a reward function failed; the state before that step is saved.
      checkpoint.SaveFailed: a checkpoint could not be written.
    """
    clock = goodput.Clock(time.time())
    workdir = storage.path(workdir or f"runs/{experiment.name}")
    run = Run(experiment, workdir, Path(data_root), clock)
    stream = run.task.batches(run.next_row)
    watch = Watchdog(workdir, watchdog)
    trace = profiler.StepProfiler(storage.local_copy(workdir / "profile"), profile, run.say)
    run.begin()
    with _interruptible() as interrupted, trace:
        while run.step < experiment.steps:
            trace.before_step(run.step)
            row = run.next_row
            with watch.step(run.step + 1, row), jax.profiler.StepTraceAnnotation("train", step_num=run.step + 1):
                with clock("data"), jax.profiler.TraceAnnotation("input"):
                    run.next_row, batch = next(stream)
                with clock("step"):
                    numbers = run.train(batch, row)
                stop = _stop(interrupted)
            clock.steps += 1
            if not numbers.pop("applied"):
                spikes.skip_batch(run, row, numbers)
                continue
            run.finish_step(numbers)
            last = run.step == experiment.steps
            with clock("eval"):
                if last or run.due(experiment.eval_every):
                    with run.saving_first(run.next_row):
                        run.evaluate()
                if last or run.due(experiment.sample_every):
                    run.sample()
            if last or stop or run.due(experiment.save_every):
                run.save()
            if stop and not last:
                break
    storage.upload(workdir / "profile")
    stream.close()
    return run.close()


class Run:
    """A run in its workdir: its state, its position in the data, and the files that it writes.

    Attributes:
      step: optimizer steps done. next_row: where the next batch starts. first_step: `step` when this process started.
      metrics: the last evaluation.
    """

    def __init__(self, experiment: Experiment, workdir: Path, data_root: Path, clock: goodput.Clock):
        """Opens the data, compiles the step, and makes or restores the state."""
        self.experiment, self.workdir, self.clock = experiment, workdir, clock
        self.lead, self.progress = jax.process_index() == 0, StatusLine()
        self.say = self.progress.say if self.lead else lambda text: None
        mesh = sharding.make_mesh(experiment.mesh, experiment.model.embed)
        self.task = TASKS[experiment.task](experiment, mesh)
        self.stage_report = REPORTS[experiment.task](self.task)
        report.check_memory(experiment, self.task.program)
        claim(workdir, experiment)
        self.say(report.banner(experiment, self.task, workdir))
        if not any(storage.files(workdir / "checkpoints")):  # else these hold the model, and `init_from` may be gone
            self.task.check_start()
        for line in self.task.prepare(data_root):
            self.say(f"data        {line}")
        if self.lead:
            self.task.tokenizer.save(workdir / "tokenizer")
        multihost_utils.sync_global_devices("the workdir is set up")
        with clock("compile"):
            self.train_step, memory = self.task.compile()
        if memory is not None:
            self.say(report.compiled(memory, clock.seconds["compile"]))
        self.checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", experiment.keep, experiment.keep_every)
        meta = self.restore()
        self.first_step, self.next_row = self.step, meta.get("next_row", 0)
        self.spikes = spikes.SpikeDetector(experiment.recovery, meta.get("spikes"))
        # before `open_logs` cuts the metrics back
        self.redone = goodput.redone(read_rows(workdir / "metrics.jsonl"), self.step, experiment.tokens_per_step)
        self.open_logs()
        self.events = report.Events(workdir, self.next_row)
        self.meter = report.Meter(experiment, mesh, self.step, clock)
        self.metrics: dict[str, float] = {}

    def restore(self) -> dict:
        """Loads the run's newest complete checkpoint, or makes the first state. Returns the meta saved with it."""
        self.state = None  # frees its memory for the one that comes
        abstract = self.task.program.abstract_state()
        restored = self.checkpoints.restore(abstract.params, {"step": abstract.step, "opt_state": abstract.opt_state})
        for problem in self.checkpoints.damaged:
            self.say(f"checkpoint  {problem}")
        if not restored:
            self.state, self.step = self.task.first_state(self.say), 0
            return {}
        self.task.check_tokenizer(restored.meta["tokenizer_fingerprint"], self.checkpoints.directory)
        self.say(f"resuming    from step {restored.step}, row {restored.meta['next_row']:,}")
        saved, self.step = restored.train_state, restored.step
        frozen = self.task.load_frozen(restored.meta)
        self.state = State(saved["step"], restored.params, saved["opt_state"], frozen)
        return restored.meta

    def open_logs(self) -> None:
        """Opens metrics.jsonl and samples.jsonl, cut back to the current step."""
        self.sink, step = telemetry.Sink(self.workdir, self.step), self.step
        if self.lead:
            self.samples = Log(self.workdir / "samples.jsonl", lambda row: step > 0 and row["step"] <= step)

    def begin(self) -> None:
        """Marks the end of start-up. A run that starts from a model evaluates it."""
        self.clock.ready()
        self.events.write("started", step=self.step, pid=os.getpid(), **self.redone)
        if self.step == 0 and self.experiment.init_from and self.experiment.eval_every:
            with self.clock("eval"):
                self.evaluate()

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps (0: never) happens now."""
        return every > 0 and self.step % every == 0

    def train(self, batch: dict, row: int) -> dict:
        """One step on a batch that starts at `row`. Returns its metrics on the host."""
        with self.saving_first(row):  # the state is as it was before this step
            self.state, metrics = self.train_step(self.state, batch, self.spikes.limits())
        return {k: v.item() for k, v in jax.device_get(metrics).items()}

    def finish_step(self, numbers: dict) -> None:
        """Counts and logs an applied step."""
        experiment = self.experiment
        self.step += 1
        self.spikes.add_step(self.step, numbers)
        numbers = self.meter.tick(self.step) | numbers | {"next_row": self.next_row}
        if self.lead:
            line = report.progress_line(self.step, experiment, numbers, self.stage_report.progress(numbers))
            self.progress.show(line, force=self.step in (self.first_step + 1, experiment.steps))
        if self.due(experiment.log_every) or self.step in (1, experiment.steps):
            self.sink.write(self.step, numbers)

    def evaluate(self) -> None:
        """Evaluates the state, and logs and prints the metrics."""
        self.metrics |= self.task.evaluate(self.state)
        self.sink.write(self.step, self.metrics)
        words = self.stage_report.evaluation(self.metrics) if self.metrics else "no held-out data to evaluate on"
        self.say(f"step {self.step}: {words}")

    def sample(self) -> None:
        """Lets the model write, into samples.jsonl, and prints its first text."""
        texts = self.task.samples(self.state)
        if self.lead and texts:
            for prompt, text in texts:
                self.samples.add({"step": self.step, "prompt": prompt, "text": text})
            self.samples.flush()
            lines = "".join(texts[0]).splitlines()[:8]
            self.say("\n    ".join((f"step {self.step}: sample of {texts[0][0]!r}", *lines)))

    def save(self) -> None:
        """Saves a checkpoint, and notes in events.jsonl where the time went."""
        self.sink.flush()  # a run that resumes from here relies on it
        meta = {
            "next_row": self.next_row,
            "experiment": config.to_dict(self.experiment),
            "tokenizer_fingerprint": self.task.tokenizer.fingerprint,
            **self.task.checkpoint_meta(self.state),
        }
        if self.experiment.recovery.deviations:
            meta["spikes"] = self.spikes.state
        train_state = {"step": self.state.step, "opt_state": self.state.opt_state}
        with self.clock("checkpoint"):
            self.checkpoints.save(self.step, self.state.params, train_state, meta, self.workdir / "tokenizer")
        self.events.write("time", step=self.step, seconds=self.clock.reading())

    @contextmanager
    def saving_first(self, row: int) -> Iterator[None]:
        """If a reward function fails, saves before the run ends: the model is sound. The next run reads from `row`."""
        try:
            yield
        except RewardFailed:
            self.next_row = row
            if self.step not in self.checkpoints.steps():
                self.save()
            self.checkpoints.wait()  # a save of this very step may still be in progress
            raise

    def close(self) -> Outcome:
        """Ends the run: completes the files, and writes the report if all steps are done."""
        experiment = self.experiment
        finished = self.step == experiment.steps
        if finished and self.first_step == self.step:  # the run was complete already
            self.evaluate()
        with self.clock("checkpoint"):
            self.checkpoints.close()
        self.sink.close()
        self.task.close()
        spent = goodput.total(read_rows(self.events.path), self.clock.reading())
        self.events.write("time", step=self.step, seconds=self.clock.reading())
        self.say(goodput.line(spent))
        if not finished:
            self.say(f"interrupted: step {self.step} is saved in {self.workdir}; the same command goes on from there")
        elif self.lead:
            self.say(report.write(self.workdir, experiment, self.task, self.stage_report, self.metrics, spent))
        return Outcome(finished, self.step, self.metrics)


def claim(workdir: Path, experiment: Experiment) -> None:
    """Writes config.json. Raises ValueError if the one there is of another run, which has made a step."""
    path = workdir / "config.json"
    # before its first step a run has nothing to lose
    if path.exists() and (storage.files(workdir / "checkpoints") or read_rows(workdir / "events.jsonl")):
        saved = config.from_dict(json.loads(path.read_text()))
        old, new = (flatten_dict(config.to_dict(one), sep=".") for one in (saved, experiment))
        differing = [k for k in sorted({*old, *new}) if k.partition(".")[0] not in FREE and old.get(k) != new.get(k)]
        if differing:
            listed = "\n  ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in differing)
            raise ValueError(
                f"{workdir} holds another experiment ({saved.name}):\n  {listed}\n"
                f"Use another --workdir, or start from its parameters with --set init_from={workdir}"
            )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        storage.write_json(path, config.to_dict(experiment))


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
    """Whether to stop. All processes agree, or some would wait for ever in the next collective."""
    return bool(multihost_utils.process_allgather(flag.is_set()).any())
