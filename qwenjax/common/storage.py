"""Files on a disk or in a bucket (gs://…): paths, atomic writes, locks, moves.

An object in a bucket is written whole or not at all and cannot be appended to; a folder of objects cannot be renamed
at once. Local paths are pathlib's and need no library; paths in buckets are etils.epath's, as Orbax's are.
"""

import fcntl
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GS = "gs://"


def path(where: str | os.PathLike) -> Path:
    """The path object of a local path (pathlib) or of gs://BUCKET/… (etils.epath, with the same methods).

    Raises:
      ValueError: another kind of store, or the library for buckets is missing.
    """
    text = re.sub("^gs:/(?!/)", GS, os.fspath(where))  # pathlib makes one slash of two
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Path(text).expanduser()
    if scheme != "gs":
        raise ValueError(f"{text}: wanted a local path or gs://BUCKET/FOLDER; mount another store as a folder")
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"{text} needs the `gcsfs` library: pip install 'qwenjax[gcs]'")
    import fsspec
    from etils import epath

    # A listing kept in memory hides from one process what another has written since.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(text)


def remote(where: str | os.PathLike) -> bool:
    """Whether a path lies in a bucket."""
    return os.fspath(where).startswith(GS)


def absolute(where: str | os.PathLike) -> Path:
    """`path`, from the root of the disk or the bucket."""
    location = path(where)
    return location if remote(location) else location.resolve()  # epath resolves gs://… below the current directory


def write_atomically(file: Path, data: str | bytes) -> None:
    """Writes a file that nobody sees half-written, into a folder that exists (in a bucket, every folder does)."""
    raw = data.encode() if isinstance(data, str) else data
    if remote(file):
        file.write_bytes(raw)
    else:
        temporary = file.with_name(file.name + ".tmp")
        temporary.write_bytes(raw)
        replace_durably(temporary, file)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError for anything else."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{file} is no JSON: {error}{lfs_hint(file)}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: wanted a JSON object, got {type(values).__name__}")
    return values


def lfs_hint(file: Path) -> str:
    """What to do about a file that git or a hub left in place of the real one; '' for other files."""
    with file.open("rb") as opened:
        pointer = opened.read(40).startswith(b"version https://git-lfs")
    return " (a pointer of Git LFS: run `git lfs pull` there)" if pointer else ""


def write_json(file: Path, value: Any) -> None:
    """Writes a JSON file in UTF-8, atomically."""
    write_atomically(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def replace_durably(temporary: Path, final: Path) -> None:
    """Renames a finished local file into place; after a power cut it is there whole or not at all."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, final)


@contextmanager
def exclusive(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of a local folder; waits while another process of this machine has it. Dying releases it."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that works in {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def files(folder: Path) -> list[Path]:
    """What is in a folder, sorted by name; [] for a folder that does not exist."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def move(folder: Path, target: Path) -> None:
    """Moves a folder to a path that does not exist yet. In a bucket everything is copied before anything is deleted."""
    if remote(folder):
        import fsspec

        store = fsspec.core.url_to_fs(str(folder))[0]
        store.copy(str(folder), str(target), recursive=True)
        store.rm(str(folder), recursive=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)


def local_copy(where: Path) -> Path:
    """Where to write what can only be written locally: `where` itself; for a bucket, a path in the user's cache."""
    if not remote(where):
        return Path(where)
    local = Path.home() / ".cache" / "qwenjax" / "gs" / str(where).removeprefix(GS)
    local.parent.mkdir(parents=True, exist_ok=True)
    return local


def upload(where: Path) -> None:
    """Moves what was written at `local_copy(where)`, a file or a folder, to its bucket."""
    local = local_copy(where)
    if not remote(where) or not local.exists():
        return
    for file in [local] if local.is_file() else sorted(p for p in local.rglob("*") if p.is_file()):
        write_atomically(path(str(where) + str(file)[len(str(local)) :]), file.read_bytes())
    local.unlink() if local.is_file() else shutil.rmtree(local)
