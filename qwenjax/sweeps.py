"""Variants of an experiment compared over several seeds, with a table and a figure.

    result = sweep("quickstart", {"untied": {}, "tied": {"model.tie_embeddings": True}}, seeds=(0, 1, 2))
    print(result.table("eval_loss"))
    result.plot("eval_loss")

Each run is a `fit` in a folder of its own.
"""

import contextlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from qwenjax import config
from qwenjax.common import command_line, figures, progress
from qwenjax.common.jsonl import read_rows
from qwenjax.config import Experiment, lookup, overrides
from qwenjax.eval.task import Evaluation, evaluate


@dataclass(frozen=True)
class SweepRun:
    """A finished run of a sweep."""

    variant: str
    seed: int
    workdir: Path

    @cached_property
    def rows(self) -> list[dict]:
        """Its metrics.jsonl."""
        return read_rows(self.workdir / "metrics.jsonl")

    def last(self, name: str) -> float:
        """The last value of a metric in the log. Raises ValueError if the run has no such metric."""
        values = [row[name] for row in self.rows if name in row]
        if not values:
            known = sorted({key for row in self.rows for key in row})
            raise ValueError(f"{self.workdir} has no metric {name!r}; it has {', '.join(known)}")
        return values[-1]

    def curve(self, name: str, skip: float = 0.0) -> dict[int, float]:
        """A metric by step; `skip` is the share of the first steps that is left out."""
        first = skip * self.rows[-1]["step"]
        return {row["step"]: row[name] for row in self.rows if name in row and row["step"] >= first}


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, in the order of variants, then seeds."""

    runs: tuple[SweepRun, ...]

    @property
    def variants(self) -> dict[str, list[SweepRun]]:
        """Runs by variant."""
        return {one.variant: [run for run in self.runs if run.variant == one.variant] for one in self.runs}

    def values(self, name: str) -> dict[str, list[float]]:
        """Last values of a metric over the seeds, by variant."""
        return {variant: [run.last(name) for run in runs] for variant, runs in self.variants.items()}

    def table(self, *names: str) -> str:
        """Markdown: mean ± standard deviation over the seeds, a row per variant and a column per metric."""
        columns = [self.values(name) for name in names]
        rows = [[variant, *(spread(column[variant]) for column in columns)] for variant in self.variants]
        return "\n".join(figures.markdown(["variant", *names], rows))

    def evaluate(self, task: str, **settings: Any) -> dict[str, list[Evaluation]]:
        """`qwenjax.evaluate` of every run, by variant; results are kept in the folder of the run."""
        return {
            variant: [evaluate(run.workdir, task, run.workdir / "eval", **settings) for run in runs]
            for variant, runs in self.variants.items()
        }

    def plot(self, *names: str, path: Path | str | None = None, skip: float = 0.0) -> Any:
        """A matplotlib figure of metrics over the steps, a panel each: mean of the seeds, and their range as a band.

        `path` names a PNG to write, too; `skip` is the share of the first steps that is not drawn.
        """
        if not names:
            raise ValueError("nothing to plot: give names of metrics in metrics.jsonl, such as 'eval_loss'")
        columns = min(len(names), 3)
        rows = -(-len(names) // columns)
        figure, axes = figures.canvas(4.6 * columns, 3.4 * rows, columns, rows)
        for axis, name in zip(axes, names):
            curves = {variant: [run.curve(name, skip) for run in runs] for variant, runs in self.variants.items()}
            figures.curves(axis, curves, legend=False)
            axis.set(title=name, xlabel="step")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        for axis in axes[len(names) :]:
            axis.set_axis_off()
        if path:
            figures.save(figure, Path(path))
        return figure


def sweep(
    base: str | Experiment,
    variants: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int] = (0, 1, 2),
    workdir: Path | str | None = None,
    *,
    data_root: Path | str = "data",
) -> Sweep:
    """Trains every variant with every seed, each in a folder with a log.txt. Finished runs are kept, others resume.

    Args:
      base: what `--exp` takes, or an experiment.
      variants: overrides of fields, by the name of the variant; all are checked before the first run.
      workdir: folder of the runs, which are VARIANT/seedN in it; default runs/sweep-NAME.
    Raises:
      ValueError: no variant or seed, a name that cannot be a folder, overrides that do not fit, or a failed run.
      KeyboardInterrupt: interrupted; finished runs are kept.
    """
    from qwenjax.train.loop import RewardFailed, fit
    from qwenjax.train.operations.spikes import Diverged

    if not variants or not seeds:
        raise ValueError("a sweep needs at least one variant and one seed")
    if wrong := [name for name in variants if not name or "/" in name or name.startswith(".")]:
        raise ValueError(f"variant {wrong[0]!r} is the name of a folder: no slash, and no dot in front")
    base = base if isinstance(base, Experiment) else lookup.experiment(base)
    root = Path(workdir or f"runs/sweep-{base.name}")
    if seeded := [name for name, changes in variants.items() if "seed" in changes]:
        raise ValueError(f"variant {seeded[0]!r} sets a seed; every variant runs with all of `seeds`")
    experiments = {name: overrides.override(base, dict(changes)) for name, changes in variants.items()}
    todo = [
        (SweepRun(name, seed, root / name / f"seed{seed}"), replace(experiment, seed=seed))
        for name, experiment in experiments.items()
        for seed in seeds
    ]
    command_line.keep_programs()  # all seeds share their compiled programs
    left = [(run, experiment) for run, experiment in todo if not finished(run.workdir, experiment)]
    with progress.meter(f"sweep of {len(todo)} runs", sum(one.steps for _, one in left), "step") as step:
        for run, experiment in left:
            run.workdir.mkdir(parents=True, exist_ok=True)
            log = run.workdir / "log.txt"
            with log.open("a", buffering=1) as file, contextlib.redirect_stderr(file):
                try:
                    outcome = fit(experiment, run.workdir, data_root=data_root)
                except (ValueError, Diverged, RewardFailed) as error:
                    raise ValueError(f"{run.variant}, seed {run.seed}: {error} (see {log})") from None
            if not outcome.finished:
                raise KeyboardInterrupt
            step(experiment.steps)
    return Sweep(tuple(run for run, _ in todo))


def finished(workdir: Path, experiment: Experiment) -> bool:
    """Whether a folder holds this run and it has ended; the report is its last file."""
    ended = (workdir / "report.md").is_file()
    return ended and config.to_dict(lookup.experiment(str(workdir))) == config.to_dict(experiment)


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation with two significant digits of the deviation; a single value alone."""
    mean = statistics.fmean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    if not deviation:
        return f"{mean:.4g}"
    digits = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"
