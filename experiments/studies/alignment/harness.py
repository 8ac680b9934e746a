"""Runs an experiment for several seeds and says which of its claims hold."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from qwenjax.common import progress, storage
from qwenjax.common.processes import quiet_logs
from qwenjax.sweeps import finished

from . import data, directed, outcome, scoring, sentiment
from .real import Real
from .stages import Stages, say

MODULES: dict[str, ModuleType] = {"A": sentiment, "B": directed}


def find(name: str, **given: str | None) -> ModuleType | Real:
    """An experiment by its letter; `given`: the fields of `Real`, which experiment C needs.

    Raises:
      ValueError: one of them is missing, or is no file.
    """
    if name in MODULES:
        return MODULES[name]
    for field, value in given.items():
        if not value or not Path(value).exists():
            raise ValueError(f"experiment {name} needs --{field}=PATH" + (f"; there is no {value}" if value else ""))
    return Real(**{field: Path(value) for field, value in given.items()})


def bench(
    name: str,
    experiment: ModuleType | Real,
    path: Path,
    workdir: Path,
    seeds: Sequence[int],
    arms: Sequence[str] = (),
) -> dict:
    """Runs what is not done yet; see `outcome.table` for what is in the result.

    Args:
      name: its letter. experiment: of `find`. path: the ratings. arms: of the experiment's; (): all.
      workdir: keeps everything; the seeds share its data.
    Raises:
      ValueError: no such arm, no ratings, or a stage failed.
    """
    if unknown := sorted(set(arms) - set(experiment.ARMS)):
        raise ValueError(f"--arms={unknown[0]}: experiment {name} has {', '.join(experiment.ARMS)}")
    quiet_logs()
    scoring.lexicon(["fine"])  # before hours of work, not after
    texts, files = data.read(path), workdir / "files"
    experiment.make(texts, files)
    arms = [arm for arm in experiment.ARMS if arm in arms or not arms]
    folders = {seed: workdir / f"{name}-seed{seed}" for seed in seeds}
    todo = {seed: experiment.stages(seed, arms, files, folder) for seed, folder in folders.items()}
    left = (
        stage
        for seed in seeds
        for stage in todo[seed].values()
        if not finished(folders[seed] / stage.name, stage.experiment)
    )
    results = []
    with progress.meter(f"experiment {name}", sum(stage.work for stage in left), "tok") as step:
        for seed, folder in folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            results.append(experiment.run(seed, todo[seed], Stages(folder, workdir / "data", step), texts))
            say(f"\nseed {seed}: {line(results[-1])}")
            storage.write_json(folder / "result.json", results[-1])
    found = outcome.check(experiment.CLAIMS, results)
    return {
        "benchmark": "align",
        "experiment": name,
        "floors": experiment.floors(texts),
        "claims": [claim._asdict() | {"holds": claim.holds} for claim in found],
        "seeds": results,
    }


def line(result: dict) -> str:
    """A seed's outcome in a line."""
    accuracy = ", ".join(f"{name} {by['1']:.1%}" for name, by in result["accuracy"].items())
    arms = ", ".join(f"{name} KL {arm['kl']:.2f}" for name, arm in result["arms"].items())
    return f"accuracy at a gap of 1: {accuracy}" + (f"; {arms}" if arms else "")
