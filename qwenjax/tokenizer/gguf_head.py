"""The facts at the head of a GGUF file: keys and values, among them the vocabulary. Tensors are not looked at.

The package gguf reads them, too, at 20,000 strings a second; a vocabulary of 250,000 is then half a minute.
"""

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

STRING, ARRAY = 8, 9
NUMBERS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8", 11: "i8", 12: "f8"}


def read_head(path: str | Path) -> dict[str, object]:
    """Key -> value: numbers, truth values, strings, and lists of these.

    Raises:
      ValueError: no GGUF file of version 2 or 3, or one that ends early or holds what cannot be.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = Head(file, path.stat().st_size)
        try:
            magic, version, _, count = head.unpack("<4sIQQ")
            if magic != b"GGUF" or version not in (2, 3):
                raise ValueError(f"begins with {magic!r}, version {version}")
            return {head.text(): head.value(*head.unpack("<I")) for _ in range(count)}
        except ValueError as error:  # a wrong encoding, too
            raise ValueError(f"{path} is no GGUF file of version 2 or 3, or damaged: {error}") from None


class Head:
    """Reads value after value; more than the file holds is never asked for."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.left = file, size

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError("it ends within a value")
        self.left -= count
        return self.file.read(count)

    def unpack(self, form: str) -> tuple:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def text(self) -> str:
        return self.take(*self.unpack("<Q")).decode("utf-8")

    def value(self, kind: int) -> object:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            kind, count = self.unpack("<IQ")
            if kind == STRING:
                return [self.text() for _ in range(count)]
            if kind in NUMBERS:
                return self.numbers(kind, count)
        elif kind in NUMBERS:
            return self.numbers(kind, 1)[0]
        raise ValueError(f"type {kind} of a value is not known")

    def numbers(self, kind: int, count: int) -> list:
        form = np.dtype(NUMBERS[kind]).newbyteorder("<")
        return np.frombuffer(self.take(count * form.itemsize), form).tolist()
