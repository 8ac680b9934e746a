"""GGUF models: metadata as a `ModelConfig`, tensors under the names of the released checkpoints.

Tensors are mapped, and dequantised by the package gguf when they are read. `tokenizer.gguf` parses the head, 40 times
as fast as the package's reader.
"""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qwenjax.common.storage import lfs_hint
from qwenjax.config import ModelConfig, RopeScaling
from qwenjax.interop import HubCheckpoint, Tensor
from qwenjax.interop.huggingface.config import LAYOUT, ConfigFields
from qwenjax.interop.huggingface.layout import QWEN, QWEN2
from qwenjax.model import rope
from qwenjax.tokenizer.gguf import HeadReader

# Name in GGUF -> name in the layout, without .weight and .bias; {} is the number of the layer
NAMES = {
    name: {entry.gguf: entry.theirs.rpartition(".")[0] for entry in entries}
    for name, entries in (("qwen", QWEN), ("qwen2", QWEN2))
}
PAIRED = ("attn_q", "attn_k")  # of the architecture llama: rotary channels i and i + h/2 are neighbours in these

# Fields of `ModelConfig` -> metadata of the same meaning
FIELDS = {
    "layers": ("block_count", int),
    "embed": ("embedding_length", int),
    "heads": ("attention.head_count", int),
    "context": ("context_length", int),
    "norm_eps": ("attention.layer_norm_rms_epsilon", float),
}
# Metadata of mathematics that our model does not have -> the value that switches it off
ABSENT = {
    "expert_count": 0,
    "attention.scale": 0,
    "attention.clamp_kqv": 0,
    "embedding_scale": 1,
    "residual_scale": 1,
    "logit_scale": 1,
    "rope.scaling.attn_factor": 1,
    "rope.scaling.yarn_attn_factor": 1,
    "rope.scaling.yarn_ext_factor": 1,
    "rope.scaling.yarn_log_multiplier": 0,
}
NOT_QUANTISED = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}


def open_gguf(path: str | Path) -> HubCheckpoint:
    """A GGUF model of the architectures llama, qwen2, qwen3 or qwen (Qwen-1); of a split model, any of its parts.

    Tensors get the names, shapes and order of rotary channels of the layout "qwen2" (architecture qwen: "qwen");
    `files` is {"gguf": metadata}. GGUF has no dynamic NTK, LogN or windows by layer, and the `context` of a Qwen-1 file
    may be longer than in training: set these by hand.

    Raises:
      ValueError: not a GGUF file, a damaged one, or a model that qwenjax does not have.
      FileNotFoundError: the file, or a part of it that is missing.
    """
    head, stored = read_gguf(path)
    try:
        architecture = head.get("general.architecture")
        if architecture not in LAYOUT:
            raise ValueError(f"general.architecture={architecture!r} is not known; {', '.join(LAYOUT)} are")
        if not stored:
            raise ValueError("it has a vocabulary, but no model")
        layout, factors = LAYOUT[architecture], stored.pop("rope_freqs.weight", None)
        config = _config(head, architecture, stored)
        if factors is not None and np.any(factors.read() != 1):
            config = _with_factors(config, factors.read())
        tensors = {}
        for name, tensor in stored.items():
            ours, stem = rename(name, NAMES[layout]), name.split(".")[-2]
            if architecture == "llama" and stem in PAIRED:
                tensor = _halved(tensor, config.heads if stem == "attn_q" else config.kv)
            tensors[ours] = tensor
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return HubCheckpoint(config, layout, tensors, {"gguf": head})


def rename(name: str, names: dict[str, str]) -> str:
    """The name of a tensor by a table like those of `NAMES`. Raises ValueError for a name that is not in it."""
    stem, _, part = name.rpartition(".")
    number = re.search(r"(?<=\.)\d+(?=\.)", stem)
    other = names.get(stem.replace(number[0], "{}", 1) if number else stem)
    if other is None or part not in ("weight", "bias"):
        raise ValueError(f"the model has no parameter for the tensor {name!r}")
    return f"{other.format(number and number[0])}.{part}"


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows [(n h) …] with rotary pairs as neighbours -> our order: the first channels of all pairs, then the second."""
    return np.swapaxes(rows.reshape(heads, -1, 2, *rows.shape[1:]), 1, 2).reshape(rows.shape)


def pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `halves`."""
    return np.swapaxes(rows.reshape(heads, 2, -1, *rows.shape[1:]), 1, 2).reshape(rows.shape)


