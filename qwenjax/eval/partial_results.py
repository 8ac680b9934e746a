"""A cache of results on disk, one JSON line each, under a key of everything that a result depends on."""

import hashlib
import json
from pathlib import Path
from typing import Any

from qwenjax.common import jsonl, storage


class ResultCache:
    """Finished parts of an evaluation in a directory. `common` is the part of every key that they share: the model."""

    def __init__(self, directory: Path, common: dict):
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "parts.jsonl"
        self._common = common
        self._log = jsonl.Log(path, keep=lambda row: True)  # cuts off a line that a kill left half written
        self._known = {_name(row["of"]): row["value"] for row in jsonl.read_rows(path)}

    def get(self, key: dict) -> Any:
        """The value that was measured, or None."""
        return self._known.get(_name(self._common | key))

    def add(self, key: dict, value: Any) -> Any:
        """Keeps a value and returns it. `key` has plain JSON values."""
        key = self._common | key
        self._known[_name(key)] = value
        self._log.add({"of": key, "value": value})
        self._log.flush()
        return value


def _name(key: dict) -> str:
    return json.dumps(key, sort_keys=True)


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
