"""The one reader of compiled programs as text (HLO): computations and their instructions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "s4": 0.5, "u4": 0.5}
# The end of a line that goes on in the next one: the metadata of kernels spreads some instructions over several.
_CONTINUED = re.compile(r"\n(?!  +(ROOT )?%|%|ENTRY|\}$|HloModule|$)", re.MULTILINE)
NO_WORK = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}


@dataclass
class HloOp:
    """One instruction."""

    name: str
    type: str  # of its result, as HLO writes it: bf16[8,128]{1,0} or a tuple (…)
    opcode: str
    operands: list[str]
    text: str  # everything from the opcode on

    @property
    def bytes(self) -> float:
        """Bytes of its result; of a tuple, the sum over its elements."""
        return type_bytes(self.type)

    @property
    def dims(self) -> list[int]:
        """Dimensions of its result; of a tuple, those of its first element."""
        first = re.search(r"\[([\d,]*)\]", self.type)
        return [int(n) for n in first[1].split(",") if n] if first else []

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate; None where it made none."""
        cycles = self._search(r'"estimated_cycles":"(\d+)"')
        return int(cycles) if cycles else None

    @property
    def scope(self) -> str:
        """JAX's name stack, such as jit(step)/jvp(Transformer)/blocks/mlp/dot_general; '' if unknown."""
        return self._search(r'op_name="([^"]*)"')

    @property
    def channel(self) -> str:
        """Channel of a collective, which copies of one instruction share."""
        return self._search(r"channel_id=(\d+)")

    @property
    def target(self) -> str:
        """The kernel that a custom-call runs."""
        return self._search(r'custom_call_target="([^"]*)"')

    def called(self, *roles: str) -> list[str]:
        """Names of the computations that it calls in the given roles, such as calls, body or to_apply."""
        return [name for role in roles for name in re.findall(rf"{role}=\{{?%?([\w.\-]+)", self.text)]

    def _search(self, pattern: str) -> str:
        match = re.search(pattern, self.text)
        return match[1] if match else ""


def read_computations(text: str) -> tuple[dict[str, list[HloOp]], str]:
    """The instructions of every computation by its name, and the name of the entry computation ('' if none)."""
    computations: dict[str, list[HloOp]] = {}
    entry, current = "", None
    for line in _CONTINUED.sub(" ", text).split("\n"):
        if match := re.match(r"(?:(ENTRY )%?|%)([\w.\-]+).*\{\s*$", line):
            current = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif line == "}":
            current = None
        elif current is not None and (op := _read_op(line)):
            current.append(op)
    return computations, entry


class HloProgram:
    """A scheduled HLO module. Raises ValueError if the text has no ENTRY computation."""

    def __init__(self, text: str):
        self.text = text
        self.computations, self.entry = read_computations(text)
        if not self.entry:
            raise ValueError("this is no HLO text: it has no ENTRY computation")

    def executed(self) -> list[HloOp]:
        """Instructions of the entry and of the bodies of loops, without those inside fusions."""
        names, ops = [self.entry], []
        for name in names:  # grows during the loop
            for op in self.computations[name]:
                if op.opcode in ("while", "call"):
                    names += [called for called in op.called("body", "to_apply") if called not in names]
                if op.opcode not in NO_WORK:
                    ops.append(op)
        return ops

    @cached_property
    def split_channels(self) -> set[str]:
        """Channels of collectives that are fused into compute in several parts: a start, steps and an end."""
        starts = filter(starts_collective, self.computations.values())
        return {op.channel for ops in starts for op in ops} - {""}


def starts_collective(ops: Sequence[HloOp]) -> bool:
    """Whether a fused computation is the first part of a collective that runs at the same time as compute."""
    return any(op.opcode == "custom-call" and op.target == "AsyncCollectiveStart" for op in ops)


def type_bytes(text: str) -> float:
    """Bytes of an array or tuple type."""
    parts = re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", re.sub(r"/\*.*?\*/", "", text))
    return sum(BYTES[kind] * prod(int(n) for n in dims.split(",") if n) for kind, dims in parts if kind in BYTES)


def group_size(text: str) -> int:
    """Devices in one replica group of a collective, from any of the forms HLO has for it."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(match[1].split(","))
    return 1


def _read_op(line: str) -> HloOp | None:
    match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line)
    if not match:
        return None
    name, definition = match.groups()
    end = _closing(definition) + 1 if definition.startswith("(") else definition.find(" ")
    result_type, text = definition[:end], definition[end:].lstrip()
    opcode = re.match(r"([a-z][a-z0-9\-]*)\(", text)
    if not opcode:
        return None
    start = len(opcode[1])
    operands = re.findall(r"%([\w.\-]+)", text[start : start + _closing(text[start:])])
    return HloOp(name, result_type, opcode[1], operands, text)


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the first one; the length of the text if none does."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == ")":
            return i
    return len(text)
