"""What a reader of other people's checkpoints returns: tensors by name, read when they are asked for."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from qwenjax.config import ModelConfig


class Tensor(NamedTuple):
    """One stored array, not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype  # of what `read` returns; bfloat16 is ml_dtypes'
    read: Callable[[], np.ndarray]


class Tensors(Mapping[str, Tensor]):
    """All arrays of a checkpoint, whatever files they lie in. Holds descriptors, no data."""

    def __init__(self, tensors: dict[str, Tensor]):
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class HubCheckpoint(NamedTuple):
    """A checkpoint in a format that is not ours."""

    config: ModelConfig
    layout: str  # whose names the tensors have: "qwen" (spec §3.3) or "qwen2" (also Llama; spec §3.4)
    tensors: Tensors
    files: dict  # what else its writer needs to be written again: {"config.json": {...}, …}
