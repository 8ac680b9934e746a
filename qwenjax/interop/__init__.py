"""Checkpoints of other programs, read as our parameters and written from them.

A reader gives a `HubCheckpoint`; `huggingface.load.load_params` streams it into sharded arrays,
`huggingface.save.save_params` is the way back, and `huggingface/layout.py` is the one table of names.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from qwenjax.config import ModelConfig


class Tensor(NamedTuple):
    """One stored array, not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype  # of what `read` returns; bfloat16 is that of ml_dtypes
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of what `read` returns."""
        return math.prod(self.shape) * self.dtype.itemsize


class HubCheckpoint(NamedTuple):
    """A checkpoint in a format of other programs. It holds descriptions, no data."""

    config: ModelConfig
    layout: str  # of the tensors' names: "qwen" or "qwen2" (also Llama); docs/report.md, Checkpoint layout
    tensors: dict[str, Tensor]  # by name, from whatever files they are in
    files: dict  # the other files, parsed: {"config.json": {...}, …}, or {"gguf": metadata}
