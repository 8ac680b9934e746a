"""A trace in numbers: steps, time by kind of op and by part of the model, collectives, the host, memory."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qwenjax.profile import timeline, traces, xprof_tools
from qwenjax.profile.traces import Capture, Device
from qwenjax.xla import scopes

_MIN_PROGRAM_SHARE = 0.01  # of the time; the text of smaller programs is not read
_START_DONE = re.compile(r"^(.*)-(start|done)((?:\.\d+)?)$")


@dataclass
class SummaryRow:
    """Ops of one kind and scope, such as those of unrolled layers. Seconds and count are per step and device."""

    names: list[str]  # most expensive first
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
    """Everything in the report. Times are in seconds; shares are of the wall time of the steps."""

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
    steps: list[float]  # duration of each complete step
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
    input_wait: float | None  # the part of it that waits for the batch
    memory: xprof_tools.Memory | None  # of the program, where the trace contains it
    measured: dict[str, float]  # allocator -> peak bytes in use, where the trace has allocations

    @property
    def step(self) -> float:
        """Mean duration of a step."""
        return sum(self.steps) / len(self.steps)


def summarize(path: str | Path) -> Summary:
    """Summarizes the newest recording in `path`. ValueError: no trace, a broken one, or xprof is not installed."""
    capture = traces.read(traces.find(path))
    first = capture.devices[0]
    program = timeline.main_program(first)
    step_names, steps, _ = timeline.complete_steps(first, program)
    pieces = [_pieces(device, timeline.complete_steps(device, program)[2]) for device in capture.devices]
    totals: Counter[tuple[str, str]] = Counter()
    counts: Counter[tuple[str, str]] = Counter()
    for device, one in zip(capture.devices, pieces):
        for key, time in zip(one.ops, timeline.shares(one.spans)):
            totals[key] += time
        ops = (op for lane in device.lanes for op in lane if one.bounds[0] <= op.start < one.bounds[-1])
        counts.update((op.module, op.name) for op in ops)
    per_step = 1e-9 / (len(capture.devices) * len(steps))
    with xprof_tools.converters(capture.files[0]) as tool:
        known = _known_ops(tool, capture, totals)
        memory, measured = xprof_tools.memory(tool, program), xprof_tools.measured_memory(tool)
    collectives: dict[str, dict[str, float]] = {}
    for device, one in zip(capture.devices, pieces):
        for kind, (exposed, hidden) in _collectives(device, one, known).items():
            sums = collectives.setdefault(kind, {"exposed": 0.0, "overlapped": 0.0})
            sums["exposed"] += exposed * per_step
            sums["overlapped"] += hidden * per_step
    rows = _rows(known, {key: (time * per_step, counts[key] * per_step * 1e9) for key, time in totals.items()})
    wall = sum(float(one.bounds[-1] - one.bounds[0]) for one in pieces) * per_step
    busy = sum(row.seconds for row in rows)
    executed = timeline.executions(first, program)
    between, host, input_wait = timeline.host_between_programs(first.host, executed)
    kinds = _sums((row.kind, row.seconds) for row in rows)
    flops = sum(row.flop_rate * row.seconds for row in rows if row.kind == scopes.MATMUL)
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
        step_names=step_names,
        steps=(steps * 1e-9).tolist(),
        busy=busy,
        program_seconds=float(np.median([end - start for start, end in executed])) * 1e-9 if executed else 0.0,
        kinds=kinds | {"idle": max(wall - busy, 0.0)},
        parts=_parts(rows),
        collectives=collectives,
        ops=rows,
        matmul_flops=flops / kinds[scopes.MATMUL] if flops else None,
        peak_flops=first.peak_flops,
        between=between,
        host=host,
        input_wait=input_wait,
        memory=memory,
        measured=measured,
    )


class _Pieces(NamedTuple):
    """The ops of a device in its steps, cut into pieces that do not overlap within a lane."""

    ops: list[tuple[str, str]]  # program and name
    spans: np.ndarray  # [n 2] ns, clipped to the steps
    bounds: np.ndarray  # of the steps


def _pieces(device: Device, bounds: np.ndarray) -> _Pieces:
    ops, spans = [], []
    for lane in device.lanes:
        for index, start, end in timeline.split_by_innermost([(op.start, op.end) for op in lane]):
            ops.append((lane[index].module, lane[index].name))
            spans.append((start, end))
    return _Pieces(ops, np.clip(np.array(spans).reshape(-1, 2), bounds[0], bounds[-1]), bounds)


def _known_ops(tool: xprof_tools.Tool, capture: Capture, totals: Counter) -> dict[tuple[str, str], scopes.ScopedOp]:
    """What the text of the programs, and on TPU and GPU xprof's table, say of (program, op)."""
    modules = _sums((module, time) for (module, _), time in totals.items())
    known = {}
    for module, time in modules.items():
        if module and time >= _MIN_PROGRAM_SHARE * sum(modules.values()):
            known |= {(module, name): op for name, op in xprof_tools.program_ops(tool, module).items()}
    if capture.platform != "cpu":
        table = xprof_tools.device_ops(tool)
        for module, name in totals:
            program_id = re.search(r"\((\d+)\)$", module)
            if op := table.get((program_id[1] if program_id else "0", name)):
                known[module, name] = op
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


def _collectives(device: Device, pieces: _Pieces, known: dict) -> dict[str, tuple[float, float]]:
    """Time of each kind of collective with no other work at the same time (exposed), and with some (hidden), in ns.

    A collective lasts from its -start to its -done op, or as long as the device records it as in flight.
    """
    kinds = {}
    for key in set(pieces.ops):
        op = known.get(key, scopes.ScopedOp())
        kinds[key] = scopes.collective(key[1], op.category), scopes.kind(key[1], op)
    in_flight, starts = defaultdict(list), {}
    for key, (start, end) in zip(pieces.ops, pieces.spans):
        if kind := kinds[key][0]:
            if half := _START_DONE.match(key[1]):
                pair = half[1] + half[3]
                if half[2] == "start":
                    starts[pair] = start
                else:
                    start = starts.pop(pair, start)
            in_flight[kind].append((start, end))
    for event in device.flights:
        if kind := scopes.collective(event.name):
            in_flight[kind].append(np.clip((event.start, event.end), pieces.bounds[0], pieces.bounds[-1]))
    work = pieces.spans[[not kinds[key][0] and kinds[key][1] != scopes.CONTROL for key in pieces.ops]]
    times = {}
    for kind, spans in in_flight.items():
        hidden = timeline.overlap(np.array(spans), work)
        times[kind] = timeline.length(np.array(spans)) - hidden, hidden
    return times


def _sums(pairs) -> dict[str, float]:
    sums: Counter[str] = Counter()
    for key, value in pairs:
        sums[key] += value
    return dict(sums.most_common())
