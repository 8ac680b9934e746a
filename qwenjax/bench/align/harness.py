"""Runs an experiment for several seeds and says which of its claims hold."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from types import ModuleType

from qwenjax import storage
from qwenjax.bench.align import claims, data, directed, judge, sentiment
from qwenjax.bench.align.stages import Stages, progress, quiet, say

EXPERIMENTS: dict[str, ModuleType] = {"A": sentiment, "B": directed}


def bench(name: str, path: Path, workdir: Path, seeds: Sequence[int], arms: Sequence[str] = ()) -> dict:
    """Runs what is not done yet; see `table` for what is in the result.

    Args:
      name: a key of `EXPERIMENTS`. path: the ratings. arms: of the experiment's; (): all.
      workdir: keeps everything; the seeds share its data.
    Raises:
      ValueError: no such arm, no ratings, or a stage failed.
    """
    experiment = EXPERIMENTS[name]
    if unknown := sorted(set(arms) - set(experiment.ARMS)):
        raise ValueError(f"--arms={unknown[0]}: experiment {name} has {', '.join(experiment.ARMS)}")
    quiet()
    judge.lexicon(["fine"])  # before hours of work, not after
    texts, files = data.read(path), workdir / "files"
    experiment.make(texts, files)
    arms = [arm for arm in experiment.ARMS if arm in arms or not arms]
    folders = {seed: workdir / f"{name}-seed{seed}" for seed in seeds}
    todo = {seed: experiment.stages(seed, arms, files, folder) for seed, folder in folders.items()}
    results = []
    with progress(f"experiment {name}", [stage for of in todo.values() for stage in of.values()]) as step:
        for seed, folder in folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            results.append(experiment.run(seed, todo[seed], Stages(folder, workdir / "data", step), texts))
            say(f"\nseed {seed}: {line(results[-1])}")
            storage.write(folder / "result.json", json.dumps(results[-1], indent=2))
    found = claims.check(experiment.CLAIMS, results)
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


def table(result: dict) -> str:
    """The result for people: claims, accuracies and arms."""
    found = [claims.Claim(*(claim[name] for name in claims.Claim._fields)) for claim in result["claims"]]
    seeds = result["seeds"]
    lines = [claims.table(found), "", "| accuracy, by gap | 0.5 | 1 | 2 |", "| --- | --- | --- | --- |"]
    accuracies = {name: [by] for name, by in result["floors"].items()}
    accuracies |= {f"RM {name}": [seed["accuracy"][name] for seed in seeds] for name in seeds[0]["accuracy"]}
    for name, of in accuracies.items():
        lines.append(f"| {name} | " + " | ".join(f"{median(by[edge] for by in of):.3f}" for edge in of[0]) + " |")
    for arm in seeds[0]["arms"]:
        lines += ["", f"| {arm}, median of {len(seeds)} seeds | |", "| --- | --- |"]
        for name, values in numbers([seed["arms"][arm] for seed in seeds]).items():
            lines.append(f"| {name} | {values:.3f} |")
    return "\n".join(lines)


def numbers(arms: Sequence[dict]) -> dict[str, float]:
    """Medians of an arm's numbers over the seeds, nested ones by their path."""
    found = {}
    for name, value in arms[0].items():
        if name == "curves":
            continue
        of = [arm[name] for arm in arms]
        if isinstance(value, dict):
            found |= {f"{name}: {inner}": number for inner, number in numbers(of).items()}
        else:
            found[name] = median(of)
    return found
