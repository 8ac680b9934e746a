"""Shards as a TFDS data set: documents and ids come back, whoever reads it, and nothing is half there."""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from data_doubles import SETTINGS, ByteTokenizer

from qwenjax.config import Source
from qwenjax.data.__main__ import main
from qwenjax.data.shards.format import SPLITS, Shards
from qwenjax.data.shards.publish import publish
from qwenjax.data.shards.write import tokenize

pytest_plugins = ["data_fixtures"]


def documents(shards, split):
    return [(span.origin, tokens.tolist()) for span, tokens in shards.all_documents(split)]


def test_published_and_tokenised_again_gives_the_same_documents_and_ids(shards, tmp_path, tokenizer):
    folder = publish(shards, tokenizer, tmp_path / "out", "my_corpus", progress=False)
    assert folder == tmp_path / "out" / "my_corpus" / "1.0.0"
    for split in SPLITS:
        source = Source(text=f"tfds:{folder}@{split}")
        again = tokenize([source], tmp_path / split, tokenizer, validation=0, workers=1, progress=False)
        ids = sorted(tokens for _, tokens in documents(shards, split))
        assert sorted(tokens for _, tokens in documents(again, "train")) == ids
        assert ids
    # held out by its text, a document falls on the same side again
    with pytest.raises(ValueError, match=r"all \d+ documents were held out"):
        tokenize([f"tfds:{folder}@validation"], tmp_path / "again", tokenizer, **SETTINGS, workers=1)


