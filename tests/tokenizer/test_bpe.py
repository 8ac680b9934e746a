"""The Qwen vocabulary against the recorded original, and the loader against bad files."""

import base64
import hashlib
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenjax.tokenizer.bpe import SPECIAL, QwenBPE, read_ranks, write_ranks

# 256 bytes in order, then three merges: the smallest vocabulary with something to merge
SMALL = {bytes([b]): b for b in range(256)} | {b"ab": 256, b"abc": 257, b"\xc3\xa9": 258}


@pytest.fixture(scope="module")
def toy():
    return QwenBPE(write_ranks(SMALL))


def test_encoding_equals_the_original(qwen_vocab, goldens):
    for case in goldens["encode"]["cases"]:
        assert qwen_vocab.encode(case["text"]) == case["ids"], case["text"]
        assert qwen_vocab.encode(case["text"], allowed_special=set()) == case["ids_plain"], case["text"]
        assert qwen_vocab.encode_ordinary(case["text"]) == case["ids_plain"], case["text"]
        assert qwen_vocab.decode(case["ids"]) == case["decoded"]
        assert qwen_vocab.decode(case["ids"], skip_special=True) == case["decoded_skip_special"]


def test_batch_equals_one_by_one(qwen_vocab, goldens):
    texts = [case["text"] for case in goldens["encode"]["cases"]]
    plain = [case["ids_plain"] for case in goldens["encode"]["cases"]]
    assert qwen_vocab.encode_batch(texts) == plain
    assert qwen_vocab.encode_batch(texts, threads=1) == plain


def test_decoding_equals_the_original(qwen_vocab, goldens):
    for case in goldens["decode"]:
        for errors in ("replace", "ignore"):
            assert qwen_vocab.decode(case["ids"], errors=errors) == case[errors]


def test_numbers_of_the_published_vocabulary(qwen_vocab, goldens):
    meta = goldens["encode"]["meta"]
    assert qwen_vocab.name == "qwen"
    assert qwen_vocab.size == meta["n_vocab"] == 151_643 + 208
    assert qwen_vocab.fingerprint == meta["ranks_sha256"]
    assert (qwen_vocab.eot, qwen_vocab.im_start, qwen_vocab.im_end) == (151643, 151644, 151645)
    assert meta["special_tokens"].items() <= qwen_vocab.special.items()
    assert list(qwen_vocab.special.items())[-1] == tuple(meta["last_special"])


def pieces(tokenizer, text):
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


def test_worked_vectors_of_the_tokenization_note(qwen_vocab):
    """docs/report.md, Vocabulary and Control tokens."""
    end = 'print("<|endoftext|>")'
    assert qwen_vocab.encode(end, allowed_special=set()) == [1350, 9639, 91, 8691, 723, 427, 91, 82598]
    assert qwen_vocab.encode(end) == [1350, 445, 151643, 899]
    mixed = 'print("<|extra_0|>")<|endoftext|>'
    only_end = [1350, 9639, 91, 15460, 62, 15, 91, 82598, 151643]
    assert qwen_vocab.encode(mixed, allowed_special={"<|endoftext|>"}) == only_end
    assert qwen_vocab.decode([51461]) == " \ufffd"
    assert qwen_vocab.decode([51461, 117]) == " 根"
    assert qwen_vocab.decode_bytes([51461]) == b" \xe6\xa0"
    assert pieces(qwen_vocab, "Panda") == ["P", "anda"]
    assert pieces(qwen_vocab, " Pandas") == [" Pand", "as"]
    assert qwen_vocab.encode("Observation:") == [37763, 367, 25]
    assert qwen_vocab.encode("Observation:\n") == [37763, 367, 510]
    assert [qwen_vocab.encode(c) for c in ("\n", "\n\n", " ", "A", "D")] == [[198], [271], [220], [32], [35]]


def test_text_is_normalised_to_nfc(qwen_vocab):
    assert qwen_vocab.encode("e\u0301tude") == qwen_vocab.encode("étude")
    assert qwen_vocab.encode_ordinary("e\u0301tude") == qwen_vocab.encode_ordinary("étude")
    assert qwen_vocab.encode_batch(["e\u0301tude"]) == [qwen_vocab.encode_ordinary("étude")]
    # normalisation comes before control tokens are looked for: '>' and U+0338 compose to '≯'
    assert qwen_vocab.im_end not in qwen_vocab.encode("<|im_end|>\u0338")


