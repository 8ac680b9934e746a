"""Extra tokens behind the control tokens: nothing that exists moves (docs/report.md, Vocabulary expansion)."""

import base64
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenjax.tokenizer import load_tokenizer
from qwenjax.tokenizer.bpe import ExtendedBPE, QwenBPE, byte_order, write_ranks

WORDS = ["一只猫", "只猫", "是一只猫", "我是一只猫", "你是一只猫", "他是一只猫"]
EXTRA = write_ranks({word.encode(): 151_851 + i for i, word in enumerate(WORDS)})
SMALL = write_ranks({token: i for i, token in enumerate([*byte_order(), b"ab"])})  # control: 257 … 464


@pytest.fixture(scope="module")
def cats(qwen_vocab, tmp_path_factory):
    file = tmp_path_factory.mktemp("cats") / "cats.tiktoken"
    file.write_bytes(EXTRA)
    return load_tokenizer("qwen", extra=file)


def test_worked_example_of_the_tokenization_note(cats, qwen_vocab):
    assert cats.size == 151_857
    for encode in (cats.encode, cats.encode_ordinary, lambda text: cats.encode_batch([text])[0]):
        assert encode("我是一只猫") == [151_854]
        assert encode("他是一只猫") == [151_856]
    assert cats.encode_array("我是一只猫").tolist() == [151_854]
    assert cats.decode([151_854]) == "我是一只猫"
    assert cats.special == qwen_vocab.special
    assert (cats.eot, cats.im_end) == (151_643, 151_645)
    assert cats.name == "qwen+6"
    assert cats.encode("一只猫<|im_end|>") == [151_851, 151_645]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_text_without_the_new_words_keeps_its_ids(cats, qwen_vocab, anything, data):
    text = data.draw(anything)
    assert cats.encode_ordinary(text) == qwen_vocab.encode_ordinary(text)
    assert cats.decode(cats.encode(text)) == qwen_vocab.decode(qwen_vocab.encode(text))


def test_a_directory_with_both_files_loads_by_itself(cats, qwen_vocab, tmp_path):
    path = cats.save(tmp_path / "run" / "tokenizer")
    assert sorted(file.name for file in path.parent.iterdir()) == ["extra.tiktoken", "qwen.tiktoken"]
    for place in (path.parent, path.parent.parent):
        copy = load_tokenizer(place)
        assert (copy.fingerprint, copy.size, copy.name) == (cats.fingerprint, cats.size, cats.name)
    assert load_tokenizer(path).fingerprint == qwen_vocab.fingerprint  # the file alone is the vocabulary alone


def test_pickles_as_both_files(cats):
    copy = pickle.loads(pickle.dumps(cats))
    assert copy.encode("我是一只猫") == [151_854]
    assert copy.fingerprint == cats.fingerprint


def test_the_fingerprint_covers_both_files(cats, qwen_vocab):
    one = ExtendedBPE(SMALL, write_ranks({b"xy": 465}))
    other = ExtendedBPE(SMALL, write_ranks({b"xz": 465}))
    later = ExtendedBPE(SMALL, write_ranks({b"xy": 466}))
    prints = {t.fingerprint for t in (one, other, later, QwenBPE(SMALL), cats, qwen_vocab)}
    assert len(prints) == 6


def test_ids_may_be_sparse_and_gaps_stand_for_nothing():
    sparse = ExtendedBPE(SMALL, write_ranks({b"abc": 600, b"xy": 500}))
    assert sparse.size == 601
    assert sparse.extra == {b"xy": 500, b"abc": 600}
    assert sparse.encode("abc") == [600]
    assert sparse.encode("xyab") == [500, 256]
    assert sparse.decode([500, 600]) == "xyabc"
    with pytest.raises(ValueError, match="id 550 is not in use"):
        sparse.decode([500, 550])
    with pytest.raises(ValueError, match=r"id 601 is not in the vocabulary"):
        sparse.decode([601])


def test_tokens_and_ids_in_use_are_skipped_and_said():
    lines = [(b"ab", 700), (b"cd", 10), (b"ef", 300), (b"gh", 701), (b"gh", 702), (b"ij", 701), (b"kl", 703)]
    data = b"".join(base64.b64encode(token) + b" %d\n" % index for token, index in lines)
    with pytest.warns(UserWarning, match=r"mine: 5 of 7 extra tokens are left out; the first is b'cd' with id 10"):
        tokenizer = ExtendedBPE(SMALL, data, extra_source="mine")
    assert tokenizer.extra == {b"gh": 701, b"kl": 703}
    assert [(token, index) for token, index, _ in tokenizer.skipped] == [
        (b"cd", 10), (b"ef", 300), (b"ab", 700), (b"ij", 701), (b"gh", 702),
    ]  # fmt: skip
    assert [tokenizer.encode(word) for word in ("ab", "gh", "kl")] == [[256], [701], [703]]


def test_what_cannot_be_extended_is_refused(small, tmp_path):
    file = tmp_path / "extra.tiktoken"
    file.write_bytes(EXTRA)
    with pytest.raises(ValueError, match=r"takes no extra tokens: only a \.tiktoken"):
        load_tokenizer(small.save(tmp_path / "spm"), extra=file)
    with pytest.raises(ValueError, match="larger than any embedding"):
        ExtendedBPE(SMALL, write_ranks({b"xy": 10**12}))
    with pytest.raises(OSError, match="nothing"):
        load_tokenizer("qwen", extra=tmp_path / "nothing.tiktoken")
