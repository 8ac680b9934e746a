"""The report on a trace: about thirty lines of text."""

from pathlib import Path
from statistics import median

from qwenjax.profile.summary import Summary
from qwenjax.xla import scopes

KINDS, PARTS, BUFFERS = 7, 6, 2  # rows of each table


def report(summary: Summary, top: int) -> str:
    """All sections, with the `top` most expensive ops."""
    sections = (_captured(summary), _kinds(summary), _parts(summary), _ops(summary, top), _memory_and_host(summary))
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def as_time(value: float) -> str:
    """0.0123 -> '12.3 ms'."""
    return _scaled(value, (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)))


def as_size(value: float) -> str:
    """Bytes as '149 MiB'."""
    return _scaled(value, (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1)))


def _scaled(value: float, units: tuple[tuple[str, float], ...]) -> str:
    unit, one = next((pair for pair in units if value >= 0.9995 * pair[1]), units[-1])
    number = value / one
    return f"{number:.3g} {unit}" if number < 999.5 else f"{number:.0f} {unit}"


def _percent(part: float, total: float) -> str:
    return f"{100 * part / total:5.1f} %" if total else "    - "


def _captured(s: Summary) -> list[str]:
    middle, longest = median(s.steps), max(s.steps)
    slowest = s.step_names[s.steps.index(longest)]
    hosts = f"{s.hosts} host" + "s" * (s.hosts > 1)
    return [
        f"trace     {s.files[0]}" + (f" and {s.hosts - 1} more" if s.hosts > 1 else ""),
        f"device    {s.devices} x {s.device}, {hosts}; {as_time(s.captured)} recorded, jax {s.jax}",
        f"steps     {len(s.steps)} complete: median {as_time(middle)}, min {as_time(min(s.steps))}, "
        f"max {as_time(longest)} (step {slowest}, {longest / middle:.2f} x the median)",
        f"program   {s.program or 'not named'}, {s.executions} x, median {as_time(s.program_seconds)}; "
        f"busy {_percent(s.busy, _step(s)).strip()} of the time",
        *_unnamed(s),
    ]


def _unnamed(s: Summary) -> list[str]:
    """Why ops have no names, if these ops take much of the time."""
    unknown = s.kinds.get(scopes.UNKNOWN, 0.0)
    if unknown < 0.1 * s.busy:
        return []
    flags = " and XLA_FLAGS=--xla_gpu_enable_command_buffer=" if s.platform == "gpu" else ""
    return [
        f"note      {_percent(unknown, _step(s)).strip()} of the time is without names: the trace lacks the program, "
        f"as it does\n          after the compilation cache; record with JAX_ENABLE_COMPILATION_CACHE=false{flags}"
    ]


def _step(s: Summary) -> float:
    return sum(s.steps) / len(s.steps)


def _kinds(s: Summary) -> list[str]:
    lines = [f"{'time by kind':<34} {'share':>7} {'a step':>9}"]
    for kind, value in sorted(s.kinds.items(), key=lambda pair: -pair[1])[:KINDS]:
        note = ""
        if kind == scopes.MATMUL and s.matmul_flops:
            note = f"  at {s.matmul_flops / 1e12:.3g} TFLOP/s"
            note += f", {_percent(s.matmul_flops, s.peak_flops).strip()} of the peak" if s.peak_flops else ""
        lines.append(f"  {kind:<32} {_percent(value, _step(s))} {as_time(value):>9}{note}")
    for kind, times in s.collectives.items():
        lines.append(f"  {kind}: {as_time(times['exposed'])} exposed, {as_time(times['overlapped'])} behind other work")
    return lines


def _parts(s: Summary) -> list[str]:
    columns = ("forward", "recompute", "backward", "")
    columns = [c for c in columns if any(c in times for times in s.parts.values())]
    heads = [c or "other" for c in columns]
    lines = [f"{'time by part of the model':<34} {'share':>7} {'a step':>9}" + "".join(f"{h:>11}" for h in heads)]
    for part, times in list(s.parts.items())[:PARTS]:
        total = sum(times.values())
        cells = "".join(f"{as_time(times[c]) if c in times else '-':>11}" for c in columns)
        lines.append(
            f"  {_shorten(part or '(no scope)', 32):<32} {_percent(total, _step(s))} {as_time(total):>9}{cells}"
        )
    return lines


def _ops(s: Summary, top: int) -> list[str]:
    if not top:
        return []
    lines = [f"{'top ops':<34} {'share':>7} {'a step':>9} {'count':>6}  {'kind':<24}its name in the model"]
    for row in s.ops[:top]:
        name = row.names[0] + (f" and {len(row.names) - 1} more" if len(row.names) > 1 else "")
        lines.append(
            f"  {_shorten(name, 32):<32} {_percent(row.seconds, _step(s))} {as_time(row.seconds):>9} "
            f"{row.count:>6.4g}  {row.kind:<24}{_place_in_model(row.part, row.primitive, row.direction)}"
        )
    return lines


def _memory_and_host(s: Summary) -> list[str]:
    folder = Path(s.files[0]).parent
    if folder.parent.name == "profile" and folder.parent.parent.name == "plugins":
        folder = folder.parent.parent.parent
    return [
        *_memory(s),
        *_host(s),
        f"open      xprof --port=8791 {folder}, then http://localhost:8791; or tensorboard --logdir={folder}",
    ]


def _memory(s: Summary) -> list[str]:
    measured = "; ".join(f"{name} measured {as_size(peak)}" for name, peak in s.measured.items())
    measured = measured or "measured use is not in this trace"
    if not s.memory:
        return [f"memory    the trace does not contain the program's text; {measured}"]
    peak, arguments = as_size(s.memory.peak), as_size(s.memory.arguments)
    lines = [
        f"memory    peak {peak} a device as compiled, {arguments} of it for arguments (parameters, optimizer, batch); "
        f"{measured}"
    ]
    for one in s.memory.buffers[:BUFFERS]:
        model = _place_in_model(*scopes.scope(one.scope))
        lines.append(f"  {as_size(one.bytes):>9} {one.shape} {one.group.lower()}, {model} {one.source}".rstrip())
    return lines


def _host(s: Summary) -> list[str]:
    if not s.host:
        return ["host      nothing recorded between programs"]
    functions = ", ".join(f"{_function(name)} {as_time(value)}" for name, value in list(s.host.items())[:3])
    wait = f"{as_time(s.input_wait)} a step" if s.input_wait is not None else "not in this trace"
    return [
        f"host      {as_time(s.between)} between two programs: {functions}",
        f"input     {wait} spent on the next batch",
    ]


def _function(name: str) -> str:
    """'$report.py:113 tick' -> 'tick (report.py:113)'."""
    source, _, function = name.removeprefix("$").partition(" ")
    return f"{function} ({source})" if name.startswith("$") and function else name


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[1 - width :]


def _place_in_model(path: str, primitive: str, direction: str) -> str:
    """'Transformer/blocks/mlp dot_general backward'."""
    return " ".join(word for word in (path, primitive, direction) if word) or "-"
