"""The parent that starts a run again: when it does, and when it stops. The child is a script, but for one real run."""

import json
import os
import sys

import pytest

import qwenjax.train.__main__ as train
from qwenjax.train.operations import restarts

CHILD = """
import json, os, signal, sys
from pathlib import Path
workdir, *plan = sys.argv[1:]
workdir = Path(workdir)
workdir.mkdir(exist_ok=True)
calls = workdir / "calls"
n = len(calls.read_text()) if calls.exists() else 0
calls.write_text("x" * (n + 1))
assert os.environ["QWENJAX_RESTARTED"] == "1"
step, end = plan[min(n, len(plan) - 1)].split(":")
with (workdir / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"step": int(step)}) + chr(10))
if int(end) < 0:
    os.kill(os.getpid(), -int(end))
sys.exit(int(end))
"""


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    """Runs a plan of 'step reached:exit code' and returns (code, number of starts)."""

    def call(*plan, times=9):
        program = tmp_path / "child.py"
        program.write_text(CHILD)
        real = restarts.subprocess.Popen
        swap = [sys.executable, str(program), str(tmp_path / "run"), *plan]
        monkeypatch.setattr(restarts.subprocess, "Popen", lambda command, **kw: real(swap, **kw))
        code = restarts.supervise([], times, tmp_path / "run", wait=0.01)
        return code, len((tmp_path / "run" / "calls").read_text())

    return call


@pytest.mark.parametrize(
    ("plan", "code", "starts"),
    [
        (("5:0",), 0, 1),
        (("5:-9", "9:3", "12:1", "20:0"), 0, 4),  # a kill, a preemption, a crash; progress each time
        (("0:2",), 2, 1),  # bad usage
        (("0:78",), 1, 1),  # data or settings that do not fit, or divergence
        (("5:1", "5:1"), 1, 2),  # twice at one step
        (("0:-11", "0:-11"), 1, 2),
        (("0:75", "0:75", "0:75", "3:0"), 0, 4),  # others are missing: no fault of this one
    ],
)
def test_started_again_while_there_is_a_point(supervise, plan, code, starts):
    assert supervise(*plan) == (code, starts)


def test_no_more_often_than_asked(supervise):
    assert supervise("1:1", "2:1", "3:1", "4:1", times=2) == (1, 3)


def test_the_child_trains_and_starts_no_child_of_its_own(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(train, "train", lambda *_: calls.append("train") or 0)
    monkeypatch.setattr(restarts, "supervise", lambda *_: calls.append("supervise") or 0)
    argv = ["--exp=quickstart", "--restarts=3", f"--workdir={tmp_path}"]
    monkeypatch.delenv(restarts.CHILD, raising=False)
    assert train.main(argv) == 0
    monkeypatch.setenv(restarts.CHILD, "1")
    assert train.main(argv) == 0
    assert calls == ["supervise", "train"]


def test_exit_codes_tell_a_parent_why(monkeypatch):
    monkeypatch.delenv(restarts.CHILD, raising=False)
    assert restarts.exit_code(restarts.PERMANENT) == 1
    monkeypatch.setenv(restarts.CHILD, "1")
    assert restarts.exit_code(restarts.PERMANENT) == 78


def test_began_means_this_process(tmp_path):
    (tmp_path / "events.jsonl").write_text(json.dumps({"event": "started", "pid": os.getpid()}) + "\n")
    assert restarts.began(tmp_path)
    (tmp_path / "events.jsonl").write_text(json.dumps({"event": "started", "pid": 1}) + "\n")
    assert not restarts.began(tmp_path)
