"""`tokenizer extend`: the worked example of the released tokenization note, and lists of words as people write them."""

import pytest

from qwenjax.sources.documents import Report
from qwenjax.tokenizer import load_tokenizer
from qwenjax.tokenizer.bpe import byte_order, write_ranks
from qwenjax.tokenizer.vocabulary import read_words

CATS = "我是一只猫\t20\n你是一只猫\t10\n他是一只猫\t5\n一只猫\t100\n"


def test_worked_example_of_the_tokenization_note(command, tmp_path):
    """6 new merges, ids 151851 … 151856, length 151857, and the first sentence is 151854."""
    (tmp_path / "words.tsv").write_text(CATS, encoding="utf-8")
    out = tmp_path / "extra.tiktoken"
    code, stdout, _ = command("extend", "--vocab=qwen", "--words", tmp_path / "words.tsv", "--out", out)
    assert code == 0
    new = ["一只猫", "只猫", "是一只猫", "我是一只猫", "你是一只猫", "他是一只猫"]
    assert out.read_bytes() == write_ranks({word.encode(): 151_851 + i for i, word in enumerate(new)})
    assert "6 new tokens for 4 words, ids 151851 … 151856; with them the vocabulary has 151,857 ids" in stdout
    tokenizer = load_tokenizer("qwen", extra=out)
    assert tokenizer.size == 151_857
    assert tokenizer.encode("我是一只猫") == [151_854]
    assert [len(tokenizer.encode(word)) for word in new] == [1] * 6


def test_an_extended_vocabulary_can_be_extended_again(command, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    ranks = {token: i for i, token in enumerate([*byte_order(), b"ab"])}
    (base / "qwen.tiktoken").write_bytes(write_ranks(ranks))
    (tmp_path / "words.tsv").write_text("abc\t3\n")
    assert (
        command("extend", "--vocab", base, "--words", tmp_path / "words.tsv", "--out", base / "extra.tiktoken")[0] == 0
    )
    assert load_tokenizer(base).extra == {b"abc": 465}
    (tmp_path / "more.tsv").write_text("abcabc\t2\nabc\t1\n")
    out = tmp_path / "more.tiktoken"
    code, stdout, _ = command("extend", "--vocab", base, "--words", tmp_path / "more.tsv", "--out", out)
    assert code == 0
    assert "skipped 1 x word that is a token already (first: line 2: abc)" in stdout
    assert load_tokenizer(base / "qwen.tiktoken", extra=out).extra == {b"abc": 465, b"abcabc": 466}


def test_words_that_cannot_be_added_are_counted(tmp_path):
    text = "\ufeffe\u0301tudes\t7\nétudes\t3\r\n\nhello world\t5\n12\t9\nhello\t1\n Pandas\t2\n"
    (tmp_path / "words.tsv").write_bytes(text.encode())
    report = Report()
    words = read_words(tmp_path / "words.tsv", {b"hello"}, report)
    assert words == {"études": 10, " Pandas": 2}  # repeated: added up; the blank before a word belongs to it
    assert report == {
        "word that the split pattern cuts": [2, "line 4: hello |  world"],
        "word that is a token already": [1, "line 6: hello"],
    }


@pytest.mark.parametrize("line", ["word", "word 5", "word\t", "word\tmany", "word\t0", "word\t-3", "\t5", "word\t2.5"])
def test_a_bad_line_is_named(tmp_path, line):
    (tmp_path / "words.tsv").write_text(f"fine\t1\n{line}\n")
    with pytest.raises(ValueError, match=r"words\.tsv, line 2: wanted a word, a tab and a frequency"):
        read_words(tmp_path / "words.tsv", set(), Report())


def test_what_cannot_be_extended_is_refused(command, tmp_path, corpus):
    words, out = tmp_path / "words.tsv", tmp_path / "extra.tiktoken"
    words.write_bytes("caf\xe9\t3\n".encode("latin-1"))
    run = ("extend", "--words", words, "--out")
    assert "line 1: not UTF-8" in command(*run, out)[2]
    words.write_text("hello world\t3\n")
    code, _, stderr = command(*run, out)
    assert (code, out.exists()) == (1, False)
    assert "has no word to add; skipped 1 x word that the split pattern cuts" in stderr
    assert command(*run, tmp_path / "extra.txt")[0] == 2
    out.write_bytes(b"precious")
    assert command(*run, out)[0] == 2
    assert out.read_bytes() == b"precious"
    command("train", corpus, "--out", tmp_path / "v.model", "--size=700")
    code, _, stderr = command(
        "extend", "--vocab", tmp_path / "v.model", "--words", words, "--out", tmp_path / "x.tiktoken"
    )
    assert code == 2
    assert "only byte-level vocabularies" in stderr
