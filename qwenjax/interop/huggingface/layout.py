"""Names: one table per layout from our parameters to the tensors of released checkpoints, read in both directions.

A row says where a parameter lies and how its axes are laid out on either side, in the letters of the model: `v`
vocabulary, `d` embed, `n` heads, `k` key/value heads, `h` head width, `f` ffn. `(n h) d` is a matrix whose rows are the
channels of all heads. `{}` is the number of the layer; ours are stacked on a first axis `layers` instead. Rows that
name one tensor several times say in which block of its rows each parameter lies (the c_attn of Qwen-v1).
"""

import math
from typing import NamedTuple

import numpy as np

from qwenjax.config import ModelConfig

LAYOUTS = ("qwen", "qwen2")


class LayoutRow(NamedTuple):
    """One parameter of ours and where a layout keeps it."""

    ours: str  # path in the parameter tree
    axes: str  # of ours, without `layers`
    theirs: str  # name of the tensor
    stored: str  # axes of theirs

    @property
    def stacked(self) -> bool:
        """Whether there is one tensor of theirs per layer."""
        return "{}" in self.theirs


_BLOCK, _ATTN, _MLP = "transformer.h.{}.", "transformer.h.{}.attn.", "transformer.h.{}.mlp."
QWEN = (  # spec §3.3; w2 is the gate, w1 the up projection
    LayoutRow("embed", "v d", "transformer.wte.weight", "v d"),
    LayoutRow("blocks/norm1/scale", "d", _BLOCK + "ln_1.weight", "d"),
    LayoutRow("blocks/attn/q", "d n h", _ATTN + "c_attn.weight", "(n h) d"),
    LayoutRow("blocks/attn/k", "d k h", _ATTN + "c_attn.weight", "(k h) d"),
    LayoutRow("blocks/attn/v", "d k h", _ATTN + "c_attn.weight", "(k h) d"),
    LayoutRow("blocks/attn/q_bias", "n h", _ATTN + "c_attn.bias", "(n h)"),
    LayoutRow("blocks/attn/k_bias", "k h", _ATTN + "c_attn.bias", "(k h)"),
    LayoutRow("blocks/attn/v_bias", "k h", _ATTN + "c_attn.bias", "(k h)"),
    LayoutRow("blocks/attn/o", "n h d", _ATTN + "c_proj.weight", "d (n h)"),
    LayoutRow("blocks/norm2/scale", "d", _BLOCK + "ln_2.weight", "d"),
    LayoutRow("blocks/mlp/up", "d f", _MLP + "w1.weight", "f d"),
    LayoutRow("blocks/mlp/gate", "d f", _MLP + "w2.weight", "f d"),
    LayoutRow("blocks/mlp/down", "d f", _MLP + "c_proj.weight", "d f"),
    LayoutRow("norm/scale", "d", "transformer.ln_f.weight", "d"),
    LayoutRow("head", "d v", "lm_head.weight", "v d"),
)

_BLOCK, _ATTN, _MLP = "model.layers.{}.", "model.layers.{}.self_attn.", "model.layers.{}.mlp."
QWEN2 = (  # spec §3.4; Qwen1.5 to 3 and everything Llama-shaped
    LayoutRow("embed", "v d", "model.embed_tokens.weight", "v d"),
    LayoutRow("blocks/norm1/scale", "d", _BLOCK + "input_layernorm.weight", "d"),
    LayoutRow("blocks/attn/q", "d n h", _ATTN + "q_proj.weight", "(n h) d"),
    LayoutRow("blocks/attn/k", "d k h", _ATTN + "k_proj.weight", "(k h) d"),
    LayoutRow("blocks/attn/v", "d k h", _ATTN + "v_proj.weight", "(k h) d"),
    LayoutRow("blocks/attn/q_bias", "n h", _ATTN + "q_proj.bias", "(n h)"),
    LayoutRow("blocks/attn/k_bias", "k h", _ATTN + "k_proj.bias", "(k h)"),
    LayoutRow("blocks/attn/v_bias", "k h", _ATTN + "v_proj.bias", "(k h)"),
    LayoutRow("blocks/attn/q_norm", "h", _ATTN + "q_norm.weight", "h"),
    LayoutRow("blocks/attn/k_norm", "h", _ATTN + "k_norm.weight", "h"),
    LayoutRow("blocks/attn/o", "n h d", _ATTN + "o_proj.weight", "d (n h)"),
    LayoutRow("blocks/norm2/scale", "d", _BLOCK + "post_attention_layernorm.weight", "d"),
    LayoutRow("blocks/mlp/gate", "d f", _MLP + "gate_proj.weight", "f d"),
    LayoutRow("blocks/mlp/up", "d f", _MLP + "up_proj.weight", "f d"),
    LayoutRow("blocks/mlp/down", "d f", _MLP + "down_proj.weight", "d f"),
    LayoutRow("norm/scale", "d", "model.norm.weight", "d"),
    LayoutRow("head", "d v", "lm_head.weight", "v d"),
)


