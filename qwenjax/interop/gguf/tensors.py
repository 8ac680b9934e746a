"""GGUF models: their metadata as a `ModelConfig`, their tensors under the names of the released checkpoints."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from qwenjax.config import ModelConfig, RopeScaling
from qwenjax.interop import HubCheckpoint, Tensor
from qwenjax.interop.gguf.container import read_gguf

# GGUF's names and those of the layouts, without .weight and .bias; {} is the number of the layer
QWEN = {
    "token_embd": "transformer.wte",
    "blk.{}.attn_norm": "transformer.h.{}.ln_1",
    "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn",
    "blk.{}.attn_output": "transformer.h.{}.attn.c_proj",
    "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
    "blk.{}.ffn_gate": "transformer.h.{}.mlp.w2",
    "blk.{}.ffn_up": "transformer.h.{}.mlp.w1",
    "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
QWEN2 = {
    "token_embd": "model.embed_tokens",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}
ARCHITECTURES = {
    "qwen": ("qwen", QWEN),
    "qwen2": ("qwen2", QWEN2),
    "qwen3": ("qwen2", QWEN2),
    "llama": ("qwen2", QWEN2),
}
PAIRED = ("attn_q", "attn_k")  # architecture llama: rotary channels i and i + h/2 lie together in these

# Metadata that changes the mathematics in a way that our model does not have, unless the value says that it does not
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
    """A GGUF model of the architectures llama, qwen2, qwen3 or qwen (Qwen-1); of a split one, any of its parts.

    Tensors have the names and shapes of the layout "qwen2" (architecture qwen: "qwen") and rotary channels in its
    order. What is stored as float32, float16 or bfloat16 is read as that, every quantised type as float32. `files` is
    {"gguf": the metadata}, whose keys `tokenizer.…` describe the vocabulary. The format has no dynamic NTK, LogN or
    windows by layer, and `context` may be longer than what a Qwen-1 model was trained on: set these by hand.

    Raises:
      ValueError: no GGUF file, a damaged one, or one that describes a model that we do not have.
      FileNotFoundError: the file, or a part of it that is missing.
    """
    head, stored = read_gguf(path)
    try:
        architecture = head.get("general.architecture")
        if architecture not in ARCHITECTURES:
            raise ValueError(f"general.architecture={architecture!r} is not known; {', '.join(ARCHITECTURES)} are")
        if not stored:
            raise ValueError("it holds a vocabulary, but no model")
        if (factors := stored.pop("rope_freqs.weight", None)) and np.any(factors.read() != 1):
            raise ValueError("its rotary frequencies have factors (rope_freqs.weight, as in Llama 3.1); we have none")
        layout, names = ARCHITECTURES[architecture]
        config = _config(_Facts(head, architecture), stored)
        tensors = {}
        for name, tensor in stored.items():
            ours, stem = rename(name, names), name.split(".")[-2]
            if architecture == "llama" and stem in PAIRED:
                tensor = _halved(tensor, config.heads if stem == "attn_q" else config.kv)
            tensors[ours] = tensor
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return HubCheckpoint(config, layout, tensors, {"gguf": head})


def rename(name: str, names: dict[str, str]) -> str:
    """The name of a tensor by a table like `QWEN2`; the number of its layer and .weight or .bias stay.

    Raises:
      ValueError: a name that is not in the table.
    """
    stem, _, part = name.rpartition(".")
    number = re.search(r"(?<=\.)\d+(?=\.)", stem)
    found = names.get(stem.replace(number[0], "{}", 1) if number else stem)
    if found is None or part not in ("weight", "bias"):
        raise ValueError(f"a tensor {name!r} has no place in our model")
    return f"{found.format(number and number[0])}.{part}"


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows [(n h) …] that keep rotary pairs together, in our order: first channels of all pairs, then second ones."""
    return np.swapaxes(rows.reshape(heads, -1, 2, *rows.shape[1:]), 1, 2).reshape(rows.shape)


def pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `halves`."""
    return np.swapaxes(rows.reshape(heads, 2, -1, *rows.shape[1:]), 1, 2).reshape(rows.shape)


def _halved(tensor: Tensor, heads: int) -> Tensor:
    if tensor.shape[0] % (2 * heads):
        raise ValueError(f"{tensor.shape[0]} rows of queries or keys are not {heads} heads of even width")
    return tensor._replace(read=lambda: halves(tensor.read(), heads))


# ---- metadata ----


class _Facts:
    """Metadata of one architecture, checked for their type."""

    def __init__(self, head: dict[str, Any], architecture: str):
        self.head, self.architecture = head, architecture

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of ARCHITECTURE.key; one that is absent and has no default is an error, and so is another type."""
        name = f"{self.architecture}.{key}"
        value = self.head.get(name, default)
        if value is None:
            raise ValueError(f"it has no {name}")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"{name}={value!r:.80}: wanted one {kind.__name__}")
        # stored as float32: the shortest decimal is the number that was meant
        return float(str(np.float32(value))) if kind is float else value


def _config(facts: _Facts, stored: dict[str, Tensor]) -> ModelConfig:
    """The model's shape; what metadata do not say (biases, norms of heads, tied embeddings) the tensors do."""
    for key, without in ABSENT.items():
        if (value := facts.get(key, float, without)) != without:
            raise ValueError(f"{facts.architecture}.{key}={value:g} is something that our model does not have")
    qwen1 = facts.architecture == "qwen"
    layers, heads, embed = (facts.get(key, int) for key in ("block_count", "attention.head_count", "embedding_length"))
    if "token_embd.weight" not in stored:
        raise ValueError("it has no token_embd.weight")
    vocab = stored["token_embd.weight"].shape[0]
    tokens = len(facts.head.get("tokenizer.ggml.tokens", ()))
    if max(tokens, facts.get("vocab_size", int, vocab)) > vocab:
        raise ValueError(f"its vocabulary has {tokens} tokens, but its embedding only {vocab} rows")
    usual = embed // heads if heads and embed % heads == 0 else None
    width = facts.get("attention.key_length", int, usual)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (other := facts.get(key, int, width)) != width:
            raise ValueError(f"{facts.architecture}.{key}={other}, but heads are {width} wide; our model has one width")
    context = facts.get("context_length", int)
    window = facts.get("attention.sliding_window", int, 0)
    kv = facts.get("attention.head_count_kv", int, heads)
    return ModelConfig(
        vocab=vocab,
        layers=layers,
        embed=embed,
        heads=heads,
        ffn=facts.get("feed_forward_length", int) // (2 if qwen1 else 1),  # of both halves, as in its config.json
        kv_heads=0 if kv == heads else kv,
        head_dim=0 if width * heads == embed else width,
        context=context,
        rope_base=facts.get("rope.freq_base", float, 10_000.0),
        norm_eps=facts.get("attention.layer_norm_rms_epsilon", float),
        qkv_bias=qwen1 or "blk.0.attn_q.bias" in stored,
        qk_norm="blk.0.attn_q_norm.weight" in stored,
        tie_embeddings="output.weight" not in stored,
        rope_scaling=_scaling(facts),
        windows=(window,) * layers if 0 < window < context else (),
    )


def _scaling(facts: _Facts) -> RopeScaling:
    """As llama.cpp reads it: a factor without a type is linear, and none is 1."""
    kind = facts.get("rope.scaling.type", str, "linear")
    factor = facts.get("rope.scaling.factor", float, 0.0) or facts.get("rope.scale_linear", float, 0.0) or 1.0
    if kind == "none" or factor == 1:
        return RopeScaling()
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind != "yarn":
        raise ValueError(f"{facts.architecture}.rope.scaling.type={kind!r} is not known; none, linear and yarn are")
    original, context = facts.get("rope.scaling.original_context_length", int, 0), facts.get("context_length", int)
    return RopeScaling(
        kind,
        factor,
        original=0 if original == context else original,
        beta_fast=facts.get("rope.scaling.yarn_beta_fast", float, 32.0),
        beta_slow=facts.get("rope.scaling.yarn_beta_slow", float, 1.0),
    )
