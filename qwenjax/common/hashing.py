"""Checksums of files and digests of JSON values. They are stored in files and name caches: keep them as they are."""

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
