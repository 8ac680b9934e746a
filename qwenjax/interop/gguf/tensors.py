"""GGUF models: their metadata as a `ModelConfig`, their tensors under the names of the released checkpoints."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from qwenjax.config import ModelConfig, RopeScaling
from qwenjax.interop import HubCheckpoint, Tensor
from qwenjax.interop.gguf.container import read_gguf
from qwenjax.interop.huggingface.layout import QWEN, QWEN2

ARCHITECTURES = {"qwen": "qwen", "qwen2": "qwen2", "qwen3": "qwen2", "llama": "qwen2"}  # -> layout
# Name in GGUF -> name in the layout, without .weight and .bias; {} is the number of the layer
NAMES = {
    name: {entry.gguf: entry.theirs.rpartition(".")[0] for entry in entries}
    for name, entries in (("qwen", QWEN), ("qwen2", QWEN2))
}
PAIRED = ("attn_q", "attn_k")  # of the architecture llama: rotary channels i and i + h/2 are neighbours in these

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


def open_gguf(path: str | Path) -> HubCheckpoint:
    """A GGUF model of the architectures llama, qwen2, qwen3 or qwen (Qwen-1); of a split model, any of its parts.

    Tensors get the names, shapes and order of rotary channels of the layout "qwen2" (architecture qwen: "qwen").
    float32, float16 and bfloat16 are read as they are stored, every quantised type as float32. `files` is {"gguf":
    metadata}, whose keys `tokenizer.…` describe the vocabulary. GGUF has no dynamic NTK, LogN or windows by layer, and
    the `context` of a Qwen-1 file may be longer than in training: set these by hand.

    Raises:
      ValueError: not a GGUF file, a damaged one, or a model that qwenjax does not have.
      FileNotFoundError: the file, or a part of it that is missing.
    """
    head, stored = read_gguf(path)
    try:
        architecture = head.get("general.architecture")
        if architecture not in ARCHITECTURES:
            raise ValueError(f"general.architecture={architecture!r} is not known; {', '.join(ARCHITECTURES)} are")
        if not stored:
            raise ValueError("it has a vocabulary, but no model")
        if (factors := stored.pop("rope_freqs.weight", None)) and np.any(factors.read() != 1):
            raise ValueError("factors of rotary frequencies (rope_freqs.weight, as in Llama 3.1) are not supported")
        layout = ARCHITECTURES[architecture]
        config = _config(_Metadata(head, architecture), stored)
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
    """The name of a tensor by a table like those of `NAMES`; the number of the layer and .weight or .bias stay.

    Raises:
      ValueError: a name that is not in the table.
    """
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


class _Metadata:
    """The metadata of one architecture, with checks of their types."""

    def __init__(self, head: dict[str, Any], architecture: str):
        self.head, self.architecture = head, architecture

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of ARCHITECTURE.key. Raises ValueError for another type, or if it is absent without a default."""
        name = f"{self.architecture}.{key}"
        value = self.head.get(name, default)
        if value is None:
            raise ValueError(f"it has no {name}")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"{name}={value!r:.80}: wanted one {kind.__name__}")
        # stored as float32: the shortest decimal number is the one that was meant
        return float(str(np.float32(value))) if kind is float else value


def _config(metadata: _Metadata, stored: dict[str, Tensor]) -> ModelConfig:
    """The model's shape; tensors show what metadata do not say: biases, norms of heads, tied embeddings."""
    for key, without in ABSENT.items():
        if (value := metadata.get(key, float, without)) != without:
            raise ValueError(f"{metadata.architecture}.{key}={value:g} is not supported: our model does not have it")
    qwen1 = metadata.architecture == "qwen"
    layers, heads, embed = (
        metadata.get(key, int) for key in ("block_count", "attention.head_count", "embedding_length")
    )
    if "token_embd.weight" not in stored:
        raise ValueError("it has no token_embd.weight")
    vocab = stored["token_embd.weight"].shape[0]
    tokens = len(metadata.head.get("tokenizer.ggml.tokens", ()))
    if max(tokens, metadata.get("vocab_size", int, vocab)) > vocab:
        raise ValueError(f"its vocabulary has {tokens} tokens, but its embedding only {vocab} rows")
    default = embed // heads if heads and embed % heads == 0 else None
    width = metadata.get("attention.key_length", int, default)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (other := metadata.get(key, int, width)) != width:
            raise ValueError(
                f"{metadata.architecture}.{key}={other}, but the head size is {width}; our model has one head size"
            )
    context = metadata.get("context_length", int)
    window = metadata.get("attention.sliding_window", int, 0)
    kv = metadata.get("attention.head_count_kv", int, heads)
    return ModelConfig(
        vocab=vocab,
        layers=layers,
        embed=embed,
        heads=heads,
        ffn=metadata.get("feed_forward_length", int) // (2 if qwen1 else 1),  # Qwen-1 counts gate and up together
        kv_heads=0 if kv == heads else kv,
        head_dim=0 if width * heads == embed else width,
        context=context,
        rope_base=metadata.get("rope.freq_base", float, 10_000.0),
        norm_eps=metadata.get("attention.layer_norm_rms_epsilon", float),
        qkv_bias=qwen1 or "blk.0.attn_q.bias" in stored,
        qk_norm="blk.0.attn_q_norm.weight" in stored,
        tie_embeddings="output.weight" not in stored,
        rope_scaling=_scaling(metadata),
        windows=(window,) * layers if 0 < window < context else (),
    )


def _scaling(metadata: _Metadata) -> RopeScaling:
    """As llama.cpp reads it: a factor without a type is linear, and the default factor is 1."""
    kind = metadata.get("rope.scaling.type", str, "linear")
    factor = metadata.get("rope.scaling.factor", float, 0.0) or metadata.get("rope.scale_linear", float, 0.0) or 1.0
    if kind == "none" or factor == 1:
        return RopeScaling()
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind != "yarn":
        raise ValueError(f"{metadata.architecture}.rope.scaling.type={kind!r} is not known; none, linear and yarn are")
    original, context = (
        metadata.get("rope.scaling.original_context_length", int, 0),
        metadata.get("context_length", int),
    )
    return RopeScaling(
        kind,
        factor,
        original=0 if original == context else original,
        beta_fast=metadata.get("rope.scaling.yarn_beta_fast", float, 32.0),
        beta_slow=metadata.get("rope.scaling.yarn_beta_slow", float, 1.0),
    )
