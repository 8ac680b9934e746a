"""`tokenizer train`: each kind keeps text, and continuing keeps what was there."""

import argparse
import inspect
import json
import textwrap
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenjax.tokenizer import load_tokenizer, sentencepiece
from qwenjax.tokenizer.bpe import byte_order, write_ranks
from qwenjax.tokenizer.vocabulary import merges

HARD = ["", "  x = 12\n\n\ty", "宇宙 e\u0301 😀▁<|im_end|>", "\x00\r\n \u3000"]


@pytest.mark.parametrize(("kind", "suffix"), [("bpe", "model"), ("unigram", "model"), ("bytes", "tiktoken")])
def test_each_kind_makes_a_tokenizer_that_keeps_text(command, corpus, tmp_path, kind, suffix):
    out = tmp_path / "made" / f"v.{suffix}"
    code, stdout, _ = command("train", corpus, "--out", out, "--size", 700, "--kind", kind)
    assert code == 0
    assert "skipped 1 x bad JSON line" in stdout
    assert "700 ids" in stdout
    tokenizer = load_tokenizer(out)
    assert tokenizer.size == 700
    for text in HARD:
        wanted = unicodedata.normalize("NFC", text) if kind == "bytes" else text
        assert tokenizer.decode(tokenizer.encode_ordinary(text)) == wanted
    document = json.loads(corpus.read_text(encoding="utf-8").splitlines()[0])["text"]
    assert len(tokenizer.encode(document)) < 0.6 * len(document)  # it has learned something


def test_bytes_are_learned_from_the_words_of_the_corpus(command, corpus, tmp_path):
    out = tmp_path / "v.tiktoken"
    assert command("train", corpus, "--out", out, "--size", 600, "--kind=bytes")[0] == 0
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()[:2]]
    tokenizer = load_tokenizer(out)
    made = [tokenizer.decode_bytes([i]) for i in range(tokenizer.eot)]
    assert made[:256] == byte_order()
    assert made[256:] == merges.learn(merges.count_words(texts), byte_order(), 600 - 256 - 208)
    again = tmp_path / "again.tiktoken"
    command("train", corpus, "--out", again, "--size", 600, "--kind=bytes")
    assert again.read_bytes() == out.read_bytes()


def test_continuing_leaves_the_ids_of_the_base_and_drops_its_numbers(command, corpus, tmp_path):
    """As the report did with cl100k_base: numbers out, the order kept, ids without gaps, merges behind them."""
    base = [*byte_order(), b"10", b"th", b"999", b"the"]
    (tmp_path / "base.tiktoken").write_bytes(write_ranks({token: i for i, token in enumerate(base)}))
    out = tmp_path / "v.tiktoken"
    words = ("train", corpus, "--out", out, "--kind=bytes", "--continue-from", tmp_path / "base.tiktoken")
    code, stdout, _ = command(*words, "--size", 500)
    assert code == 0
    assert "2 tokens of several digits left out" in stdout
    tokenizer = load_tokenizer(out)
    assert [tokenizer.decode_bytes([i]) for i in range(258)] == [*byte_order(), b"th", b"the"]
    assert tokenizer.size == 500
    assert tokenizer.eot == 292


def test_a_tokenizer_of_the_published_ranks_continues_them(command, corpus, tmp_path, qwen_vocab):
    out = tmp_path / "v.tiktoken"
    code, stdout, _ = command(
        "train", corpus, "--out", out, "--size", 151_851 + 5, "--kind=bytes", "--continue-from=qwen"
    )
    assert code == 0
    assert "151,643 initial tokens, 5 learned, 208 control tokens" in stdout
    lines = out.read_bytes().splitlines()
    assert b"\n".join(lines[:-5]) + b"\n" == write_ranks(
        {qwen_vocab.decode_bytes([i]): i for i in range(qwen_vocab.eot)}
    )


