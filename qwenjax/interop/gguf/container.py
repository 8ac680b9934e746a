"""A GGUF file as metadata and tensors, for any model. Tensors are mapped, and dequantised when they are read.

`tokenizer.gguf` parses the head: the reader of the package gguf takes 2.6 s of CPU time for the 49,152 tokens of a
small model, ours 0.07 s. The package knows the types and dequantises.
"""

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from qwenjax.interop import Tensor
from qwenjax.tokenizer.gguf import HeadReader

NOT_QUANTISED = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
CHUNK = 1 << 20  # numbers dequantised at a time: the package takes several times their memory


def read_gguf(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a GGUF file; of a split one (…-00001-of-00003.gguf), those of all parts.

    float32, float16 and bfloat16 are read as they are stored, every quantised type as float32. Shapes are numpy's: the
    dimension that is contiguous in memory comes last.

    Raises:
      ValueError: not a GGUF file of version 2 or 3, one that is cut short, or a type that cannot be dequantised.
      FileNotFoundError: the file, or a part of it that is missing.
    """
    paths = _parts(Path(path))
    files = [_open(part) for part in paths]
    head, tensors = files[0].head, {}
    for part, file in zip(paths, files):
        for info in file.infos:
            if info.name in tensors:
                raise ValueError(f"{part} holds tensor {info.name!r} a second time")
            tensors[info.name] = _tensor(part, file, info)
    count, total = head.get("split.count", 0), head.get("split.tensors.count", len(tensors))
    if count > 1 and count != len(paths):
        raise ValueError(f"{paths[0]} is one of {count} parts; their names must end in -00001-of-{count:05}.gguf")
    if total != len(tensors):
        raise ValueError(f"{paths[0]}: its parts hold {len(tensors)} tensors, but should hold {total}")
    return head, tensors


def _parts(path: Path) -> list[Path]:
    """All files of the model that a file belongs to, in order."""
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if not match:
        return [path]
    parts = [path.with_name(f"{match[1]}-{i:05}-of-{match[3]}.gguf") for i in range(1, int(match[3]) + 1)]
    for part in parts:
        if not part.is_file():
            raise FileNotFoundError(f"{part} is missing: the model of {path.name} has {len(parts)} parts")
    return parts


class _Info(NamedTuple):
    """A tensor as the file describes it."""

    name: str
    dims: tuple[int, ...]  # the one that is contiguous in memory comes first
    kind: int
    offset: int  # from the start of the tensors' data


class _File(NamedTuple):
    head: dict[str, Any]
    infos: list[_Info]
    data: np.ndarray  # the whole file, mapped
    start: int  # where the tensors' data begin


def _open(path: Path) -> _File:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = HeadReader(file, size)
        try:
            facts, tensors = head.metadata()
            infos = [_info(head) for _ in range(tensors)]
            align = facts.get("general.alignment", 32)
            if not isinstance(align, int) or align < 1:
                raise ValueError(f"general.alignment={align!r}")
        except ValueError as error:  # a wrong encoding, too
            raise ValueError(f"{path} is not a GGUF file, or a damaged one: {error}") from None
    data = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    return _File(facts, infos, data, -(-(size - head.left) // align) * align)


def _info(head: HeadReader) -> _Info:
    name, (rank,) = head.text(), head.unpack("<I")
    if not 1 <= rank <= 4:
        raise ValueError(f"tensor {name!r} has {rank} dimensions")
    return _Info(name, head.unpack(f"<{rank}Q"), *head.unpack("<IQ"))


def _tensor(path: Path, file: _File, info: _Info) -> Tensor:
    """A tensor, checked against the size of the file: a file that is cut short is refused before anything is read."""
    name, shape, start = info.name, info.dims[::-1], file.start + info.offset
    try:
        block, width, dtype, dequantise = _type(info.kind)
    except ValueError as error:
        raise ValueError(f"{path}: tensor {name!r}: {error}") from None
    if min(shape) < 1 or shape[-1] % block:
        raise ValueError(f"{path}: tensor {name!r} of shape {shape} is not made of blocks of {block} numbers")
    stop = start + math.prod(shape) // block * width
    if stop > len(file.data):
        size = len(file.data)
        raise ValueError(f"{path} is cut short: {name!r} ends at byte {stop:,} of {size:,}; copy or load it again")

    def read() -> np.ndarray:
        data = file.data[start:stop]
        if dequantise is None:
            return data.view(dtype).reshape(shape)
        rows = data.reshape(-1, shape[-1] // block * width)
        out = np.empty((len(rows), shape[-1]), dtype)
        step = max(CHUNK // shape[-1], 1)
        for i in range(0, len(rows), step):
            out[i : i + step] = dequantise(rows[i : i + step])
        return out.reshape(shape)

    return Tensor(shape, dtype, read)


@functools.cache
def _type(kind: int) -> tuple[int, int, np.dtype, Callable[[np.ndarray], np.ndarray] | None]:
    """A type of tensor: numbers and bytes of a block, the dtype after reading, and the function that dequantises rows.

    Raises:
      ValueError: a type that the package does not know or does not dequantise.
    """
    gguf = library()
    try:
        known = gguf.GGMLQuantizationType(kind)
    except ValueError:
        raise ValueError(f"type {kind} is not known to this version of the package gguf") from None
    block, width = gguf.GGML_QUANT_SIZES[known]
    if known.name in NOT_QUANTISED:
        return block, width, NOT_QUANTISED[known.name], None
    dequantise = functools.partial(gguf.dequantize, qtype=known)
    try:
        dequantise(np.zeros((1, width), np.uint8))
    except NotImplementedError:
        raise ValueError(f"type {known.name} is not dequantised by this version of the package gguf") from None
    return block, width, np.dtype(np.float32), dequantise


def library():
    """The package gguf."""
    try:
        import gguf
    except ImportError:
        raise ValueError("GGUF files need the package gguf: run `pip install 'qwenjax[gguf]'`") from None
    return gguf
