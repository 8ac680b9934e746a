"""Many processes meet: who is missing, and who was lost. Real processes, plain sockets."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from paths import ROOT

WORKER = """
import sys, time
from qwenjax.train.operations import distributed, launchers
address, n, i, timeout = sys.argv[1], *map(int, sys.argv[2:5])
here = launchers.Rank(address, n, i, "test")
try:
    peers = distributed.Peers(distributed._connect(here, timeout), i)
except distributed.Missing as error:
    sys.exit(f"error: {error}")
print("met", flush=True)
if sys.argv[5:] == ["stay"]:
    time.sleep(60)
peers.goodbye()
time.sleep(0.3)
"""


def start(address, n, i, timeout=60, *rest):
    argv = [sys.executable, "-c", WORKER, address, *map(str, (n, i, timeout)), *rest]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=os.environ)


@pytest.fixture
def address():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def ends(*processes):
    said = [process.communicate(timeout=60)[1] for process in processes]
    return [process.returncode for process in processes], said


def test_three_meet_and_part_in_peace(address):
    codes, said = ends(*(start(address, 3, i) for i in (2, 1, 0)))
    assert codes == [0, 0, 0], said


def test_all_are_told_who_is_missing(address):
    codes, said = ends(start(address, 3, 0, 4), start(address, 3, 2, 60))
    assert codes == [1, 1]
    for text in said:
        assert f"2 of 3 processes came to {address} within 4 s; process 1 did not" in text


def test_a_missing_process_0_is_named_with_its_address(address):
    codes, said = ends(start(address, 2, 1, 1))
    assert codes == [1]
    assert f"process 0 did not answer at {address} within 1 s" in said[0]


@pytest.mark.parametrize(
    ("others", "message"), [(((3, 1),), "process 1 of 3 came"), (((3, 1), (3, 1)), "two processes")]
)
def test_processes_that_disagree_are_told(address, others, message):
    n = 2 if len(others) == 1 else 3
    codes, said = ends(start(address, n, 0), *(start(address, *other) for other in others))
    assert codes == [1] * len(codes)
    assert all(message in text for text in said)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_the_others_name_a_lost_process_and_exit(address, victim):
    processes = [start(address, 3, i, 60, "stay") for i in range(3)]
    for process in processes:
        assert process.stdout.readline() == "met\n"
    processes[victim].send_signal(signal.SIGKILL)
    codes, said = ends(*processes)
    assert [code for i, code in enumerate(codes) if i != victim] == [1, 1]
    for i in {0, 1, 2} - {victim}:
        assert f"error: process {victim} (" in said[i]
        assert "Start all processes again" in said[i]
