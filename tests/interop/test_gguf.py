"""GGUF files are read as the package gguf wrote them, or refused by name."""

import struct
import sys
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenjax.config import Compute, ModelConfig, RopeScaling
from qwenjax.interop.gguf import read
from qwenjax.interop.gguf.read import halves, open_gguf, pairs, read_gguf
from qwenjax.interop.huggingface.layout import Table
from qwenjax.interop.huggingface.load import load_params
from qwenjax.model import transformer

gguf = pytest.importorskip("gguf")
from gguf_files import gguf_bytes, write  # noqa: E402

SHAPE = {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 48,
    "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-6,
}


def bare(**more):
    """The least tensors that tell a model's shape."""
    return {"token_embd.weight": np.zeros((40, 32), np.float32), **more}


# ---- types of tensors ----


@pytest.mark.parametrize("type_", gguf.GGMLQuantizationType, ids=lambda type_: type_.name)
def test_every_type_that_the_package_dequantises_is_read(type_, tmp_path):
    block, width = gguf.GGML_QUANT_SIZES[type_]
    octets = np.random.default_rng(type_).integers(0, 255, (7, 2 * width), np.uint8)  # not all of them finite
    head = gguf_bytes([("x", (2 * block, 7), type_, octets.tobytes())])
    (tmp_path / "x.gguf").write_bytes(head)
    try:
        with np.errstate(all="ignore"):
            want = gguf.dequantize(octets, type_)
    except NotImplementedError:
        with pytest.raises(ValueError, match=rf"x\.gguf: tensor 'x': type {type_.name} is not dequantised"):
            read_gguf(tmp_path / "x.gguf")
        return
    tensor = read_gguf(tmp_path / "x.gguf")[1]["x"]
    with np.errstate(all="ignore"):
        got = tensor.read()
    assert tensor.shape == got.shape == (7, 2 * block)
    assert tensor.dtype == got.dtype == {"F16": np.float16, "BF16": ml_dtypes.bfloat16}.get(type_.name, np.float32)
    np.testing.assert_array_equal(got.astype(np.float32), want)


def test_tensors_lie_where_the_package_finds_them(tmp_path):
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones(5, np.float16),
        "c": np.eye(4, dtype=np.float32),
    }
    path = write(tmp_path / "x.gguf", arrays, facts={"general.name": "x"})
    head, tensors = read_gguf(path)
    assert head["general.name"] == "x"
    assert list(tensors) == ["a", "b", "c"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name].read(), array)


# ---- models ----


