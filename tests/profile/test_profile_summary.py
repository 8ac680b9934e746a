"""Sums of hand-written device traces, worked out in comments, and of a real one of eight CPU devices."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from trace_doubles import gpu_plane, host_plane, plane, space, tpu_plane, write

from qwenjax.profile import traces, xprof_tools
from qwenjax.profile.summary import summarize
from qwenjax.xla import scopes

US = 1e-6


def micros(times: dict) -> dict:
    return {name: pytest.approx(value * US, rel=1e-6, abs=1e-12) for name, value in times.items()}


# Two whole steps, of 1000 and 1200 µs, hold two executions of tpu_step:
# matmul 150 + 200; the loop keeps 500 - 300 - 150; the halves of the all-gather 10 + 50; idle 1100 - 900.
TPU_KINDS = {
    scopes.MATMUL: 350,
    scopes.ATTENTION: 300,
    scopes.CONTROL: 50,
    scopes.MEMORY: 40,
    "all-gather": 60,
    "all-reduce": 100,
    "idle": 200,
}


def test_tpu_by_hand(tmp_path):
    found = summarize(write(tmp_path, space(tpu_plane(), host_plane())))
    assert found.steps == pytest.approx([1000 * US, 1200 * US])
    assert (found.program, found.executions, found.device) == ("jit_train_step(77)", 3, "TPU v5 lite")
    assert found.program_seconds == pytest.approx(900 * US)
    assert found.kinds == micros(TPU_KINDS)
    assert found.busy == pytest.approx(900 * US)
    # in flight from 500 to 760, of which fusion.1 runs 200; nothing runs beside the all-reduce
    assert found.collectives["all-gather"] == micros({"exposed": 60, "overlapped": 200})
    assert found.collectives["all-reduce"] == micros({"exposed": 100, "overlapped": 0})
    assert found.parts["Net/blocks/mlp"] == micros({"forward": 350})
    assert found.parts["Net/blocks/norm"] == micros({"backward": 40})
    top = found.ops[0]
    assert (top.names, top.part, top.primitive, top.direction) == (
        ["fusion.1"],
        "Net/blocks/mlp",
        "dot_general",
        "forward",
    )
    assert top.count == pytest.approx(2)
    assert found.matmul_flops == pytest.approx(2 * 6e9 / (350 * US))  # 6 GFLOP an execution
    assert found.peak_flops == 197e12
    # gaps of 100 and 300 µs, each with 40 for a batch and 20 in tick
    assert found.between == pytest.approx(200 * US)
    assert found.host == micros({"$pretrain.py:91 batches": 40, "$report.py:113 tick": 20})
    assert found.input_wait == pytest.approx(40 * US)
    assert found.memory is None


def test_tpu_self_times_are_xprofs(tmp_path):
    run = write(tmp_path, space(tpu_plane()))
    with xprof_tools.converters(traces.find(run)[0]) as tool:
        table = json.loads(tool("hlo_stats"))
    columns = [column["id"] for column in table["cols"]]
    rows = [dict(zip(columns, (cell["v"] for cell in row["c"]))) for row in table["rows"]]
    theirs = {row["hlo_op_name"]: row["total_self_time"] * US / 3 for row in rows}  # of three executions
    ours = {row.names[0]: row.seconds for row in summarize(run).ops}
    assert {name: ours[name] for name in theirs} == {name: pytest.approx(value) for name, value in theirs.items()}
    assert len(theirs) == 7


def test_devices_and_hosts_are_averaged(tmp_path):
    write(tmp_path, space(tpu_plane(0), tpu_plane(1), host_plane()), "host0")
    run = write(tmp_path, space(tpu_plane(0, starts=(600, 1600, 2800)), tpu_plane(1)), "host1")  # another clock
    found = summarize(run)
    assert (found.hosts, found.devices, found.executions) == (2, 4, 3)
    assert found.kinds == micros(TPU_KINDS)
    assert found.collectives["all-gather"] == micros({"exposed": 60, "overlapped": 200})
    assert found.ops[0].count == pytest.approx(2)


def test_annotated_steps_are_taken_as_they_are(tmp_path):
    found = summarize(write(tmp_path, space(tpu_plane(annotated=True))))
    assert found.step_names == ["10", "11", "12"]
    assert found.steps == pytest.approx([1000 * US, 1200 * US, 950 * US])
    assert found.kinds[scopes.MATMUL] == pytest.approx(350 * US)


def test_an_annotated_input_is_counted_once(tmp_path):
    rows = [("input", at - 60, 40, {}) for at in (1100, 2300)] + [
        ("$sft.py:7 batches", at - 55, 30) for at in (1100, 2300)
    ]
    found = summarize(
        write(tmp_path, space(tpu_plane(), plane("/host:CPU", {"a": [("PjitFunction(f)", 1, 1), *rows]})))
    )
    assert found.input_wait == pytest.approx(40 * US)
    silent = plane("/host:CPU", {"a": [("PjitFunction(f)", 1040, 1), ("Work", 1050, 9)]})
    found = summarize(write(tmp_path, space(tpu_plane(), silent)))
    assert (found.input_wait, found.host) == (None, micros({"Work": 4.5}))


def test_one_execution_is_one_step(tmp_path):
    found = summarize(write(tmp_path, space(tpu_plane(starts=(100,)))))
    assert found.steps == pytest.approx([900 * US])
    assert "idle" in found.kinds
    assert (found.between, found.host, found.input_wait) == (0.0, {}, None)


def test_transfers_that_the_device_records_in_flight_count_as_overlapped(tmp_path):
    dot = "%dot.1 = f32[8]{0} dot(f32[8]{0} %p)"
    flight = "%all-gather-start.1 = (f32[8]{0}) all-gather-start(f32[8]{0} %p)"
    lines = {
        "XLA Modules": [("jit_f(1)", at, 100) for at in (0, 100)],
        "XLA Ops": [(dot, at, 60) for at in (0, 100)],
        "Async XLA Ops": [(flight, at + 10, 70) for at in (0, 100)],
    }
    found = summarize(write(tmp_path, space(plane("/device:TPU:0", lines))))
    assert found.collectives == {"all-gather": micros({"exposed": 20, "overlapped": 50})}


def test_gpu_by_hand(tmp_path):
    found = summarize(write(tmp_path, space(gpu_plane(), host_plane(starts=(100, 1100, 2100)))))
    assert found.steps == pytest.approx([1000 * US, 1000 * US])
    assert (found.program, found.executions) == ("jit_train_step(5)", 3)
    assert found.program_seconds == pytest.approx(700 * US)
    # gemm 100-500, all-gather 400-800, add 500-600: a moment of two kernels is half each one's
    expected = {scopes.MATMUL: 350, "all-gather": 300, scopes.UNKNOWN: 50, scopes.TRANSFER: 50, "idle": 250}
    assert found.kinds == micros(expected)
    assert found.collectives == {"all-gather": micros({"exposed": 200, "overlapped": 200})}


def test_measured_memory_is_xprofs(tmp_path):
    allocation = {"bytes_reserved": 0, "bytes_allocated": 3000, "bytes_available": 7000, "peak_bytes_in_use": 8500}
    allocation |= {"requested_bytes": 200, "allocation_bytes": 256, "addr": 1, "allocator_name": "GPU_0_bfc"}
    host = plane("/host:CPU", {"a": [("MemoryAllocation", 10, 1, allocation)]})
    with xprof_tools.converters(traces.find(write(tmp_path, space(gpu_plane(), host)))[0]) as tool:
        assert xprof_tools.measured_memory(tool) == {"GPU_0_bfc": 8500.0}


def test_without_xprof_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xprof.convert", None)
    with pytest.raises(ValueError, match=r"pip install 'qwenjax\[profile\]'"):
        summarize(write(tmp_path, space(tpu_plane())))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Four executions of a small step over eight CPU devices."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def loss(w, x):
        with jax.named_scope("mlp"):
            h = jnp.maximum(x @ w, 0)
        with jax.named_scope("loss"):
            return (h**2).mean()

    rows = jax.NamedSharding(mesh, PartitionSpec("data"))
    whole = jax.NamedSharding(mesh, PartitionSpec())
    step = jax.jit(lambda w, x: w - jax.grad(loss)(w, x), in_shardings=(whole, rows), out_shardings=whole)
    w, x = (
        jax.device_put(np.ones((256, 256), np.float32), whole),
        jax.device_put(np.ones((1024, 256), np.float32), rows),
    )
    w = step(w, x).block_until_ready()
    run = tmp_path_factory.mktemp("recorded")
    with jax.profiler.trace(str(run / "profile")):
        for _ in range(4):
            w = step(w, x).block_until_ready()
    return run


def test_a_real_trace_adds_up(recorded):
    files = sorted(recorded.rglob("*"))
    found = summarize(recorded)
    assert sorted(recorded.rglob("*")) == files  # xprof's caches stay elsewhere
    assert (found.platform, found.devices, found.executions, len(found.steps)) == ("cpu", 8, 4, 3)
    assert found.program.startswith("jit__lambda")
    wall = sum(found.kinds.values())
    assert wall == pytest.approx(found.busy + found.kinds["idle"])
    assert found.busy == pytest.approx(sum(row.seconds for row in found.ops))
    assert {scopes.MATMUL, "all-reduce", "idle"} <= found.kinds.keys()
    assert "all-reduce" in found.collectives
    directions = found.parts["mlp"].keys()
    assert "backward" in directions
    matmuls = [row for row in found.ops if row.kind == scopes.MATMUL and row.part == "mlp"]
    assert sum(row.count for row in matmuls) == pytest.approx(2)  # x @ w and the gradient of w
    assert found.memory.peak >= found.memory.arguments > 256 * 256 * 4
    assert all(one.bytes > 0 for one in found.memory.buffers[:2])
