"""An evaluation from a checkpoint path to a table and a picture: what the command and notebooks call."""

from pathlib import Path
from typing import Any, NamedTuple

from qwenjax.common import storage
from qwenjax.eval.task import ResultCache, Settings, find_task, model_key


class Evaluation(NamedTuple):
    """A result as plain values, as a table in text, and the file of its picture."""

    result: dict
    text: str
    png: Path


def evaluate(
    path: str | Path, task: str, out: Path | str | None = None, *, dtype: str | None = None, **settings: Any
) -> Evaluation:
    """Measures a model; parts that are finished in `out` are not measured again.

    Args:
      path: what `qwenjax.load` takes; for a reward model, its run.
      task: a name in `eval.task.TASKS`, such as 'table3'.
      out: directory of the table as .txt, .json and .png; default runs/eval-MODEL.
      settings: fields of `eval.task.Settings`, and of a language model's config (`ntk=True`).
    Raises:
      ValueError: no task of that name, or settings that do not fit the model or its files.
    """
    fields = Settings.__dataclass_fields__
    config = {name: value for name, value in settings.items() if name not in fields}
    if find_task(task).MODEL == "reward":
        from qwenjax.api.reward_model import load_reward

        if config:
            raise ValueError(f"{', '.join(config)}: a reward model is read as it was trained")
        model = load_reward(path, dtype=dtype)
    else:
        from qwenjax import api

        model = api.load(path, dtype=dtype, **config)
    opened_with = {"set": sorted(f"{name}={value}" for name, value in config.items()), "dtype": model.compute.dtype}
    chosen = Settings(**{name: value for name, value in settings.items() if name in fields})
    return measure_and_save(model, path, task, chosen, storage.path(out or default_output(path)), opened_with)


def measure_and_save(
    model: Any, path: str | Path, task: str, settings: Settings, out: Path, opened_with: dict[str, Any]
) -> Evaluation:
    """Measures a model that is open, and writes table, numbers and picture. `opened_with`: the options of loading."""
    module = find_task(task)
    cache = ResultCache(out, {"model": model_key(str(path)), **opened_with})
    result = {"model": model_title(path), "set": opened_with["set"], **module.measure(model, settings, cache)}
    text, png = module.table(result), out / f"{task}.png"
    storage.write_json(out / f"{task}.json", result)
    storage.write_atomically(out / f"{task}.txt", text + "\n")
    module.plot(result, png)
    return Evaluation(result, text, png)


def model_title(path: str | Path) -> str:
    """A model's name in tables."""
    return Path(path).resolve().name.removesuffix(".gguf")


def default_output(path: str | Path) -> str:
    """The directory of results unless another is given."""
    return f"runs/eval-{model_title(path)}"
