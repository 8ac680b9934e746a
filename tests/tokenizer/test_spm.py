"""Our own vocabularies: nothing is lost, control tokens stay out of text, and code is cut into sensible pieces."""

import io
import itertools
import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenjax.tokenizer import load_tokenizer
from qwenjax.tokenizer import sentencepiece as spm

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
KEPT = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False}


def foreign(texts, **options) -> bytes:
    """A model trained by sentencepiece itself, with its own defaults."""
    model = io.BytesIO()
    options = {"model_type": "bpe", "vocab_size": 700, "byte_fallback": True, "minloglevel": 2} | options
    lines = itertools.chain.from_iterable(text.splitlines() for text in texts)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **options)
    return model.getvalue()


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_text_survives(small, anything, data):
    text = data.draw(anything)
    ids = small.encode_ordinary(text)
    assert small.decode(ids) == text
    assert small.encode_batch([text, "", text]) == [ids, [], ids]
    assert small.decode(small.encode(text)) == text


def test_long_texts_survive(small, source_code):
    texts = [*source_code, " " * 5000, "\n" * 5000, "中" * 5000, "a▁ ▁b" * 1000]
    ids = small.encode_batch(texts)
    assert [small.decode(i) for i in ids] == texts
    assert ids == [small.encode_ordinary(text) for text in texts]
    assert small.encode_batch(texts, threads=1) == ids


def test_cutting_into_segments_does_not_change_the_ids(small, source_code, tmp_path):
    engine = sentencepiece.SentencePieceProcessor(model_file=str(small.save(tmp_path)))
    randoms = random.Random(0)
    texts = [*source_code, "".join(randoms.choices("ab (\n", k=20_000)), "word " * 1000, " " * 1000 + "x"]
    for text in texts:
        assert small.encode_ordinary(text) == engine.encode(text)


def test_pieces_across_blanks_switch_the_cutting_off(source_code):
    data = foreign(
        source_code, control_symbols=CONTROL, split_by_whitespace=False, split_by_unicode_script=False, **KEPT
    )
    engine = sentencepiece.SentencePieceProcessor(model_proto=data)
    tokenizer = spm.SentencePiece(data)
    assert any(" " in tokenizer.decode([i]).lstrip(" ") for i in range(tokenizer.size))
    for text in source_code:
        assert tokenizer.encode_ordinary(text) == engine.encode(text)


def test_lone_surrogates_become_replacement_characters(small):
    assert small.decode(small.encode("a\ud800b")) == "a\ufffdb"
    assert small.encode_batch(["a\ud800b"]) == [small.encode("a\ufffdb")]


def test_size_counts_control_tokens(small):
    assert small.size == 1000
    assert small.name == "spm-1000"
    assert small.special == {surface: 1 + i for i, surface in enumerate(CONTROL)}  # 0 is <unk>, which never occurs
    assert small.decode([0]) == "\ufffd"


def test_digits_stand_alone(small):
    pieces = [small.decode_bytes([i]) for i in range(1 + len(CONTROL), small.size)]
    assert all(len(piece) == 1 for piece in pieces if any(48 <= byte < 58 for byte in piece))
    assert len(small.encode("x = 1234567")) == len(small.encode("x = ")) + 7


def test_indentation_and_line_ends_are_pieces(small):
    assert len(small.encode(" " * 8)) == len(small.encode(" " * 20)) == 1
    assert len(small.encode("):\n")) == 1
    assert len(small.encode("\n")) == 1
    assert len(small.encode("        return")) <= 2


def test_no_piece_holds_a_blank_after_a_non_blank(small):
    pieces = [small.decode([i]) for i in range(small.size)]
    assert not [piece for piece in pieces if " " in piece.lstrip(" ")]


