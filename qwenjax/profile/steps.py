"""Which program is the step, when it ran, how long each step took, and what the host did in between."""

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np

from qwenjax.profile import intervals
from qwenjax.profile.traces import Device, Event

_INPUT = re.compile(r"^(input|\$\w+\.py:\d+ batches)$")  # a jax.profiler.TraceAnnotation, or Task.batches itself
_UNTELLING = re.compile(r"^\$(builtins|<|_)|^PjitFunction|^\$\w+\.py:\d+ wrapper$")  # what they call says more


def main_program(device: Device) -> str:
    """The program that takes most of a device's time; empty if the trace names none."""
    time: Counter[str] = Counter()
    for event in device.modules:
        time[event.name] += event.end - event.start
    if not time:
        for lane in device.lanes:
            for op in lane:
                time[op.module] += op.end - op.start
    return max(time, key=lambda name: (name != "", time[name]))


def executions(device: Device, program: str) -> list[tuple[float, float]]:
    """Start and end of every execution of the program on a device, in ns.

    From the device's own record (TPU), from the numbers of runs (CPU), or from the host's calls (GPU).
    """
    if device.modules:
        return sorted((event.start, event.end) for event in device.modules if event.name == program)
    ops = sorted((op for lane in device.lanes for op in lane if op.module == program), key=lambda op: op.start)
    if device.kind == "cpu":
        runs: dict[int, list[Event]] = defaultdict(list)
        for op in ops:
            runs[op.run].append(op)
        return sorted((run[0].start, max(op.end for op in run)) for run in runs.values())
    function = re.sub(r"^jit_|\(\d+\)$", "", program)
    wanted = f"PjitFunction(jit({function}))", f"PjitFunction({function})"  # twice per call, one inside the other
    calls = np.array([(e.start, e.end) for e in device.host if e.name in wanted]).reshape(-1, 2)
    starts = intervals.merge(calls)[:, 0]
    runs = defaultdict(list)
    for op in ops:
        runs[int(np.searchsorted(starts, op.start, side="right"))].append(op)
    return sorted((run[0].start, max(op.end for op in run)) for run in runs.values())


def whole(device: Device, program: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, durations and bounds [n + 1] of the whole steps on a device, in ns.

    Steps are what is annotated as such, else they last from one execution of the program to the next; the last
    execution, after which nothing is recorded, then ends the last whole step.
    """
    marked = sorted(device.steps, key=lambda event: event.start)
    if marked:
        bounds, labels = [event.start for event in marked] + [marked[-1].end], [event.name for event in marked]
    else:
        executed = executions(device, program)
        if len(executed) > 1:
            bounds = [start for start, _ in executed]
        elif executed:
            bounds = list(executed[0])
        else:
            spans = [(op.start, op.end) for lane in device.lanes for op in lane]
            bounds = [min(start for start, _ in spans), max(end for _, end in spans)]
        labels = [str(n + 1) for n in range(len(bounds) - 1)]
    return labels, np.diff(bounds), np.array(bounds)


def between(host: list[Event], executed: list[tuple[float, float]]) -> tuple[float, dict[str, float], float | None]:
    """Median gap between executions, mean time of the outermost host functions that begin in it, and the input's.

    Seconds; the input's is None where the trace does not show it.
    """
    gaps = [(end, start) for (_, end), (start, _) in pairwise(executed) if start > end]
    if not gaps:
        return 0.0, {}, None
    spent: Counter[str] = Counter()
    begin = [start for start, _ in gaps]
    until = input_until = 0.0
    waited = None
    for event in sorted(host, key=lambda e: (e.start, -e.end)):
        at = bisect_right(begin, event.start) - 1
        if at < 0 or event.start >= gaps[at][1]:
            continue
        time = (min(event.end, gaps[at][1]) - event.start) * 1e-9 / len(gaps)
        if _INPUT.match(event.name) and event.start >= input_until:
            waited, input_until = (waited or 0.0) + time, event.end
        if event.start >= until and not _UNTELLING.match(event.name):
            spent[event.name] += time
            until = event.end
    gap = float(np.median([end - start for start, end in gaps])) * 1e-9
    return gap, dict(spent.most_common()), waited
