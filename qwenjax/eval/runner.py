"""One measurement from a path to a table and a picture: what the command and notebooks call."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from qwenjax.common import storage
from qwenjax.eval import task as tasks
from qwenjax.eval.partial_results import Parts, model_key


class Evaluation(NamedTuple):
    """What was measured: plain values, a table for people, and where it was drawn."""

    result: dict
    text: str
    png: Path


def evaluate(
    path: str | Path, task: str, out: Path | str | None = None, *, dtype: str | None = None, **settings: Any
) -> Evaluation:
    """Measures a model; what is finished in `out` is not measured again.

    Args:
      path: what `qwenjax.load` takes; of a reward model, its run.
      task: a name in `evals.tasks.TASKS`, or a table of the report, such as 'table3'.
      out: gets the table as .txt, .json and .png; default runs/eval-MODEL.
      settings: the fields of `evals.tasks.Settings`, and fields of the model's config (`ntk=True`), which a reward
        model does not take.
    Raises:
      ValueError: nothing of that name is measured, or settings that do not fit the model or its files.
    """
    own = tasks.Settings.__dataclass_fields__
    config = {name: value for name, value in settings.items() if name not in own}
    module = tasks.task(task.removeprefix("table"))
    model = open_model(module, path, dtype, config)
    of = {"set": sorted(f"{name}={value}" for name, value in config.items()), "dtype": model.compute.dtype}
    asked = tasks.Settings(**{name: value for name, value in settings.items() if name in own})
    return measured(model, path, task, asked, storage.path(out or default_out(path)), of)


def open_model(module: Any, path: str | Path, dtype: str | None, config: dict[str, Any]) -> Any:
    """The `Model` or `RewardModel` that a task measures."""
    if module.MODEL == "reward":
        from qwenjax.api.reward_model import load_reward

        if config:
            raise ValueError(f"{', '.join(config)}: a reward model is read as it was trained")
        return load_reward(path, dtype=dtype)
    from qwenjax import api

    return api.load(path, dtype=dtype, **config)


def measured(
    model: Any, path: str | Path, task: str, settings: tasks.Settings, out: Path, of: dict[str, Any]
) -> Evaluation:
    """Measures an opened model, and writes table, numbers and picture. `of`: how it was opened."""
    module, parts = tasks.task(task.removeprefix("table")), Parts(out, {"model": model_key(str(path)), **of})
    result = {"model": title(path), "set": of["set"], **module.measure(model, settings, parts)}
    text, png = module.table(result), out / f"{task}.png"
    storage.write(out / f"{task}.json", json.dumps(result, indent=1) + "\n")
    storage.write(out / f"{task}.txt", text + "\n")
    module.draw(result, png)
    return Evaluation(result, text, png)


def title(path: str | Path) -> str:
    """A model's name in tables."""
    return Path(path).resolve().name.removesuffix(".gguf")


def default_out(path: str | Path) -> str:
    """Where results go unless something else is said."""
    return f"runs/eval-{title(path)}"
