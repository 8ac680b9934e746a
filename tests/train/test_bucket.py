"""A run in a bucket is what it would be on a disk."""

import json
import signal

from runs import command, ended, numbers, state, wait_for

from qwenjax.common import storage
from qwenjax.common.jsonl import read_rows

pytest_plugins = ["bucket_fixtures"]


def test_a_run_in_a_bucket_killed_and_resumed_ends_as_one_on_a_disk(bucket, corpus, killable):
    disk, killed = corpus / "whole", bucket / "run"
    process = command(corpus, killed, killable)
    wait_for((killed / "checkpoints" / "6" / "commit_success.txt").exists, process)
    process.send_signal(signal.SIGKILL)
    assert ended(process)[0] == [-signal.SIGKILL]

    codes, said = ended(command(corpus, killed, killed))  # a run in a bucket is an experiment, too
    assert codes == [0], said
    assert "resuming    from step" in said[0]
    left = {"config.json", "checkpoints", "tokenizer", "metrics.jsonl", "events.jsonl", "report.md", "loss.png"}
    assert left <= {path.name for path in storage.files(killed)}
    assert state(killed, 30) == state(disk, 30)
    assert numbers(killed) == numbers(disk)
    vocabularies = [
        json.loads((run / "checkpoints" / "30" / "meta" / "metadata").read_bytes())["tokenizer"]
        for run in (killed, disk)
    ]
    assert vocabularies[0] == vocabularies[1]
    assert len([row for row in read_rows(killed / "events.jsonl") if row["event"] == "started"]) == 2
