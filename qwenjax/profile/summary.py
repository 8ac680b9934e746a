"""Adds a trace up: steps, time by kind of op and by part of the model, collectives, the host, memory."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qwenjax.profile import intervals, library, steps, traces
from qwenjax.profile.traces import Capture, Device
from qwenjax.xla import scopes

_WORTH_A_LOOK = 0.01  # share of the time from which on a program's text is fetched
_START_DONE = re.compile(r"^(.*)-(start|done)((?:\.\d+)?)$")


@dataclass
class SummaryRow:
    """Ops of one kind and one place in the model, as in unrolled layers. Seconds and count are per step and device."""

    scopes: list[str]  # most expensive first
    module: str
    kind: str
    part: str
    primitive: str
    direction: str
    seconds: float
    count: float
    flop_rate: float  # FLOP/s while they run, 0 where the trace does not say


@dataclass
class Summary:
    """All that the report says. Times in seconds; shares are of the wall time of the steps."""

    files: list[str]
    platform: str
    device: str
    devices: int
    hosts: int
    jax: str
    captured: float
    program: str
    executions: int
    step_names: list[str]
    steps: list[float]  # duration of each whole step
    busy: float  # of a device, per step
    program_seconds: float  # median, first op to last
    kinds: dict[str, float]  # per step; with "idle"
    parts: dict[str, dict[str, float]]  # part of the model -> direction -> per step
    collectives: dict[str, dict[str, float]]  # kind -> exposed, overlapped -> per step
    ops: list[SummaryRow]  # largest first
    matmul_flops: float | None  # FLOP/s while matmuls run, where the trace says so
    peak_flops: float | None
    between: float  # host time between two programs, median
    host: dict[str, float]  # what the host did in it, mean per step
    input_wait: float | None  # of it, for the batch
    memory: library.Memory | None  # of the program, where the trace holds it
    measured: dict[str, float]  # allocator -> peak bytes in use, where the trace has allocations


def summarize(path: str | Path) -> Summary:
    """Reads and adds up the newest recording in `path`.

    Raises:
      ValueError: no trace, a broken one, or xprof is not installed.
    """
    capture = traces.read(traces.find(path))
    first = capture.devices[0]
    program = steps.main_program(first)
    windows = [steps.whole(device, program) for device in capture.devices]
    count = len(windows[0][1])
    pieces = [_pieces(device, bounds) for device, (_, _, bounds) in zip(capture.devices, windows)]
    totals: Counter[tuple[str, str]] = Counter()
    counts: Counter[tuple[str, str]] = Counter()
    for one in pieces:
        for key, time, begun in zip(one.ops, intervals.shares(one.spans), one.begun):
            totals[key] += time
            counts[key] += begun
    per_step = 1e-9 / (len(capture.devices) * count)
    with library.converters(capture.files[0]) as tool:
        known = _known(tool, capture, totals)
        memory, measured = library.memory(tool, program), library.measured(tool)
    collectives: dict[str, dict[str, float]] = {}
    for device, one, (*_, bounds) in zip(capture.devices, pieces, windows):
        for kind, (exposed, hidden) in _collectives(device, one, bounds, known).items():
            sums = collectives.setdefault(kind, {"exposed": 0.0, "overlapped": 0.0})
            sums["exposed"] += exposed * per_step
            sums["overlapped"] += hidden * per_step
    rows = _rows(known, {key: (time * per_step, counts[key] * per_step * 1e9) for key, time in totals.items()})
    wall = sum(float(bounds[-1] - bounds[0]) for *_, bounds in windows) * per_step
    busy = sum(row.seconds for row in rows)
    executed = steps.executions(first, program)
    between, host, waited = steps.between(first.host, executed)
    flops = [(row.flop_rate * row.seconds, row.seconds) for row in rows if row.kind == scopes.MATMUL]
    rate = sum(f for f, _ in flops) / max(sum(s for _, s in flops), 1e-12)
    return Summary(
        files=[str(file) for file in capture.files],
        platform=capture.platform,
        device=first.kind,
        devices=len(capture.devices),
        hosts=len(capture.files),
        jax=capture.jax,
        captured=capture.seconds,
        program=program,
        executions=len(executed),
        step_names=windows[0][0],
        steps=[float(t) * 1e-9 for t in windows[0][1]],
        busy=busy,
        program_seconds=float(np.median([end - start for start, end in executed])) * 1e-9 if executed else 0.0,
        kinds=_sums((row.kind, row.seconds) for row in rows) | {"idle": max(wall - busy, 0.0)},
        parts=_parts(rows),
        collectives=collectives,
        ops=rows,
        matmul_flops=rate or None,
        peak_flops=first.peak_flops,
        between=between,
        host=host,
        input_wait=waited,
        memory=memory,
        measured=measured,
    )


class _Pieces(NamedTuple):
    """What a device ran in its steps: ops cut into pieces that do not overlap on their lane."""

    ops: list[tuple[str, str]]  # program and name
    spans: np.ndarray  # [n 2] ns, clipped to the steps
    begun: list[int]  # 1 for the first piece of an op that began in the steps, else 0


def _pieces(device: Device, bounds: np.ndarray) -> _Pieces:
    ops, spans, begun = [], [], []
    for lane in device.lanes:
        seen = set()
        for index, start, end in intervals.innermost([(op.start, op.end) for op in lane]):
            op = lane[index]
            ops.append((op.module, op.name))
            spans.append((start, end))
            begun.append(int(index not in seen and bounds[0] <= op.start < bounds[-1]))
            seen.add(index)
    return _Pieces(ops, np.clip(np.array(spans).reshape(-1, 2), bounds[0], bounds[-1]), begun)


def _known(tool: library.Tool, capture: Capture, totals: Counter) -> dict[tuple[str, str], scopes.ScopedOp]:
    """What xprof knows of the ops of the programs that take time."""
    modules = _sums((module, time) for (module, _), time in totals.items())
    known = {}
    for module, time in modules.items():
        if module and time >= _WORTH_A_LOOK * sum(modules.values()):
            known |= {(module, name): op for name, op in library.program(tool, module).items()}
    if capture.platform != "cpu":
        table = library.device_ops(tool)
        for module, name in totals:
            number = re.search(r"\((\d+)\)$", module)
            if found := table.get((number[1] if number else "0", name)):
                known[module, name] = found
    return known


def _rows(known: dict, ops: dict[tuple[str, str], tuple[float, float]]) -> list[SummaryRow]:
    rows: dict[tuple, SummaryRow] = {}
    for (module, name), (seconds, count) in sorted(ops.items(), key=lambda item: -item[1][0]):
        op = known.get((module, name), scopes.ScopedOp())
        scope, kind = scopes.scope(op.scope), scopes.kind(name, op)
        row = rows.setdefault((module, op.scope or name, kind), SummaryRow([], module, kind, *scope, 0.0, 0.0, 0.0))
        row.names.append(name)
        row.flop_rate = (row.flop_rate * row.seconds + op.flop_rate * seconds) / max(row.seconds + seconds, 1e-12)
        row.seconds += seconds
        row.count += count
    return sorted(rows.values(), key=lambda row: -row.seconds)


def _parts(rows: list[SummaryRow]) -> dict[str, dict[str, float]]:
    parts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        parts[row.part][row.direction] += row.seconds
    return {part: dict(parts[part]) for part in sorted(parts, key=lambda part: -sum(parts[part].values()))}


def _collectives(device: Device, pieces: _Pieces, bounds: np.ndarray, known: dict) -> dict[str, tuple[float, float]]:
    """Time of each kind of collective with nothing else running (exposed), and beside other work (overlapped), in ns.

    A collective lasts from its -start to its -done op, or as long as the device says it was in flight.
    """
    kinds = {}
    for module, name in set(pieces.ops):
        op = known.get((module, name), scopes.ScopedOp())
        kinds[module, name] = scopes.collective(name, op.category), scopes.kind(name, op)
    flying, begun = defaultdict(list), {}
    for key, (start, end) in zip(pieces.ops, pieces.spans):
        if kind := kinds[key][0]:
            if half := _START_DONE.match(key[1]):
                pair = half[1] + half[3]
                if half[2] == "start":
                    begun[pair] = start
                else:
                    start = begun.pop(pair, start)
            flying[kind].append((start, end))
    for event in device.flights:
        if kind := scopes.collective(event.name):
            flying[kind].append(np.clip((event.start, event.end), bounds[0], bounds[-1]))
    working = [not kinds[key][0] and kinds[key][1] != scopes.CONTROL for key in pieces.ops]
    work = pieces.spans[working]
    found = {}
    for kind, spans in flying.items():
        hidden = intervals.overlap(np.array(spans), work)
        found[kind] = intervals.length(np.array(spans)) - hidden, hidden
    return found


def _sums(pairs) -> dict[str, float]:
    sums: Counter[str] = Counter()
    for key, value in pairs:
        sums[key] += value
    return dict(sums.most_common())
