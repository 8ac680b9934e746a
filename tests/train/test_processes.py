"""The command in processes that are killed, hang, or lack their peers: it says what happened, and ends the same."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from paths import ROOT
from runs import arguments, child, command, ended, numbers, state, two, wait_for

from qwenjax.common.jsonl import read_rows
from qwenjax.train.operations import restarts


@pytest.mark.parametrize("moment", ["early", "during a save", "late"])
def test_killed_at_any_moment_and_restarted_ends_bit_identical(killable, corpus, tmp_path, moment):
    workdir, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    moments = {
        "early": lambda: (workdir / "metrics.jsonl").exists(),  # before the first save is whole
        "during a save": lambda: any("tmp" in p.name for p in checkpoints.glob("*")),
        "late": lambda: (checkpoints / "21").is_dir(),
    }
    process = command(corpus, workdir, killable)
    wait_for(moments[moment], process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    codes, said = ended(command(corpus, workdir, killable))
    assert codes == [0], said
    assert state(workdir, 30) == state(corpus / "whole", 30)
    assert numbers(workdir) == numbers(corpus / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_and_exits_3(killable, corpus, tmp_path, number):
    process = command(corpus, tmp_path / "run", killable)
    wait_for(lambda: len(read_rows(tmp_path / "run" / "metrics.jsonl")) >= 4, process)
    process.send_signal(number)
    codes, said = ended(process)
    assert codes == [3], said
    assert "the same command goes on" in said[0]
    codes, said = ended(command(corpus, tmp_path / "run", killable))
    assert codes == [0], said
    assert state(tmp_path / "run", 30) == state(corpus / "whole", 30)
    assert numbers(tmp_path / "run") == numbers(corpus / "whole")


def test_a_save_that_fails_stops_the_run(killable, corpus, tmp_path):
    """No file may grow past 20 KB, as on a full disk."""
    codes, said = ended(command(corpus, tmp_path / "run", killable, limit="ulimit -f 20; "))
    assert codes == [1], said
    assert "\nerror: could not write a checkpoint" in said[0]
    assert "File too large" in said[0]


def test_a_parent_starts_a_killed_and_a_preempted_run_again_and_hands_on_its_own_sigterm(killable, corpus, tmp_path):
    """SIGKILL of the child, SIGTERM of the parent, the same command, SIGTERM of the child; then to the end."""
    workdir = tmp_path / "run"

    def reached(step):
        return lambda: (workdir / "checkpoints" / str(step)).is_dir()

    parent = command(corpus, workdir, killable, "--restarts=3")
    wait_for(reached(3), parent)
    os.kill(child(parent), signal.SIGKILL)
    wait_for(reached(12), parent)
    second = child(parent)
    parent.send_signal(signal.SIGTERM)
    codes, said = ended(parent)
    assert codes == [3], said
    assert said[0].count("starting again") == 1
    assert "(signal 9); starting again" in said[0]
    assert "the same command goes on" in said[0]
    assert not os.path.exists(f"/proc/{second}")
    parent = command(corpus, workdir, killable, "--restarts=3")
    wait_for(reached(21), parent)
    os.kill(child(parent), signal.SIGTERM)
    codes, said = ended(parent)
    assert codes == [0], said
    assert "(exit code 3); starting again" in said[0]
    assert "in 4 starts" in said[0]
    assert state(workdir, 30) == state(corpus / "whole", 30)
    assert numbers(workdir) == numbers(corpus / "whole")


HANGING = """
import sys, threading
from pathlib import Path
from qwenjax.train.__main__ import main
from qwenjax.train.operations import watchdog
from qwenjax.train.stages import pretrain

batches = pretrain.Pretrain.batches
mark = Path(sys.argv.pop(1))

def a_bucket_that_does_not_answer():
    mark.touch()
    threading.Event().wait()

def hang(self, next_row):
    for after, batch in batches(self, next_row):
        if after == 8 * 13 and not mark.exists():
            watchdog.MIN_SECONDS = 0.5  # not ten minutes; from the next step on only, as this machine may be slow
        if after == 8 * 14 and not mark.exists():
            a_bucket_that_does_not_answer()
        yield after, batch

