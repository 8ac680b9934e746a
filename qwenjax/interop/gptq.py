"""GPTQ checkpoints: packed Int4 and Int8 weights become float when they are read (docs/report.md, GPTQ).

A linear layer X with weight [out, in] is stored as

  X.qweight  int32 [in * bits / 32, out]: the integers of consecutive inputs in one word, the first in its lowest bits
  X.qzeros   int32 [groups, out * bits / 32]: zero points, those of consecutive outputs in one word
  X.scales   float [groups, out]
  X.g_idx    int32 [in]: the group of each input; in order (i // group_size), or any (desc_act)
  X.bias     [out], even if the float model has none

and weight[o, i] = scales[g, o] * (integer[i, o] - zero[g, o]) with g = g_idx[i]. The original format stores zero - 1.
"""

from typing import Any, NamedTuple

import numpy as np

from qwenjax.interop import Tensor

BITS = (2, 4, 8)  # 3 is packed across words
FORMATS = ("gptq", "gptq_v2")  # of `checkpoint_format`; v2 stores zero points as they are
PARTS = ("qweight", "qzeros", "scales", "g_idx")


class Packing(NamedTuple):
    """How the integers are stored."""

    bits: int
    group_size: int  # inputs that share a scale; -1: all
    ordered: bool  # groups are consecutive inputs (desc_act is false)
    offset: int  # what is added to stored zero points
    symmetric: bool = False  # every zero point is the middle of the range


def packing(config: dict[str, Any], source: str = "the configuration") -> Packing:
    """The packing that a quantize_config.json, a config.json or its `quantization_config` describes.

    Raises ValueError, with the field and `source`, for another method than GPTQ or an unsupported packing.
    """
    config = config.get("quantization_config", config)
    method, form = config.get("quant_method", "gptq"), config.get("checkpoint_format", "gptq")
    if method != "gptq":
        raise ValueError(f"{source}: quant_method={method!r} is not read; 'gptq' is")
    if config.get("is_marlin_format"):
        form = "marlin"
    if form not in FORMATS:
        raise ValueError(f"{source}: checkpoint_format={form!r} is not read; {', '.join(FORMATS)} are")
    bits, group_size, shuffled = config.get("bits"), config.get("group_size", -1), config.get("desc_act", False)
    if bits not in BITS:
        raise ValueError(f"{source}: bits={bits!r}; wanted one of {BITS}")
    if type(group_size) is not int or (group_size < 1 and group_size != -1):
        raise ValueError(f"{source}: group_size={group_size!r}; wanted a positive number, or -1 for one group")
    return Packing(bits, group_size, not shuffled, 1 if form == "gptq" else 0, config.get("sym") is True)


def dequantised(
    tensors: dict[str, Tensor], config: dict[str, Any], source: str = "the configuration"
) -> dict[str, Tensor]:
    """The same checkpoint with a float32 X.weight [out, in] in place of X.qweight, X.qzeros, X.scales and X.g_idx.

    float32 holds every product of a float16 scale and an integer exactly. Other tensors stay unchanged, also biases.

    Raises:
      ValueError: a part that is missing or of the wrong shape or type; when weights are read, groups that do not exist.
    """
    packed = packing(config, source)
    out = {}
    for name in tensors:
        stem, _, part = name.rpartition(".")
        if part == "qweight":
            out[f"{stem}.weight"] = _weight(tensors, stem, packed)
        elif part not in PARTS or f"{stem}.qweight" not in tensors:
            out[name] = tensors[name]
    return out


def _weight(tensors: dict[str, Tensor], stem: str, packed: Packing) -> Tensor:
    """The weight of a linear layer, after a check of its parts' shapes and dtypes."""
    if f"{stem}.weight" in tensors:
        raise ValueError(f"the checkpoint has both {stem}.weight and {stem}.qweight")
    per_word = 32 // packed.bits
    qweight = tensors[f"{stem}.qweight"]
    if len(qweight.shape) != 2:
        raise ValueError(f"{stem}.qweight has shape {qweight.shape}; wanted two dimensions")
    inputs, outputs = qweight.shape[0] * per_word, qweight.shape[1]
    groups = 1 if packed.group_size == -1 else -(-inputs // packed.group_size)
    shapes = {
        "qweight": qweight.shape,
        "qzeros": (groups, -(-outputs // per_word)),
        "scales": (groups, outputs),
        "g_idx": (inputs,),
    }
    for part, shape in shapes.items():
        name = f"{stem}.{part}"
        if name not in tensors:
            if part == "g_idx" and packed.ordered:
                continue
            raise ValueError(f"{stem} is packed, but {name} is missing")
        got = tensors[name]
        is_float = got.dtype.kind in "fV"  # numpy's kind of bfloat16 is V
        if got.shape != shape or (not is_float if part == "scales" else got.dtype != np.int32):
            raise ValueError(
                f"{name} is {got.dtype} {list(got.shape)}; {packed.bits} bits in groups of {packed.group_size} want "
                f"{'float' if part == 'scales' else 'int32'} {list(shape)}"
            )

    def read() -> np.ndarray:
        integers = _unpack(tensors[f"{stem}.qweight"].read().T, packed.bits)
        zeros = _unpack(tensors[f"{stem}.qzeros"].read(), packed.bits)[:, :outputs].T
        offset, middle = packed.offset, 2 ** (packed.bits - 1)
        if packed.symmetric and (zeros == zeros.flat[0]).all() and zeros.flat[0] in (middle, middle - 1):
            offset = middle - int(zeros.flat[0])  # the stored values show the format, whatever the label says
        zeros = ((zeros + offset) & (2**packed.bits - 1)).astype(np.float32)
        scales = tensors[f"{stem}.scales"].read().T.astype(np.float32)
        group = _groups(tensors, stem, packed, inputs, groups)
        return (integers - zeros[:, group]) * scales[:, group]

    return Tensor((outputs, inputs), np.dtype(np.float32), read)


def _unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """int32 [r, c] -> uint8 [r, c * 32 / bits]: the integers of each word, from its lowest bits up."""
    octets = np.ascontiguousarray(words, "<i4").view(np.uint8)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (octets[..., None] >> shifts & (2**bits - 1)).reshape(len(words), -1)


def _groups(tensors: dict[str, Tensor], stem: str, packed: Packing, inputs: int, groups: int) -> np.ndarray:
    """The group of each input: [in]."""
    in_order = np.arange(inputs) // (packed.group_size if groups > 1 else inputs)
    if f"{stem}.g_idx" not in tensors:
        return in_order
    group = tensors[f"{stem}.g_idx"].read()
    if groups > 1 and not group.any():  # some writers leave it zero if groups are in order
        if not packed.ordered:
            raise ValueError(f"{stem}.g_idx is zero, but desc_act says that the groups are not in order: they are lost")
        return in_order
    if group.min() < 0 or group.max() >= groups:
        raise ValueError(f"{stem}.g_idx names groups {group.min()} to {group.max()}; there are 0 to {groups - 1}")
    return group
