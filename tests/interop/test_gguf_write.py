"""What we write as GGUF is read back, by us and by the package gguf: values, metadata and the ids of texts."""

from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import qwen1
from models import descriptors

from qwenjax.config import Compute, ModelConfig, RopeScaling
from qwenjax.interop.gguf.read import open_gguf
from qwenjax.interop.gguf.write import KINDS, vocabulary, write_gguf
from qwenjax.interop.huggingface.layout import Table
from qwenjax.interop.huggingface.load import load_params
from qwenjax.interop.huggingface.save import as_tensors
from qwenjax.model import transformer
from qwenjax.tokenizer.bpe import PATTERN, ExtendedBPE, QwenBPE, byte_order, merges, write_ranks
from qwenjax.tokenizer.sentencepiece import train
from qwenjax.tokenizer.vocabulary.compression import open_vocabulary

gguf = pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")

QWEN2 = ModelConfig(vocab=40, layers=2, embed=64, heads=4, kv_heads=2, ffn=96, context=64, tie_embeddings=True)
QWEN3 = replace(QWEN2, qkv_bias=False, qk_norm=True, head_dim=32, tie_embeddings=False)
LLAMA = replace(QWEN2, qkv_bias=False, rope_base=1e5, norm_eps=1e-5)
ODD = replace(QWEN2, head_dim=32)  # biases, but heads that llama.cpp's qwen2 cannot have: written as llama
MODELS = {"qwen2": QWEN2, "qwen3": QWEN3, "llama": LLAMA, "llama with biases": ODD}
TOKENS = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": [f"<{i}>" for i in range(40)]}
HARD = ["", " ", "It's 1234 great!!  \n\n def f(x):\n    return x", "天地玄黄，宇宙洪荒", "ümlaut 😀", "\t\t x \x00"]