def test_rotary_pairs_become_halves():
    """Scores of rotated queries and keys are equal: turned in neighbouring pairs there, in halves here."""
    rng = np.random.default_rng(0)
    heads, width = 3, 8
    w_q, w_k = rng.normal(size=(2, heads * width, 16))
    x = rng.normal(size=(2, 16))
    angles = rng.normal(size=width // 2)

    def in_pairs(v, by):
        v = v.reshape(heads, width // 2, 2)
        turned = v[..., 0] * np.cos(by) - v[..., 1] * np.sin(by), v[..., 0] * np.sin(by) + v[..., 1] * np.cos(by)
        return np.stack(turned, axis=-1).reshape(heads, width)

    def in_halves(v, by):
        a, b = v.reshape(heads, 2, width // 2).swapaxes(0, 1)
        return np.concatenate([a * np.cos(by) - b * np.sin(by), a * np.sin(by) + b * np.cos(by)], axis=-1)

    theirs = np.sum(in_pairs(w_q @ x[0], 2 * angles) * in_pairs(w_k @ x[1], 5 * angles), axis=-1)
    ours = np.sum(
        in_halves(halves(w_q, heads) @ x[0], 2 * angles) * in_halves(halves(w_k, heads) @ x[1], 5 * angles), -1
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    np.testing.assert_array_equal(pairs(halves(w_q, heads), heads), w_q)
    np.testing.assert_array_equal(halves(np.arange(8), 1), [0, 2, 4, 6, 1, 3, 5, 7])  # a bias


def test_qwen1_files_have_the_first_layout(tmp_path):
    """Architecture qwen: c_attn whole, and a feed_forward_length of both halves."""
    facts = SHAPE | {"feed_forward_length": 96, "rope.freq_base": 1e6, "attention.head_count_kv": 4}
    more = {"output.weight": np.ones((40, 32), np.float32), "output_norm.weight": np.ones(32, np.float32)}
    for name, shape in {
        "attn_norm.weight": (32,),
        "attn_qkv.weight": (96, 32),
        "attn_qkv.bias": (96,),
        "attn_output.weight": (32, 32),
        "ffn_norm.weight": (32,),
        "ffn_gate.weight": (48, 32),
        "ffn_up.weight": (48, 32),
        "ffn_down.weight": (32, 48),
    }.items():
        more[f"blk.0.{name}"] = np.random.default_rng(len(more)).normal(size=shape).astype(np.float32)
    found = open_gguf(write(tmp_path / "m.gguf", bare(**more), "qwen", facts))
    want = ModelConfig(vocab=40, layers=1, embed=32, heads=4, ffn=48, context=64, rope_base=1e6)
    assert (found.config, found.layout) == (want, "qwen")
    table = Table(found.config, found.layout)
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {n: table.shape(n) for n in table.parts}
    np.testing.assert_array_equal(found.tensors["transformer.h.0.mlp.w2.weight"].read(), more["blk.0.ffn_gate.weight"])


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ({}, {}),
        ({"attention.head_count_kv": 2}, {"kv_heads": 2}),
        ({"attention.key_length": 16, "attention.value_length": 16}, {"head_dim": 16}),
        ({"attention.head_count_kv": 4, "rope.dimension_count": 8}, {}),
        ({"rope.freq_base": 5e5, "attention.layer_norm_rms_epsilon": 1e-5}, {"rope_base": 5e5, "norm_eps": 1e-5}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_scaling": RopeScaling("linear", 4)}),
        ({"rope.scale_linear": 2.0}, {"rope_scaling": RopeScaling("linear", 2)}),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
            {"rope_scaling": RopeScaling("yarn", 4, 16)},
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_beta_fast": 16.0},
            {"rope_scaling": RopeScaling("yarn", 2, 0, 16.0)},
        ),
        ({"attention.sliding_window": 16}, {"windows": (16,)}),
        ({"attention.sliding_window": 64}, {}),
        ({"expert_count": 0, "rope.scaling.attn_factor": 1.0, "vocab_size": 40}, {}),
    ],
)  # fmt: skip
def test_metadata_become_the_config(facts, wanted, tmp_path):
    found = open_gguf(write(tmp_path / "m.gguf", bare(), facts=SHAPE | facts))
    plain = ModelConfig(vocab=40, layers=1, embed=32, heads=4, ffn=48, context=64, qkv_bias=False, tie_embeddings=True)
    assert found.config == replace(plain, **wanted)


@pytest.mark.parametrize(
    ("facts", "tensors", "message"),
    [
        ({"expert_count": 8}, {}, r"llama: expert_count=8 is not supported, only 0 is"),
        ({"rope.scaling.yarn_attn_factor": 1.5}, {}, "yarn_attn_factor=1.5 is not supported"),
        (
            {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0},
            {},
            "type='longrope' is not known; none, linear",
        ),
        ({"rope.dimension_count": 4}, {}, "dimension_count=4, but the head size is 8"),
        ({"attention.value_length": 4}, {}, "value_length=4, but the head size is 8"),
        ({"attention.head_count": [4, 2]}, {}, r"llama: attention.head_count=\[4, 2\], wanted int"),
        ({"context_length": "long"}, {}, "llama: context_length='long', wanted int"),
        ({"attention.head_count": 5}, {}, "llama has no field 'attention.key_length'"),
        ({"tokenizer.ggml.tokens": ["a"] * 41}, {}, "vocabulary has 41 tokens, but its embedding only 40 rows"),
        ({}, {"rope_freqs.weight": np.array([1, 4], np.float32)}, "factors of rotary frequencies"),
        ({}, {"blk.0.attn_q.weight": np.ones((4, 32), np.float32)}, "4 rows of queries or keys are not 4 heads"),
        (
            {},
            {"blk.0.ffn_gate_inp.weight": np.ones((4, 32), np.float32)},
            "no parameter for the tensor 'blk.0.ffn_gate_inp.weight'",
        ),
        ({}, {"blk.0.attn_q.scale": np.ones(4, np.float32)}, "no parameter for the tensor 'blk.0.attn_q.scale'"),
    ],
)
def test_models_that_we_do_not_have_are_refused(facts, tensors, message, tmp_path):
    path = write(tmp_path / "m.gguf", bare(**tensors), facts=SHAPE | facts)
    with pytest.raises(ValueError, match=rf"m\.gguf: .*{message}"):
        open_gguf(path)


def test_what_is_missing_is_named(tmp_path):
    for key in SHAPE:
        path = write(tmp_path / "m.gguf", bare(), facts={k: v for k, v in SHAPE.items() if k != key})
        with pytest.raises(ValueError, match=rf"m\.gguf: llama has no field '{key}'"):
            open_gguf(path)
    for tensors, architecture, message in (
        ({}, "llama", "has a vocabulary, but no model"),
        ({"x": np.ones(3, np.float32)}, "llama", r"no token_embd\.weight"),
        (bare(), "gemma", "architecture='gemma' is not known; qwen, qwen2, qwen3, llama are"),
    ):
        with pytest.raises(ValueError, match=message):
            open_gguf(write(tmp_path / "m.gguf", tensors, architecture, SHAPE))


def test_factors_of_one_are_none(tmp_path):
    path = write(tmp_path / "m.gguf", bare(**{"rope_freqs.weight": np.ones(4, np.float32)}), facts=SHAPE)
    assert set(open_gguf(path).tensors) == {"model.embed_tokens.weight"}


@pytest.mark.parametrize("names", [read.NAMES["qwen"], read.NAMES["qwen2"]])
def test_names_are_those_of_the_package(names):
    """Ours are among those that the package maps released names to."""
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN if names is read.NAMES["qwen"] else gguf.MODEL_ARCH.QWEN3, 3)
    for theirs, ours in names.items():
        assert known.get_name(ours.format(2)) == theirs.format(2)


# ---- files ----


def test_parts_of_a_split_model_are_read_together(tmp_path):
    arrays = {f"t{i}": np.full((2, 32), i, np.float32) for i in range(5)}
    write(tmp_path / "m.gguf", arrays, split_max_tensors=2)
    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == [f"m-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        head, tensors = read_gguf(part)
        assert head["general.architecture"] == "llama"
        assert [tensors[name].read()[0, 0] for name in arrays] == [0, 1, 2, 3, 4]
    whole = parts[1].read_bytes()
    parts[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"m-00002-of-00003\.gguf is missing: the model of m-00001-of"):
        read_gguf(parts[0])
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(ValueError, match=r"m-00003-of-00003\.gguf holds tensor 't4' a second time"):
        read_gguf(parts[0])
    parts[1].write_bytes(gguf_bytes([]))
    with pytest.raises(ValueError, match="hold 3 tensors, but should hold 5"):
        read_gguf(parts[0])
    parts[1].write_bytes(whole)
    parts[0].rename(tmp_path / "m.gguf")
    with pytest.raises(ValueError, match=r"is one of 3 parts; their names must end in -00001-of-00003\.gguf"):
        read_gguf(tmp_path / "m.gguf")


def test_files_that_cannot_be_read_say_why(tmp_path):
    tensor = ("x", (32, 2), 0, bytes(256))
    for data, message in (
        (b"", "ends within a value"),
        (b"version https://git-lfs", "begins with b'vers', not with b'GGUF'"),
        (gguf_bytes([tensor], version=1), "version is 1; only 2 and 3 can be read"),
        (gguf_bytes([tensor])[:-1], r"cut short: 'x' ends at byte 352 of 351"),
        (gguf_bytes([("x", (32, 2), 99, b"")]), "tensor 'x': type 99 is not known"),
        (gguf_bytes([("x", (33, 2), 2, b"")]), r"shape \(2, 33\) is not made of blocks of 32"),
        (gguf_bytes([("x", (0, 2), 0, b"")]), r"shape \(2, 0\)"),
        (gguf_bytes([("x", (2**63, 2**63), 0, b"")]), "cut short"),
        (gguf_bytes([("x", (), 0, b"")]), "tensor 'x' has 0 dimensions"),
        (gguf_bytes([tensor, tensor]), "tensor 'x' a second time"),
    ):
        (tmp_path / "m.gguf").write_bytes(data)
        with pytest.raises(ValueError, match=rf"m\.gguf.*{message}"):
            read_gguf(tmp_path / "m.gguf")
    with pytest.raises(FileNotFoundError):
        read_gguf(tmp_path / "none.gguf")
    write(tmp_path / "big.gguf", {"x": np.ones(3, np.float32)}, endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(ValueError, match="big-endian; the command gguf-convert-endian"):
        read_gguf(tmp_path / "big.gguf")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_files_are_refused(tmp_path_factory, data):
    """Cut short: always. With a changed byte: read, or a ValueError; nothing else."""
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    facts = struct.pack("<Q", 1) + b"k" + struct.pack("<II", 4, 7)
    octets = np.arange(64, dtype=np.float32).tobytes()
    whole = gguf_bytes([("ab", (32, 2), 0, octets), ("c", (64,), 1, bytes(128))], facts, 1)
    path.write_bytes(whole)
    assert read_gguf(path)[0] == {"k": 7}
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:at])
        with pytest.raises(ValueError, match=r"damaged\.gguf"):
            read_gguf(path)
        return
    path.write_bytes(whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :])
    message, tensors = "damaged.gguf", {}
    try:
        tensors = read_gguf(path)[1]
    except ValueError as error:
        message = str(error)
    assert "damaged.gguf" in message
    assert all(tensor.read().shape == tensor.shape for tensor in tensors.values())


