"""AWQ checkpoints: packed Int4 weights become float when they are read (the GEMM layout of the library AutoAWQ).

A linear layer X with weight [out, in] is stored as

  X.qweight  int32 [in, out / 8]: the integers of eight outputs in one word, in the order 0 2 4 6 1 3 5 7
  X.qzeros   int32 [groups, out / 8]: zero points, packed alike
  X.scales   float [groups, out]

and weight[o, i] = scales[g, o] * (integer[i, o] - zero[g, o]) with g = i // group_size.
"""

from typing import Any

import numpy as np

from qwenjax.interop import Tensor

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of the outputs in a word, from its lowest bits up


def dequantised(tensors: dict[str, Tensor], config: dict[str, Any], source: str) -> dict[str, Tensor]:
    """The same checkpoint with a float32 X.weight [out, in] in place of X.qweight, X.qzeros and X.scales.

    Raises:
      ValueError: another packing than 4 bits in the GEMM layout with zero points, or parts that do not fit.
    """
    wanted = {"bits": 4, "version": "gemm", "zero_point": True}
    for key, value in wanted.items():
        given = config.get(key, value)
        if (given.lower() if isinstance(given, str) else given) != value:
            raise ValueError(f"{source}: {key}={given!r} of AWQ is not read; {value!r} is")
    group = config.get("group_size", config.get("q_group_size", 128))
    out = {}
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".")
        if part == "qweight":
            out[f"{stem}.weight"] = _weight(tensors, stem, group)
        elif part not in ("qzeros", "scales") or f"{stem}.qweight" not in tensors:
            out[name] = tensor
    return out


def _weight(tensors: dict[str, Tensor], stem: str, group_size: int) -> Tensor:
    parts = {part: tensors.get(f"{stem}.{part}") for part in ("qweight", "qzeros", "scales")}
    if missing := [part for part, tensor in parts.items() if tensor is None]:
        raise ValueError(f"{stem} is packed, but {stem}.{missing[0]} is missing")
    inputs, words = parts["qweight"].shape
    groups = 1 if group_size == -1 else -(-inputs // group_size)
    for part, shape in (("qzeros", (groups, words)), ("scales", (groups, 8 * words))):
        if parts[part].shape != shape:
            raise ValueError(f"{stem}.{part} is {list(parts[part].shape)}; groups of {group_size} want {list(shape)}")

    def read() -> np.ndarray:
        integers, zeros = _unpack(parts["qweight"].read()), _unpack(parts["qzeros"].read())
        group = np.arange(inputs) // (inputs if group_size == -1 else group_size)
        scales = parts["scales"].read().astype(np.float32)
        return np.ascontiguousarray(((integers - zeros[group].astype(np.float32)) * scales[group]).T)

    return Tensor((8 * words, inputs), np.dtype(np.float32), read)


def _unpack(words: np.ndarray) -> np.ndarray:
    """int32 [r, c] -> uint8 [r, 8 c]."""
    integers = words.view(np.uint32)[..., None] >> (4 * np.arange(8, dtype=np.uint32)) & 15
    out = np.empty_like(integers, dtype=np.uint8)
    out[..., list(ORDER)] = integers
    return out.reshape(len(words), -1)
