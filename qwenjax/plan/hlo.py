"""What a compiled TPU program costs, read from its scheduled HLO text.

`cost_analysis()` counts the body of every loop once, gives some operations -1 s and collectives almost nothing; a model
that scans over its layers cannot be priced with it. Here every instruction is taken times the trips of the loops around
it: the compiler's own `estimated_cycles`, the FLOPs of matmuls, and the bytes that collectives move. Kernels written in
Pallas carry no estimate and are returned by name, for the caller to price.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, prod

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "s4": 0.5, "u4": 0.5}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
NO_WORK = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}


@dataclass
class Op:
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

    def called(self, *roles: str) -> list[str]:
        """Names of the computations it calls in the given roles."""
        return [name for role in roles for name in re.findall(rf"{role}=\{{?%?([\w.\-]+)", self.text)]


@dataclass
class Collective:
    """One collective operation of the program."""

    kind: str
    bytes: float  # that its result has, or, for a reduce-scatter, its operand
    trips: int
    group: int  # devices that take part together
    hidden: bool  # asynchronous: compute goes on meanwhile
    type: str


@dataclass
class Costs:
    """Of one step on one chip."""

    cycles: float = 0.0
    matmul_flops: float = 0.0
    collectives: list[Collective] = field(default_factory=list)
    kernels: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # Pallas kernel -> calls
    ops: list[tuple[float, Op, int]] = field(default_factory=list)  # cycles in all, instruction, trips


class Program:
    """A scheduled HLO module."""

    def __init__(self, text: str):
        self.text = text
        self.computations: dict[str, list[Op]] = {}
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

    # ---- costs ----

    def costs(self) -> Costs:
        """Sums over the whole program."""
        out = Costs()
        self._walk(self.entry, 1, out)
        return out

    def _walk(self, name: str, times: int, out: Costs) -> None:
        ops = self.computations[name]
        self._matmuls(name, times, out)
        self._collectives(name, times, out)
        for op in ops:
            if op.opcode == "while":
                self._walk(op.called("body")[0], times * self.trips(op), out)
            elif op.opcode == "call":
                for called in op.called("to_apply", "calls"):
                    self._walk(called, times, out)
            elif op.opcode == "conditional":
                for called in op.called("true_computation", "false_computation", "branch_computations"):
                    self._walk(called, times, out)
            elif op.opcode == "custom-call" and "tpu_custom_call" in op.text:
                out.kernels[re.sub(r"[.\d]+$", "", op.name)] += times
            elif op.opcode not in NO_WORK:
                cycles = op.cycles
                if cycles is None and op.opcode == "fusion":
                    cycles = sum(map(self._inside, op.called("calls")))
                if cycles:
                    out.cycles += cycles * times
                    out.ops.append((cycles * times, op, times))

    def _inside(self, name: str) -> int:
        """Cycles of a fused computation that has no estimate as a whole."""
        total = 0
        for op in self.computations.get(name, ()):
            if op.cycles:
                total += op.cycles
            elif op.opcode in ("fusion", "call"):
                total += sum(map(self._inside, op.called("calls", "to_apply")))
        return total

    def trips(self, op: Op) -> int:
        """How often a loop runs: as the compiler says, or from the bound and the step of its counter."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', op.text)
        if known:
            return int(known[1])
        condition = self.computations[op.called("condition")[0]]
        inner = [o for c in condition for name in c.called("calls") for o in self.computations.get(name, ())]
        bounds = [int(n) for o in (*condition, *inner) for n in re.findall(r"^constant\((\d+)\)", o.text)]
        if not bounds:
            return 1
        return ceil(max(bounds) / self._stride(condition, self.computations[op.called("body")[0]]))

    def _stride(self, condition: list[Op], body: list[Op]) -> int:
        """Loops that the compiler makes (for collective matmuls) may count by more than one."""
        named = {op.name: op for op in condition}
        counters = [
            int(re.search(r"index=(\d+)", named[x].text)[1])
            for op in condition
            if op.opcode == "compare"
            for x in op.operands
            if x in named and named[x].opcode == "get-tuple-element"
        ]
        named = {op.name: op for op in body}
        root = next((op for op in reversed(body) if op.opcode == "tuple"), None)
        if not counters or root is None or counters[0] >= len(root.operands):
            return 1
        op = named.get(root.operands[counters[0]])
        while op is not None and op.opcode in ("copy", "bitcast"):
            op = named.get(op.operands[0])
        if op is not None and op.opcode == "add":
            for x in op.operands:
                if x in named and (found := re.match(r"constant\((\d+)\)", named[x].text)):
                    return max(1, int(found[1]))
        return 1

    def executed(self) -> list[Op]:
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

    # ---- matmuls ----

    def _matmuls(self, name: str, times: int, out: Costs) -> None:
        """Adds the FLOPs of a computation's matmuls, and of those fused into its instructions."""
        types = {op.name: op for op in self.computations.get(name, ())}
        for op in self.computations.get(name, ()):
            if op.opcode in ("convolution", "dot"):
                out.matmul_flops += 2.0 * prod(op.dims) * _contracted(op, types) * times
            elif op.opcode in ("fusion", "call"):
                for called in op.called("calls", "to_apply"):
                    self._matmuls(called, times, out)

    # ---- collectives ----

    def _collectives(self, name: str, times: int, out: Costs) -> None:
        found: dict[str, Collective] = {}  # by channel: a started and a finished one are the same
        self._find_collectives(name, times, found, hidden=False)
        out.collectives += found.values()

    def _find_collectives(self, name: str, times: int, found: dict, hidden: bool) -> None:
        for op in self.computations.get(name, ()):
            kind = op.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                channel = re.search(r"channel_id=(\d+)", op.text)
                key = channel[1] if channel else op.name
                started = op.opcode.endswith("-start")
                if key in found:  # met again: it runs in parts, beside compute
                    found[key].hidden = True
                    continue
                size, group = op.bytes, group_size(op.text)
                if started:
                    size /= 2  # a started one holds its operand and its result
                if kind == "reduce-scatter":
                    size *= group
                if kind == "all-reduce" and "reduce-scatter" in name:
                    kind = "reduce-scatter"
                found[key] = Collective(kind, size, times, group, hidden or started, op.type)
            elif op.opcode in ("fusion", "call", "async-start"):
                for called in op.called("calls", "to_apply", "called_computations"):
                    inside = self.computations.get(called, ())
                    beside = any(o.opcode == "custom-call" and "AsyncCollective" in o.text for o in inside)
                    self._find_collectives(called, times, found, hidden or beside)

    # ---- where it comes from ----

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

    def source(self, op: Op) -> str:
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


