"""Vocabularies of every kind, made here by their own libraries, count as those libraries do."""

import base64
import io
import itertools
import struct

import pytest
import sentencepiece
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenjax.tokenizer import gguf as gguf_vocab
from qwenjax.tokenizer.bpe import PATTERN, byte_order, write_ranks
from qwenjax.tokenizer.gguf import read_head
from qwenjax.tokenizer.vocabulary.compression import open_vocabulary

tokenizers = pytest.importorskip("tokenizers")
gguf = pytest.importorskip("gguf")

HARD = [
    "",
    " ",
    "It's 1234 great!!  \n\n def f(x):\n    return x",
    "天地玄黄，宇宙洪荒",
    "e\u0301tude ümlaut 😀",
    "\t\t x",
]
SMALL_SPM = {"vocab_size": 400, "byte_fallback": True, "minloglevel": 2}


def spm_model(texts, **options) -> bytes:
    model = io.BytesIO()
    lines = itertools.chain.from_iterable(text.splitlines() for text in texts)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **SMALL_SPM | options)
    return model.getvalue()


@pytest.fixture(scope="module")
def spm_models(source_code):
    return {kind: spm_model(source_code, model_type=kind) for kind in ("bpe", "unigram")}


@pytest.fixture(scope="module")
def byte_level(source_code):
    """A byte-level BPE of the library tokenizers, cut as Qwen2 does."""
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [split, tokenizers.pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    engine.train_from_iterator(source_code, trainer)
    return engine


def write_gguf(path, model: str, pre: str | None = None, **fields):
    """A file without tensors; `fields` are named as the writer's methods, add_…"""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    if pre:
        writer.add_tokenizer_pre(pre)
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return str(path)


def number_of_tokens(vocabulary, texts) -> int:
    """Tokens of the texts."""
    return sum(len(vocabulary.encode(text)) for text in texts)


def pieces(model: bytes) -> dict:
    """The fields of a GGUF vocabulary that a sentencepiece model becomes."""
    from sentencepiece import sentencepiece_model_pb2

    normalizer = sentencepiece_model_pb2.ModelProto.FromString(model).normalizer_spec
    engine = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(len(engine))
    kinds = [2 if engine.is_unknown(i) else 3 if engine.is_control(i) else 6 if engine.is_byte(i) else 1 for i in ids]
    return {
        "token_list": [engine.id_to_piece(i) for i in ids],
        "token_scores": [engine.get_score(i) for i in ids],
        "token_types": kinds,
        "precompiled_charsmap": normalizer.precompiled_charsmap,
        "remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
        "add_space_prefix": normalizer.add_dummy_prefix,
    }


def test_qwen_counts_as_itself(qwen_vocab):
    vocabulary = open_vocabulary("qwen")
    assert (vocabulary.name, vocabulary.size) == ("qwen", 151_851)
    assert number_of_tokens(vocabulary, HARD) == sum(len(qwen_vocab.encode_ordinary(text)) for text in HARD)
    assert open_vocabulary("My Qwen=qwen").name == "My Qwen"


def test_ranks_without_numbers_are_cut_as_qwen_does(qwen_vocab, tmp_path):
    file = qwen_vocab.save(tmp_path)
    copy = file.rename(tmp_path / "copy.of.ranks")  # the name does not matter
    vocabulary = open_vocabulary(str(copy))
    assert "Qwen" in vocabulary.kind
    assert number_of_tokens(vocabulary, HARD) == sum(len(qwen_vocab.encode_ordinary(text)) for text in HARD)


def test_ranks_with_numbers_are_cut_as_cl100k_does(tmp_path):
    ranks = {token: i for i, token in enumerate([*byte_order(), b"12", b"123", b"34", b" g"])}
    (tmp_path / "cl.tiktoken").write_bytes(write_ranks(ranks))
    vocabulary = open_vocabulary(str(tmp_path / "cl.tiktoken"))
    assert "cl100k" in vocabulary.kind
    assert number_of_tokens(vocabulary, ["1234"]) == 2  # 123, 4; one by one they would be four
    pattern = PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
    engine = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    assert number_of_tokens(vocabulary, HARD) == sum(len(engine.encode_ordinary(text)) for text in HARD)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_any_sentencepiece_model_counts_as_sentencepiece(spm_models, kind, tmp_path):
    (tmp_path / "other.model").write_bytes(spm_models[kind])
    engine = sentencepiece.SentencePieceProcessor(model_proto=spm_models[kind])
    vocabulary = open_vocabulary(str(tmp_path / "other.model"))
    assert (vocabulary.name, vocabulary.size) == ("other", 400)
    assert number_of_tokens(vocabulary, HARD) == sum(map(len, engine.encode(HARD)))


def test_tokenizer_json_counts_all_of_the_text_and_nothing_else(byte_level, tmp_path):
    wanted = sum(len(byte_level.encode(text).ids) for text in HARD)
    limited = tokenizers.Tokenizer.from_str(byte_level.to_str())
    limited.enable_truncation(3)
    limited.enable_padding(length=50)
    limited.add_special_tokens(["<s>"])
    limited.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", limited.token_to_id("<s>"))]
    )
    limited.save(str(tmp_path / "tokenizer.json"))
    vocabulary = open_vocabulary(str(tmp_path / "tokenizer.json"))
    assert number_of_tokens(vocabulary, HARD) == wanted