class TensorPart(NamedTuple):
    """Where one layer of one parameter lies: rows `start` to `stop` of a tensor."""

    row: LayoutRow
    layer: int | None  # None: the parameter is not stacked
    start: int
    stop: int


class Table:
    """A layout for one model: which tensors there are, of which shape, and how they become parameters.

    Attributes:
      rows: those of the layout that the model has (no biases without `qkv_bias`, no head when it is tied, …).
      parts: tensor name -> the parts of parameters in it, in order of their rows.
    """

    def __init__(self, config: ModelConfig, layout: str):
        """Raises ValueError for an unknown layout, and for a model that the layout has no tensors for."""
        if layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r} is unknown; known: {', '.join(LAYOUTS)}")
        if not config.plain:
            raise ValueError(
                f"no checkpoint of others has gated={config.gated}, norm={config.norm!r}, "
                f"rope_dtype={config.rope_dtype!r}: such models are read and written as runs of ours alone"
            )
        absent = set()
        if not config.qkv_bias:
            absent |= {f"blocks/attn/{name}_bias" for name in "qkv"}
        if not config.qk_norm:
            absent |= {"blocks/attn/q_norm", "blocks/attn/k_norm"}
        if config.tie_embeddings:
            absent.add("head")
        if layout == "qwen":
            _check_qwen(config)
        self.sizes = {
            "v": config.vocab, "d": config.embed, "n": config.heads, "k": config.kv, "h": config.head_size,
            "f": config.ffn,
        }  # fmt: skip
        self.rows = tuple(row for row in (QWEN if layout == "qwen" else QWEN2) if row.ours not in absent)
        self.parts: dict[str, list[TensorPart]] = {}
        for row in self.rows:
            if not row.stacked:
                self._add(row, None)
        for layer in range(config.layers):
            for row in self.rows:
                if row.stacked:
                    self._add(row, layer)

    def _add(self, row: LayoutRow, layer: int | None) -> None:
        parts = self.parts.setdefault(row.theirs.format(layer), [])
        start = parts[-1].stop if parts else 0
        parts.append(TensorPart(row, layer, start, start + self._extents(row)[0]))

    def _extents(self, row: LayoutRow) -> tuple[int, ...]:
        """Shape of the part of a tensor that holds this parameter."""
        return tuple(math.prod(self.sizes[a] for a in group) for group in _groups(row.stored))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor of theirs."""
        parts = self.parts[name]
        return (parts[-1].stop, *self._extents(parts[-1].row)[1:])

    def ours_shape(self, row: LayoutRow) -> tuple[int, ...]:
        """Shape of a parameter of ours, without the `layers` axis."""
        return tuple(self.sizes[a] for a in row.axes.split())

    def to_ours(self, part: TensorPart, tensor: np.ndarray) -> np.ndarray:
        """One layer of a parameter, as a view of the tensor where it lies."""
        order = [a for group in _groups(part.row.stored) for a in group]
        axes = part.row.axes.split()
        split = tensor[part.start : part.stop].reshape([self.sizes[a] for a in order])
        return split.transpose([order.index(a) for a in axes])

    def to_theirs(self, name: str, layers: list[np.ndarray]) -> np.ndarray:
        """A tensor of theirs from one layer of each parameter in it, in the order of `parts[name]`."""
        blocks = []
        for part, ours in zip(self.parts[name], layers, strict=True):
            order = [a for group in _groups(part.row.stored) for a in group]
            axes = part.row.axes.split()
            blocks.append(ours.transpose([axes.index(a) for a in order]).reshape(self._extents(part.row)))
        return np.ascontiguousarray(blocks[0] if len(blocks) == 1 else np.concatenate(blocks))


def _groups(stored: str) -> list[list[str]]:
    """`(n h) d` -> [[n, h], [d]]: the axes of ours that each axis of theirs is made of."""
    groups, open_ = [], False
    for word in stored.replace("(", "( ").replace(")", " )").split():
        if word in "()":
            open_ = word == "("
            if open_:
                groups.append([])
        elif open_:
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def _check_qwen(config: ModelConfig) -> None:
    """What the v1 names and the released code cannot hold."""
    lacks = [
        (config.kv != config.heads, f"grouped key/value heads (kv_heads={config.kv}, heads={config.heads})"),
        (config.qk_norm, "norms of queries and keys (qk_norm)"),
        (not config.qkv_bias, "projections without biases (qkv_bias=False)"),
        (config.rope_scaling.kind != "none", f"rotary scaling ({config.rope_scaling.kind})"),
        (config.heads * config.head_size != config.embed, "heads that are not embed / heads wide (head_dim)"),
    ]
    for there, what in lacks:
        if there:
            raise ValueError(f"the Qwen-v1 layout has no {what}; write it with layout='qwen2'")
