"""Traces written by hand: planes of devices and hosts as XSpace protos, in microseconds."""

from pathlib import Path

from jax.profiler import ProfileData

US = 10**6  # picoseconds
RECORDED = {"profile_start_time": 0, "profile_stop_time": 5_000_000}  # 5 ms


def space(*planes: str) -> bytes:
    """A trace file of these planes."""
    return ProfileData.text_proto_to_serialized_xspace("\n".join(planes))


def plane(
    name: str, lines: dict[str, list[tuple]], stats: dict | None = None, ops: dict[str, dict] | None = None
) -> str:
    """A plane. A line is a list of events (name, start, duration[, stats]); `ops` are statistics of all such events."""
    events, names = _Ids(), _Ids()
    body = []
    for number, (line, rows) in enumerate(lines.items(), 1):
        written = " ".join(_event(events, names, *row) for row in rows)
        body.append(f'lines {{ id: {number} name: "{line}" timestamp_ns: 0 {written} }}')
    of_plane = " ".join(_stat(names, *one) for one in (stats or {}).items())
    metadata = []
    for event, i in events.items():
        short = event.split(" = ")[0].lstrip("%")
        stats_of = " ".join(_stat(names, *one) for one in (ops or {}).get(event, {}).items())
        value = f'id: {i} name: "{event}" display_name: "{short}" {stats_of}'
        metadata.append(f"event_metadata {{ key: {i} value {{ {value} }} }}")
    kinds = [f'stat_metadata {{ key: {i} value {{ id: {i} name: "{stat}" }} }}' for stat, i in names.items()]
    return f'planes {{ name: "{name}" {" ".join(body + metadata + kinds)} {of_plane} }}'


class _Ids(dict):
    def __missing__(self, key: str) -> int:
        self[key] = len(self) + 1
        return self[key]


def _stat(names: _Ids, name: str, value) -> str:
    kind = {str: "str_value", int: "int64_value", float: "double_value"}[type(value)]
    return f"stats {{ metadata_id: {names[name]} {kind}: {repr(value).replace(chr(39), chr(34))} }}"


def _event(events: _Ids, names: _Ids, name: str, start: float, duration: float, stats: dict | None = None) -> str:
    written = " ".join(_stat(names, *one) for one in (stats or {}).items())
    where = f"offset_ps: {round(start * US)} duration_ps: {round(duration * US)}"
    return f"events {{ metadata_id: {events[name]} {where} {written} }}"


def write(folder: Path, data: bytes, host: str = "host0", session: str = "2026_01_02_03_04_05") -> Path:
    """Stores a trace where JAX would, below a run; returns the run."""
    file = folder / "profile" / "plugins" / "profile" / session / f"{host}.xplane.pb"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return folder


MODULE = "jit_train_step(77)"
DOT = "%fusion.1 = bf16[8,8]{1,0} fusion(bf16[8,8]{1,0} %p0), kind=kOutput, calls=%fused"
ADD = "%fusion.2 = bf16[8,8]{1,0} fusion(bf16[8,8]{1,0} %p0), kind=kLoop, calls=%fused.1"
LOOP = "%while.1 = (s32[], bf16[8,8]{1,0}) while((s32[], bf16[8,8]{1,0}) %t), condition=%c, body=%b"
KERNEL = "%splash.3 = bf16[8,8]{1,0} custom-call(bf16[8,8]{1,0} %p0), custom_call_target=tpu_custom_call"
START = "%all-gather-start.4 = (bf16[8]{0}, bf16[64]{0}) all-gather-start(bf16[8]{0} %p1)"
DONE = "%all-gather-done.4 = bf16[64]{0} all-gather-done((bf16[8]{0}, bf16[64]{0}) %all-gather-start.4)"
REDUCE = "%all-reduce.5 = bf16[8]{0} all-reduce(bf16[8]{0} %p2), to_apply=%add"
TPU_OPS = {
    DOT: {
        "hlo_category": "convolution fusion",
        "tf_op": "jit(train_step)/jvp(Net)/blocks/mlp/dot_general:",
        "flops": 6 * 10**9,
    },
    ADD: {"hlo_category": "loop fusion", "tf_op": "jit(train_step)/transpose(jvp(Net))/blocks/norm/add:"},
    LOOP: {"hlo_category": "while"},
    KERNEL: {"hlo_category": "custom-call", "tf_op": "jit(train_step)/jvp(Net)/blocks/attn/splash_attention:"},
    START: {"hlo_category": "all-gather-start"},
    DONE: {"hlo_category": "all-gather-done"},
    REDUCE: {"hlo_category": "all-reduce"},
}
TPU_OPS = {name: stats | {"program_id": 77, "symbol_id": i} for i, (name, stats) in enumerate(TPU_OPS.items(), 1)}


