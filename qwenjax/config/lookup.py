"""From a name or path to an `Experiment`: the meaning of `--exp` and `qwenjax.experiment`.

A name is searched in ./experiments, in those of the package, and in those of an editable checkout. A path may be a
Python file with `def experiment()`, a config.json, or the folder of a run. A file qwen_STAGE.py with
`def experiment(size)` holds an experiment for each size: qwen_ppo.py has qwen1b8_ppo, qwen7b_ppo and qwen14b_ppo.
"""

import argparse
import inspect
import re
import runpy
from pathlib import Path
from typing import Any

from qwenjax import config
from qwenjax.common import storage
from qwenjax.common.command_line import Usage
from qwenjax.config.overrides import Renamed, override, suggest

PACKAGE = Path(__file__).parent.parent
FOLDERS = (Path("experiments"), PACKAGE / "experiments", PACKAGE.parent / "experiments")


def known() -> dict[str, Path]:
    """Name -> file of every experiment that has a name; the first folder that has it wins."""
    files: dict[str, Path] = {}
    for folder in FOLDERS:
        for file in sorted(folder.glob("*.py")):
            files.setdefault(file.stem, file)
    named: dict[str, Path] = {}
    for stem, path in files.items():
        if stem.startswith("qwen_"):
            stage = stem.removeprefix("qwen").removesuffix("_pretrain")
            named |= {f"qwen{size}{stage}": path for size in config.QWEN_SIZES}
        elif not stem.startswith("_"):
            named[stem] = path
    return dict(sorted(named.items()))


def settings(items: list[str]) -> dict[str, str]:
    """{"FIELD": "VALUE"} from the items of `--set FIELD=VALUE …`; ValueError for an item without "="."""
    for item in items:
        if "=" not in item:
            raise ValueError(f"--set {item}: wanted FIELD=VALUE, e.g. --set steps=100")
    return dict(item.split("=", 1) for item in items)


def experiment(name: str, overrides: dict[str, Any] | None = None) -> config.Experiment:
    """The experiment of a name, a .py file, a config.json or a run directory, with overrides applied.

    Raises:
      ValueError: an unknown name (the message suggests the nearest and lists all), a file without `experiment()`,
        or overrides that do not fit.
    """
    return override(_load(name), overrides or {})


def _load(name: str) -> config.Experiment:
    path = storage.path(name)
    if path.is_dir() and (path / "config.json").is_file():
        path = path / "config.json"
    if path.suffix == ".json" and path.is_file():
        values = storage.read_json(path)
        try:
            return config.from_dict(values)
        except Renamed as error:
            advice = "these settings are of an earlier version: correct them in config.json, or start the run again"
            raise ValueError(f"{path}: {error}; {advice}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if path.suffix != ".py":
        experiments = known()
        if name not in experiments:
            width = max(map(len, experiments))
            listed = "\n  ".join(f"{key:<{width}}  {_summary(file)}" for key, file in experiments.items())
            raise ValueError(f"no experiment {name!r}.{suggest(name, experiments)} Known:\n  {listed}")
        path = experiments[name]
    if not path.is_file():
        raise ValueError(f"no experiment file {path}")
    make = runpy.run_path(str(path)).get("experiment")
    if make is None:
        raise ValueError(f"{path} defines no experiment(); see the files in experiments/")
    size = re.fullmatch(r"qwen([^_]+).*", name)
    if inspect.signature(make).parameters and not size:
        stage = path.stem.removeprefix("qwen").removesuffix("_pretrain")
        raise ValueError(f"{path} is for several sizes: use a name, such as --exp=qwen7b{stage}")
    result = make(size[1]) if inspect.signature(make).parameters else make()
    if not isinstance(result, config.Experiment):
        raise ValueError(f"experiment() in {path} returned {type(result).__name__}, not an Experiment")
    return result


def _summary(path: Path) -> str:
    """First line of a file's docstring."""
    return path.read_text().lstrip().partition("\n")[0].strip('" ')


def experiment_from(options: argparse.Namespace) -> config.Experiment:
    """The experiment of `--exp NAME --set FIELD=VALUE …`; Usage for no such experiment or field, or a wrong value."""
    try:
        return experiment(options.exp, settings(options.set))
    except ValueError as error:
        raise Usage(str(error)) from None


def experiment_arguments(add, **exp) -> None:
    """Declares `--exp`, with the options `exp` (required=True, or a default), and `--set`."""
    add("--exp", metavar="NAME", help="an experiment's name, .py file, run or config.json", **exp)
    example = "override a field, e.g. --set optim.peak_lr=1e-3; may be repeated"
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help=example)
