"""From a name or path to an `Experiment`: what `--exp` and `qwenjax.experiment` mean.

A name is looked up in ./experiments, then in the experiments shipped inside the package, then beside an editable
checkout; a path may be a Python file with `def experiment()`, or a run (its config.json).
"""

import argparse
import json
import runpy
from pathlib import Path
from typing import Any

from qwenjax import config
from qwenjax.common import storage
from qwenjax.common.command_line import Usage
from qwenjax.config.overrides import override, suggest

PACKAGE = Path(__file__).parent.parent
FOLDERS = (Path("experiments"), PACKAGE / "experiments", PACKAGE.parent / "experiments")


def known() -> dict[str, Path]:
    """Name -> file of every experiment that can be found by name; earlier folders win."""
    found: dict[str, Path] = {}
    for folder in FOLDERS:
        for file in sorted(folder.glob("*.py")):
            found.setdefault(file.stem, file)
    return {name: path for name, path in sorted(found.items()) if not name.startswith("_")}


def settings(items: list[str]) -> dict[str, str]:
    """The overrides that `--set FIELD=VALUE …` of a command line means.

    Raises:
      ValueError: an item without "=".
    """
    for item in items:
        if "=" not in item:
            raise ValueError(f"--set {item}: wanted FIELD=VALUE, e.g. --set steps=100")
    return dict(item.split("=", 1) for item in items)


def experiment(name: str, overrides: dict[str, Any] | None = None) -> config.Experiment:
    """The experiment of a name, a .py file, a config.json or a run directory, with overrides applied.

    Raises:
      ValueError: unknown name (all known ones are listed and the nearest named), a file without `experiment()`,
        or overrides that do not fit.
    """
    return override(_load(name), overrides or {})


def _load(name: str) -> config.Experiment:
    path = storage.path(name)
    if path.is_dir() and (path / "config.json").is_file():
        path = path / "config.json"
    if path.suffix == ".json" and path.is_file():
        try:
            return config.from_dict(json.loads(path.read_text()))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
    if path.suffix != ".py":
        found = known()
        if name not in found:
            listed = "\n  ".join(f"{key:<12} {_summary(file)}" for key, file in found.items())
            raise ValueError(f"no experiment {name!r}.{suggest(name, found)} Known:\n  {listed}")
        path = found[name]
    if not path.is_file():
        raise ValueError(f"no experiment file {path}")
    make = runpy.run_path(str(path)).get("experiment")
    if make is None:
        raise ValueError(f"{path} defines no experiment(); see the files in experiments/")
    made = make()
    if not isinstance(made, config.Experiment):
        raise ValueError(f"experiment() in {path} returned {type(made).__name__}, not an Experiment")
    return made


def _summary(path: Path) -> str:
    """First line of the file's docstring."""
    for line in path.read_text().splitlines():
        if line.strip():
            return line.strip().strip('"').strip()
    return ""


def experiment_from(options: argparse.Namespace) -> config.Experiment:
    """The experiment of `--exp NAME --set FIELD=VALUE …`.

    Raises:
      Usage: no such experiment or field, or a value it refuses.
    """
    try:
        return experiment(options.exp, settings(options.set))
    except ValueError as error:
        raise Usage(str(error)) from None


def experiment_arguments(add, **exp) -> None:
    """Declares `--exp` and `--set`; `exp` goes to the former (required=True, or a default)."""
    add("--exp", metavar="NAME", help="an experiment's name, .py file, run or config.json", **exp)
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override a field, e.g. --set optim.peak_lr=1e-3; may be repeated",
    )