def test_extra_tokens_of_the_base_are_kept(command, corpus, tmp_path):
    """A folder with an extra.tiktoken, as `extend` leaves it: its tokens follow the ranks, and merge as they did."""
    base, out = tmp_path / "base", tmp_path / "v.tiktoken"
    base.mkdir()
    (base / "qwen.tiktoken").write_bytes(write_ranks({token: i for i, token in enumerate([*byte_order(), b"qz"])}))
    (tmp_path / "words.tsv").write_text("qzqz\t3\nqzx\t2\n")
    command("extend", "--vocab", base, "--words", tmp_path / "words.tsv", "--out", base / "extra.tiktoken")
    code, stdout, _ = command("train", corpus, "--out", out, "--size=500", "--kind=bytes", "--continue-from", base)
    assert code == 0
    assert "259 initial tokens, 33 learned" in stdout
    tokenizer = load_tokenizer(out)
    assert [tokenizer.decode_bytes([i]) for i in range(259)] == [*byte_order(), b"qz", b"qzqz", b"qzx"]
    assert [tokenizer.encode(word) for word in ("qz", "qzqz", "qzx")] == [[256], [257], [258]]


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    texts = [inspect.getsource(argparse), "天地玄黄，宇宙洪荒。" * 50]
    return sentencepiece.train(texts, 600, tmp_path_factory.mktemp("unigram") / "u.model", kind="unigram")


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from([*HARD, "def", "玄黄", "  ", "▅"])).map("".join)))
def test_unigram_pieces_lose_nothing(unigram, text):
    assert unigram.decode(unigram.encode_ordinary(text)) == text
    assert unigram.decode(unigram.encode(text)) == text


def test_the_options_of_reading_hold(command, tmp_path):
    rows = [{"text": "never read " * 99, "body": inspect.getsource(textwrap)}]
    path, out = tmp_path / "rows.jsonl", tmp_path / "v.tiktoken"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert command("train", path, "--out", out, "--size=500", "--kind=bytes", "--column=body")[0] == 0
    words = merges.count_words([rows[0]["body"]])
    learned = merges.learn(words, byte_order(), 500 - 256 - 208)
    assert [load_tokenizer(out).decode_bytes([i]) for i in range(256, 292)] == learned


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--out=v.model", "--size=500", "--kind=bytes"], 2, "wanted a file that ends in .tiktoken for --kind=bytes"),
        (["--out=v.tiktoken", "--size=500"], 2, "wanted a file that ends in .model for --kind=bpe"),
        (["--out=v.model", "--size=500", "--continue-from=qwen"], 2, "--continue-from=qwen needs --kind=bytes"),
        (["--out=v.tiktoken", "--size=464", "--kind=bytes"], 2, "256 initial tokens and 208 control tokens"),
        (["--out=v.tiktoken", "--size=90000", "--kind=bytes"], 1, "no vocabulary of 90,000 ids from this text: after"),
        (["--out=v.model", "--size=90000"], 1, "no vocabulary of 90000 ids"),
        (["--out=v.tiktoken", "--size=500", "--kind=bytes", "--continue-from=no.tiktoken"], 1, "no tokenizer"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    command, corpus, tmp_path, monkeypatch, words, code, message
):
    monkeypatch.chdir(tmp_path)
    done, _, stderr = command("train", corpus, *words)
    assert (done, message in stderr) == (code, True), stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["corpus.jsonl"]


def test_a_size_that_the_text_does_not_give_names_one_that_it_does(command, corpus, tmp_path):
    out = tmp_path / "v.tiktoken"
    _, _, stderr = command("train", corpus, "--out", out, "--size=90000", "--kind=bytes")
    most = int(stderr.split("after ")[1].split(" ")[0].replace(",", ""))
    assert command("train", corpus, "--out", out, "--size", most + 1, "--kind=bytes")[0] == 1
    assert command("train", corpus, "--out", out, "--size", most, "--kind=bytes")[0] == 0


def test_a_vocabulary_is_not_overwritten(command, corpus, tmp_path):
    (tmp_path / "v.model").write_bytes(b"precious")
    code, _, stderr = command("train", corpus, "--out", tmp_path / "v.model", "--size=500")
    assert code == 2
    assert "exists; remove it or give another --out" in stderr
    assert (tmp_path / "v.model").read_bytes() == b"precious"


def test_a_missing_text_is_named(command, tmp_path):
    code, _, stderr = command("train", tmp_path / "none", "--out", tmp_path / "v.model", "--size=500")
    assert code == 1
    assert "none" in stderr
