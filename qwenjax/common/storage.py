"""Where things lie: on a disk, or in a bucket (gs://…), and what both can do.

An object in a bucket is written whole or not at all, is never appended to, and a folder of them is no thing that could
be renamed at once. Local paths are pathlib's, and need no library; those in buckets are etils.epath's, as Orbax's are.
"""

import importlib.util
import os
import re
import shutil
from pathlib import Path

GS = "gs://"


def path(where: str | os.PathLike) -> Path:
    """A path as the user says it: pathlib's of a local one, etils.epath's (which does as much) of gs://BUCKET/….

    Raises:
      ValueError: another kind of store, or the library for buckets is missing.
    """
    text = re.sub("^gs:/(?!/)", GS, os.fspath(where))  # pathlib makes one slash of two
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Path(text)
    if scheme != "gs":
        raise ValueError(f"{text}: wanted a local path or gs://BUCKET/FOLDER; mount another store as a folder")
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"{text} needs the `gcsfs` library: pip install 'qwenjax[gcs]'")
    import fsspec
    from etils import epath

    # A listing kept in memory would hide from one process what another has written since.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(text)


def remote(where: str | os.PathLike) -> bool:
    """Whether a path lies in a bucket."""
    return os.fspath(where).startswith(GS)


def absolute(where: str | os.PathLike) -> Path:
    """`path`, from the root of the disk or the bucket."""
    found = path(where)
    return found if remote(found) else found.resolve()  # epath would resolve gs://… below the current directory


def write(file: Path, data: str | bytes) -> None:
    """Writes a file that nobody ever sees half-written, into a folder that exists (in a bucket, all do)."""
    raw = data.encode() if isinstance(data, str) else data
    if remote(file):
        file.write_bytes(raw)
    else:
        temporary = file.with_name(file.name + ".tmp")
        temporary.write_bytes(raw)
        temporary.replace(file)


def files(folder: Path) -> list[Path]:
    """What is in a folder, by name; nothing in one that does not exist."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def move(folder: Path, target: Path) -> None:
    """Moves a folder to a path that does not exist yet. In a bucket all of it is copied before any of it is deleted."""
    if remote(folder):
        import fsspec

        store = fsspec.core.url_to_fs(str(folder))[0]
        store.copy(str(folder), str(target), recursive=True)
        store.rm(str(folder), recursive=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)


def local_copy(where: Path) -> Path:
    """Where to write what can only be written locally: `where` itself, or for a bucket a place in the user's cache."""
    if not remote(where):
        return Path(where)
    local = Path.home() / ".cache" / "qwenjax" / "gs" / str(where).removeprefix(GS)
    local.parent.mkdir(parents=True, exist_ok=True)
    return local


def upload(where: Path) -> None:
    """Takes what was written at `twin(where)`, a file or a folder, to its bucket."""
    local = local_copy(where)
    if not remote(where) or not local.exists():
        return
    for file in [local] if local.is_file() else sorted(p for p in local.rglob("*") if p.is_file()):
        write(path(str(where) + str(file)[len(str(local)) :]), file.read_bytes())
    local.unlink() if local.is_file() else shutil.rmtree(local)
