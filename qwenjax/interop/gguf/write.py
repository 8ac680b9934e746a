"""GGUF models written, as llama.cpp and what is built on it read them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qwenjax.config import ModelConfig
from qwenjax.interop import Tensor
from qwenjax.interop.gguf.container import library
from qwenjax.interop.gguf.tensors import PAIRED, QWEN2, pairs, rename
from qwenjax.interop.huggingface.config import extensions_left_out
from qwenjax.interop.huggingface.layout import Table

# How matrices are stored, and what GGUF calls such files
KINDS = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
LARGEST = {"F16": 65504.0, "Q8_0": 127 * 65504.0}  # bfloat16 goes far beyond
THEIRS = {ours: theirs for theirs, ours in QWEN2.items()}


def write_gguf(
    path: str | Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    vocabulary: Mapping[str, Any],
    kind: str = "f16",
    name: str = "",
    progress: Callable[[int], None] = lambda written: None,
) -> list[str]:
    """Writes a model, reading its tensors one at a time. The file gets its name when it is whole.

    Vectors are float32 whatever the kind; matrices whose rows are no multiple of 32, q8_0's block, become float16.

    Args:
      config: decides the architecture: qwen2 (biases of q, k and v), qwen3 (norms of q and k), else llama.
      tensors: those of the layout "qwen2"; `save.as_tensors` makes them of parameters.
      vocabulary: metadata `tokenizer.…`, from `gguf_tokens.vocabulary` or of a file that was read, a token for each row
        of the embedding.
      kind: how matrices are stored, of `KINDS`.
      name: what people call the model.
      progress: told after each tensor how many numbers it has; `config.params` is their sum.
    Returns: a sentence for each thing that the format cannot say and that is left out.
    Raises:
      ValueError: an unknown kind; a tensor that is missing, left over, of another shape, or with values beyond the
        kind; or a model that no architecture of GGUF has. Then there is no file.
    """
    gguf, path = library(), Path(path)
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; known: {', '.join(KINDS)}")
    table, architecture = Table(config, "qwen2"), _architecture(config)
    _check(table, tensors)
    tokens = len(vocabulary.get("tokenizer.ggml.tokens", ()))
    if tokens != config.vocab:
        raise ValueError(f"{tokens} tokens for an embedding of {config.vocab} rows: GGUF wants one for each")
    vocabulary = {key: value for key, value in vocabulary.items() if key.startswith("tokenizer.")}
    types = {name: _type(gguf, kind, tensors[name].shape) for name in table.parts}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    writer = gguf.GGUFWriter(unfinished, architecture)
    try:
        metadata = _metadata(config, architecture, name) | vocabulary
        metadata["general.file_type"] = int(gguf.LlamaFileType[KINDS[kind]])
        metadata["general.quantization_version"] = gguf.GGML_QUANT_VERSION
        for key, value in metadata.items():
            _add(writer, key, value)
        for theirs, type_ in types.items():
            shape = tensors[theirs].shape
            size = int(np.prod(gguf.quant_shape_to_byte_shape(shape, type_)))
            writer.add_tensor_info(rename(theirs, THEIRS), shape, np.dtype(np.float32), size, type_)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for theirs, type_ in types.items():
            array = tensors[theirs].read()
            stem = rename(theirs, THEIRS).split(".")[-2]
            if architecture == "llama" and stem in PAIRED:
                array = pairs(array, config.heads if stem == "attn_q" else config.kv)
            writer.write_tensor_data(_stored(gguf, theirs, array, type_))
            progress(array.size)
        writer.close()
        unfinished.replace(path)
    finally:
        writer.close()
        unfinished.unlink(missing_ok=True)
    return _left_out(config)


def _check(table: Table, tensors: Mapping[str, Tensor]) -> None:
    """All tensors that the model has, no others, and of the right shapes."""
    for names, what in (
        (table.parts.keys() - tensors.keys(), "missing"),
        (tensors.keys() - table.parts.keys(), "no part of"),
    ):
        if names:
            raise ValueError(f"tensor {min(names)!r} is {what} the model, and {len(names) - 1} more")
    for name in table.parts:
        if tensors[name].shape != table.shape(name):
            raise ValueError(f"tensor {name!r} has shape {tensors[name].shape}; wanted {table.shape(name)}")


def _architecture(config: ModelConfig) -> str:
    if config.qk_norm and config.qkv_bias:
        raise ValueError("GGUF has no architecture with norms of queries and keys and biases, too")
    if config.qk_norm:
        return "qwen3"
    # llama.cpp gives qwen2 heads of embed / heads only; its llama may have other ones, and biases
    return "qwen2" if config.qkv_bias and config.heads * config.head_size == config.embed else "llama"


def _left_out(config: ModelConfig) -> list[str]:
    left_out = extensions_left_out(config, "GGUF")
    if any(config.windows):
        left_out.append("windows left out: every layer of the written model sees all positions")
    return left_out


def _type(gguf, kind: str, shape: tuple[int, ...]):
    """How a tensor is stored: vectors whole, since they are small and llama.cpp wants them so."""
    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    if kind == "q8_0" and shape[-1] % 32:
        kind = "f16"
    return gguf.GGMLQuantizationType[kind.upper()]


def _stored(gguf, name: str, array: np.ndarray, type_) -> np.ndarray:
    """A tensor as it lies in the file."""
    array = np.ascontiguousarray(array)
    if type_.name == "BF16":
        return array.astype(ml_dtypes.bfloat16).view(np.uint16)
    array = array.astype(np.float32, copy=False)
    if type_.name == "F32":
        return array
    if not np.abs(array).max() <= LARGEST[type_.name]:  # or not a number
        raise ValueError(f"tensor {name!r} has values that {type_.name} cannot hold; write bf16 or f32")
    return array.astype(np.float16) if type_.name == "F16" else gguf.quantize(array, type_)


def _metadata(config: ModelConfig, architecture: str, name: str) -> dict[str, Any]:
    """What llama.cpp wants to know, by its keys."""
    facts = {
        "block_count": config.layers,
        "context_length": config.context,
        "embedding_length": config.embed,
        "feed_forward_length": config.ffn,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.head_size,
        "rope.freq_base": float(config.rope_base),
        "vocab_size": config.vocab,
    }
    if (scaling := config.rope_scaling).kind != "none":
        facts |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": float(scaling.factor)}
        if scaling.kind == "yarn":
            facts |= {
                "rope.scaling.original_context_length": scaling.original or config.context,
                "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
                "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
            }
    general = {"general.type": "model"} | ({"general.name": name} if name else {})
    return general | {f"{architecture}.{key}": value for key, value in facts.items()}


def _add(writer, key: str, value: Any) -> None:
    """Metadata in the types that llama.cpp expects: unsigned numbers alone, signed ones in lists."""
    if key.endswith("precompiled_charsmap"):
        value = bytes(value)
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)
