"""Names: one table per layout from our parameters to the tensors of released checkpoints, read in both directions.

Axes: v vocab, d embed, n heads, k key/value heads, h head size, f ffn; the rows of `(n h) d` are the channels of all
heads. `{}` is the number of the layer; our parameters have a first axis `layers` instead. Where several entries name
one tensor (the c_attn of Qwen-v1), its rows are theirs in this order.
"""

import math
import re
from typing import NamedTuple

import numpy as np

from qwenjax.config import ModelConfig

LAYOUTS = ("qwen", "qwen2")


class LayoutEntry(NamedTuple):
    """One parameter of ours and its tensor in a layout."""

    ours: str  # path in the parameter tree
    axes: str  # of ours, without `layers`
    theirs: str  # name of the tensor
    stored: str  # axes of theirs
    gguf: str  # name of the tensor in GGUF files, without .weight or .bias

    @property
    def stacked(self) -> bool:
        """Whether the layout has one tensor per layer."""
        return "{}" in self.theirs


_BLOCK, _ATTN, _MLP = "transformer.h.{}.", "transformer.h.{}.attn.", "transformer.h.{}.mlp."
QWEN = (  # docs/report.md, Checkpoint layout; w2 is the gate, w1 the up projection
    LayoutEntry("embed", "v d", "transformer.wte.weight", "v d", "token_embd"),
    LayoutEntry("blocks/norm1/scale", "d", _BLOCK + "ln_1.weight", "d", "blk.{}.attn_norm"),
    LayoutEntry("blocks/attn/q", "d n h", _ATTN + "c_attn.weight", "(n h) d", "blk.{}.attn_qkv"),
    LayoutEntry("blocks/attn/k", "d k h", _ATTN + "c_attn.weight", "(k h) d", "blk.{}.attn_qkv"),
    LayoutEntry("blocks/attn/v", "d k h", _ATTN + "c_attn.weight", "(k h) d", "blk.{}.attn_qkv"),
    LayoutEntry("blocks/attn/q_bias", "n h", _ATTN + "c_attn.bias", "(n h)", "blk.{}.attn_qkv"),
    LayoutEntry("blocks/attn/k_bias", "k h", _ATTN + "c_attn.bias", "(k h)", "blk.{}.attn_qkv"),
    LayoutEntry("blocks/attn/v_bias", "k h", _ATTN + "c_attn.bias", "(k h)", "blk.{}.attn_qkv"),
    LayoutEntry("blocks/attn/o", "n h d", _ATTN + "c_proj.weight", "d (n h)", "blk.{}.attn_output"),
    LayoutEntry("blocks/norm2/scale", "d", _BLOCK + "ln_2.weight", "d", "blk.{}.ffn_norm"),
    LayoutEntry("blocks/mlp/up", "d f", _MLP + "w1.weight", "f d", "blk.{}.ffn_up"),
    LayoutEntry("blocks/mlp/gate", "d f", _MLP + "w2.weight", "f d", "blk.{}.ffn_gate"),
    LayoutEntry("blocks/mlp/down", "d f", _MLP + "c_proj.weight", "d f", "blk.{}.ffn_down"),
    LayoutEntry("norm/scale", "d", "transformer.ln_f.weight", "d", "output_norm"),
    LayoutEntry("head", "d v", "lm_head.weight", "v d", "output"),
)

_BLOCK, _ATTN, _MLP = "model.layers.{}.", "model.layers.{}.self_attn.", "model.layers.{}.mlp."
QWEN2 = (  # docs/report.md, Checkpoint layout; Qwen1.5 to 3 and Llama
    LayoutEntry("embed", "v d", "model.embed_tokens.weight", "v d", "token_embd"),
    LayoutEntry("blocks/norm1/scale", "d", _BLOCK + "input_layernorm.weight", "d", "blk.{}.attn_norm"),
    LayoutEntry("blocks/attn/q", "d n h", _ATTN + "q_proj.weight", "(n h) d", "blk.{}.attn_q"),
    LayoutEntry("blocks/attn/k", "d k h", _ATTN + "k_proj.weight", "(k h) d", "blk.{}.attn_k"),
    LayoutEntry("blocks/attn/v", "d k h", _ATTN + "v_proj.weight", "(k h) d", "blk.{}.attn_v"),
    LayoutEntry("blocks/attn/q_bias", "n h", _ATTN + "q_proj.bias", "(n h)", "blk.{}.attn_q"),
    LayoutEntry("blocks/attn/k_bias", "k h", _ATTN + "k_proj.bias", "(k h)", "blk.{}.attn_k"),
    LayoutEntry("blocks/attn/v_bias", "k h", _ATTN + "v_proj.bias", "(k h)", "blk.{}.attn_v"),
    LayoutEntry("blocks/attn/q_norm", "h", _ATTN + "q_norm.weight", "h", "blk.{}.attn_q_norm"),
    LayoutEntry("blocks/attn/k_norm", "h", _ATTN + "k_norm.weight", "h", "blk.{}.attn_k_norm"),
    LayoutEntry("blocks/attn/o", "n h d", _ATTN + "o_proj.weight", "d (n h)", "blk.{}.attn_output"),
    LayoutEntry("blocks/norm2/scale", "d", _BLOCK + "post_attention_layernorm.weight", "d", "blk.{}.ffn_norm"),
    LayoutEntry("blocks/mlp/gate", "d f", _MLP + "gate_proj.weight", "f d", "blk.{}.ffn_gate"),
    LayoutEntry("blocks/mlp/up", "d f", _MLP + "up_proj.weight", "f d", "blk.{}.ffn_up"),
    LayoutEntry("blocks/mlp/down", "d f", _MLP + "down_proj.weight", "d f", "blk.{}.ffn_down"),
    LayoutEntry("norm/scale", "d", "model.norm.weight", "d", "output_norm"),
    LayoutEntry("head", "d v", "lm_head.weight", "v d", "output"),
)


