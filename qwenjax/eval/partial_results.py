"""Results that survive an interruption: one JSON line each, found again by all that they depend on."""

import hashlib
import json
from pathlib import Path
from typing import Any

from qwenjax.common import jsonl, storage


class Parts:
    """A log of finished measurements in a directory. `of` says what all of them depend on: the model."""

    def __init__(self, directory: Path, of: dict):
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "parts.jsonl"
        self._of = of
        self._log = jsonl.Log(path, keep=lambda row: True)  # cuts off a line that a kill left half written
        self._known = {_name(row["of"]): row["value"] for row in jsonl.read_rows(path)}

    def get(self, of: dict) -> Any:
        """What was measured, or None."""
        return self._known.get(_name(self._of | of))

    def add(self, of: dict, value: Any) -> Any:
        """Keeps a measurement and returns it. `of` names all else that it depends on, in plain JSON values."""
        of = self._of | of
        self._known[_name(of)] = value
        self._log.add({"of": of, "value": value})
        self._log.flush()
        return value


def _name(of: dict) -> str:
    return json.dumps(of, sort_keys=True)


def hash_of(data: bytes) -> str:
    """Twelve hexadecimal digits that stand for the bytes."""
    return hashlib.sha256(data).hexdigest()[:12]


def model_key(path: str) -> dict:
    """What tells a checkpoint from others, also from what lay at the same path before, without reading it."""
    place = storage.path(path)
    if storage.remote(place):
        return {"path": str(path)}
    if (place / "checkpoints").is_dir():  # a run: what else lies there may be about it, such as these results
        place /= "checkpoints"
    files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
    stats = [(p.name, p.stat().st_size, int(p.stat().st_mtime)) for p in files]
    return {"path": str(path), "files": hash_of(json.dumps(stats).encode())}
