"""What xprof's own tables say of a trace: its programs, their memory, and categories and FLOP rates on TPU and GPU."""

import json
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
    """An array that is alive at a program's peak of memory."""

    bytes: float
    shape: str
    group: str  # Parameter, Temporary, Output …
    scope: str
    source: str  # file:line


@dataclass(frozen=True)
class Memory:
    """Memory of a program on one device, as the compiler assigned it."""

    peak: float  # bytes
    arguments: float  # bytes
    buffers: list[Buffer]  # alive at the peak, largest first


@contextmanager
def converters(file: Path) -> Iterator[Tool]:
    """Yields xprof's converters for the trace of one host. Raises ValueError if xprof is not installed.

    They read through a link in a temporary folder, because xprof writes its caches beside the file that it reads.
    """
    try:
        from xprof.convert import raw_to_tool_data
    except ImportError:
        raise ValueError("reading a trace needs xprof: pip install 'qwenjax[profile]'") from None
    with TemporaryDirectory() as folder:
        link = Path(folder) / file.name
        link.symlink_to(file.resolve())
        raw_to_tool_data.xspace_to_tool_names([str(link)])  # extracts the programs, for the other tools

        def tool(name: str, **parameters) -> str:
            try:
                data, _ = raw_to_tool_data.xspace_to_tool_data([str(link)], name, parameters)
            except ValueError:  # a program or section that this trace does not have
                data = None
            return data.decode() if isinstance(data, bytes) else data or ""

        yield tool


def program_ops(tool: Tool, module: str) -> dict[str, ScopedOp]:
    """The instructions of a program such as jit_train_step(2); empty if the trace does not contain it."""
    view = {"type": "long_txt", "module_name": module, "node_name": "", "graph_width": 3, "show_metadata": 1}
    return scoped_ops(tool("graph_viewer", graph_viewer_options=view))


def device_ops(tool: Tool) -> dict[tuple[str, str], ScopedOp]:
    """Ops of TPUs and GPUs by (program id, name), with xprof's category and FLOP rate."""
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
    """A program's peak of memory and the arrays alive then; None if the trace does not contain the program."""
    layout = json.loads(tool("memory_viewer", module_name=module, memory_space="0") or "null")
    if layout is None:
        return None
    buffers = []
    for one in layout.get("maxHeapBySize", []):
        size, shape = one.get("logicalBufferSizeMib", 0) * MIB, one.get("shapeString", "").split("{")[0]
        info = one.get("sourceInfo", {})
        source = f"{Path(info['fileName']).name}:{info['lineNumber']}" if info.get("fileName") else ""
        buffers.append(Buffer(size, shape, one.get("groupName", ""), one.get("tfOpName", ""), source))
    arguments = layout.get("entryComputationParametersMib", 0) * MIB
    return Memory(layout.get("peakHeapMib", 0) * MIB, arguments, buffers)


def measured_memory(tool: Tool) -> dict[str, float]:
    """Peak bytes in use by allocator, on the first host; empty if the trace has no allocations."""
    allocators = json.loads(tool("memory_profile") or "{}").get("memoryProfilePerAllocator", {})
    return {name: float(one["profileSummary"]["peakBytesUsageLifetime"]) for name, one in allocators.items()}
