"""Text to shards: the same files whatever the workers and the deaths; every document once."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_doubles import SETTINGS, ByteTokenizer, corpus

from qwenjax.config import Source
from qwenjax.data.shards import write as room
from qwenjax.data.shards.format import SPLITS, Shards
from qwenjax.data.shards.write import tokenize

pytest_plugins = ["data_fixtures"]

SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from data_doubles import ByteTokenizer
from qwenjax.data.shards import write as room

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.default_int_handler)  # also when CI itself runs in the background
    room.UNIT_BYTES, room.SHARD_BYTES = (3_000, 3_000), 20_000
    room.tokenize([{source!r}], {out!r}, ByteTokenizer({delay}), validation=0.1, page=500, workers={workers})
"""


def files(directory: Path) -> dict:
    """Everything a finished directory holds, but for where the text was."""
    found = {p for p in directory.rglob("*") if p.is_file() and p.name != ".lock"}
    held = {p.relative_to(directory).as_posix(): p.read_bytes() for p in found}
    return held | {"index.json": {**json.loads(held["index.json"]), "sources": None}}


def read_documents(shards: Shards, split: str) -> list[tuple[str, str]]:
    """(origin, text) in stream order, read from the tokens; checks the end-of-text after each."""
    found, end = [], 0
    tokens = shards.read(split, 0, shards.tokens(split))
    for span in shards.documents(split, 0, shards.tokens(split)):
        body = tokens[span.start : span.stop]
        assert span.start == end
        assert body[-1] == 256
        assert 256 not in body[:-1]
        assert span.bytes == len(body) - 1
        found.append((span.origin, bytes(body[:-1].tolist()).decode()))
        end = span.stop
    assert end == len(tokens)
    return found


def test_every_document_once_with_its_end(shards):
    found = read_documents(shards, "train") + read_documents(shards, "validation")
    assert len(found) == len(shards.texts)
    assert dict(found) == shards.texts
    assert len(shards.index["splits"]["train"]["files"]) > 1
    for split in SPLITS:
        held = shards.index["splits"][split]
        assert held["tokens"] == sum(f["tokens"] for f in held["files"]) == held["bytes"] + held["documents"]


def test_documents_are_shuffled_globally(shards):
    """Neighbours in the stream are on average a third of the corpus apart in the file, as in any random order."""
    place = {origin: i for i, origin in enumerate(shards.texts)}
    order = np.array([place[origin] for origin, _ in read_documents(shards, "train")])
    assert 0.28 < np.abs(np.diff(order)).mean() / len(place) < 0.39


