"""What holds for every tokenizer: control tokens, decoding, streaming, pickling."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenjax.tokenizer.base import check_same

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def test_surfaces_become_control_tokens_by_default(either):
    ids = either.encode("a<|im_end|>b<|endoftext|>")
    assert ids == [*either.encode("a"), either.im_end, *either.encode("b"), either.eot]
    assert either.encode("<|im_start|><|im_start|>") == [either.im_start] * 2


def test_only_allowed_surfaces_become_control_tokens(either):
    text = "a<|im_end|>b<|endoftext|>"
    ids = either.encode(text, allowed_special={"<|endoftext|>"})
    assert ids == [*either.encode_ordinary("a<|im_end|>b"), either.eot]
    assert either.encode(text, allowed_special={"<|nonsense|>"}) == either.encode_ordinary(text)


def test_disallowed_surfaces_raise(either):
    with pytest.raises(ValueError, match=r"contains '<\|im_end\|>' at character 2"):
        either.encode("ab<|im_end|>", disallowed_special={"<|im_end|>"})
    with pytest.raises(ValueError, match="disallowed_special forbids"):
        either.encode("ab<|im_end|>", allowed_special=set(), disallowed_special="all")
    # 'all' forbids what is not allowed, and only that
    ids = either.encode("ab<|im_end|>", allowed_special={"<|im_end|>"}, disallowed_special="all")
    assert ids[-1] == either.im_end
    assert either.encode("plain", disallowed_special="all") == either.encode_ordinary("plain")


def test_a_bare_string_is_no_collection_of_surfaces(either):
    for argument in ("allowed_special", "disallowed_special"):
        with pytest.raises(ValueError, match=f"{argument}='<|im_end|>'".replace("|", r"\|")):
            either.encode("x", **{argument: "<|im_end|>"})


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_text_can_forge_a_control_token(qwen_vocab, small, anything, data):
    text = data.draw(anything)
    for tokenizer in (qwen_vocab, small):
        control = set(tokenizer.special.values())
        ordinary = tokenizer.encode_ordinary(text)
        assert not control & set(ordinary)
        assert tokenizer.encode_array(text).tolist() == ordinary
        assert not control & set(tokenizer.encode_batch([text])[0])
        assert not control & set(tokenizer.encode(text, allowed_special=()))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_streaming_equals_decoding_at_once(qwen_vocab, small, data):
    for tokenizer in (qwen_vocab, small):
        ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=30))
        for errors in ("replace", "ignore"):
            for skip in (False, True):
                stream = tokenizer.stream(errors, skip_special=skip)
                parts = [stream.push(i) for i in ids]
                assert "".join(parts) + stream.finish() == tokenizer.decode(ids, errors, skip_special=skip)


def test_streaming_equals_the_original_and_shows_no_half_characters(qwen_vocab, goldens):
    for case in goldens["decode"]:
        stream = qwen_vocab.stream()
        assert "".join(map(stream.push, case["ids"])) + stream.finish() == case["replace"]
        stream = qwen_vocab.stream(errors="ignore")
        assert "".join(map(stream.push, case["ids"])) + stream.finish() == case["ignore"]


def test_a_character_appears_with_its_last_byte(either):
    # U+1F9EC is in neither vocabulary as a whole
    ids = either.encode("🧬")
    assert len(ids) > 1
    stream = either.stream()
    assert [stream.push(i) for i in ids] == [""] * (len(ids) - 1) + ["🧬"]
    assert stream.finish() == ""


def test_a_stream_can_be_used_again_after_finish(either):
    stream = either.stream()
    stream.push(either.encode("🧬")[0])
    assert stream.finish() == "\ufffd"
    assert stream.push(either.encode("a")[0]) == "a"


def test_decoding_refuses_ids_outside_the_vocabulary(either):
    for bad in (-1, either.size, 10**9):
        with pytest.raises(ValueError, match=f"id {bad} is not in the vocabulary"):
            either.decode([0, bad])
        with pytest.raises(ValueError, match=f"id {bad} is not in the vocabulary"):
            either.stream().push(bad)
    with pytest.raises(TypeError):
        either.decode([1.5])


def test_decoding_takes_any_integers(either):
    ids = either.encode("some text")
    assert either.decode(np.array(ids, np.int32)) == either.decode(iter(ids)) == "some text"
    assert either.decode(np.array(ids, np.uint32), skip_special=True) == "some text"
    assert either.decode([]) == ""


def test_control_tokens_decode_to_their_surface_or_nothing(either):
    ids = either.encode("a<|im_end|>b")
    assert either.decode(ids) == "a<|im_end|>b"
    assert either.decode(ids, skip_special=True) == "ab"
    assert [either.decode([either.special[surface]]) for surface in CONTROL] == list(CONTROL)


def test_pickling_keeps_the_tokenizer(either):
    copy = pickle.loads(pickle.dumps(either))
    assert (copy.name, copy.size, copy.special) == (either.name, either.size, either.special)
    assert copy.fingerprint == either.fingerprint
    assert copy.encode("def f():\n    return '中'<|im_end|>") == either.encode("def f():\n    return '中'<|im_end|>")


def test_empty_batches_and_texts(either):
    assert either.encode_batch([]) == []
    assert either.encode_batch(["", "a", ""]) == [[], either.encode("a"), []]
    assert either.encode("") == either.encode_ordinary("") == []


def test_what_another_tokenizer_made_is_refused(qwen_vocab, small):
    check_same(small, small.fingerprint, "runs/a", "")
    message = (
        rf"runs/a was made with another tokenizer \(fingerprint {qwen_vocab.fingerprint[:12]}\), not with spm-1000 "
    )
    with pytest.raises(ValueError, match=message + r"\(.*\), so its ids mean other text: use another"):
        check_same(small, qwen_vocab.fingerprint, "runs/a", "use another")
