"""What a compiled TPU program costs, from its scheduled HLO text.

JAX's `cost_analysis()` counts the body of every loop once, and gives collectives almost no time, so it cannot price a
model that scans over its layers. Here every instruction counts as often as the loops around it run. The compiler has
no estimate for Pallas kernels; their calls are counted by name, and the caller prices them.
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
    bytes: float  # of its result; of the operand for a reduce-scatter
    trips: int  # how often it runs
    group: int  # devices that take part together
    hidden: bool  # asynchronous: it runs at the same time as compute
    type: str


@dataclass
class Costs:
    """Of one step on one device."""

    cycles: float = 0.0
    matmul_flops: float = 0.0
    collectives: list[Collective] = field(default_factory=list)
    kernels: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # Pallas kernel -> calls


def program_costs(program: HloProgram) -> Costs:
    """The costs of a whole program."""
    costs = Costs()
    _add_computation(program, program.entry, 1, costs)
    return costs


def _add_computation(program: HloProgram, name: str, times: int, costs: Costs) -> None:
    """Adds a computation that runs `times` times, with the loops, calls and branches in it."""
    _add_work(program, name, times, costs)
    for op in program.computations[name]:
        if op.opcode == "while":
            _add_computation(program, op.called("body")[0], times * trip_count(program, op), costs)
        elif op.opcode in ("call", "conditional"):
            for called in op.called("to_apply", "true_computation", "false_computation", "branch_computations"):
                _add_computation(program, called, times, costs)
        elif op.opcode == "custom-call" and "tpu_custom_call" in op.text:
            costs.kernels[re.sub(r"[.\d]+$", "", op.name)] += times
        elif op.opcode not in NO_WORK:
            costs.cycles += _cycles(program, op) * times


def _cycles(program: HloProgram, op: HloOp) -> int:
    """The compiler's estimate for an instruction; of a fusion without one, the sum over what it fuses."""
    cycles = op.cycles
    if cycles is None and op.opcode == "fusion":
        return sum(_cycles(program, one) for name in op.called("calls") for one in program.computations.get(name, ()))
    return cycles or 0


def trip_count(program: HloProgram, op: HloOp) -> int:
    """How often a loop runs: as the compiler notes it, or from the bound and the step of its counter."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', op.text):
        return int(known[1])
    condition = program.computations[op.called("condition")[0]]
    fused = [o for c in condition for name in c.called("calls") for o in program.computations.get(name, ())]
    bounds = [int(n) for o in (*condition, *fused) for n in re.findall(r"^constant\((\d+)\)", o.text)]
    return ceil(max(bounds) / _counter_step(condition, program.computations[op.called("body")[0]])) if bounds else 1


def _counter_step(condition: list[HloOp], body: list[HloOp]) -> int:
    """What a loop adds to its counter. It is more than 1 in loops that the compiler makes for collective matmuls."""
    by_name = {op.name: op for op in condition}
    counters = [
        int(re.search(r"index=(\d+)", by_name[x].text)[1])
        for op in condition
        if op.opcode == "compare"
        for x in op.operands
        if x in by_name and by_name[x].opcode == "get-tuple-element"
    ]
    by_name = {op.name: op for op in body}
    root = next((op for op in reversed(body) if op.opcode == "tuple"), None)
    if not counters or root is None or counters[0] >= len(root.operands):
        return 1
    op = by_name.get(root.operands[counters[0]])
    while op is not None and op.opcode in ("copy", "bitcast"):
        op = by_name.get(op.operands[0])
    if op is not None and op.opcode == "add":
        for x in op.operands:
            if x in by_name and (constant := re.match(r"constant\((\d+)\)", by_name[x].text)):
                return max(1, int(constant[1]))
    return 1


def _add_work(
    program: HloProgram, name: str, times: int, costs: Costs, hidden: bool = False, fused: bool = False
) -> None:
    """Adds the matmuls and collectives of a computation; `fused`: the computation is the inside of an instruction."""
    ops = program.computations.get(name, ())
    by_name = {op.name: op for op in ops}
    # A collective that is fused into compute runs in parts, in loops or other memories, too; it counts where it starts.
    later_part = fused and not starts_collective(ops)
    for op in ops:
        kind = op.opcode.removesuffix("-start")
        if kind in ("convolution", "dot"):
            costs.matmul_flops += 2.0 * prod(op.dims) * _contracted(op, by_name) * times
        elif kind in COLLECTIVES and not (later_part and op.channel in program.split_channels):
            started = op.opcode.endswith("-start")
            size, group = op.bytes, group_size(op.text)
            if started:
                size /= 2  # its result is a tuple of the operand and the actual result
            if kind == "reduce-scatter":
                size *= group
            if kind == "all-reduce" and "reduce-scatter" in name:
                kind = "reduce-scatter"
            costs.collectives.append(Collective(kind, size, times, group, hidden or started, op.type))
        elif kind == "send" and "megascale_transfer_type" in op.text:
            # to the host, whose network adds what the slices send; always asynchronous
            costs.collectives.append(Collective(BETWEEN_SLICES, op.bytes, times, 0, True, op.type))
        elif kind in ("fusion", "async"):
            for called in op.called("calls", "called_computations"):
                inner = program.computations.get(called, ())
                asynchronous = any(o.opcode == "custom-call" and "AsyncCollective" in o.text for o in inner)
                _add_work(program, called, times, costs, hidden or asynchronous, fused=True)


def _contracted(op: HloOp, by_name: dict[str, HloOp]) -> float:
    """Multiplications for each element of a matmul's result."""
    right = by_name[op.operands[1]].dims if op.operands[1] in by_name else []
    if op.opcode == "dot":
        dims = re.search(r"rhs_contracting_dims=\{([\d,]*)\}", op.text)[1]
        return prod(right[int(n)] for n in dims.split(",") if n)
    left_labels, right_labels, out_labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.text).groups()
    size = prod(n for label, n in zip(right_labels, right) if label != "o")
    window = re.search(r"window=\{size=([\dx]+)([^}]*)\}", op.text)
    if not window or not re.search("stride|pad", window[2]):
        return size
    # The compiler writes some batch dimensions as spatial ones. Padding or stride then makes each position of the
    # result meet one element of the window, not all of them.
    left, out = dict(zip(left_labels, by_name[op.operands[0]].dims)), dict(zip(out_labels, op.dims))
    for i, width in enumerate(map(int, window[1].split("x"))):
        a, b = left.get(str(i), 1), out.get(str(i), 1)
        if width > 1 and max(a, b) > 1 and b * width > a:
            size = size / width * (max(1.0, a / b) if b >= a else 1.0)
    return size