def test_order_does_not_depend_on_the_number_of_files(shards, tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(room, "SHARD_BYTES", 10**9)
    monkeypatch.setattr(room, "UNIT_BYTES", (10**9, 10**9))
    one = tokenize([tmp_path / "corpus.jsonl"], tmp_path / "one", tokenizer, **SETTINGS, workers=1)
    for split in SPLITS:
        assert np.array_equal(one.read(split, 0, one.tokens(split)), shards.read(split, 0, shards.tokens(split)))


def test_two_workers_write_the_files_of_one(shards, tmp_path, tokenizer):
    tokenize(
        [tmp_path / "corpus.jsonl"], tmp_path / "two", tokenizer, validation=0.1, page=500, workers=2, progress=False
    )
    assert files(tmp_path / "two") == files(shards.directory)


def test_seed_changes_order_and_held_out(shards, tmp_path, tokenizer):
    other = tokenize([tmp_path / "corpus.jsonl"], tmp_path / "b", tokenizer, seed=1, validation=0.1, progress=False)
    a, b = (read_documents(s, "train") for s in (shards, other))
    assert a != b
    assert set(a) != set(b)


def test_killed_at_any_time_then_run_again_gives_the_same_files(shards, tmp_path):
    """SIGKILL when the first, the tenth and the last units are there, and when the first shard is; then to the end."""
    out, source = tmp_path / "killed", str(tmp_path / "corpus.jsonl")
    units = -(-os.path.getsize(source) // 3_000)

    def finished(pattern: str) -> int:
        return len(list((out / "unfinished").glob(pattern)))

    moments = [
        lambda: finished("unit-*.array_record") >= 1,
        lambda: finished("unit-*.array_record") >= 10,
        lambda: finished("unit-*.array_record") >= units,
        lambda: finished("train-*.json") >= 1,
    ]
    for n, moment in enumerate(moments):
        script, here, workers = tmp_path / "script.py", str(Path(__file__).parent), 1 + n % 2
        script.write_text(SCRIPT.format(here=here, source=source, out=str(out), delay=0.005, workers=workers))
        process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
        while process.poll() is None and not moment():
            time.sleep(0.002)
        process.kill()
        process.wait()
    assert finished("unit-*.array_record") == units or (out / "index.json").exists()
    subprocess.run([sys.executable, str(script)], check=True, stderr=subprocess.DEVNULL)
    assert files(out) == files(shards.directory)


def test_finished_units_are_not_done_again(tmp_path, small_units):
    corpus(tmp_path / "corpus.jsonl", 300)

    class Dies(ByteTokenizer):
        left = 100

        def encode_ordinary(self, text):
            self.left -= 1
            if self.left < 0:
                raise OSError("out of paper")
            return super().encode_ordinary(text)

    with pytest.raises(OSError, match="out of paper"):
        tokenize([tmp_path / "corpus.jsonl"], tmp_path / "out", Dies(), workers=1, progress=False)
    second = Dies()
    second.left = 215  # 300 documents less 85: at most one unit of about 8 documents is done twice
    tokenize([tmp_path / "corpus.jsonl"], tmp_path / "out", second, workers=1, progress=False)


def test_workers_end_with_a_killed_parent(tmp_path):
    corpus(tmp_path / "corpus.jsonl", 300)
    script = tmp_path / "script.py"
    here, source = str(Path(__file__).parent), str(tmp_path / "corpus.jsonl")
    script.write_text(SCRIPT.format(here=here, source=source, out=str(tmp_path / "out"), delay=0.2, workers=2))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE)
    while not list(tmp_path.glob("out/unfinished/unit-*")):
        time.sleep(0.02)
    process.kill()
    watchdog = threading.Timer(20, process.stderr.close)
    watchdog.start()
    process.stderr.read()  # ends when the last process that inherited it has ended
    assert watchdog.is_alive()
    watchdog.cancel()


def test_interrupt_ends_at_once(tmp_path):
    corpus(tmp_path / "corpus.jsonl", 300)
    script = tmp_path / "script.py"
    here, source = str(Path(__file__).parent), str(tmp_path / "corpus.jsonl")
    script.write_text(SCRIPT.format(here=here, source=source, out=str(tmp_path / "out"), delay=0.2, workers=2))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE)
    while not list(tmp_path.glob("out/unfinished/unit-*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=10)[1].decode()  # whole work: 300 x 0.2 s / 2
    assert "KeyboardInterrupt" in error
    assert error.count("Traceback") <= 2  # the parent's; none of the workers


def test_validation_is_disjoint_and_duplicates_stay_together(tmp_path, small_units, tokenizer):
    texts = list(corpus(tmp_path / "a.jsonl", 100).values())
    (tmp_path / "b.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    made = tokenize(
        [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "out", tokenizer, validation=0.3, progress=False
    )
    train, held_out = ([text for _, text in read_documents(made, split)] for split in SPLITS)
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(texts * 2)
    assert 15 <= len(set(held_out)) <= 45  # 30 of 100, standard deviation 4.6
    assert made.index["splits"]["validation"]["documents"] == 2 * len(set(held_out))


def test_broken_input_is_counted_in_the_index_or_strict(tmp_path, small_units, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": "better"}\nnot json\n' * 200)
    made = tokenize([tmp_path / "a.jsonl"], tmp_path / "out", tokenizer, progress=False)
    assert made.index["skipped"] == {"bad JSON line": [200, "a.jsonl@36"]}  # after lines of 17 and 19 bytes
    with pytest.raises(ValueError, match="skipped 200 x bad JSON line"):
        tokenize([tmp_path / "a.jsonl"], tmp_path / "strict", tokenizer, strict=True, progress=False)
    assert not (tmp_path / "strict" / "index.json").exists()


def test_empty_corpus_and_all_held_out_are_errors(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match=r"no document in .*1 x empty document"):
        tokenize([tmp_path / "a.jsonl"], tmp_path / "out", tokenizer, progress=False)
    (tmp_path / "b.txt").write_text("one")
    with pytest.raises(ValueError, match=r"all 1 documents were held out; lower validation=0\.9999"):
        tokenize([tmp_path / "b.txt"], tmp_path / "out2", tokenizer, validation=0.9999, progress=False)


def test_finished_directory_is_returned_or_refused(shards, tmp_path, tokenizer):
    before = files(shards.directory)
    assert tokenize([tmp_path / "corpus.jsonl"], shards.directory, tokenizer, **SETTINGS).index == shards.index
    with pytest.raises(ValueError, match="already holds shards of other text"):
        tokenize([tmp_path / "corpus.jsonl"], shards.directory, tokenizer, seed=9, **SETTINGS)
    assert files(shards.directory) == before


def test_unfinished_work_on_text_that_changed_is_dropped(tmp_path, small_units, tokenizer, capsys):
    corpus(tmp_path / "a.jsonl", 50)

    class Dies(ByteTokenizer):
        def save(self, directory):
            raise OSError("died at the end")

    with pytest.raises(OSError, match="died at the end"):
        tokenize([tmp_path / "a.jsonl"], tmp_path / "out", Dies(), validation=0, workers=1)
    time.sleep(0.01)
    data = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(data.replace(b"<0:7>", b"<0:X>"))  # of the same length
    made = tokenize([tmp_path / "a.jsonl"], tmp_path / "out", tokenizer, validation=0, workers=1)
    assert any(text.startswith("<0:X>") for _, text in read_documents(made, "train"))
    assert "starting over" in capsys.readouterr().err


def test_real_text_of_three_languages(shared, tmp_path, tokenizer):
    """One .jsonl.gz of books, Chinese and code: all of its bytes come back."""
    source = shared / "quickstart" / "quickstart.jsonl.gz"
    made = tokenize([source], tmp_path / "out", tokenizer, workers=2, progress=False)
    with gzip.open(source) as lines:
        texts = sorted(json.loads(line)["text"] for line in lines)
    assert sorted(text for split in SPLITS for _, text in read_documents(made, split)) == texts
    assert made.index["skipped"] == {}


class Fatal(ByteTokenizer):
    """Takes its process down, as the kernel does when memory ends."""

    def encode_ordinary(self, text):
        os._exit(1)


def test_dead_worker_is_an_error_that_says_what_to_do(tmp_path, small_units):
    corpus(tmp_path / "a.jsonl", 50)
    with pytest.raises(ChildProcessError, match=r"out of memory \(use fewer workers\).*run again to resume"):
        tokenize([tmp_path / "a.jsonl"], tmp_path / "out", Fatal(), workers=2, progress=False)


def test_options_of_reading_are_part_of_the_plan(tmp_path, small_units, tokenizer):
    """Two workers, a death in between, a sample: the same; other options: refused, or other unfinished work."""
    corpus(tmp_path / "a.jsonl", 400)
    whole = tokenize([tmp_path / "a.jsonl"], tmp_path / "whole", tokenizer, workers=1, progress=False)
    source = Source(text=str(tmp_path / "a.jsonl"), column=("id", "text"))
    with pytest.raises(ValueError, match=r"no document in .*400 x field 'id' is a number, not text"):
        tokenize([source], tmp_path / "numbers", tokenizer, workers=1, progress=False)
    source = Source(text=str(tmp_path / "a.jsonl"), limit=30_000)
    one = tokenize([source], tmp_path / "one", tokenizer, workers=1, progress=False)
    two = tokenize([source], tmp_path / "two", tokenizer, workers=2, progress=False)
    assert files(one.directory) == files(two.directory)
    assert one.index["reading"] == [{"limit": 30_000}]
    assert whole.index["reading"] == [{}]
    sampled, everything = ({origin for origin, _ in read_documents(s, "train")} for s in (one, whole))
    assert sampled < everything
    assert 20_000 < one.text_bytes("train") + one.text_bytes("validation") < 40_000
    with pytest.raises(ValueError, match="already holds shards of other text"):
        tokenize([tmp_path / "a.jsonl"], one.directory, tokenizer, progress=False)


def test_a_plan_with_default_options_is_as_it_was(tmp_path, tokenizer):
    """Shards made before there were options are found again: what their plan was is not changed by their absence."""
    corpus(tmp_path / "a.jsonl", 20)
    size = (tmp_path / "a.jsonl").stat().st_size
    made = tokenize([tmp_path / "a.jsonl"], tmp_path / "out", tokenizer, workers=1, progress=False)
    what = [1, 0, 0.01, 8192, (1, 1), tokenizer.fingerprint, [0, "a.jsonl", size, 0]]
    assert made.index["plan"] == hashlib.blake2b(json.dumps(what).encode(), digest_size=16).hexdigest()


def test_strict_minds_unreadable_files_but_not_other_types(tmp_path, tokenizer):
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "a.txt").write_text("text")
    (tmp_path / "top" / "b.png").write_bytes(b"\x89PNG\0")
    options = {"strict": True, "workers": 1, "validation": 0, "progress": False}
    made = tokenize([tmp_path / "top"], tmp_path / "out", tokenizer, **options)
    assert made.index["skipped"] == {"file type not read: .png": [1, "top/b.png"]}
    (tmp_path / "top" / "gone.txt").symlink_to("nowhere")
    with pytest.raises(ValueError, match="skipped 1 x unreadable file"):
        tokenize([tmp_path / "top"], tmp_path / "strict", tokenizer, **options)
    assert not (tmp_path / "strict").exists()


def test_files_that_change_are_noticed_whatever_they_are(tmp_path, tokenizer):
    """Half-finished work is dropped when a Parquet file or a data set has been written anew."""
    path = tmp_path / "a.parquet"

    class Dies(ByteTokenizer):
        def save(self, directory):
            raise OSError("died at the end")

    pq.write_table(pa.table({"text": ["old 1", "old 2"]}), path)
    with pytest.raises(OSError, match="died at the end"):
        tokenize([path], tmp_path / "out", Dies(), validation=0, workers=1, progress=False)
    pq.write_table(pa.table({"text": ["new 1", "new 2"]}), path)
    os.utime(path, ns=(1, 1))
    made = tokenize([path], tmp_path / "out", tokenizer, validation=0, workers=1, progress=False)
    assert {text for _, text in read_documents(made, "train")} == {"new 1", "new 2"}
