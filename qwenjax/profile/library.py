"""What only xprof's converters know: the programs of a trace, their memory, and FLOP rates on TPU and GPU."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from qwenjax.xla.scopes import ScopedOp, scoped_ops

Tool = Callable[..., str]  # tool(name, **parameters) -> text, empty where the trace has no such data
MIB = 2**20


@dataclass(frozen=True)
class Buffer:
    """An array that is alive when a program needs most memory."""

    bytes: float
    shape: str
    group: str  # Parameter, Temporary, Output …
    scope: str
    source: str  # file:line


@dataclass(frozen=True)
class Memory:
    """Memory of a program on one device, as the compiler laid it out."""

    peak: float  # bytes
    arguments: float  # bytes
    buffers: list[Buffer]  # alive at the peak, largest first


@contextmanager
def converters(file: Path) -> Iterator[Tool]:
    """Yields xprof's converters for a trace; all hosts run the same program, so that one tells of all.

    They see a link in a temporary folder, because xprof writes its caches beside the file that it reads.

    Raises:
      ValueError: xprof is not installed.
    """
    try:
        from xprof.convert import raw_to_tool_data
    except ImportError:
        raise ValueError("reading a trace needs xprof: pip install 'qwenjax[profile]'") from None
    with TemporaryDirectory() as folder:
        link = Path(folder) / file.name
        link.symlink_to(file.resolve())
        with _silence():
            raw_to_tool_data.xspace_to_tool_names([str(link)])  # unpacks the programs, for the other tools

        def tool(name: str, **parameters) -> str:
            try:
                with _silence():
                    data, _ = raw_to_tool_data.xspace_to_tool_data([str(link)], name, parameters)
            except ValueError:  # a program or section that this trace does not have
                data = None
            return data.decode() if isinstance(data, bytes) else data or ""

        yield tool


@contextmanager
def _silence() -> Iterator[None]:
    """Without what xprof's C++ writes to stderr at every call, about processors that it does not have."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def program(tool: Tool, module: str) -> dict[str, ScopedOp]:
    """The instructions of a program such as jit_train_step(2); empty if the trace does not hold it."""
    view = {"type": "long_txt", "module_name": module, "node_name": "", "graph_width": 3, "show_metadata": 1}
    return scoped_ops(tool("graph_viewer", graph_viewer_options=view))


def device_ops(tool: Tool) -> dict[tuple[str, str], ScopedOp]:
    """Ops of TPU and GPU by (program id, name), with xprof's category and the rate of FLOPs."""
    table = json.loads(tool("hlo_stats") or '{"cols": [], "rows": []}')
    columns = [column["id"] for column in table["cols"]]
    rows = [dict(zip(columns, (cell.get("v") for cell in row["c"]))) for row in table["rows"]]
    return {
        (str(row["program_id"]), row["hlo_op_name"]): ScopedOp(
            (row["category"] or "").lower(), row["tf_op_name"] or "", 1e9 * (row["model_flop_rate"] or 0)
        )
        for row in rows
    }


def memory(tool: Tool, module: str) -> Memory | None:
    """Where a program needs most memory, and what for; None if the trace does not hold it."""
    layout = tool("memory_viewer", module_name=module, memory_space="0")
    if not layout:
        return None
    layout = json.loads(layout)
    buffers = [
        Buffer(
            one.get("logicalBufferSizeMib", 0) * MIB,
            one.get("shapeString", "").split("{")[0],
            one.get("groupName", ""),
            one.get("tfOpName", ""),
            _source(one.get("sourceInfo", {})),
        )
        for one in layout.get("maxHeapBySize", [])
    ]
    arguments = layout.get("entryComputationParametersMib", 0) * MIB
    return Memory(layout.get("peakHeapMib", 0) * MIB, arguments, buffers)


def measured(tool: Tool) -> dict[str, float]:
    """Peak bytes in use by allocator, where the trace has allocations (of the first host)."""
    allocators = json.loads(tool("memory_profile") or "{}").get("memoryProfilePerAllocator", {})
    return {name: float(one["profileSummary"]["peakBytesUsageLifetime"]) for name, one in allocators.items()}


def _source(info: dict) -> str:
    return f"{Path(info['fileName']).name}:{info['lineNumber']}" if info.get("fileName") else ""
