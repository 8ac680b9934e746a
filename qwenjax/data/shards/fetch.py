"""Shards that lie in a bucket, as a local copy: ArrayRecord files are read at random, which objects are not made for.

    ROOT/<name>-<hash>/   as in the bucket; index.json comes last

For more than a disk holds, the bucket has to be mounted (tpu_setup/README.md); then nothing is copied.
"""

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qwenjax.common import storage
from qwenjax.common.progress import meter, printer
from qwenjax.data.shards import format

THREADS = 8
CHUNK = 8 << 20


def fetch(where: str, root: Path, progress: bool = True) -> Path:
    """The local copy of a gs:// shards directory, made now if it is not there; every machine makes its own.

    Files are compared with their CRCs as they come, and a copy that was cut short goes on where it was. Shards made
    anew in the same place are copied anew, to another folder.

    Raises:
      ValueError: no finished shards there, more than the disk has room for, or a file that is not what was written.
    """
    source = storage.path(where)
    try:
        index = (source / "index.json").read_bytes()
        files = format.files(json.loads(index))
    except FileNotFoundError:
        raise ValueError(f"{where} holds no finished shards: it has no index.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}/index.json is not an index of shards ({error}); copy it there again") from None
    folder = root / f"{source.name}-{hashlib.blake2b(index, digest_size=4).hexdigest()}"
    if (folder / "index.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with storage.exclusive(folder, printer(progress)):
        missing = [file for file in files if not (folder / file["name"]).is_file()]
        size, room = sum(file["size"] for file in missing), shutil.disk_usage(folder).free
        if size > room:
            raise ValueError(
                f"{where} has {size:,} bytes to copy, and {folder} has room for {room:,}: mount the bucket as a folder "
                "(tpu_setup/README.md, section 3) and name that, or give a --data-root with more room"
            )
        with meter(f"copying {where}", size, "B", hidden=not progress) as step, ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda file: _copy(source, folder, file, step), missing))
        (folder / "tokenizer").mkdir(exist_ok=True)
        for file in storage.files(source / "tokenizer"):
            storage.write_atomically(folder / "tokenizer" / file.name, file.read_bytes())
        storage.write_json(folder / "index.json", json.loads(index))
    return folder


def _copy(source: Path, folder: Path, file: dict, step: Callable[[int], object]) -> None:
    temporary, crc = folder / (file["name"] + ".tmp"), 0
    with (source / file["name"]).open("rb") as remote, temporary.open("wb") as local:
        while part := remote.read(CHUNK):
            crc = zlib.crc32(part, crc)
            local.write(part)
            step(len(part))
    if crc != file["crc32"]:
        raise ValueError(f"{source / file['name']} is not the file that was written: copy it to the bucket again")
    storage.replace_durably(temporary, folder / file["name"])