def test_python_source_takes_fewer_tokens_than_with_the_usual_options(tmp_path):
    """0.88 times as many (3.63 bytes each) on modules of the standard library that neither vocabulary has seen."""
    modules = [file.read_text() for file in sorted(Path(random.__file__).parent.glob("*.py"))]
    seen, unseen = [text for i, text in enumerate(modules) if i % 10], "".join(modules[::10])
    ours = spm.train(seen, 4000, tmp_path / "code.model")
    options = {"split_digits": True, "allow_whitespace_only_pieces": True, "control_symbols": CONTROL} | KEPT
    usual = spm.SentencePiece(foreign(seen, vocab_size=4000, **options))
    assert len(ours.encode(unseen)) < 0.9 * len(usual.encode(unseen))


def test_training_is_deterministic(small, source_code, tmp_path):
    again = spm.train(iter(source_code), 1000, tmp_path / "again.model")
    assert again.fingerprint == small.fingerprint
    assert load_tokenizer(tmp_path / "again.model").fingerprint == small.fingerprint
    other = spm.train(source_code, 999, tmp_path / "other.model")
    assert other.fingerprint != small.fingerprint


def test_no_training_text_is_lost_for_a_mark(small, source_code, tmp_path):
    """sentencepiece drops every sentence with U+2585 in it; ours reads it as a line end."""
    marked = [text.replace("\n", "▅") for text in source_code]
    assert spm.train(marked, 1000, tmp_path / "marked.model").fingerprint == small.fingerprint


def test_reserved_surfaces_in_the_training_text_do_no_harm(source_code, tmp_path):
    texts = [text.replace("self", "<|im_end|> ▅ ▁ <unk> \x00 \ud800 self") for text in source_code]
    tokenizer = spm.train(texts, 1000, tmp_path / "marks.model")
    assert not set(tokenizer.special.values()) & set(tokenizer.encode_ordinary(texts[0]))
    assert tokenizer.decode(tokenizer.encode_ordinary(texts[0])) == texts[0].replace("\ud800", "\ufffd")


def test_a_large_alphabet_fits_a_small_vocabulary(tmp_path):
    """Rare characters are spelled as bytes, so that pieces are left to learn."""
    common = "的一是不了人我在有他" * 400 + "\n"
    rare = "".join(map(chr, range(0x4E00, 0x4E00 + 60)))
    tokenizer = spm.train([common + rare], 300, tmp_path / "zh.model")
    assert tokenizer.size == 300
    assert len(tokenizer.encode("的一是不了人我在有他")) <= 2
    assert tokenizer.decode(tokenizer.encode(rare)) == rare
    assert tokenizer.decode(tokenizer.encode(" 的 ")) == " 的 "  # no space in the training text


def test_the_sample_is_bounded_and_spread_over_the_texts():
    texts = [f"{i:04d}" * 1000 for i in range(100)]  # 100 chunks of 4,000 characters
    kept = spm._sample(texts, 50_000)
    assert sum(map(len, kept)) <= 50_000
    assert [int(chunk[:4]) for chunk in kept] == list(range(0, 100, 16))  # 7 chunks; every eighth would be 13: too many
    assert spm._sample(texts, 400_000) == texts
    assert spm._sample(["ab" * 3000], 10**6) == ["ab" * 2000, "ab" * 1000]


def test_training_refuses_what_cannot_work(source_code, tmp_path):
    with pytest.raises(ValueError, match="no text"):
        spm.train([], 1000, tmp_path / "x.model")
    with pytest.raises(ValueError, match=r"no vocabulary of 90000 ids from [\d,]+ characters.*too high"):
        spm.train(source_code, 90_000, tmp_path / "x.model")
    with pytest.raises(ValueError, match="no vocabulary of 261 ids"):
        spm.train(source_code, 261, tmp_path / "x.model")
    with pytest.raises(ValueError, match=r"ends in \.model"):
        spm.train(source_code, 1000, tmp_path / "x.spm")
    assert not list(tmp_path.iterdir())


def test_models_that_are_not_ours_are_refused(source_code):
    with pytest.raises(ValueError, match="lacks the control tokens"):
        spm.SentencePiece(foreign(source_code))
    with pytest.raises(ValueError, match="changes text"):
        spm.SentencePiece(foreign(source_code, control_symbols=CONTROL))
    with pytest.raises(ValueError, match=r"x\.model is not a sentencepiece model"):
        spm.SentencePiece(b"no model", source="x.model")
