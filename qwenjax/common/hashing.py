"""Checksums and digests. They are stored in files, name caches and order data: none of them may ever change."""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any


def crc32(path: Path) -> int:
    """CRC-32 of a local file."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def size_and_crc32(path: Path) -> dict[str, int]:
    """{"size", "crc32"} of a local file, as the index of a folder lists it."""
    return {"size": path.stat().st_size, "crc32": crc32(path)}


def json_digest(value: Any, size: int = 16) -> str:
    """BLAKE2b of a JSON value, `size` bytes in hexadecimal."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=size).hexdigest()


HASH_RANGE = 1 << 64  # of `keyed_hash`


def keyed_hash(purpose: str, seed: int, text: str) -> int:
    """A hash of text in [0, 2^64), another one for each `purpose` and `seed`. The order of data depends on it."""
    key = f"{purpose}/{seed}".encode()[:64]
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8, key=key).digest(), "little")