def test_publishing_asks_no_bucket_and_leaves_no_temporary_folder(shards, tmp_path, tokenizer, monkeypatch):
    """Before it writes, TFDS would look for a data set of this name among its own, and never remove the folder."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    publish(shards, tokenizer, tmp_path / "out", "my_corpus", progress=False)
    assert list(temporary.iterdir()) == []


def test_readers_of_tfds_find_it_in_our_order(shards, tmp_path, tokenizer):
    folder = publish(shards, tokenizer, tmp_path / "out", "my_corpus", progress=False)
    for split in SPLITS:
        wanted = [(origin, bytes(tokens[:-1]).decode()) for origin, tokens in documents(shards, split)]
        assert {origin: shards.texts[origin] for origin, _ in wanted} == dict(wanted)
        by_name = tfds.data_source("my_corpus", data_dir=tmp_path / "out", split=split)
        by_folder = tfds.builder_from_directory(folder).as_data_source(split)
        for found in (by_name, by_folder):
            assert [(row["origin"].decode(), row["text"].decode()) for row in found] == wanted


def test_a_split_is_several_files_of_about_one_size(shards, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("qwenjax.data.shards.publish.FILE_BYTES", 20_000)
    folder = publish(shards, tokenizer, tmp_path / "out", "my_corpus", progress=False)
    builder = tfds.builder_from_directory(folder)
    text_bytes = {split: shards.text_bytes(split) for split in SPLITS}
    for split in SPLITS:
        lengths = builder.info.splits[split].shard_lengths
        assert len(lengths) > 1 or split == "validation"
        assert abs(len(lengths) - text_bytes[split] / 20_000) < 1
        assert len({*lengths[:-1]}) <= 1 <= lengths[-1] <= lengths[0], "only the last file may be shorter"
        files = sorted(folder.glob(f"my_corpus-{split}.*"))
        assert [ArrayRecordReader(str(file)).num_records() for file in files] == lengths
        found = builder.as_data_source(split)
        assert [row["origin"].decode() for row in found] == [origin for origin, _ in documents(shards, split)]
        assert text_bytes[split] < builder.info.splits[split].num_bytes < 2 * text_bytes[split]


def test_what_is_there_is_found_again_and_never_replaced(shards, tmp_path, tokenizer):
    folder = publish(shards, tokenizer, tmp_path / "out", "a", progress=False)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}
    assert publish(shards, tokenizer, tmp_path / "out", "a", progress=False) == folder
    other = tokenize([tmp_path / "corpus.jsonl"], tmp_path / "o", tokenizer, seed=1, progress=False, workers=1)
    with pytest.raises(ValueError, match=r"a/1\.0\.0 holds another data set; choose another --name or --out"):
        publish(other, tokenizer, tmp_path / "out", "a", progress=False)
    assert before == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}
    with pytest.raises(ValueError, match="'My-Corpus': TFDS names are in snake_case"):
        publish(shards, tokenizer, tmp_path / "out", "My-Corpus")
    with pytest.raises(ValueError, match="was made with tokenizer 'bytes'"):
        publish(shards, ByteTokenizer(fingerprint="c" * 64), tmp_path / "out", "b")


SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # also when CI itself runs in the background
sys.path.insert(0, sys.argv[1])
from data_doubles import ByteTokenizer
from qwenjax.data.shards.publish import publish
from qwenjax.data.shards.format import Shards

class Slow(ByteTokenizer):
    def decode(self, ids):
        print("decoding", flush=True, file=sys.__stdout__)
        time.sleep(float(sys.argv[4]))
        return super().decode(ids)

publish(Shards(sys.argv[2]), Slow(), sys.argv[3], "a", progress=False)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_it_leaves_nothing_that_looks_complete(shards, tmp_path, tokenizer, number):
    (tmp_path / "script.py").write_text(SCRIPT)
    here, out = str(Path(__file__).parent), tmp_path / "out"
    command = [sys.executable, str(tmp_path / "script.py"), here, str(shards.directory), str(out), "0.05"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(number)
    process.wait(10)
    process.stdout.close()
    assert not (out / "a" / "1.0.0").exists()
    assert bool(list((out / "a").iterdir())) == (number == signal.SIGKILL)
    folder = publish(shards, tokenizer, out, "a", progress=False)
    assert list((out / "a").iterdir()) == [folder]
    whole = sum(len(tfds.builder_from_directory(folder).as_data_source(split)) for split in SPLITS)
    assert whole == 300


def test_command_publishes_real_tokens(tmp_path, qwen_vocab, capsys):
    (tmp_path / "text").mkdir()
    texts = ["def f(x):\n    return x\n", "中文 and émigré 🙂\n", "<|endoftext|> is text here\n"]
    for i, text in enumerate(texts):
        (tmp_path / "text" / f"{i}.txt").write_text(text)
    made = tokenize([tmp_path / "text"], tmp_path / "My-Shards", qwen_vocab, validation=0, workers=1, progress=False)
    assert main(["publish", str(made.directory), f"--out={tmp_path / 'out'}"]) == 0
    folder = tmp_path / "out" / "my_shards" / "1.0.0"
    assert capsys.readouterr().out == f"{folder} is complete\n"
    source = Source(text=f"tfds:{folder}")
    again = tokenize([source], tmp_path / "again", qwen_vocab, validation=0, workers=1, progress=False)
    assert sorted(ids for _, ids in documents(again, "train")) == sorted(ids for _, ids in documents(made, "train"))
    found = tfds.data_source("my_shards", data_dir=tmp_path / "out", split="train")
    assert sorted(row["text"].decode() for row in found) == sorted(texts)


def test_all_documents_reads_pages_forward(shards, monkeypatch):
    """Whole documents with their ends, one after another, however many are read at a time."""
    for split in SPLITS:
        tokens = shards.read(split, 0, shards.tokens(split))
        spans = shards.documents(split, 0, shards.tokens(split))
        for group in (1, 2, 1000):
            monkeypatch.setattr("qwenjax.data.shards.format.TABLE_GROUP", group)
            found = list(Shards(shards.directory).all_documents(split))
            assert [span for span, _ in found] == spans
            assert all((tokens[span.start : span.stop] == ids).all() for span, ids in found)
            assert {ids.dtype.name for _, ids in found} == {"int32"}