def random_tensors(config, seed=0, dtype=np.float32):
    """A model's tensors by the names of the layout qwen2."""
    table, rng = Table(config, "qwen2"), np.random.default_rng(seed)
    return {name: rng.normal(size=table.shape(name)).astype(dtype) for name in table.parts}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read_back(name, tmp_path):
    config, arrays = MODELS[name], random_tensors(MODELS[name])
    assert write_gguf(tmp_path / "m.gguf", config, descriptors(arrays), TOKENS, "f32", name="Mine") == []
    found = open_gguf(tmp_path / "m.gguf")
    assert (found.config, found.layout) == (config, "qwen2")
    assert found.files["gguf"]["general.architecture"] == name.split()[0]
    assert found.files["gguf"]["general.name"] == "Mine"
    assert found.files["gguf"]["tokenizer.ggml.tokens"] == TOKENS["tokenizer.ggml.tokens"]
    assert set(found.tensors) == set(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(found.tensors[key].read(), array, err_msg=key)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_files(kind, tmp_path):
    """Matrices lose what their kind cannot hold, vectors nothing; the package reads the same file the same way."""
    config = replace(QWEN2, embed=32, ffn=48)  # 48: rows that q8_0 has no blocks for
    arrays = random_tensors(config)
    write_gguf(tmp_path / "m.gguf", config, descriptors(arrays), TOKENS, kind)
    found = open_gguf(tmp_path / "m.gguf").tensors
    for name, array in arrays.items():
        got = found[name].read().astype(np.float32)
        if array.ndim == 1 or kind == "f32":
            np.testing.assert_array_equal(got, array)
        elif kind == "q8_0" and "down_proj" not in name:
            blocks = np.abs(array).reshape(len(array), -1, 32).max(-1).repeat(32, -1)
            assert np.all(np.abs(got - array) <= blocks / 127 * 0.57)
        else:
            rounded = array.astype(ml_dtypes.bfloat16 if kind == "bf16" else np.float16).astype(np.float32)
            np.testing.assert_array_equal(got, rounded)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert gguf.LlamaFileType(reader.fields["general.file_type"].contents()).name == KINDS[kind]
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    assert len(theirs) == len(arrays)
    gate = theirs["blk.1.ffn_gate.weight"]
    assert gate.tensor_type.name == kind.upper()
    want = found["model.layers.1.mlp.gate_proj.weight"].read().astype(np.float32)
    np.testing.assert_array_equal(gguf.dequantize(gate.data, gate.tensor_type), want)


def test_bfloat16_survives(tmp_path):
    arrays = random_tensors(LLAMA, dtype=ml_dtypes.bfloat16)
    write_gguf(tmp_path / "m.gguf", LLAMA, descriptors(arrays), TOKENS, "bf16")
    for name, tensor in open_gguf(tmp_path / "m.gguf").tensors.items():
        np.testing.assert_array_equal(tensor.read(), arrays[name])


def test_a_written_model_gives_the_recorded_logits(tmp_path):
    config, gold = qwen1.config(), qwen1.golden("short")
    words = {"tokenizer.ggml.tokens": [str(i) for i in range(config.vocab)]}
    model = transformer.Transformer(config, Compute(dtype="float32", remat="none").resolved("cpu", 1))

    @jax.jit
    def logits(params):
        return transformer.logits(params, model.apply({"params": params}, gold["input_ids"])[0])

    for kind, most in (("f32", 1e-4), ("q8_0", 0.3)):
        told = []
        write_gguf(
            tmp_path / "m.gguf", config, as_tensors(config, qwen1.params(), "qwen2"), words, kind, progress=told.append
        )
        assert sum(told) == config.params
        found = open_gguf(tmp_path / "m.gguf")
        assert found.config == config
        error = np.abs(logits(load_params(found)) - gold["logits"])
        assert error.max() < most, (kind, error.max())


@pytest.mark.parametrize(
    "scaling", [RopeScaling("linear", 2), RopeScaling("yarn", 4, 16, 24.0, 2.0), RopeScaling("yarn", 2)]
)
def test_rotary_scaling_is_written(scaling, tmp_path):
    config = replace(QWEN2, rope_scaling=scaling)
    write_gguf(tmp_path / "m.gguf", config, descriptors(random_tensors(config)), TOKENS)
    assert open_gguf(tmp_path / "m.gguf").config == config


def test_models_that_cannot_be_written_leave_no_file(tmp_path):
    arrays = random_tensors(QWEN2)
    few = {name: a for name, a in arrays.items() if "norm" not in name}
    large = arrays | {"model.norm.weight": np.full(64, 1e5, np.float32)}  # a vector: stays float32
    write_gguf(tmp_path / "m.gguf", QWEN2, descriptors(large), TOKENS)
    (tmp_path / "m.gguf").unlink()
    up = "model.layers.0.mlp.up_proj.weight"
    for tensors, config, kind, words, message in (
        (
            few,
            QWEN2,
            "f16",
            TOKENS,
            r"5 missing: model\.norm\.weight, model\.layers\.0\.input_layernorm\.weight, .* and 1 more",
        ),
        (arrays | {"x": arrays[up]}, QWEN2, "f16", TOKENS, "1 left over: x"),
        (arrays | {up: arrays[up].T}, QWEN2, "f16", TOKENS, r"up_proj.weight \[64, 96\] instead of \[96, 64\]"),
        (arrays | {up: arrays[up] * 1e5}, QWEN2, "f16", TOKENS, "up_proj.weight' has values that F16 cannot hold"),
        (arrays | {up: arrays[up] * 1e8}, QWEN2, "q8_0", TOKENS, "up_proj.weight' has values that Q8_0 cannot hold"),
        (arrays | {up: arrays[up] * np.nan}, QWEN2, "f16", TOKENS, "up_proj.weight' has values that F16 cannot hold"),
        (arrays, QWEN2, "q4_k", TOKENS, "kind='q4_k' is unknown; known: f32, f16, bf16, q8_0"),
        (arrays, QWEN2, "f16", {}, "0 tokens for an embedding of 40 rows"),
        (random_tensors(QWEN3), replace(QWEN3, qkv_bias=True), "f16", TOKENS, "."),
    ):
        with pytest.raises(ValueError, match=message):
            write_gguf(tmp_path / "m.gguf", config, descriptors(tensors), words, kind)
        assert not any(tmp_path.iterdir())


def test_what_the_format_cannot_say_is_told(tmp_path):
    config = replace(QWEN2, ntk=True, logn=True, windows=(0, 8))
    first, second = write_gguf(tmp_path / "m.gguf", config, descriptors(random_tensors(config)), TOKENS)
    assert "ntk and logn left out" in first
    assert "up to 64 tokens" in first
    assert "windows left out" in second
    assert open_gguf(tmp_path / "m.gguf").config == QWEN2


# ---- vocabularies ----


def engine_of(facts):
    """A tokenizer of the library tokenizers from the metadata of byte-level BPE, cut as their `pre` says."""
    assert (facts["tokenizer.ggml.model"], facts["tokenizer.ggml.pre"]) == ("gpt2", "qwen2")
    tokens = facts["tokenizer.ggml.tokens"]
    table = {token: i for i, token in enumerate(tokens)}
    model = tokenizers.models.BPE(table, [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]])
    engine = tokenizers.Tokenizer(model)
    split, byte_level = tokenizers.pre_tokenizers.Split, tokenizers.pre_tokenizers.ByteLevel
    engine.normalizer = tokenizers.normalizers.NFC()
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [split(tokenizers.Regex(PATTERN), "isolated"), byte_level(False, use_regex=False)]
    )
    engine.add_special_tokens([t for t, kind in zip(tokens, facts["tokenizer.ggml.token_type"]) if kind == 3])
    return engine