pretrain.Pretrain.batches = hang
sys.exit(main())
"""


def test_a_hanging_data_stream_is_given_up_with_all_stacks_and_the_parent_goes_on(
    killable, corpus, tmp_path, monkeypatch, capfd
):
    """Its 14th batch never comes, the first time. The watchdog ends the process, `--restarts` starts it again."""
    program, workdir = tmp_path / "hanging.py", tmp_path / "run"
    program.write_text(HANGING)
    real = subprocess.Popen

    def start(argv, env, **rest):
        assert argv[:3] == [sys.executable, "-m", "qwenjax.train"]
        env = env | {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(corpus / "xla"), "PYTHONPATH": str(ROOT)}
        return real([sys.executable, str(program), str(tmp_path / "hung"), *argv[3:]], env=env, cwd=ROOT, **rest)

    monkeypatch.setattr(restarts.subprocess, "Popen", start)
    assert restarts.supervise(arguments(corpus, workdir, killable), 2, workdir, wait=0.01) == 0
    said = capfd.readouterr().err
    assert "error: step 14 has not ended in" in said
    assert "ended at step 13 (exit code 1); starting again" in said
    for stacks in (said, (workdir / "stacks-14.txt").read_text()):
        assert "in a_bucket_that_does_not_answer" in stacks
    assert state(workdir, 30) == state(corpus / "whole", 30)
    assert numbers(workdir) == numbers(corpus / "whole")


# ---- two processes ----


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (0, "error: 1 of 2 processes came to localhost:{port} within 1 s; process 1 did not"),
        (1, "error: process 0 did not answer at localhost:{port} within 1 s"),
    ],
)
def test_a_peer_that_is_missing_at_the_start_is_named(corpus, tmp_path, process, message):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    place = [f"--coordinator=localhost:{port}", "--processes=2", f"--process={process}", "--peer-timeout=1"]
    codes, said = ended(command(corpus, tmp_path / "run", "quickstart", *place))
    assert codes == [1], said
    assert message.format(port=port) in said[0]
    assert "Traceback" not in said[0]
    assert not (tmp_path / "run").exists()


def losses(workdir, name="loss"):
    return [row[name] for row in numbers(workdir) if name in row]


def test_two_processes_train_as_one(pair, corpus):
    """The same losses, and one of them writes."""
    assert len(numbers(corpus / "pair")) == len(numbers(corpus / "whole"))
    for name in ("loss", "eval_loss"):
        np.testing.assert_allclose(losses(corpus / "pair", name), losses(corpus / "whole", name), rtol=1e-4)


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_killed_ends_the_other_which_names_it(pair, corpus, tmp_path, victim):
    hosts = two(corpus, tmp_path / "run", pair)
    wait_for(lambda: (tmp_path / "run" / "checkpoints" / "3").is_dir(), hosts[victim])
    hosts[victim].send_signal(signal.SIGKILL)
    codes, said = ended(hosts[1 - victim], seconds=60)
    hosts[victim].communicate()
    assert codes == [1], said
    assert f"error: process {victim} (" in said[0].splitlines()[-1]


def test_two_parents_bring_both_back_when_either_is_killed_and_all_ends_bit_identical(pair, corpus, tmp_path):
    """--restarts on both hosts. Also: a checkpoint of two is loaded by one process, and one of one by two."""
    workdir = tmp_path / "run"
    parents = two(corpus, workdir, pair, "--restarts=3")
    for victim, step in ((1, 6), (0, 15)):
        wait_for(lambda: (workdir / "checkpoints" / str(step)).is_dir(), parents[0])  # noqa: B023
        other = child(parents[1 - victim])
        killed = time.monotonic()
        os.kill(child(parents[victim]), signal.SIGKILL)
        wait_for(lambda: child(parents[1 - victim]) != other, parents[1 - victim], seconds=60)  # noqa: B023
        assert time.monotonic() - killed < 60
    codes, said = ended(*parents)
    assert codes == [0, 0], said
    for victim in (0, 1):
        assert "(signal 9); starting again" in said[victim]
        assert f"error: process {victim} (" in said[1 - victim]
        assert f"(exit code {restarts.PEERS_LOST}); starting again" in said[1 - victim]
    assert "in 3 starts" in said[0]
    assert state(workdir, 30) == state(corpus / "pair", 30)
    assert numbers(workdir) == numbers(corpus / "pair")
    one = tmp_path / "one"
    shutil.copytree(workdir, one)
    for step in (27, 30):
        shutil.rmtree(one / "checkpoints" / str(step))
    codes, said = ended(command(corpus, one, pair))
    assert codes == [0], said
    assert "resuming    from step 24" in said[0]
    np.testing.assert_allclose(losses(one), losses(workdir), rtol=1e-4)
    shutil.rmtree(one / "checkpoints" / "30")  # now two go on from what one process wrote
    codes, said = ended(*two(corpus, one, pair))
    assert codes == [0, 0], said
    assert "resuming    from step 27" in said[0]
    np.testing.assert_allclose(losses(one), losses(workdir), rtol=1e-4)
