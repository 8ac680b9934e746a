"""Metrics files that survive kills, the progress line, peaks, plots."""

import io
import json

import jax
import numpy as np
import pytest

import qwenjax
from qwenjax import optim, sharding, telemetry
from qwenjax.common.jsonl import read_rows
from qwenjax.common.progress import StatusLine
from qwenjax.train.operations import goodput, report


def test_metrics_are_cut_back_to_the_restored_step_and_a_torn_line_is_dropped(tmp_path):
    sink = telemetry.Sink(tmp_path, 0)
    for step in range(1, 6):
        sink.write(step, {"loss": 1.0 / step})
    sink.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 6, "lo')
    assert [r["step"] for r in read_rows(path)] == [1, 2, 3, 4, 5]
    sink = telemetry.Sink(tmp_path, 3)
    sink.write(4, {"loss": 9.0})
    sink.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert rows[-1]["loss"] == 9.0


def test_a_fresh_run_does_not_inherit_metrics(tmp_path):
    for _ in range(2):
        sink = telemetry.Sink(tmp_path, 0)
        sink.write(1, {"loss": 1.0})
        sink.close()
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1


def test_the_learning_rate_of_every_step_is_the_schedules(monkeypatch):
    """The same wherever a run begins."""
    monkeypatch.setattr(telemetry, "peak_flops", lambda device: None)
    steps = qwenjax.experiment("quickstart", {"steps": 20, "optim.warmup_steps": 5})
    mesh = sharding.make_mesh(steps.mesh, steps.model.embed)
    seen = []
    for first in (0, 11):
        spent = goodput.Clock(0)
        meter = report.Meter(steps, mesh, first, spent)
        seen.append([])
        for step in range(12, 21):
            spent.seconds["step"] += 2
            seen[-1].append(meter.tick(step)["lr"])
    assert meter.rate == pytest.approx(steps.tokens_per_step / 2)
    assert seen[0] == seen[1]
    np.testing.assert_allclose(
        seen[0], [optim.schedule(steps.optim, 20)(step - 1) for step in range(12, 21)], rtol=1e-6
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_rewrites_its_line_on_a_terminal_and_not_in_a_file():
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        progress = StatusLine(every=1000, stream=stream)
        progress.show("step 1 of many", force=True)
        progress.show("step 2", force=True)
        progress.show("too soon")
        progress.say("kept")
    assert file.getvalue() == "step 1 of many\nstep 2\nkept\n"
    assert terminal.getvalue().startswith("\rstep 1 of many\rstep 2        ")  # blanks wipe the longer line
    assert terminal.getvalue().endswith("\rkept\n")


class Device:
    def __init__(self, kind, platform="tpu"):
        self.device_kind, self.platform = kind, platform


@pytest.mark.parametrize(
    ("kind", "flops"),
    [("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v6 lite", 918e12), ("NVIDIA H100 80GB HBM3", 989.4e12)],
)
def test_peak_of_known_devices(kind, flops):
    assert telemetry.peak_flops(Device(kind)) == flops


def test_peak_of_an_unknown_device_is_unknown_and_of_a_cpu_is_measured():
    assert telemetry.peak_flops(Device("TPU v99")) is None
    assert telemetry.peak_flops(jax.devices()[0]) > 1e8


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (125.4, "2:05"), (3661, "1:01:01"), (float("inf"), "?")])
def test_clock(seconds, text):
    assert telemetry.clock(seconds) == text


def test_human_numbers():
    assert [telemetry.human(n) for n in (12, 1234, 14_167_290_880)] == ["12", "1.23k", "14.2B"]
    assert telemetry.human(2.5e9, "B") == "2.5GB"


def test_plot_is_a_png(tmp_path):
    rows = [{"step": i, "loss": 5 - i / 10} for i in range(1, 10)] + [{"step": 9, "eval_bits_per_byte": 2.0}]
    telemetry.plot(
        rows,
        tmp_path / "loss.png",
        [telemetry.LOSS, telemetry.Panel("t", "u", ("eval_bits_per_byte",), {"gzip -9": 2.3})],
    )
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_public_names_exist_and_an_unknown_one_is_named():
    assert qwenjax.experiment("quickstart", {"steps": 7}).steps == 7
    assert callable(qwenjax.fit)
    assert set(dir(qwenjax)) >= {"experiment", "fit", "load_tokenizer"}
    with pytest.raises(AttributeError, match="has no attribute 'fitt'; it offers"):
        _ = qwenjax.fitt
