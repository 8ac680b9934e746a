"""When things ran: arithmetic of time intervals, and which of them are steps of training.

Intervals are arrays [n 2] of (start, end) in any one unit; the times of a trace are in nanoseconds.
"""

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from qwenjax.profile.traces import Device, Event

_INPUT = re.compile(r"^(input|\$\w+\.py:\d+ batches)$")  # a jax.profiler.TraceAnnotation, or Task.batches itself
# Frames that only pass a call on; the functions that they call say more.
_WRAPPERS = re.compile(r"^\$(builtins|<|_)|^PjitFunction|^\$\w+\.py:\d+ wrapper$")


def split_by_innermost(spans: Sequence[tuple[float, float]]) -> list[tuple[int, float, float]]:
    """Cuts nested spans of one thread into pieces that do not overlap: (index of the span, start, end).

    A piece belongs to the innermost span at that time, so the pieces of a span add up to its self time.
    """
    pieces, open_spans, now = [], [], 0.0
    order = sorted(range(len(spans)), key=lambda i: (spans[i][0], -spans[i][1]))
    for index, start in [*((i, spans[i][0]) for i in order), (-1, float("inf"))]:
        while open_spans and spans[open_spans[-1]][1] <= start:
            ended = open_spans.pop()
            if spans[ended][1] > now:
                pieces.append((ended, now, spans[ended][1]))
                now = spans[ended][1]
        if open_spans and start > now:
            pieces.append((open_spans[-1], now, start))
        now = max(start, now)
        open_spans.append(index)
    return pieces


def merge(spans: np.ndarray) -> np.ndarray:
    """The union of intervals: disjoint and sorted."""
    spans = spans[spans[:, 1] > spans[:, 0]]
    if not len(spans):
        return spans
    spans = spans[np.argsort(spans[:, 0])]
    reach = np.maximum.accumulate(spans[:, 1])
    first = np.concatenate([[True], spans[1:, 0] > reach[:-1]])
    last = np.concatenate([first[1:], [True]])
    return np.stack([spans[first, 0], reach[last]], axis=1)


def length(spans: np.ndarray) -> float:
    """Time covered by at least one of the intervals."""
    merged = merge(spans)
    return float((merged[:, 1] - merged[:, 0]).sum())


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Time covered by `a` and by `b`: |A| + |B| - |A or B|."""
    return length(a) + length(b) - length(np.concatenate([a, b]))


def shares(spans: np.ndarray) -> np.ndarray:
    """The time of each interval [n], every moment shared equally by those open in it. Adds up to `length(spans)`."""
    times = np.unique(spans)
    if len(times) < 2:
        return np.zeros(len(spans))
    starts, ends = np.searchsorted(times, spans[:, 0]), np.searchsorted(times, spans[:, 1])
    opened = np.bincount(starts, minlength=len(times)) - np.bincount(ends, minlength=len(times))
    active = np.cumsum(opened)[:-1]
    each = np.where(active > 0, np.diff(times) / np.maximum(active, 1), 0.0)
    total = np.concatenate([[0.0], np.cumsum(each)])
    return total[ends] - total[starts]


def main_program(device: Device) -> str:
    """The program that takes most of a device's time; empty if the trace names none."""
    events = [(event.name, event) for event in device.modules]
    events = events or [(op.module, op) for lane in device.lanes for op in lane]
    time: Counter[str] = Counter()
    for name, event in events:
        time[name] += event.end - event.start
    return max(time, key=lambda name: (name != "", time[name]))


def executions(device: Device, program: str) -> list[tuple[float, float]]:
    """Start and end of every execution of the program on a device, in ns.

    TPUs record them; on a CPU ops carry the number of their run; on a GPU they follow from the calls of the host.
    """
    if device.modules:
        return sorted((event.start, event.end) for event in device.modules if event.name == program)
    ops = sorted((op for lane in device.lanes for op in lane if op.module == program), key=lambda op: op.start)
    numbers = [op.run for op in ops]
    if device.kind != "cpu":
        function = re.sub(r"^jit_|\(\d+\)$", "", program)
        names = f"PjitFunction(jit({function}))", f"PjitFunction({function})"  # both for each call, one in the other
        calls = np.array([(e.start, e.end) for e in device.host if e.name in names]).reshape(-1, 2)
        numbers = np.searchsorted(merge(calls)[:, 0], [op.start for op in ops], side="right").tolist()
    runs: dict[int, list[Event]] = defaultdict(list)
    for number, op in zip(numbers, ops):
        runs[number].append(op)
    return sorted((run[0].start, max(op.end for op in run)) for run in runs.values())


def complete_steps(device: Device, program: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, durations [n] and bounds [n + 1] of the complete steps on a device, in ns.

    Without annotated steps, a step lasts from one execution of the program to the next; the last one only ends a step.
    """
    annotated = sorted(device.steps, key=lambda event: event.start)
    if annotated:
        bounds = [event.start for event in annotated] + [annotated[-1].end]
        labels = [event.name for event in annotated]
    else:
        ops = [op for lane in device.lanes for op in lane]
        executed = executions(device, program) or [(min(op.start for op in ops), max(op.end for op in ops))]
        bounds = [start for start, _ in executed] if len(executed) > 1 else list(executed[0])
        labels = [str(n + 1) for n in range(len(bounds) - 1)]
    return labels, np.diff(bounds), np.array(bounds)


def host_between_programs(
    host: list[Event], executed: list[tuple[float, float]]
) -> tuple[float, dict[str, float], float | None]:
    """What the host does between two executions, in seconds.

    Returns: the median gap, the mean time in each of the outermost functions that begin in it, and the mean time in
    which it waits for input (None where the trace does not show that).
    """
    gaps = [(end, start) for (_, end), (start, _) in pairwise(executed) if start > end]
    if not gaps:
        return 0.0, {}, None
    functions: Counter[str] = Counter()
    begin = [start for start, _ in gaps]
    until = input_until = 0.0
    input_wait = None
    for event in sorted(host, key=lambda e: (e.start, -e.end)):
        at = bisect_right(begin, event.start) - 1
        if at < 0 or event.start >= gaps[at][1]:
            continue
        time = (min(event.end, gaps[at][1]) - event.start) * 1e-9 / len(gaps)
        if _INPUT.match(event.name) and event.start >= input_until:
            input_wait, input_until = (input_wait or 0.0) + time, event.end
        if event.start >= until and not _WRAPPERS.match(event.name):
            functions[event.name] += time
            until = event.end
    gap = float(np.median([end - start for start, end in gaps])) * 1e-9
    return gap, dict(functions.most_common()), input_wait
