"""Doubles for the data tests: a tokenizer of one id per UTF-8 byte, and a small corpus.

A module of its own, so that spawned workers can unpickle the tokenizer.
"""

import json
import random
import time
from pathlib import Path

import numpy as np

SETTINGS = {"validation": 0.1, "page": 500, "progress": False}  # of the fixture `shards`


class ByteTokenizer:
    name, size, eot, fingerprint = "bytes", 257, 256, "b" * 64

    def __init__(self, delay: float = 0.0, fingerprint: str = fingerprint):
        self.delay, self.fingerprint = delay, fingerprint

    def encode_ordinary(self, text: str) -> list[int]:
        time.sleep(self.delay)
        return list(text.encode())

    def encode_array(self, text: str) -> np.ndarray:
        return np.array(self.encode_ordinary(text), np.uint32)

    def encode_batch(self, texts) -> list[list[int]]:
        return [self.encode_ordinary(text) for text in texts]

    def decode_bytes(self, ids) -> bytes:
        return bytes(ids)

    def decode(self, ids) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    def save(self, directory) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        Path(directory, "bytes.txt").write_text(self.fingerprint)


def corpus(path: Path, documents: int, seed: int = 0) -> dict[str, str]:
    """Writes documents of 0 to 400 random characters as JSON lines; {origin: text}."""
    rng = random.Random(seed)
    texts, at = {}, 0
    with open(path, "wb") as file:
        for i in range(documents):
            text = f"<{seed}:{i}>" + "".join(rng.choices("abc défg\n中文", k=rng.randrange(400)))
            line = json.dumps({"text": text, "id": i}).encode() + b"\n"
            texts[f"{path.name}@{at}"] = text
            at += file.write(line)
    return texts