def test_gguf_of_merges_counts_as_the_tokenizer_it_came_from(byte_level, tmp_path):
    tokens = sorted(byte_level.get_vocab(), key=byte_level.get_vocab().get)
    model = byte_level.model
    folder = tmp_path / "saved"
    folder.mkdir()
    model.save(str(folder))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    fields = {"token_list": tokens, "token_types": [1] * len(tokens), "token_merges": lines}
    vocabulary = open_vocabulary(write_gguf(tmp_path / "v.gguf", "gpt2", "qwen2", **fields))
    assert vocabulary.size == len(tokens)
    for text in HARD:
        assert number_of_tokens(vocabulary, [text]) == len(byte_level.encode(text).ids), text


@pytest.mark.parametrize(
    ("pre", "text", "count"),
    [  # every pair of digits, of letters and of blanks is a token; words are cut first
        ("qwen2", "1234", 4),
        ("llama-bpe", "1234", 3),  # 123|4: 12, 3, 4
        ("gpt-2", "1234", 2),
        ("starcoder", "1234", 4),
        ("default", "123456", 4),  # 123|456
        (None, "123456", 4),
        ("gpt-2", "don't", 3),  # don|'t: do, n and 't
    ],
)
def test_split_patterns_of_gguf(pre, text, count, tmp_path):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    pairs = [f"{a} {b}" for a in "1234567890" for b in "1234567890"] + ["d o", "' t"]
    tokens = alphabet + [pair.replace(" ", "") for pair in pairs]
    fields = {"token_list": tokens, "token_types": [1] * len(tokens), "token_merges": pairs}
    vocabulary = open_vocabulary(write_gguf(tmp_path / "v.gguf", "gpt2", pre, **fields))
    assert number_of_tokens(vocabulary, [text]) == count


def test_user_defined_tokens_of_gguf_are_found_before_the_cut(tmp_path):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "<|x 1|>"]
    fields = {"token_list": tokens, "token_types": [1] * len(alphabet) + [4], "token_merges": []}
    vocabulary = open_vocabulary(write_gguf(tmp_path / "v.gguf", "gpt2", "qwen2", **fields))
    assert number_of_tokens(vocabulary, ["ab<|x 1|>c"]) == 4


@pytest.mark.parametrize(("kind", "name"), [("bpe", "llama"), ("unigram", "t5")])
def test_gguf_of_pieces_counts_as_the_model_it_came_from(spm_models, kind, name, tmp_path):
    model = spm_models[kind]
    engine = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = open_vocabulary(write_gguf(tmp_path / "v.gguf", name, "default", **pieces(model)))
    for text in HARD:
        assert number_of_tokens(vocabulary, [text]) == len(engine.encode(text)), text