def _op(line: str) -> Op | None:
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
    return Op(name, kind, opcode[1], operands, text)


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the first one."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == ")":
            return i
    return len(text)


def _contracted(op: Op, types: dict[str, Op]) -> float:
    """Multiplications for each element of a matmul's result."""
    right = types[op.operands[1]].dims if op.operands[1] in types else []
    if op.opcode == "dot":
        dims = re.search(r"rhs_contracting_dims=\{([\d,]*)\}", op.text)[1]
        return prod(right[int(n)] for n in dims.split(",") if n)
    left_labels, right_labels, out_labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.text).groups()
    size = prod(n for label, n in zip(right_labels, right) if label != "o")
    window = re.search(r"window=\{size=([\dx]+)([^}]*)\}", op.text)
    if not window or not re.search("stride|pad", window[2]):
        return size
    # A batch dimension that the compiler made spatial: padding or stride sees to it that each place of the result
    # meets only its own element of the window, not all of them.
    left, out = (
        dict(zip(labels, dims)) for labels, dims in ((left_labels, types[op.operands[0]].dims), (out_labels, op.dims))
    )
    for i, width in enumerate(map(int, window[1].split("x"))):
        a, b = left.get(str(i), 1), out.get(str(i), 1)
        if width > 1 and max(a, b) > 1 and b * width > a:
            size = size / width * (max(1.0, a / b) if b >= a else 1.0)
    return size
