"""What an op is: its kind (matmul, all-gather, …) from its opcode, and its part of the model from JAX's name stack."""

import re
from typing import NamedTuple

from qwenjax.xla.hlo import HloOp, read_computations

MATMUL, ATTENTION, KERNEL = "matmul", "attention kernel", "custom kernel"
MEMORY, CONTROL, TRANSFER = "element-wise and memory", "control flow", "infeed and host transfer"
UNKNOWN = "unknown"  # the trace does not say what the op is, and its name does not either

_NCCL = {"AllGather": "all-gather", "AllReduce": "all-reduce", "ReduceScatter": "reduce-scatter"}
_NCCL |= {"SendRecv": "collective-permute", "Broadcast": "collective-broadcast"}
_COLLECTIVE = re.compile(f"^(?:async-)?({'|'.join(_NCCL.values())}|ragged-all-to-all|all-to-all)")
_KERNEL = re.compile(rf"^nccl\w*?_({'|'.join(_NCCL)})")
# of XLA's opcodes and xprof's categories, and of the kernels in the libraries that XLA calls on GPUs
_MATMUL = re.compile(r"\b(dot(_general)?|convolution|ragged-dot|output fusion)\b|gemm|matmul|cublas|nvjet|cutlass")
_ATTENTION = re.compile(r"attn|attention|splash|flash|fmha|sdpa")
_TRANSFER = re.compile(r"infeed|outfeed|\b(send|recv)(-done)?\b|host transfer|memcpy(h2d|d2h)|copy-to-host")
_CONTROL = re.compile(r"^(while|conditional|call|tuple|async-start|async-done|async-update)$")

# parts of a scope that JAX's transformations add
_STRUCTURE = re.compile(
    r"^(while|body|cond|closed_call|checkpoint|rematted_computation|shard_map|pjit|custom_[jv]{2}p_call\w*|branch_\d+_fun)$"
)
_WRAPPED = re.compile(r"^\w+\((.*)\)$")


class ScopedOp(NamedTuple):
    """What is known of an op besides its name."""

    category: str = ""  # XLA's opcode or xprof's category
    scope: str = ""  # as JAX recorded it
    flop_rate: float = 0.0  # FLOP/s while it ran, where the trace says so


class Scope(NamedTuple):
    """The model's name of an op, e.g. Transformer/blocks/mlp, btf,df->btd, backward."""

    path: str
    primitive: str
    direction: str  # forward, backward, recompute, or "" outside of a gradient

    def __str__(self) -> str:
        return " ".join(filter(None, self))


def collective(name: str, category: str = "") -> str:
    """all-gather, all-reduce, … of an op, else the empty string."""
    for text in (category, name):
        if match := _COLLECTIVE.match(text):
            return match[1]
    match = _KERNEL.match(name)
    return _NCCL[match[1]] if match else ""


def kind(name: str, op: ScopedOp) -> str:
    """The row of the report that an op's time belongs to."""
    if collective_kind := collective(name, op.category):
        return collective_kind
    text = (op.category or name).lower()
    if _CONTROL.match(text):
        return CONTROL
    if _TRANSFER.search(text):
        return TRANSFER
    custom = text.startswith("custom")  # a kernel from outside XLA; its scope says what it computes
    if (custom or not op.category) and _ATTENTION.search(f"{text} {name} {op.scope}".lower() if custom else text):
        return ATTENTION
    if _MATMUL.search(text):
        return MATMUL
    if custom:
        return KERNEL
    return MEMORY if op.category or re.match("memcpy|memset", text) else UNKNOWN


def scoped_ops(hlo: str) -> dict[str, ScopedOp]:
    """Category and scope of every instruction of a program, from its text.

    A fusion that multiplies matrices is a "convolution fusion", as in xprof, and has the scope of the multiplication;
    any other is a "loop fusion".
    """
    computations, _ = read_computations(hlo)

    def classify(op: HloOp) -> ScopedOp:
        if op.opcode not in ("fusion", "async-start") or not (called := op.called("calls")):
            return ScopedOp(f"custom-call {op.target}".strip() if op.opcode == "custom-call" else op.opcode, op.scope)
        inner = [classify(one) for one in computations.get(called[0], ())]
        for one in inner:
            if collective("", one.category) or one.category.startswith("custom-call"):
                return ScopedOp(one.category, op.scope)
        for one in inner:
            if re.match("dot|convolution|ragged-dot", one.category):
                return ScopedOp("convolution fusion", one.scope or op.scope)
        return ScopedOp("loop fusion", op.scope)

    return {op.name: classify(op) for ops in computations.values() for op in ops}


def scope(text: str) -> Scope:
    """jit(f)/transpose(jvp(Transformer))/closed_call/blocks/mlp/btf,df->btd/dot_general, as a person would say it."""
    text = text.split(";")[0].rstrip(":")
    if text.endswith(")") and "/(" in text:  # collectives that XLA combined: common/path/(one:another:…)
        common, _, combined = text.partition("/(")
        text = f"{common}/{combined.count(':') + 1} combined"
    parts = re.split(r"/(?![^()]*\))", text)
    if "rematted_computation" in parts:
        direction = "recompute"
    elif any(part.startswith("transpose(") for part in parts):
        direction = "backward"
    else:
        direction = "forward" if any(part.startswith("jvp(") for part in parts) else ""
    path, primitive = [], parts[-1]
    for part in parts[:-1]:
        if "->" in part:  # an einsum says more than the dot_general that it becomes
            primitive = part
        if part.startswith(("jit(", "pjit(")) or _STRUCTURE.match(part) or "->" in part:
            continue
        while match := _WRAPPED.match(part):
            part = match[1]
        if part:
            path.append(part)
    return Scope("/".join(path), primitive, direction)