def tpu_step(at: float) -> list[tuple]:
    """The ops of one execution of 900 µs.

    while 0-500: in it splash 0-300 and fusion.1 300-450, so 50 of its own; all-gather-start 500-510, fusion.1 510-710,
    all-gather-done 710-760; fusion.2 760-800; all-reduce 800-900.
    """
    times = [(LOOP, 0, 500), (KERNEL, 0, 300), (DOT, 300, 150), (START, 500, 10), (DOT, 510, 200), (DONE, 710, 50)]
    times += [(ADD, 760, 40), (REDUCE, 800, 100)]
    return [(name, at + start, duration) for name, start, duration in times]


def tpu_plane(number: int = 0, starts: tuple = (100, 1100, 2300), annotated: bool = False) -> str:
    """A TPU core that executes the program at these times; three executions make two whole steps, of 1000 and 1200."""
    lines = {
        "XLA Modules": [(MODULE, at, 900, {"program_id": 77, "run_id": i}) for i, at in enumerate(starts)],
        "XLA Ops": [op for at in starts for op in tpu_step(at)],
    }
    if annotated:
        lines["Steps"] = [(str(10 + i), at, 950) for i, at in enumerate(starts)]
    stats = {"device_type_string": "TPU v5 lite", "peak_teraflops_per_second": 197.0}
    stats["peak_hbm_bw_gigabytes_per_second"] = 819.0
    return plane(f"/device:TPU:{number}", lines, stats, TPU_OPS)


def host_plane(starts: tuple = (100, 1100, 2300), function: str = "train_step") -> str:
    """A host that calls the program 5 µs before it starts, and 80 µs before that takes 40 µs for a batch."""
    rows = []
    for at in starts:
        rows += [("$builtins next", at - 80, 42), ("$pretrain.py:91 batches", at - 79, 40)]
        rows += [("$report.py:113 tick", at - 30, 20)]
        rows += [(f"PjitFunction({function})", at - 5, 4), (f"PjitFunction({function})", at - 4, 2)]
    return plane("/host:CPU", {"python": rows})


def gpu_plane(starts: tuple = (100, 1100, 2100)) -> str:
    """A GPU with two streams: gemm 100-500, add 500-600 on one, all-gather 400-800 on the other."""

    def op(name: str) -> dict:
        return {"hlo_op": name, "hlo_module": "jit_train_step", "program_id": 5}

    compute, transfer = [], []
    for at in starts:
        compute += [("nvjet_sm90", at + 100, 400, op("gemm.1")), ("loop_add", at + 500, 100, op("loop_add_fusion.2"))]
        transfer += [("ncclDevKernel_AllGather_RING_LL(x)", at + 400, 400, op("all-gather-start.3"))]
        transfer += [("MemcpyD2H", at + 850, 50)]
    lines = {"Stream #13(Compute)": compute, "Stream #14(MemcpyD2H)": transfer}
    return plane("/device:GPU:0", lines, {"device_type_string": "NVIDIA H100"})
