"""Finds the traces of a run and reads them: devices, the ops they ran, and what the host did meanwhile."""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SUFFIX = ".xplane.pb"
HOW_TO_RECORD = "record one with `python -m qwenjax.train --exp=NAME --profile=10:15`"
_DEVICE = re.compile(r"^/device:(TPU|GPU):\d+$")


class Event(NamedTuple):
    """Something that took time. Times are in nanoseconds since the trace began."""

    name: str
    start: float
    end: float
    module: str = ""  # of an op: the compiled program, such as jit_train_step(2)
    run: int = 0  # of an op on CPU: which execution of the program


class Device(NamedTuple):
    """One accelerator, or one (virtual) CPU device."""

    name: str
    kind: str  # the maker's name, or cpu
    peak_flops: float | None  # FLOP/s, where the trace says so (TPU)
    lanes: list[list[Event]]  # ops by core, stream or thread; nested ops lie within their parent
    flights: list[Event]  # asynchronous transfers from start to done (TPU)
    modules: list[Event]  # executions of programs, where the device records them (TPU)
    steps: list[Event]  # where the device or its host has them annotated (jax.profiler.StepTraceAnnotation)
    host: list[Event]  # of the thread on its host that starts the programs


class Capture(NamedTuple):
    """One recording of all hosts."""

    files: list[Path]
    platform: str  # tpu, gpu or cpu
    devices: list[Device]
    seconds: float
    jax: str


def find(path: str | Path) -> list[Path]:
    """The traces, one per host, of the newest recording in a run or its profile folder. ValueError: there is none."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist; {HOW_TO_RECORD}")
    if path.is_file() and path.name.endswith(SUFFIX):
        return [path]
    folders = {file.parent for file in path.rglob(f"*{SUFFIX}")}
    if not folders:
        raise ValueError(f"{path} {'is not a' if path.is_file() else 'contains no'} trace (*{SUFFIX}); {HOW_TO_RECORD}")
    newest = max(folders, key=lambda folder: (folder.name, str(folder)))  # named by date
    return sorted(newest.glob(f"*{SUFFIX}"))


def read(files: list[Path]) -> Capture:
    """Reads the traces of all hosts of one recording. ValueError: one is truncated or no trace, or none has an op."""
    from jax.profiler import ProfileData  # 5 times as fast as xprof.profile_data, the same reader in Python

    devices, seconds, jax_version = [], 0.0, "?"
    for file in files:
        try:
            planes = list(ProfileData.from_serialized_xspace(file.read_bytes()).planes)
        except RuntimeError as error:
            raise ValueError(f"{file} is truncated or not a trace: {error}; {HOW_TO_RECORD}") from None
        host = next((plane for plane in planes if plane.name == "/host:CPU"), None)
        virtual, thread, steps = _host(host) if host else ([], [], [])
        accelerators = [_accelerator(plane, thread, steps) for plane in planes if _DEVICE.match(plane.name)]
        devices += accelerators or virtual
        for plane in planes:
            stats = dict(plane.stats)
            jax_version = stats.get("jax_version", jax_version)
            if {"profile_start_time", "profile_stop_time"} <= stats.keys():
                seconds = max(seconds, (stats["profile_stop_time"] - stats["profile_start_time"]) / 1e9)
    devices = [device for device in devices if any(device.lanes)]
    if not devices:
        raise ValueError(f"{files[0]} contains no op of any device: no step ran while it was recorded; {HOW_TO_RECORD}")
    platform = "cpu" if devices[0].kind == "cpu" else re.search("TPU|GPU", devices[0].name)[0].lower()
    ends = [event.end for device in devices for lane in device.lanes for event in lane]
    return Capture(files, platform, devices, seconds or max(ends) / 1e9, jax_version)


def _accelerator(plane, host: list[Event], steps: list[Event]) -> Device:
    stats, lines = dict(plane.stats), list(plane.lines)

    def events(wanted: str) -> list[Event]:
        return [Event(e.name, e.start_ns, e.end_ns) for line in lines if line.name == wanted for e in line.events]

    modules = events("XLA Modules")
    if "TPU" in plane.name:
        lanes = [_in_modules((_tpu(e) for e in events("XLA Ops")), modules)]
    else:
        lanes = [[_op(e, dict(e.stats)) for e in line.events] for line in lines if line.name.startswith("Stream")]
    kind, peak = stats.get("device_type_string", plane.name), stats.get("peak_teraflops_per_second")
    flights = [_tpu(e) for e in events("Async XLA Ops")]
    return Device(plane.name, kind, peak and peak * 1e12, lanes, flights, modules, events("Steps") or steps, host)


def _tpu(event: Event) -> Event:
    """A TPU names an op by its HLO line; here it gets the name of the instruction."""
    return event._replace(name=re.sub(r"^%?(\S+) = .*", r"\1", event.name, flags=re.DOTALL))


def _op(event, stats: dict) -> Event:
    """An op of a GPU or CPU, named by its statistics."""
    named = {"hlo_module", "program_id"} <= stats.keys()
    module = f"{stats['hlo_module']}({stats['program_id']})" if named else ""
    return Event(stats.get("hlo_op", event.name), event.start_ns, event.end_ns, module, stats.get("run_id", 0))


def _in_modules(ops: Iterable[Event], modules: list[Event]) -> list[Event]:
    """Names the program of each op: the one that was being executed when it began."""
    modules = sorted(modules, key=lambda e: e.end)
    ends, named = [module.end for module in modules], []
    for op in sorted(ops, key=lambda e: e.start):
        at = bisect_right(ends, op.start)
        inside = at < len(modules) and modules[at].start <= op.start
        named.append(op._replace(module=modules[at].name) if inside else op)
    return named


def _host(plane) -> tuple[list[Device], list[Event], list[Event]]:
    """CPU devices with their ops, the events of the thread that starts programs, and annotated steps."""
    lanes: dict[int, dict[int, list[Event]]] = defaultdict(lambda: defaultdict(list))
    main, calls, steps = [], 0, []
    for index, line in enumerate(plane.lines):
        events, started = [], 0
        for e in line.events:
            name = e.name
            events.append(Event(name, e.start_ns, e.end_ns))
            if name.startswith("$"):  # a Python function: most events, and without statistics
                continue
            started += name.startswith("PjitFunction(")
            stats = dict(e.stats)
            if "hlo_op" in stats:
                lanes[stats.get("device_ordinal", 0)][index].append(_op(e, stats))
            elif "step_num" in stats:
                steps.append(Event(str(stats["step_num"]), e.start_ns, e.end_ns))
        if started > calls:
            main, calls = events, started
    devices = [Device(f"cpu:{n}", "cpu", None, [*lanes[n].values()], [], [], steps, main) for n in sorted(lanes)]
    return devices, main, steps
