import pytest
from trace_doubles import MODULE, RECORDED, gpu_plane, host_plane, plane, space, tpu_plane, write

from qwenjax.profile import traces


def test_the_newest_recording_of_a_run_is_found_with_all_hosts(tmp_path):
    run = write(tmp_path, b"", session="2026_01_01_00_00_00")
    for host in ("b", "a"):
        write(tmp_path, b"", host, session="2026_01_01_00_00_01")
    found = traces.find(run)
    assert [file.name for file in found] == ["a.xplane.pb", "b.xplane.pb"]
    assert {file.parent.name for file in found} == {"2026_01_01_00_00_01"}
    assert traces.find(run / "profile") == found
    assert traces.find(found[1]) == [found[1]]


def test_what_is_no_trace_is_told_how_to_make_one(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    for name, reason in (("none", "does not exist"), ("empty", "contains no trace"), ("notes.txt", "is not a trace")):
        with pytest.raises(ValueError, match=f"{name} {reason}.*--profile=10:15"):
            traces.find(tmp_path / name)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_trace_cut_off_is_an_error(tmp_path, keep):
    whole = space(tpu_plane())
    file = traces.find(write(tmp_path, whole[: int(len(whole) * keep)]))
    with pytest.raises(ValueError, match="truncated or not a trace"):
        traces.read(file)


@pytest.mark.parametrize("planes", [(), (host_plane(),), (tpu_plane(starts=()),)])
def test_a_trace_without_ops_is_an_error(tmp_path, planes):
    with pytest.raises(ValueError, match="contains no op of any device"):
        traces.read(traces.find(write(tmp_path, space(*planes))))


def test_a_tpu_is_read(tmp_path):
    metadata = plane("/host:metadata", {}, {"jax_version": "0.10.2"})
    environment = plane("Task Environment", {}, RECORDED)
    planes = tpu_plane(), plane("/device:TPU:0 SparseCore 0", {}), host_plane(), metadata, environment
    capture = traces.read(traces.find(write(tmp_path, space(*planes))))
    assert (capture.platform, capture.jax, capture.seconds) == ("tpu", "0.10.2", 0.005)
    (device,) = capture.devices
    assert (device.name, device.kind, device.peak_flops) == ("/device:TPU:0", "TPU v5 lite", 197e12)
    assert len(device.modules) == 3
    first, second = device.lanes[0][:2]
    assert (first.name, first.module, first.start, first.end) == ("while.1", MODULE, 100_000, 600_000)
    assert second.name == "splash.3"
    assert "$report.py:113 tick" in {event.name for event in device.host}


def test_a_gpu_is_read(tmp_path):
    capture = traces.read(traces.find(write(tmp_path, space(gpu_plane(), host_plane()))))
    (device,) = capture.devices
    assert (capture.platform, device.kind, len(device.lanes)) == ("gpu", "NVIDIA H100", 2)
    assert {(op.name, op.module) for lane in device.lanes for op in lane} == {
        ("gemm.1", "jit_train_step(5)"),
        ("loop_add_fusion.2", "jit_train_step(5)"),
        ("all-gather-start.3", "jit_train_step(5)"),
        ("MemcpyD2H", ""),
    }
