"""A step that hangs: stacks first, then the end; what is no step may take its time."""

import os
import threading
import time

from qwenjax.train.operations import watchdog
from qwenjax.train.operations.watchdog import Watchdog


def test_a_stuck_step_leaves_all_stacks_and_ends_the_process(tmp_path, capfd):
    ended = threading.Event()
    watch = Watchdog(tmp_path, 0.2, exit=lambda code: ended.set() if code == 1 else None)
    with watch.step(7, 48):
        assert ended.wait(60)
    said = capfd.readouterr().err
    assert "step 7 (rows from 48)" in said
    assert "error: step 7 has not ended" in said
    for stacks in (said, (tmp_path / "stacks-7.txt").read_text()):
        assert "test_a_stuck_step_leaves_all_stacks" in stacks


def test_a_run_folder_that_hangs_does_not_keep_the_process_from_its_end(tmp_path, capfd, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(watchdog, "WRITE_SECONDS", 0.1)
    os.mkfifo(tmp_path / "stacks-1.txt")  # whoever opens it waits for a reader
    watch = Watchdog(tmp_path, 0.1, exit=lambda code: ended.set())
    with watch.step(1, 0):
        assert ended.wait(60)
    assert "error: step 1 has not ended" in capfd.readouterr().err
    assert (tmp_path / "stacks-1.txt").open().read()  # lets the writer end


def test_only_steps_are_watched(tmp_path, capfd):
    watch = Watchdog(tmp_path, 0.1, exit=lambda code: None)
    with watch.step(1, 0):
        pass
    time.sleep(0.5)  # an evaluation
    assert not list(tmp_path.iterdir())


def test_the_limit_follows_the_median_step_above_ten_minutes(tmp_path):
    watch = Watchdog(tmp_path)
    assert watch.limit() == 600
    watch.durations.extend([40, 50, 5000])
    assert watch.limit() == watchdog.MEDIANS * 50
    assert Watchdog(tmp_path, 0).limit() == 0
