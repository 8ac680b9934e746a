"""What a compiled TPU program costs, read from its scheduled HLO text.

`cost_analysis()` counts the body of every loop once, gives some operations -1 s and collectives almost nothing; a model
that scans over its layers cannot be priced with it. Here every instruction is taken times the trips of the loops around
it: the compiler's own `estimated_cycles`, the FLOPs of matmuls, and the bytes that collectives move. Kernels written in
Pallas carry no estimate and are returned by name, for the caller to price.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from math import ceil, prod

from qwenjax.xla.hlo import NO_WORK, HloOp, HloProgram, group_size, starts_collective

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BETWEEN_SLICES = "all-reduce between slices"


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
    ops: list[tuple[float, HloOp, int]] = field(default_factory=list)  # cycles in all, instruction, trips


def costs(program: HloProgram) -> Costs:
    """Sums over the whole program."""
    out = Costs()
    _walk(program, program.entry, 1, out)
    return out


def _walk(program: HloProgram, name: str, times: int, out: Costs) -> None:
    ops = program.computations[name]
    _matmuls(program, name, times, out)
    _collectives(program, name, times, out.collectives, hidden=False, inside=False)
    for op in ops:
        if op.opcode == "while":
            _walk(program, op.called("body")[0], times * trips(program, op), out)
        elif op.opcode == "call":
            for called in op.called("to_apply", "calls"):
                _walk(program, called, times, out)
        elif op.opcode == "conditional":
            for called in op.called("true_computation", "false_computation", "branch_computations"):
                _walk(program, called, times, out)
        elif op.opcode == "custom-call" and "tpu_custom_call" in op.text:
            out.kernels[re.sub(r"[.\d]+$", "", op.name)] += times
        elif op.opcode not in NO_WORK:
            cycles = op.cycles
            if cycles is None and op.opcode == "fusion":
                cycles = sum(_inside(program, name) for name in op.called("calls"))
            if cycles:
                out.cycles += cycles * times
                out.ops.append((cycles * times, op, times))


def _inside(program: HloProgram, name: str) -> int:
    """Cycles of a fused computation that has no estimate as a whole."""
    total = 0
    for op in program.computations.get(name, ()):
        if op.cycles:
            total += op.cycles
        elif op.opcode in ("fusion", "call"):
            total += sum(_inside(program, name) for name in op.called("calls", "to_apply"))
    return total


def trips(program: HloProgram, op: HloOp) -> int:
    """How often a loop runs: as the compiler says, or from the bound and the step of its counter."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', op.text)
    if known:
        return int(known[1])
    condition = program.computations[op.called("condition")[0]]
    inner = [o for c in condition for name in c.called("calls") for o in program.computations.get(name, ())]
    bounds = [int(n) for o in (*condition, *inner) for n in re.findall(r"^constant\((\d+)\)", o.text)]
    if not bounds:
        return 1
    return ceil(max(bounds) / _stride(condition, program.computations[op.called("body")[0]]))


def _stride(condition: list[HloOp], body: list[HloOp]) -> int:
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


def _matmuls(program: HloProgram, name: str, times: int, out: Costs) -> None:
    """Adds the FLOPs of a computation's matmuls, and of those fused into its instructions."""
    types = {op.name: op for op in program.computations.get(name, ())}
    for op in program.computations.get(name, ()):
        if op.opcode in ("convolution", "dot"):
            out.matmul_flops += 2.0 * prod(op.dims) * _contracted(op, types) * times
        elif op.opcode in ("fusion", "call"):
            for called in op.called("calls", "to_apply"):
                _matmuls(program, called, times, out)


def _collectives(
    program: HloProgram, name: str, times: int, found: list[Collective], hidden: bool, inside: bool
) -> None:
    """Adds those of a computation and, with `inside`, of one that is fused into an instruction."""
    ops = program.computations.get(name, ())
    in_part = inside and not starts_collective(ops)
    for op in ops:
        kind = op.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            # Fused into compute, one runs in parts, some of them in loops or other memories; it counts where it starts.
            if in_part and op.channel in program.channels_in_parts:
                continue
            started = op.opcode.endswith("-start")
            size, group = op.bytes, group_size(op.text)
            if started:
                size /= 2  # a started one holds its operand and its result
            if kind == "reduce-scatter":
                size *= group
            if kind == "all-reduce" and "reduce-scatter" in name:
                kind = "reduce-scatter"
            found.append(Collective(kind, size, times, group, hidden or started, op.type))
        elif op.opcode == "send" and "megascale_transfer_type" in op.text:
            # to the host, whose network joins the slices and adds what they send; asynchronous
            found.append(Collective(BETWEEN_SLICES, op.bytes, times, 0, True, op.type))
        elif op.opcode in ("fusion", "call", "async-start"):
            for called in op.called("calls", "to_apply", "called_computations"):
                parts = program.computations.get(called, ())
                beside = any(o.opcode == "custom-call" and "AsyncCollective" in o.text for o in parts)
                _collectives(program, called, times, found, hidden or beside, inside=True)


def _contracted(op: HloOp, types: dict[str, HloOp]) -> float:
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
