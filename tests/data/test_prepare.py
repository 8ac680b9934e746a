"""An experiment's data, made once and found again."""

import hashlib
import json
import subprocess
import sys

import pytest
from data_doubles import ByteTokenizer, corpus

import qwenjax.tokenizer
from qwenjax import config
from qwenjax.config import Source
from qwenjax.data.shards.prepare import prepare, sample_text
from qwenjax.data.shards.write import tokenize

pytest_plugins = ["data_fixtures"]


@pytest.fixture
def as_bytes(monkeypatch):
    """`data.tokenizer` means the double, whatever it says."""
    monkeypatch.setattr(qwenjax.tokenizer, "load_tokenizer", lambda name: ByteTokenizer())


def data(*sources, tokenizer="bytes"):
    return config.Data(sources=sources, tokenizer=tokenizer, seq_len=16, batch_size=2)


def test_text_is_tokenised_once_and_shards_are_opened(tmp_path, as_bytes, shards):
    corpus(tmp_path / "a.jsonl", 100, seed=2)
    sources = Source(text=str(tmp_path / "a.jsonl")), Source(shards=str(shards.directory))
    tokenizer, made, said = prepare(data(*sources), 0, tmp_path / "data", progress=False)
    assert tokenizer.name == "bytes"
    assert made[1].directory == shards.directory
    assert any("tokenised" in line for line in said)
    _, again, said = prepare(data(*sources), 0, tmp_path / "data", progress=False)
    assert again[0].directory == made[0].directory
    assert any("already tokenised" in line for line in said)
    other_seed = prepare(data(*sources), 1, tmp_path / "data", progress=False)[1]
    assert other_seed[0].directory != made[0].directory


def test_shards_of_another_tokenizer_are_refused(tmp_path, as_bytes, shards):
    other = tokenize([tmp_path / "corpus.jsonl"], tmp_path / "o", ByteTokenizer(fingerprint="c" * 64), progress=False)
    with pytest.raises(ValueError, match=r"was made with tokenizer 'bytes' .*cccc"):
        prepare(data(Source(shards=str(other.directory))), 0, tmp_path / "data", progress=False)


def test_what_is_missing_is_said(tmp_path, as_bytes, shards):
    for broken, message in [
        (data(), r"data\.sources is empty"),
        (data(Source()), r"data\.sources\.0 names neither text nor shards"),
        (data(Source(text="x"), tokenizer="train:many"), "wanted 'train:SIZE'"),
        (data(Source(shards=str(shards.directory)), tokenizer="train:300"), "no source has text to train on"),
        (data(Source(text=str(tmp_path / "nowhere"))), "no file or folder"),
    ]:
        with pytest.raises(ValueError, match=message):
            prepare(broken, 0, tmp_path / "data", progress=False)


def test_sample_is_spread_over_the_text_and_of_the_size_asked(tmp_path):
    texts = list(corpus(tmp_path / "a.jsonl", 2000).values())
    taken = sample_text([str(tmp_path / "a.jsonl")], 40_000)
    # the file is 1.7 times its text, as JSON spells Chinese in escapes, and sizes are taken from files
    assert 20_000 < sum(len(t.encode()) for t in taken) < 50_000
    places = [texts.index(t) for t in taken]
    assert min(places) < 200
    assert max(places) > 1800
    assert set(sample_text([str(tmp_path / "a.jsonl")], 10**9)) == set(texts)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no document"):
        sample_text([str(tmp_path / "empty")], 100)


def test_two_processes_make_it_once_with_a_trained_vocabulary(tmp_path):
    """Both start at the same time on an empty folder; both end with the same vocabulary and the same shards."""
    corpus(tmp_path / "a.jsonl", 300)
    script = tmp_path / "script.py"
    script.write_text(f"""
from qwenjax import config
from qwenjax.data.shards.prepare import prepare

if __name__ == "__main__":
    data = config.Data(sources=(config.Source(text={str(tmp_path / "a.jsonl")!r}),), tokenizer="train:400", seq_len=16)
    tokenizer, (shards,), said = prepare(data, 0, {str(tmp_path / "data")!r})
    tokens = shards.read("train", 0, shards.tokens("train")).tolist()
    assert tokenizer.size == 400 and tokens.count(tokenizer.eot) == shards.index["splits"]["train"]["documents"]
    print(shards.directory, tokenizer.fingerprint, sum(tokens))
""")
    both = [subprocess.Popen([sys.executable, str(script)], stdout=-1, stderr=-1, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    messages = answers[0][1] + answers[1][1]
    assert messages.count("training a vocabulary of 400") == 1
    assert not list((tmp_path / "data").glob("*.tmp"))


def test_options_of_reading_are_part_of_the_name(tmp_path, as_bytes):
    corpus(tmp_path / "a.jsonl", 200)
    text = str(tmp_path / "a.jsonl")

    def folder(**reading):
        source = Source(text=text, **reading)
        return prepare(data(source), 0, tmp_path / "data", progress=False)[1][0].directory

    # as it was before there were options: made with this version, tokenizer and seed
    what = [1, text, "bytes", ByteTokenizer.fingerprint, 0]
    digest = hashlib.blake2b(json.dumps(what).encode(), digest_size=4).hexdigest()
    assert folder() == folder(weight=2.0) == tmp_path / "data" / f"a-{digest}"
    assert len({folder(), folder(limit=20_000), folder(limit=21_000), folder(join=" ")}) == 4
    with pytest.raises(ValueError, match="no field 'body'; there are: text, id"):
        folder(column=("body",))


def test_a_vocabulary_is_trained_on_what_is_read(tmp_path):
    rows = [{"text": "the wrong one", "body": f"right {i}"} for i in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    taken = sample_text([Source(text=str(tmp_path / "a.jsonl"), column=("body",))], 10**6)
    assert sorted(taken) == sorted(row["body"] for row in rows)