def test_gguf_padding_rows_called_unknown_are_no_second_unknown(spm_models, tmp_path):
    fields = pieces(spm_models["bpe"])
    fields["token_types"][fields["token_list"].index("<s>")] = 2
    fields["unk_token_id"] = fields["token_list"].index("<unk>")
    assert number_of_tokens(open_vocabulary(write_gguf(tmp_path / "v.gguf", "llama", **fields)), ["ab"]) >= 1


def test_gguf_head_is_what_the_library_wrote(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "llama")
    facts = {"a.text": "中", "a.whole": 7, "a.part": 0.5, "a.yes": True, "a.list": ["x", ""], "a.numbers": [1, -2]}
    writer.add_string("a.text", facts["a.text"])
    writer.add_uint64("a.whole", 7)
    writer.add_float64("a.part", 0.5)
    writer.add_bool("a.yes", True)
    writer.add_array("a.list", facts["a.list"])
    writer.add_array("a.numbers", facts["a.numbers"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert read_head(tmp_path / "v.gguf") == {"general.architecture": "llama", **facts}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_gguf_files_are_refused(tmp_path_factory, data):
    """Cut short or with a changed byte: read, or a ValueError; nothing else, and no memory for absurd lengths."""
    key, text = b"k", "值".encode()
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    head += struct.pack("<Q", 1) + key + struct.pack("<IQ", 8, len(text)) + text
    head += struct.pack("<Q", 1) + b"n" + struct.pack("<IIQ", 9, 4, 2) + struct.pack("<2I", 1, 2)
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(head)
    assert read_head(path) == {"k": "值", "n": [1, 2]}
    at = data.draw(st.integers(0, len(head) - 1))
    byte = bytes([data.draw(st.integers(0, 255))])
    path.write_bytes(head[:at] if data.draw(st.booleans()) else head[:at] + byte + head[at + 1 :])
    message = None
    try:
        read_head(path)
    except ValueError as error:
        message = str(error)
    assert message is None or "damaged.gguf is not a GGUF file" in message


def test_what_is_no_vocabulary_is_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no tokenizer 'nothing': wanted 'qwen'"):
        open_vocabulary("nothing")
    for data, message in (
        (b"neither one nor the other", "not a vocabulary: neither"),
        (b"", "not a vocabulary: neither"),
        (b'{"some": "json"}', r"not a tokenizer\.json"),
        (b"GGUF....", "not a GGUF file"),
        (base64.b64encode(b"ab") + b" 7\n", "rank 7 where 0 was due"),
    ):
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(ValueError, match=message):
            open_vocabulary(str(tmp_path / "file"))
    with pytest.raises(ValueError, match="model='bert' is unknown; known: 'gpt2', 'llama', 't5'"):
        open_vocabulary(write_gguf(tmp_path / "1.gguf", "bert", token_list=["a"]))
    with pytest.raises(ValueError, match="pre='odd' is unknown; known: default, gpt-2"):
        open_vocabulary(write_gguf(tmp_path / "2.gguf", "gpt2", "odd", token_list=["a"]))
    with pytest.raises(ValueError, match="holds no vocabulary"):
        open_vocabulary(write_gguf(tmp_path / "3.gguf", "gpt2"))
    with pytest.raises(ValueError, match="1 tokens, 0 scores and 0 types"):
        open_vocabulary(write_gguf(tmp_path / "4.gguf", "llama", token_list=["a"]))
    with pytest.raises(ValueError, match="do not fit together"):
        open_vocabulary(write_gguf(tmp_path / "5.gguf", "gpt2", "qwen2", token_list=["a"], token_merges=["a b"]))
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install 'qwenjax\[tokenizers\]'"):
        open_vocabulary(str(tmp_path / "5.gguf"))


def test_known_patterns_are_named_as_in_the_files():
    assert {"default", "gpt-2", "llama-bpe", "qwen2"} <= gguf_vocab.SPLIT_PATTERNS.keys()
    assert set(gguf_vocab.WHOLE_WORDS) <= gguf_vocab.SPLIT_PATTERNS.keys()
