"""Learning merges: the fast learner against a slow one, and what a vocabulary of ranks must keep."""

import base64
import itertools
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenjax.tokenizer.bpe import QwenBPE, byte_order, read_extra, write_ranks
from qwenjax.tokenizer.vocabulary import merges

BYTES = byte_order()
EXPANSION = {"我是一只猫": 20, "你是一只猫": 10, "他是一只猫": 5, "一只猫": 100}
AB = st.dictionaries(st.text("ab", min_size=1, max_size=9), st.integers(1, 4), min_size=1, max_size=6)
MIXED = st.dictionaries(st.text("aé中 ", min_size=1, max_size=7), st.integers(1, 4), min_size=1, max_size=6)


def encode(word: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Byte-level BPE by its definition: the joined neighbours of lowest rank merge first, the leftmost of them."""
    parts = [bytes([byte]) for byte in word]
    while True:
        sums = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
        if not sums:
            return parts
        _, i = min(sums)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def slow(words: dict[str, int], tokens: list[bytes], least: int = 1) -> tuple[list[bytes], list[list[bytes]]]:
    """Merges learned by counting all pairs anew each time, and the words as they end."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    cut = [encode(word.encode(), ranks) for word in words]
    learned = []
    while True:
        counts = Counter()
        for parts, count in zip(cut, words.values()):
            for pair in itertools.pairwise(parts):
                counts[pair] += count
        ranked = [
            (-n, len((a + b).decode("utf-8", "replace")), len(a + b), (a + b).decode("utf-8", "replace"), a + b, a, b)
            for (a, b), n in counts.items()
            if n >= least
        ]
        if not ranked:
            return learned, cut
        *_, token, first, second = min(ranked)
        learned.append(token)
        for parts in cut:
            i = 0
            while i + 1 < len(parts):
                if parts[i] == first and parts[i + 1] == second:
                    parts[i : i + 2] = [token]
                i += 1


@settings(max_examples=300, deadline=None)
@given(st.one_of(AB, MIXED), st.one_of(AB, MIXED), st.integers(1, 3))
@example({"aaaa": 2, "abab": 1}, {"aaa": 3}, 1)
def test_fast_learner_equals_the_slow_one(words, before, least):
    """From the bytes, and from a vocabulary that was itself learned, from other words."""
    for tokens in (BYTES, BYTES + slow(before, BYTES)[0]):
        wanted, cut = slow(words, tokens, least)
        learned = merges.learn(words, tokens, least=least)
        assert learned == wanted
        # encoding with the longer vocabulary cuts the words as learning left them
        ranks = {token: rank for rank, token in enumerate(tokens + learned)}
        assert [encode(word.encode(), ranks) for word in words] == cut
        # a valid list of merges: each token comes out of its own bytes as the sum of two earlier ones
        for token in learned:
            earlier = {t: r for t, r in ranks.items() if r < ranks[token]}
            assert len(encode(token, earlier)) == 2


@settings(max_examples=50, deadline=None)
@given(MIXED, st.integers(0, 5))
def test_fewer_merges_are_the_first_of_more(words, most):
    seen = []
    assert merges.learn(words, BYTES, most, watch=seen.append) == merges.learn(words, BYTES)[:most]
    assert seen == [*range(1, len(seen) + 1)]


def test_worked_example_of_the_tokenization_note(qwen_vocab):
    """docs/report.md, Vocabulary expansion."""
    tokens = [qwen_vocab.decode_bytes([i]) for i in range(qwen_vocab.eot)]
    learned = merges.learn(EXPANSION, tokens)
    assert [token.decode() for token in learned] == [
        "一只猫",
        "只猫",
        "是一只猫",
        "我是一只猫",
        "你是一只猫",
        "他是一只猫",
    ]


def test_ties_go_to_fewer_characters_then_fewer_bytes_then_the_alphabet():
    """Every pair occurs once. The first two bytes of 中 (E4 B8 AD) read as one broken character, the others as two."""
    learned = merges.learn({"yz": 1, "xb": 1, "xa": 1, "é": 1, "中": 1}, BYTES)
    one_character = ["é".encode(), b"\xe4\xb8", "中".encode()]  # U+00E9 before U+FFFD; then three bytes
    assert learned == [*one_character, b"xa", b"xb", b"yz"]
    assert merges.learn({"ab": 2, "cd": 3}, BYTES) == [b"cd", b"ab"]


def test_byte_order_is_that_of_the_published_vocabulary(qwen_vocab):
    assert [qwen_vocab.decode_bytes([i]) for i in range(256)] == BYTES
    assert (BYTES.index(b"!"), BYTES.index(b"~"), BYTES.index(b"\n"), BYTES.index(b" ")) == (0, 93, 198, 220)


def test_published_vocabulary_has_no_token_of_several_digits(qwen_vocab):
    tokens = [qwen_vocab.decode_bytes([i]) for i in range(qwen_vocab.eot)]
    assert merges.without_numbers(tokens) == tokens
    assert merges.without_numbers([b"7", b"ab", b"10", b"x", b"999"]) == [b"7", b"ab", b"x"]


def test_words_are_what_the_tokenizer_merges_within():
    counts = merges.count_words(["e\u0301tude étude  12\n", "it's"])
    assert counts == {"étude": 1, " étude": 1, " ": 2, "1": 1, "2": 1, "\n": 1, "it": 1, "'s": 1}
    assert merges.split(" étude") == [" étude"]
    assert merges.split("hello world") == ["hello", " world"]


def test_counting_forgets_the_rarest_words_when_there_are_too_many():
    texts = [" common"] * 50 + [f" rare{chr(97 + i)}" for i in range(26)]
    counts = merges.count_words(texts, most=10)
    assert counts[" common"] >= 49
    assert len(counts) <= 10


def test_a_long_word_takes_seconds():
    """A strand of DNA is one word: 200,000 letters, 500 merges. Encoding it anew for each merge would take minutes."""
    import random

    word = "".join(random.Random(0).choices("acgt", k=200_000))
    learned = merges.learn({word: 1}, BYTES, 500)
    assert len(learned) == 500
    assert len(QwenBPE(write_ranks({t: i for i, t in enumerate(BYTES + learned)})).encode(word)) < 60_000


def test_no_words_and_no_pairs_teach_nothing():
    assert merges.learn({}, BYTES) == []
    assert merges.learn({"a": 5, "": 1}, BYTES) == []
    assert merges.learn({"ab": 1}, BYTES, least=2) == []


def test_extra_files_may_begin_anywhere():
    data = b"\n".join(base64.b64encode(t) + b" %d" % i for t, i in ((b"xy", 900), (b"ab", 300)))
    assert read_extra(data) == [(b"ab", 300), (b"xy", 900)]
    assert read_extra(b"") == []
    for bad in (b"YWI=", b"YWI= x", b"YWI= -1", b"?? 3", b"YWI= 3 4", b"YQ 3"):
        with pytest.raises(ValueError, match=r"the file, line 2: (wanted a base64 token and its id|.*is not base64)"):
            read_extra(b"YWI= 300\n" + bad, "the file")