class TensorPart(NamedTuple):
    """Rows `start` to `stop` of a tensor: one layer of a parameter, or all of one that is not stacked."""

    entry: LayoutEntry
    layer: int | None
    start: int
    stop: int


class Table:
    """A layout for one model: its tensors, their shapes, and how they become parameters."""

    def __init__(self, config: ModelConfig, layout: str):
        """Raises ValueError for an unknown layout, or a model that the layout has no tensors for."""
        if layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r} is unknown; known: {', '.join(LAYOUTS)}")
        if not config.plain:
            fields = f"gated={config.gated}, norm={config.norm!r}, rope_dtype={config.rope_dtype!r}"
            raise ValueError(f"no other program has models with {fields}: qwenjax keeps such models as runs only")
        present = {"_bias": config.qkv_bias, "_norm": config.qk_norm, "head": not config.tie_embeddings}
        absent = tuple(ending for ending, there in present.items() if not there)
        if layout == "qwen":
            _check_qwen(config)
        self.sizes = {
            "v": config.vocab, "d": config.embed, "n": config.heads, "k": config.kv, "h": config.head_size,
            "f": config.ffn,
        }  # fmt: skip
        self.entries = tuple(x for x in (QWEN if layout == "qwen" else QWEN2) if not x.ours.endswith(absent))
        self.parts: dict[str, list[TensorPart]] = {}  # by name of the tensor, in order of its rows
        for layer in (None, *range(config.layers)):
            for entry in self.entries:
                if entry.stacked == (layer is not None):
                    parts = self.parts.setdefault(entry.theirs.format(layer), [])
                    start = parts[-1].stop if parts else 0
                    parts.append(TensorPart(entry, layer, start, start + self._stored_shape(entry)[0]))

    def _stored_shape(self, entry: LayoutEntry) -> tuple[int, ...]:
        """Shape of the part of a tensor that holds this parameter."""
        return tuple(math.prod(self.sizes[a] for a in group) for group in _groups(entry.stored))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor of theirs."""
        parts = self.parts[name]
        return (parts[-1].stop, *self._stored_shape(parts[-1].entry)[1:])

    def ours_shape(self, entry: LayoutEntry) -> tuple[int, ...]:
        """Shape of a parameter of ours, without the `layers` axis."""
        return tuple(self.sizes[a] for a in entry.axes.split())

    def to_ours(self, part: TensorPart, tensor: np.ndarray) -> np.ndarray:
        """One layer of a parameter, as a view of the tensor."""
        order = re.findall(r"\w", part.entry.stored)
        split = tensor[part.start : part.stop].reshape([self.sizes[a] for a in order])
        return split.transpose([order.index(a) for a in part.entry.axes.split()])

    def to_theirs(self, name: str, layers: list[np.ndarray]) -> np.ndarray:
        """A tensor of theirs from one layer of each parameter in it, in the order of `parts[name]`."""
        blocks = []
        for part, ours in zip(self.parts[name], layers, strict=True):
            order, axes = re.findall(r"\w", part.entry.stored), part.entry.axes.split()
            blocks.append(ours.transpose([axes.index(a) for a in order]).reshape(self._stored_shape(part.entry)))
        return np.ascontiguousarray(blocks[0] if len(blocks) == 1 else np.concatenate(blocks))


def _groups(stored: str) -> list[list[str]]:
    """`(n h) d` -> [[n, h], [d]]: the axes of ours that each axis of theirs is made of."""
    return [group.strip("()").split() for group in re.findall(r"\(.*?\)|\w+", stored)]


def _check_qwen(config: ModelConfig) -> None:
    """Raises ValueError for what the released code of Qwen-v1 does not compute."""
    lacks = [
        (config.kv != config.heads, f"grouped key/value heads (kv_heads={config.kv}, heads={config.heads})"),
        (config.qk_norm, "norms of queries and keys (qk_norm)"),
        (not config.qkv_bias, "projections without biases (qkv_bias=False)"),
        (config.rope_scaling.kind != "none", f"rotary scaling ({config.rope_scaling.kind})"),
        (config.heads * config.head_size != config.embed, "heads that are not embed / heads wide (head_dim)"),
    ]
    for there, what in lacks:
        if there:
            raise ValueError(f"the Qwen-v1 layout has no {what}; use --to=qwen2 (layout='qwen2')")
