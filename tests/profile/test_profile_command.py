import json

import pytest
from trace_doubles import host_plane, plane, space, tpu_plane, write

from qwenjax.profile.__main__ import main
from qwenjax.profile.report import as_time


@pytest.fixture
def run(tmp_path):
    return write(tmp_path, space(tpu_plane(), host_plane()))


def test_about_thirty_lines_say_it(run, capsys):
    assert main([str(run)]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 40
    for line in (
        "device    1 x TPU v5 lite, 1 host; 3.2 ms recorded, jax ?",
        "steps     2 complete: median 1.1 ms, min 1 ms, max 1.2 ms (step 2, 1.09 x the median)",
        "program   jit_train_step(77), 3 x, median 900 µs; busy 81.8 % of the time",
        "  all-gather: 60 µs exposed, 200 µs behind other work",
        "input     40 µs a step spent on the next batch",
    ):
        assert line in text.splitlines()
    rows = {line.split("  ")[1]: line for line in text.splitlines() if line.startswith("  ")}
    assert "31.8 %" in rows["matmul"]
    assert rows["matmul"].endswith("at 34.3 TFLOP/s, 17.4 % of the peak")
    assert rows["fusion.1"].endswith("Net/blocks/mlp dot_general forward")
    assert "xprof --port=8791" in text
    assert str(run / "profile") in text.splitlines()[-1]


def test_top_says_how_many_ops(run, capsys):
    main([str(run), "--top=1"])
    assert "splash.3" not in capsys.readouterr().out
    main([str(run), "--top=0"])
    assert "top ops" not in capsys.readouterr().out


def test_json_has_all_of_it(run, capsys):
    assert main([str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kinds"]["matmul"] == pytest.approx(350e-6)
    assert found["collectives"]["all-gather"]["exposed"] == pytest.approx(60e-6)
    assert {op["names"][0] for op in found["ops"]} >= {"fusion.1", "splash.3", "while.1"}


def test_a_trace_without_its_program_says_how_to_record_one(tmp_path, capsys):
    ops = [("fusion.1", at, 90, {"hlo_op": "fusion.1", "hlo_module": "jit_f", "program_id": 1}) for at in (0, 100, 200)]
    main([str(write(tmp_path, space(plane("/device:GPU:0", {"Stream #1": ops}))))])
    text = capsys.readouterr().out
    assert "note      93.1 % of the time is without names" in text  # 270 of 290 µs
    assert "JAX_ENABLE_COMPILATION_CACHE=false and XLA_FLAGS=--xla_gpu_enable_command_buffer=" in text


def test_errors_are_one_line_and_exit_1(tmp_path, capsys):
    cut = write(tmp_path / "cut", space(tpu_plane())[:-9])
    for path in (tmp_path / "none", tmp_path, cut):
        assert main([str(path)]) == 1
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_units():
    assert [as_time(v) for v in (0.0, 2.5e-7, 1.234e-5, 0.9999, 12.34, 1234.5)] == [
        "0 µs",
        "0.25 µs",
        "12.3 µs",
        "1 s",
        "12.3 s",
        "1234 s",
    ]