def test_without_the_package_one_is_told_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(gguf_bytes([("x", (32, 2), 0, bytes(256))]))
    monkeypatch.setitem(sys.modules, "gguf", None)
    read._type.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'qwenjax\[gguf\]'"):
        read_gguf(tmp_path / "m.gguf")


# ---- a real model ----


@pytest.mark.real_weights
def test_a_real_model_is_what_its_card_says(smollm2):
    found = open_gguf(smollm2)
    assert found.config == ModelConfig(
        vocab=49_152, layers=30, embed=576, heads=9, kv_heads=3, ffn=1536, context=8192, rope_base=1e5, norm_eps=1e-5,
        qkv_bias=False, tie_embeddings=True,
    )  # fmt: skip
    assert len(found.tensors) == 272
    assert found.config.params == 134_515_008
    table = Table(found.config, found.layout)
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {n: table.shape(n) for n in table.parts}
    assert found.files["gguf"]["tokenizer.ggml.pre"] == "smollm"
    q = found.tensors["model.layers.3.self_attn.q_proj.weight"].read()
    assert 0.05 < q.std() < 0.5


@pytest.mark.real_weights
def test_a_real_model_knows_the_capital_of_france(smollm2):
    found = open_gguf(smollm2)
    tokens = found.files["gguf"]["tokenizer.ggml.tokens"]
    ids = np.array([[tokens.index(token) for token in ("The", "Ġcapital", "Ġof", "ĠFrance", "Ġis")]])
    params = load_params(found)
    model = transformer.Transformer(found.config, Compute(dtype="float32", remat="none").resolved("cpu", 1))
    hidden, _ = jax.jit(model.apply)({"params": params}, ids)
    assert tokens[int(transformer.logits(params, hidden[0, -1]).argmax())] == "ĠParis"
