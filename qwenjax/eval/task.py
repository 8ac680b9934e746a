"""The tasks and tables that can be measured, by name; their settings; and a cache of their finished parts."""

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

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
