"""The report on a trace: about thirty lines of text."""

from pathlib import Path
from statistics import median

from qwenjax.profile.summary import Summary
from qwenjax.telemetry import human
from qwenjax.xla import scopes

KINDS, PARTS, BUFFERS, FUNCTIONS = 7, 6, 2, 3  # rows of each table


def report(summary: Summary, top: int) -> str:
    """All sections, with the `top` most expensive ops."""
    sections = [_captured(summary), _kinds(summary), _parts(summary), _ops(summary, top), _memory_and_host(summary)]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def as_time(value: float) -> str:
    """0.0123 -> '12.3 ms'."""
    unit, one = ("s", 1.0) if value >= 0.9995 else ("ms", 1e-3) if value >= 0.9995e-3 else ("µs", 1e-6)
    return f"{value / one:.3g} {unit}" if value < 999.5 * one else f"{value / one:.0f} {unit}"


def _percent(part: float, total: float) -> str:
    return f"{100 * part / total:.1f} %" if total else "-"


def _row(s: Summary, name: str, seconds: float) -> str:
    """The columns that all tables begin with: a name, its share of a step, its time in a step."""
    name = name if len(name) <= 32 else f"…{name[-31:]}"
    return f"  {name:<32} {_percent(seconds, s.step):>7} {as_time(seconds):>9}"


def _captured(s: Summary) -> list[str]:
    middle, longest = median(s.steps), max(s.steps)
    lines = [
        f"trace     {s.files[0]}" + (f" and {s.hosts - 1} more" if s.hosts > 1 else ""),
        f"device    {s.devices} x {s.device}, {s.hosts} host{'s' * (s.hosts > 1)}; {as_time(s.captured)} recorded, "
        f"jax {s.jax}",
        f"steps     {len(s.steps)} complete: median {as_time(middle)}, min {as_time(min(s.steps))}, max "
        f"{as_time(longest)} (step {s.step_names[s.steps.index(longest)]}, {longest / middle:.2f} x the median)",
        f"program   {s.program or 'not named'}, {s.executions} x, median {as_time(s.program_seconds)}; "
        f"busy {_percent(s.busy, s.step)} of the time",
    ]
    unknown = s.kinds.get(scopes.UNKNOWN, 0.0)
    if unknown > 0.1 * s.busy:
        flags = " and XLA_FLAGS=--xla_gpu_enable_command_buffer=" if s.platform == "gpu" else ""
        lines += [
            f"note      {_percent(unknown, s.step)} of the time is without names: the trace lacks the program, as it",
            f"          does after the compilation cache; record with JAX_ENABLE_COMPILATION_CACHE=false{flags}",
        ]
    return lines


def _kinds(s: Summary) -> list[str]:
    lines = [f"{'time by kind':<34} {'share':>7} {'a step':>9}"]
    for kind, seconds in sorted(s.kinds.items(), key=lambda pair: -pair[1])[:KINDS]:
        line = _row(s, kind, seconds)
        if kind == scopes.MATMUL and s.matmul_flops:
            line += f"  at {s.matmul_flops / 1e12:.3g} TFLOP/s"
            line += f", {_percent(s.matmul_flops, s.peak_flops)} of the peak" if s.peak_flops else ""
        lines.append(line)
    for kind, times in s.collectives.items():
        lines.append(f"  {kind}: {as_time(times['exposed'])} exposed, {as_time(times['overlapped'])} behind other work")
    return lines


def _parts(s: Summary) -> list[str]:
    directions = ("forward", "recompute", "backward", "")
    directions = [one for one in directions if any(one in times for times in s.parts.values())]
    head = f"{'time by part of the model':<34} {'share':>7} {'a step':>9}"
    lines = [head + "".join(f"{one or 'other':>11}" for one in directions)]
    for part, times in list(s.parts.items())[:PARTS]:
        cells = "".join(f"{as_time(times[one]) if one in times else '-':>11}" for one in directions)
        lines.append(_row(s, part or "(no scope)", sum(times.values())) + cells)
    return lines


def _ops(s: Summary, top: int) -> list[str]:
    lines = [f"{'top ops':<34} {'share':>7} {'a step':>9} {'count':>6}  {'kind':<24}its name in the model"]
    for row in s.ops[:top]:
        name = row.names[0] + (f" and {len(row.names) - 1} more" if len(row.names) > 1 else "")
        scope = scopes.Scope(row.part, row.primitive, row.direction)
        lines.append(f"{_row(s, name, row.seconds)} {row.count:>6.4g}  {row.kind:<24}{str(scope) or '-'}")
    return lines if top else []


def _memory_and_host(s: Summary) -> list[str]:
    measured = "; ".join(f"{name} measured {human(peak, 'B')}" for name, peak in s.measured.items())
    measured = measured or "measured use is not in this trace"
    lines = [f"memory    the trace does not contain the program's text; {measured}"]
    if s.memory:
        lines = [
            f"memory    peak {human(s.memory.peak, 'B')} a device as compiled, {human(s.memory.arguments, 'B')} of it "
            f"for arguments (parameters, optimizer, batch); {measured}"
        ]
        for one in s.memory.buffers[:BUFFERS]:
            scope = str(scopes.scope(one.scope)) or "-"
            lines.append(f"  {human(one.bytes, 'B'):>9} {one.shape} {one.group.lower()}, {scope} {one.source}".rstrip())
    if s.host:
        functions = [f"{name.removeprefix('$')} {as_time(value)}" for name, value in list(s.host.items())[:FUNCTIONS]]
        wait = f"{as_time(s.input_wait)} a step" if s.input_wait is not None else "not in this trace"
        lines.append(f"host      {as_time(s.between)} between two programs: {', '.join(functions)}")
        lines.append(f"input     {wait} spent on the next batch")
    session = Path(s.files[0]).parent
    folder = session.parents[2] if session.parent.parts[-2:] == ("plugins", "profile") else session
    lines.append(f"open      xprof --port=8791 {folder}, then http://localhost:8791; or tensorboard --logdir={folder}")
    return lines