def test_every_digit_is_a_token(qwen_vocab):
    zero = qwen_vocab.encode("0")[0]
    assert qwen_vocab.encode("2023") == [zero + 2, zero, zero + 2, zero + 3]
    assert len(qwen_vocab.encode("x = 1234567")) == len(qwen_vocab.encode("x = ")) + 7


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_decoding_gives_the_normalised_text_back(qwen_vocab, anything, data):
    text = data.draw(anything)
    wanted = unicodedata.normalize("NFC", text)
    assert qwen_vocab.decode(qwen_vocab.encode(text)) == wanted
    assert qwen_vocab.decode(qwen_vocab.encode_ordinary(text)) == wanted


def test_merges_worked_out_by_hand(toy):
    # 'ab' has the lowest rank and merges first, then 'ab'+'c'; 'bc' is no token, so 'xbc' stays bytes
    assert toy.encode("abcab") == [257, 256]
    assert toy.encode("xbc") == [120, 98, 99]
    assert toy.encode("é") == [258]


def test_control_tokens_follow_the_ranks(toy):
    assert toy.eot == len(SMALL) == 259
    assert toy.special == {surface: 259 + i for i, surface in enumerate(SPECIAL)}
    assert toy.size == 259 + 208
    assert toy.name == "bpe-467"
    assert toy.encode("ab<|im_end|>") == [256, 261]


def test_a_million_blanks_do_not_bring_the_process_down(qwen_vocab):
    """tiktoken alone panics here; the released tokenizer has no answer to compare with, so only nothing may be lost."""
    for text in (" " * 1_200_000, "x\n" + "\t" * 1_200_000 + "y", " " * 600_000 + "\n" * 600_000):
        assert qwen_vocab.decode(qwen_vocab.encode_ordinary(text)) == text
    assert qwen_vocab.encode_batch(["a", " " * 1_200_000])[0] == qwen_vocab.encode("a")


def test_lone_surrogates_become_replacement_characters(qwen_vocab):
    assert qwen_vocab.decode(qwen_vocab.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize("ends", [b"\r\n", b"\n\n", b"\r\n\r\n"])
def test_line_ends_do_not_change_the_tokenizer(toy, ends):
    copy = QwenBPE(write_ranks(SMALL).replace(b"\n", ends))
    assert copy.fingerprint == toy.fingerprint == hashlib.sha256(write_ranks(SMALL)).hexdigest()
    assert copy.encode("abc é") == toy.encode("abc é")


def test_crlf_copy_of_the_published_file_is_the_published_tokenizer(qwen_vocab, tmp_path):
    data = qwen_vocab.save(tmp_path).read_bytes()
    copy = QwenBPE(data.replace(b"\n", b"\r\n"))
    assert (copy.name, copy.fingerprint) == ("qwen", qwen_vocab.fingerprint)
    assert copy.save(tmp_path / "copy").read_bytes() == data
    # the published file itself is read without checks, any other line by line
    assert [copy.decode_bytes([i]) for i in range(copy.size)] == [
        qwen_vocab.decode_bytes([i]) for i in range(copy.size)
    ]


def test_another_rank_order_is_another_fingerprint(toy):
    swapped = [*[*SMALL][:256], b"\xc3\xa9", b"ab", b"abc"]
    assert QwenBPE(write_ranks({token: i for i, token in enumerate(swapped)})).fingerprint != toy.fingerprint


def line(token: bytes, rank: int) -> bytes:
    return base64.b64encode(token) + b" %d\n" % rank


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (line(b"zz", 260), "line 260: rank 260 where 259 was due"),
        (line(b"zz", 258), "line 260: rank 258 where 259 was due"),
        (line(b"ab", 259), "line 260: token b'ab' already has rank 256"),
        (b"?? 259\n", "line 260: b'\\?\\?' is not base64"),
        (b"YQ 259\n", "line 260: b'YQ' is not base64"),
        (b"YWJj\n", "line 260: wanted a base64 token and a rank"),
        (b"YWJj -1\n", "line 260: wanted a base64 token and a rank"),
        (b"<html>not a vocabulary</html>\n", "line 260: wanted a base64 token and a rank"),
    ],
)
def test_bad_lines_are_named(extra, message):
    with pytest.raises(ValueError, match=message):
        read_ranks(write_ranks(SMALL) + extra)


def test_every_byte_must_be_a_token():
    tokens = [token for token in SMALL if token != b"\x07"]
    with pytest.raises(ValueError, match="1 of the 256 bytes are not tokens, the first is 0x07"):
        read_ranks(write_ranks({token: i for i, token in enumerate(tokens)}))
    with pytest.raises(ValueError, match="256 of the 256 bytes"):
        read_ranks(b"")
