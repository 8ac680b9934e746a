"""The text of a compiled program (scheduled HLO), read: computations, instructions, and the source line of each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "s4": 0.5, "u4": 0.5}
NO_WORK = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}


@dataclass
class HloOp:
    """One instruction."""

    name: str
    type: str  # of its result, as HLO writes it
    opcode: str
    operands: list[str]
    text: str  # everything from the opcode on

    @property
    def bytes(self) -> float:
        """Of its result, all parts of a tuple together."""
        return type_bytes(self.type)

    @property
    def dims(self) -> list[int]:
        """Of its result (of a tuple's first part)."""
        found = re.search(r"\[([\d,]*)\]", self.type)
        return [int(n) for n in found[1].split(",") if n] if found else []

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate, if it made one."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return int(found[1]) if found else None

    @property
    def scope(self) -> str:
        """Where it comes from in the model: jax's name stack."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ""

    @property
    def channel(self) -> str:
        """Of a collective; copies of one instruction share it, and so do layers of an unrolled loop."""
        found = re.search(r"channel_id=(\d+)", self.text)
        return found[1] if found else ""

    def called(self, *roles: str) -> list[str]:
        """Names of the computations it calls in the given roles."""
        return [name for role in roles for name in re.findall(rf"{role}=\{{?%?([\w.\-]+)", self.text)]


class HloProgram:
    """A scheduled HLO module."""

    def __init__(self, text: str):
        self.text = text
        self.computations: dict[str, list[HloOp]] = {}
        self.entry = ""
        current = None
        for line in _whole_lines(text):
            if line.startswith(("%", "ENTRY")) and line.rstrip().endswith("{"):
                entry, name = re.match(r"(ENTRY )?%?([\w.\-]+)", line).groups()
                current = self.computations.setdefault(name, [])
                self.entry = name if entry else self.entry
            elif line == "}":
                current = None
            elif current is not None and (op := _op(line)):
                current.append(op)
        if not self.entry:
            raise ValueError("this is no HLO text: it has no ENTRY computation")

    def executed(self) -> list[HloOp]:
        """Every instruction that runs as such, in the entry and in the bodies of loops; not the inside of fusions."""
        names, found = [self.entry], []
        for name in names:  # grows meanwhile
            for op in self.computations[name]:
                inner = (
                    op.called("body") if op.opcode == "while" else op.called("to_apply") if op.opcode == "call" else []
                )
                names += [n for n in inner if n not in names]
                if op.opcode not in NO_WORK:
                    found.append(op)
        return found

    @cached_property
    def channels_in_parts(self) -> set[str]:
        """Of the collectives that are fused into compute in several parts: a start, steps and an end."""
        starts = filter(starts_collective, self.computations.values())
        return {op.channel for ops in starts for op in ops} - {""}

    @cached_property
    def _tables(self) -> dict[str, dict[int, str]]:
        """The tables of files, locations and stack frames at the head of the text."""
        tables: dict[str, dict[int, str]] = {}
        current = None
        for line in self.text.split("\n"):
            if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
                current = tables.setdefault(line, {})
            elif current is not None and (row := re.match(r"(\d+) (.*)", line)):
                current[int(row[1])] = row[2]
            elif line.startswith(("%", "ENTRY")):
                break
        return tables

    def source(self, op: HloOp) -> str:
        """FILE:LINE of the innermost line of this package that made an instruction; '' if unknown."""
        found = re.search(r"stack_frame_id=(\d+)", op.text)
        frame = int(found[1]) if found else 0
        seen = set()
        while frame and frame not in seen and (row := self._tables.get("StackFrames", {}).get(frame)):
            seen.add(frame)
            place, parent = map(int, re.findall(r"_id=(\d+)", row))
            location = self._tables["FileLocations"][place]
            file = self._tables["FileNames"][int(re.search(r"file_name_id=(\d+)", location)[1])].strip('"')
            if "/qwenjax/" in file:
                line = re.search(r"line=(\d+)", location)[1]
                return f"qwenjax/{file.rpartition('/qwenjax/')[2]}:{line}"
            frame = parent
        return ""


def starts_collective(ops: Sequence[HloOp]) -> bool:
    """Whether this fused computation is the first part of a collective that runs beside compute."""
    return any(op.opcode == "custom-call" and "AsyncCollectiveStart" in op.text for op in ops)


def type_bytes(text: str) -> float:
    """Bytes of an array or tuple type."""
    parts = re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", re.sub(r"/\*.*?\*/", "", text))
    return sum(BYTES[kind] * prod(int(n) for n in dims.split(",") if n) for kind, dims in parts if kind in BYTES)


def group_size(text: str) -> int:
    """Devices in one replica group of a collective, from any of the forms HLO has for it."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(found[1].split(","))
    return 1


def _whole_lines(text: str) -> list[str]:
    """Lines of the text; the metadata of kernels breaks instructions over several."""
    lines: list[str] = []
    for line in text.split("\n"):
        if re.match(r"  +(ROOT )?%|%|ENTRY|\}$|HloModule|$", line):
            lines.append(line)
        elif lines:
            lines[-1] += " " + line
    return lines


def _op(line: str) -> HloOp | None:
    found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line)
    if not found:
        return None
    name, rest = found.groups()
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    kind, text = rest[:end], rest[end:].lstrip()
    opcode = re.match(r"([a-z][a-z0-9\-]*)\(", text)
    if not opcode:
        return None
    start = len(opcode[1])
    operands = re.findall(r"%([\w.\-]+)", text[start : start + _closing(text[start:])])
    return HloOp(name, kind, opcode[1], operands, text)


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the first one."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == ")":
            return i
    return len(text)