def _halved(tensor: Tensor, heads: int) -> Tensor:
    if tensor.shape[0] % (2 * heads):
        raise ValueError(f"{tensor.shape[0]} rows of queries or keys are not {heads} heads of even width")
    return tensor._replace(read=lambda: halves(tensor.read(), heads))


# ---- metadata ----


def _config(head: dict[str, Any], architecture: str, stored: dict[str, Tensor]) -> ModelConfig:
    """The model's shape; tensors show what metadata do not say: biases, norms of heads, tied embeddings."""
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): value for key, value in head.items() if key.startswith(prefix)}
    # stored as float32: the shortest decimal number is the one that was meant
    own = {key: float(str(np.float32(value))) if isinstance(value, float) else value for key, value in own.items()}
    fields, qwen1 = ConfigFields(own, architecture), architecture == "qwen"
    for key, without in ABSENT.items():
        fields.refuse(key, unless=without)
    shape = {ours: fields(*theirs) for ours, theirs in FIELDS.items()}
    heads, embed, context = shape["heads"], shape["embed"], shape["context"]
    if "token_embd.weight" not in stored:
        raise ValueError("it has no token_embd.weight")
    vocab = stored["token_embd.weight"].shape[0]
    tokens = len(head.get("tokenizer.ggml.tokens", ()))
    if max(tokens, fields.get("vocab_size", vocab)) > vocab:
        raise ValueError(f"its vocabulary has {tokens} tokens, but its embedding only {vocab} rows")
    if heads and embed % heads == 0:
        own.setdefault("attention.key_length", embed // heads)
    width = fields("attention.key_length")
    for key in ("attention.value_length", "rope.dimension_count"):
        if (other := fields.get(key, width)) != width:
            raise ValueError(f"{key}={other}, but the head size is {width}; our model has one head size")
    window = fields.get("attention.sliding_window", 0)
    kv = fields.get("attention.head_count_kv", heads)
    return ModelConfig(
        vocab=vocab,
        **shape,
        ffn=fields("feed_forward_length") // (2 if qwen1 else 1),  # Qwen-1 counts gate and up together
        kv_heads=0 if kv == heads else kv,
        head_dim=0 if width * heads == embed else width,
        rope_base=fields.get("rope.freq_base", 10_000.0),
        qkv_bias=qwen1 or "blk.0.attn_q.bias" in stored,
        qk_norm="blk.0.attn_q_norm.weight" in stored,
        tie_embeddings="output.weight" not in stored,
        rope_scaling=_scaling(fields, context),
        windows=(window,) * shape["layers"] if 0 < window < context else (),
    )


def _with_factors(config: ModelConfig, factors: np.ndarray) -> ModelConfig:
    """The model with rotary frequencies divided by these factors, if they are those of a Llama 3 (rope_freqs.weight).

    Raises:
      ValueError: other factors, or scaling of two kinds.
    """
    if config.rope_scaling.kind != "none":
        raise ValueError("it has factors of rotary frequencies (rope_freqs.weight) and another rope scaling")
    for factor in sorted({float(factors.max()), 8.0, 32.0}):
        originals, between = [8192, config.context], np.flatnonzero((factors > 1.001) & (factors < 0.999 * factor))
        if between.size:  # a frequency that is kept in part shows the original context
            i = int(between[0])
            turns = 1 + 3 * (1 / float(factors[i]) - 1 / factor) / (1 - 1 / factor)
            originals = [round(turns * 2 * math.pi * config.rope_base ** (2 * i / config.head_size))]
        for original in originals:
            scaled = replace(config, rope_scaling=RopeScaling("llama3", factor, original, 4.0, 1.0))
            wanted = frequency_factors(scaled)
            if wanted.shape == factors.shape and np.allclose(factors, wanted, rtol=1e-4):
                return scaled
    raise ValueError(
        "its factors of rotary frequencies (rope_freqs.weight) are not those of a Llama 3, and not supported"
    )


def frequency_factors(config: ModelConfig) -> np.ndarray:
    """[h/2] float32: what the rotary frequencies of a model with llama3 scaling are divided by."""
    kept = rope.llama3_kept(config)
    return (1 / (kept + (1 - kept) / config.rope_scaling.factor)).astype(np.float32)


def _scaling(fields: ConfigFields, context: int) -> RopeScaling:
    """As llama.cpp reads it: a factor without a type is linear, and the default factor is 1."""
    kind = fields.get("rope.scaling.type", "linear")
    factor = fields.get("rope.scaling.factor", 0.0) or fields.get("rope.scale_linear", 0.0) or 1.0
    if kind == "none" or factor == 1:
        return RopeScaling()
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind != "yarn":
        raise ValueError(f"rope.scaling.type={kind!r} is not known; none, linear and yarn are")
    original = fields.get("rope.scaling.original_context_length", 0)
    original = 0 if original == context else original
    betas = fields.get("rope.scaling.yarn_beta_fast", 32.0), fields.get("rope.scaling.yarn_beta_slow", 1.0)
    return RopeScaling(kind, factor, original, *betas)


# ---- files, for any model ----


def read_gguf(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a GGUF file; of a split one (…-00001-of-00003.gguf), those of all parts.

    float32, float16 and bfloat16 are read as they are stored, every quantised type as float32. Shapes are numpy's.

    Raises:
      ValueError: not a GGUF file of version 2 or 3, one that is cut short, or a type that cannot be dequantised.
      FileNotFoundError: the file, or a part of it that is missing.
    """
    paths, head, tensors = _parts(Path(path)), {}, {}
    for part in paths:
        own, infos, start = _read_head(part)
        head = own if part == paths[0] else head
        data = np.memmap(part, np.uint8, mode="r").view(np.ndarray)
        for name, dims, kind, offset in infos:
            if name in tensors:
                raise ValueError(f"{part} holds tensor {name!r} a second time")
            tensors[name] = _tensor(part, name, data, dims[::-1], kind, start + offset)
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


def _read_head(path: Path) -> tuple[dict[str, Any], list[tuple], int]:
    """Metadata; name, dimensions, type and offset of each tensor; and where the tensors' data begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head, infos = HeadReader(file, size), []
        try:
            facts, tensors = head.metadata()
            for _ in range(tensors):
                name, (rank,) = head.text(), head.unpack("<I")
                if not 1 <= rank <= 4:
                    raise ValueError(f"tensor {name!r} has {rank} dimensions")
                infos.append((name, head.unpack(f"<{rank}Q"), *head.unpack("<IQ")))
            align = facts.get("general.alignment", 32)
            if not isinstance(align, int) or align < 1:
                raise ValueError(f"general.alignment={align!r}")
        except ValueError as error:  # a wrong encoding, too
            raise ValueError(f"{path} is not a GGUF file, or a damaged one: {error}{lfs_hint(path)}") from None
    return facts, infos, -(-(size - head.left) // align) * align


def _tensor(path: Path, name: str, data: np.ndarray, shape: tuple[int, ...], kind: int, start: int) -> Tensor:
    """A tensor, checked against the size of the file."""
    try:
        block, width, dtype, dequantise = _type(kind)
    except ValueError as error:
        raise ValueError(f"{path}: tensor {name!r}: {error}") from None
    if min(shape) < 1 or shape[-1] % block:
        raise ValueError(f"{path}: tensor {name!r} of shape {shape} is not made of blocks of {block} numbers")
    stop, size = start + math.prod(shape) // block * width, len(data)
    if stop > size:
        raise ValueError(f"{path} is cut short: {name!r} ends at byte {stop:,} of {size:,}; copy or load it again")

    def read() -> np.ndarray:
        if dequantise is None:
            return data[start:stop].view(dtype).reshape(shape)
        return dequantise(data[start:stop].reshape(-1, shape[-1] // block * width)).reshape(shape)

    return Tensor(shape, dtype, read)


@functools.cache
def _type(kind: int) -> tuple[int, int, np.dtype, Callable[[np.ndarray], np.ndarray] | None]:
    """A type of tensor: numbers and bytes of a block, the dtype after reading, the function that dequantises."""
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
