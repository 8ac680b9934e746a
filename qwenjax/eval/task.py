"""Tasks of evaluation by name, their settings, a cache of finished parts, and from a checkpoint to a picture."""

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from qwenjax.common import jsonl, storage
from qwenjax.common.progress import meter

# name -> module of `tasks/`; tables are those of the report
TASKS = {"passkey": "passkey", "entropy": "entropy", "table3": "perplexity", "table4": "preferences"}


@dataclass(frozen=True)
class Settings:
    """Settings of all tasks; each task reads those that concern it."""

    text: str = ""  # a file of plain text
    data: tuple[str, ...] = ()  # files of preferences
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768)  # in tokens
    tokens: int = 0  # of the text, read at each length; 0: as many as the greatest length
    depths: int = 5  # positions of the passkey, from the start of a text to its end
    trials: int = 2  # texts for each length and depth
    seed: int = 0

    def __post_init__(self):
        if not self.lengths or min(self.lengths) < 2:
            raise ValueError(f"lengths={self.lengths}: wanted numbers of tokens, at least 2 each")
        if 0 < self.tokens < max(self.lengths):
            raise ValueError(f"tokens={self.tokens} are fewer than the greatest of lengths={self.lengths}")


def find_task(name: str) -> ModuleType:
    """The module of a name in TASKS. Raises ValueError if there is none."""
    if name not in TASKS:
        raise ValueError(f"no table or task {name!r} (known: {', '.join(TASKS)})")
    return importlib.import_module(f"qwenjax.eval.tasks.{TASKS[name]}")


class ResultCache:
    """Finished parts of an evaluation in a directory, a JSON line each, under a key of all that a result depends on.

    `common` is the part of every key that they share: the model.
    """

    def __init__(self, directory: Path, common: dict):
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "parts.jsonl"
        self._common = common
        self._log = jsonl.Log(path, keep=lambda row: True)  # cuts off a line that a kill left half written
        self._known = {json.dumps(row["of"], sort_keys=True): row["value"] for row in jsonl.read_rows(path)}

    def _name(self, key: dict) -> str:
        return json.dumps(self._common | key, sort_keys=True)

    def get(self, key: dict, measure: Callable, *arguments: Any) -> Any:
        """The value under a key of plain JSON values: `measure(*arguments)`, kept, if it is not known yet."""
        name = self._name(key)
        if name not in self._known:
            self._known[name] = measure(*arguments)
            self._log.add({"of": self._common | key, "value": self._known[name]})
            self._log.flush()
        return self._known[name]

    def fill(self, title: str, keys: list[dict], tokens: Callable[[dict], int], measure: Callable) -> list:
        """The value of each key. Unknown ones are `measure(key, step)`; `step` takes tokens for the progress bar."""
        missing = {self._name(key): tokens(key) for key in keys if self._name(key) not in self._known}
        with meter(title, sum(missing.values()), "token") as step:
            return [self.get(key, measure, key, step) for key in keys]


def short_hash(data: bytes) -> str:
    """Twelve hexadecimal digits that stand for the bytes."""
    return hashlib.sha256(data).hexdigest()[:12]


def model_key(path: str) -> dict:
    """A key of a checkpoint: its path, and names, sizes and times of its files, so that a changed one is told apart."""
    place = storage.path(path)
    if storage.remote(place):
        return {"path": str(path)}
    if (place / "checkpoints").is_dir():  # a run: its other files change, these results among them
        place /= "checkpoints"
    files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
    stats = [(p.name, p.stat().st_size, int(p.stat().st_mtime)) for p in files]
    return {"path": str(path), "files": short_hash(json.dumps(stats).encode())}


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