def test_the_published_vocabulary_keeps_its_ids(qwen_vocab):
    facts = vocabulary(qwen_vocab, 151_936, "{{ messages }}")
    assert len(facts["tokenizer.ggml.merges"]) == 151_387
    assert len(facts["tokenizer.ggml.tokens"]) == len(facts["tokenizer.ggml.token_type"]) == 151_936
    assert facts["tokenizer.ggml.tokens"][151_851] == "[PAD151851]"
    assert facts["tokenizer.ggml.token_type"][151_642:151_646] == [1, 3, 3, 3]
    assert facts["tokenizer.ggml.token_type"][151_850:151_852] == [3, 5]
    ends = {key.split(".")[-1]: value for key, value in facts.items() if key.endswith("token_id")}
    end, turn = 151_643, 151_645
    assert ends == {"bos_token_id": end, "eos_token_id": turn, "eot_token_id": turn, "padding_token_id": end}
    assert facts["tokenizer.chat_template"] == "{{ messages }}"
    engine = engine_of(facts)
    chat = "<|im_start|>user\nHi 你好<|im_end|>\n<|endoftext|><|extra_3|>"
    for text in (*HARD, chat):
        assert engine.encode(text).ids == qwen_vocab.encode(text), text


def test_vocabularies_survive_the_file(tmp_path):
    """Ranks with extra tokens and a gap; and a sentencepiece model. Read back as other programs would."""
    ranks = [*byte_order(), b"in", b" t", b"he", b" the", b"  ", b"def", b" def"]
    ranks.insert(ranks.index(b"def"), b"de")
    data = write_ranks({token: i for i, token in enumerate(ranks)})
    plain = QwenBPE(data)
    extra = ExtendedBPE(data, write_ranks({b"re": plain.size, b"ret": plain.size + 3}))
    for tokenizer in (plain, extra):
        config = replace(QWEN2, vocab=tokenizer.size + 5)
        facts = vocabulary(tokenizer, config.vocab)
        write_gguf(tmp_path / "m.gguf", config, descriptors(random_tensors(config)), facts)
        found = open_gguf(tmp_path / "m.gguf").files["gguf"]
        assert {key: value for key, value in found.items() if key.startswith("tokenizer.")} == facts
        assert found["tokenizer.ggml.eos_token_id"] == tokenizer.eot
        assert "tokenizer.chat_template" not in found
        for text in (*HARD, "return the thing"):
            assert engine_of(found).encode(text).ids == tokenizer.encode_ordinary(text), text

    pieces = train([Path(__file__).read_text(encoding="utf-8")], 400, tmp_path / "own.model")
    config = replace(QWEN2, vocab=420)
    write_gguf(tmp_path / "p.gguf", config, descriptors(random_tensors(config)), vocabulary(pieces, 420))
    found = open_vocabulary(str(tmp_path / "p.gguf"))
    for text in HARD:
        assert len(found.encode(text)) == len(pieces.encode_ordinary(text)), text
    facts = open_gguf(tmp_path / "p.gguf").files["gguf"]
    assert facts["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 3]
    assert facts["tokenizer.ggml.add_space_prefix"] is False


def test_vocabularies_that_cannot_be_written(qwen_vocab):
    with pytest.raises(ValueError, match="151851 ids, the embedding only 100 rows"):
        vocabulary(qwen_vocab, 100)
    with pytest.raises(ValueError, match=r"b'abc' \(rank 258\) is not made by merging two others"):
        merges({token: i for i, token in enumerate([*byte_order(), b"xa", b"yb", b"abc"])})
