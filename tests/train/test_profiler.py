"""`--profile` and `--profiler-port`: what is recorded when. That traces read well: test_loop.py."""

import socket

import jax
import pytest

from qwenjax.train.operations import profiler


@pytest.fixture
def calls(monkeypatch):
    seen = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: seen.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("stop"))
    return seen


@pytest.mark.parametrize(
    ("done", "want"),
    [
        ((0, 1, 2, 3, 4), [0, "start", 1, 2, "stop", 3, 4]),  # steps 2 and 3
        ((2, 3), ["start", 2, "stop", 3]),  # a run that goes on from the middle
        ((0, 1, 2, 0, 1, 2, 3), [0, "start", 1, 2, 0, 1, 2, "stop", 3]),  # a rewind
        ((0, 1), [0, "start", 1, "stop"]),  # the run ends first
        ((3, 4), [3, 4, "none of the steps 2 to 3"]),
        ((0, 1, 2, 3, 1, 2), [0, "start", 1, 2, "stop", 3, 1, 2]),  # once
    ],
)
def test_the_steps_after_start_are_recorded_until_stop(calls, tmp_path, done, want):
    said = []
    with profiler.StepProfiler(tmp_path, (1, 3), said.append) as record:
        for step in done:
            record.before_step(step)
            calls.append(step)
    if isinstance(want[-1], str) and want[-1].startswith("none"):
        assert want.pop() in said[-1]
    assert calls == want
    assert len(said) == 1


def test_without_a_wish_nothing_is_recorded_or_said(calls, tmp_path):
    with profiler.StepProfiler(tmp_path, None, calls.append) as record:
        record.before_step(0)
    assert calls == []


def test_a_trace_is_written_though_the_run_fails(calls, tmp_path):
    def fail():
        with profiler.StepProfiler(tmp_path, (0, 9), lambda text: None) as record:
            record.before_step(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert calls == ["start", "stop"]


def test_a_taken_profiler_port_is_refused():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"--profiler-port={port}: .* a port of its own"):
            profiler.serve(port)
