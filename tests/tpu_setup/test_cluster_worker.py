"""What runs on each VM, here: real processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwenjax.cluster import worker
from qwenjax.cluster.__main__ import main

HOST = socket.gethostname()
UP = "import signal, time\nsignal.signal(signal.SIGTERM, {})\nprint('up', flush=True)\ntime.sleep(60)"
WAITING, STUBBORN = UP.format("lambda *a: exit(3)"), UP.format("signal.SIG_IGN")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "qwenjax").mkdir()
    yield tmp_path / "qwenjax"
    for pid in tmp_path.glob("qwenjax/launched/*/pid"):
        if worker.state(pid.parent.name).state == worker.RUNNING:
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def ended(job: str) -> worker.JobState:
    until(lambda: worker.state(job).state != worker.RUNNING)
    return worker.state(job)


def log(job: str) -> str:
    return (worker.home() / "launched" / job / "log").read_text()


def up(job: str) -> None:
    until(lambda: "up\n" in log(job))


def test_a_job_runs_in_the_background_and_leaves_log_and_exit_code(home):
    odd = ["a b", "$HOME", "it's", "*", ""]
    code = "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['PATH'].split(':')[0]); sys.exit(7)"
    assert worker.start("train", [sys.executable, "-c", code, *odd]) == f"{HOST}: train started"
    assert ended("train")[:3] == (HOST, "finished", 7)
    header, line = log("train").splitlines()
    assert header.startswith("=== ")
    assert line == f"{odd} {home.resolve()} {home}/venv/bin"
    assert worker.state("other") == (HOST, "none", None, 0, False)


def test_started_twice_runs_once_and_another_command_is_refused():
    command = [sys.executable, "-c", WAITING]
    worker.start("train", command)
    up("train")
    assert worker.start("train", command) == f"{HOST}: train runs already"
    assert log("train").count("===") == 1
    with pytest.raises(ValueError, match="train is another command"):
        worker.start("train", ["true"])
    worker.start("second", ["true"])
    assert ended("second").code == 0


def test_stop_lets_the_job_save_and_ends_one_that_does_not_listen():
    worker.start("train", [sys.executable, "-c", WAITING])
    worker.start("deaf", [sys.executable, "-c", STUBBORN])
    up("train")
    up("deaf")
    stopped = worker.stop("train", 30)
    assert stopped[:3] == (HOST, "finished", 3)
    assert stopped.stopped
    assert worker.stop("deaf", 0.2).state == "lost"  # killed with its shell: no exit code
    assert worker.stop("nothing", 0).state == "none"


def test_started_again_the_log_goes_on_and_the_old_exit_code_is_gone():
    worker.start("train", ["false"])
    assert ended("train").code == 1
    (worker.home() / "launched/train/stopped").touch()
    worker.start("train", ["true"])
    assert ended("train").code == 0
    assert not worker.state("train").stopped
    assert log("train").count("===") == 2


def test_after_a_restart_of_the_vm_the_job_is_lost_and_its_process_number_another_s(home):
    worker.start("train", ["true"])
    until(lambda: not worker._alive(home / "launched/train"))
    (home / "launched/train/exit").unlink()  # nobody wrote it
    (home / "launched/train/pid").write_text(str(os.getpid()))  # as after a reboot
    assert worker.state("train").state == "lost"
    worker.stop("train", 0)  # must not end this test


def test_log_follows_until_the_job_ends(capsys):
    worker.start("train", ["sh", "-c", "for i in 0 1 2 3 4; do echo $i; sleep 0.1; done; exit 4"])
    assert main(["worker", "--job=train", "--follow", "--prefix", "log"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:6] == [f"{HOST}: {i}" for i in range(5)]
    assert lines[-1] == f"{HOST}: === train finished, exit code 4"
    main(["worker", "--job=train", "--lines=2", "log"])
    assert capsys.readouterr().out.splitlines() == ["3", "4"]
    assert main(["worker", "--job=other", "log"]) == 1
    assert "no job other was launched here" in capsys.readouterr().err


def test_states_are_found_between_the_words_of_ssh(capsys):
    worker.start("train", ["true"])
    ended("train")
    main(["worker", "--job=train", "status"])
    said = "SSH: Attempting to connect to worker 0...\n" + capsys.readouterr().out
    assert worker.states(said) == [worker.state("train")]


def test_the_command_line_that_launch_sends(home):
    """The words after -- belong to the job, even where they look like ours."""
    (home / "venv/bin").mkdir(parents=True)
    (home / "venv/bin/job").write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    (home / "venv/bin/job").chmod(0o755)
    words = ["-m", "qwenjax.cluster", "worker", "--job=a", "start", "--", "job", "--job=b", "--", "-x", "a b"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert ended("a").code == 0
    assert log("a").splitlines()[1] == "--job=b|--|-x|a b|"


@pytest.mark.parametrize("words", ["start", "start --", "status -- true", "", "begin"])
def test_a_command_belongs_to_start_and_only_there(words, capsys):
    assert main(["worker", *words.split()]) == 2
    assert "wanted status, log, stop" in capsys.readouterr().err


def test_from_launch_to_logs_through_a_real_shell(home, tmp_path, monkeypatch, capfd):
    """gcloud is a double that runs --command as a VM's shell does: odd words arrive as they are."""
    python, gcloud = home / "venv/bin/python", tmp_path / "bin/gcloud"
    for path, text in (
        (python, f'PYTHONPATH={Path(__file__).parents[2]} exec {sys.executable} "$@"'),
        (gcloud, 'for word; do case $word in --command=*) cd; exec sh -c "${word#--command=}";; esac; done'),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gcloud.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    where = ["--name=pod", "--project=p", "--zone=us-west4-a", "--type=v5e-8"]
    odd = ["--", "--set=a b", "$HOME", "it's", '"', "*", "new\nline", ""]
    assert main(["launch", *where, "--", "printf", "[%s]", *odd]) == 0
    assert ended("train").code == 0
    capfd.readouterr()
    assert main(["logs", *where, "--follow"]) == 0
    said = capfd.readouterr().out
    assert said.endswith("".join(f"[{word}]" for word in odd) + "=== train finished, exit code 0\n")
    assert main(["launch", *where]) == 2
    assert "wanted a command after --" in capfd.readouterr().err
