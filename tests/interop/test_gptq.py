"""GPTQ weights against a packer written from the format's definition, word by word."""

import jax
import ml_dtypes
import numpy as np
import pytest
import qwen1
from hypothesis import given, settings
from hypothesis import strategies as st
from models import descriptors
from safetensors.numpy import load_file

from qwenjax.config import Compute
from qwenjax.interop import HubCheckpoint
from qwenjax.interop.gptq import dequantised, packing
from qwenjax.interop.huggingface.load import load_params
from qwenjax.model import transformer


def words(integers, bits):
    """[r, c] integers -> [r, c * bits / 32] int32, consecutive integers of a row in one word, lowest bits first."""
    per_word = 32 // bits
    rows = []
    for row in integers.tolist():
        row += [0] * (-len(row) % per_word)
        chunks = [row[i : i + per_word] for i in range(0, len(row), per_word)]
        rows.append([sum(q << (bits * place) for place, q in enumerate(chunk)) for chunk in chunks])
    return np.array(rows, np.uint32).reshape(len(integers), -1).view(np.int32)


def pack(name, integers, zeros, scales, group, bits, offset=1, bias=None):
    """integers [in, out], zeros and scales [groups, out], group [in] -> the tensors of one layer."""
    stored = (zeros - offset) % 2**bits
    return {
        f"{name}.qweight": words(integers.T, bits).T.copy(),
        f"{name}.qzeros": words(stored, bits),
        f"{name}.scales": scales,
        f"{name}.g_idx": group.astype(np.int32),
        f"{name}.bias": np.zeros(integers.shape[1], np.float16) if bias is None else bias,
    }


def rounded(weight, bits, size, order=None):
    """Weight [out, in] rounded to nearest in groups of `size` inputs (-1: one), taken in `order` -> as `pack` wants."""
    inputs = weight.shape[1]
    size = inputs if size == -1 else size
    group = np.empty(inputs, np.int64)
    group[np.arange(inputs) if order is None else order] = np.arange(inputs) // size
    top = 2**bits - 1
    groups = [weight[:, group == g] for g in range(group.max() + 1)]
    low = np.stack([np.minimum(g.min(1), 0) for g in groups])
    high = np.stack([np.maximum(g.max(1), 0) for g in groups])
    scales = (np.maximum(high - low, 1e-4) / top).astype(np.float16)
    zeros = np.clip(np.round(-low / scales.astype(np.float32)), 0, top).astype(np.int64)
    integers = np.round(weight.T / scales.astype(np.float32)[group]) + zeros[group]
    return np.clip(integers, 0, top).astype(np.int64), zeros, scales, group


def config(bits=4, group_size=128, **more):
    return {"quantization_config": {"quant_method": "gptq", "bits": bits, "group_size": group_size, **more}}


def test_a_layer_worked_by_hand():
    """Eight inputs, eight outputs, Int4: output 0 holds 0 … 7 around 8, with scale 0.5."""
    integers = np.full((8, 8), 8)
    integers[:, 0] = np.arange(8)
    tensors = pack("x", integers, np.full((1, 8), 8), np.full((1, 8), 0.5, np.float16), np.zeros(8), 4)
    assert tensors["x.qweight"].view(np.uint32)[0, 0] == 0x76543210
    assert tensors["x.qzeros"].view(np.uint32)[0, 0] == 0x77777777  # one less than 8
    weight = dequantised(descriptors(tensors), config())["x.weight"]
    assert (weight.shape, weight.dtype) == ((8, 8), np.float32)
    np.testing.assert_array_equal(weight.read()[0], [-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5])
    np.testing.assert_array_equal(weight.read()[1:], 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_packing_gives_scale_times_integer_less_zero(data):
    bits = data.draw(st.sampled_from([4, 8]), "bits")
    inputs = data.draw(st.integers(1, 12), "words") * (32 // bits)
    outputs = data.draw(st.integers(1, 40), "outputs")
    size = data.draw(st.sampled_from([-1, 8, 32, 5]), "group size")
    shuffled = data.draw(st.booleans(), "desc_act")
    form, offset = data.draw(st.sampled_from([("gptq", 1), ("gptq_v2", 0)]), "format")
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    group = np.arange(inputs) // (inputs if size == -1 else size)
    if shuffled:
        rng.shuffle(group)
    groups = group.max() + 1
    integers = rng.integers(0, 2**bits, (inputs, outputs))
    zeros = rng.integers(0, 2**bits, (groups, outputs))
    scales = rng.normal(size=(groups, outputs)).astype(np.float16)
    tensors = pack("a.b", integers, zeros, scales, group, bits, offset)
    settings = config(bits, size, desc_act=shuffled, checkpoint_format=form)
    out = dequantised(descriptors(tensors | {"ln.weight": np.ones(3, np.float32)}), settings)
    assert set(out) == {"a.b.weight", "a.b.bias", "ln.weight"}
    weight = out["a.b.weight"].read()
    for o, i in rng.integers(0, [outputs, inputs], (20, 2)):
        assert weight[o, i] == np.float32(scales[group[i], o]) * (integers[i, o] - zeros[group[i], o])
    assert weight.shape == out["a.b.weight"].shape == (outputs, inputs)


def test_settings_are_found_in_each_of_their_files():
    inside = {"bits": 8, "group_size": -1, "desc_act": True, "sym": True}
    for where in (inside, inside | {"quant_method": "gptq"}, {"model_type": "qwen", "quantization_config": inside}):
        assert packing(where) == (8, -1, False, 1, True)
    assert packing({"bits": 4, "group_size": 128}) == (4, 128, True, 1, False)  # quantize_config.json of 2023


def test_order_that_is_not_stored_or_left_empty_is_that_of_the_inputs():
    integers, zeros, scales, group = rounded(np.random.default_rng(0).normal(size=(8, 64)), 4, 16)
    tensors = pack("x", integers, zeros, scales, group, 4)
    want = dequantised(descriptors(tensors), config(4, 16))["x.weight"].read()
    empty = tensors | {"x.g_idx": np.zeros(64, np.int32)}
    np.testing.assert_array_equal(dequantised(descriptors(empty), config(4, 16))["x.weight"].read(), want)
    del tensors["x.g_idx"]
    np.testing.assert_array_equal(dequantised(descriptors(tensors), config(4, 16))["x.weight"].read(), want)
    with pytest.raises(ValueError, match=r"x\.g_idx is missing"):
        dequantised(descriptors(tensors), config(4, 16, desc_act=True))


def test_scales_of_bfloat16_are_read():
    integers, zeros, scales, group = rounded(np.random.default_rng(0).normal(size=(8, 64)), 8, -1)
    scales = scales.astype(ml_dtypes.bfloat16)
    weight = dequantised(descriptors(pack("x", integers, zeros, scales, group, 8)), config(8, -1))["x.weight"].read()
    np.testing.assert_array_equal(weight.T, scales.astype(np.float32) * (integers - zeros))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x.scales": None}, r"x is packed, but x\.scales is missing"),
        ({"x.qzeros": None}, r"x\.qzeros is missing"),
        (
            {"x.scales": np.ones((3, 8), np.float16)},
            r"x\.scales is float16 \[3, 8\]; 4 bits .* of 16 want float \[4, 8\]",
        ),
        ({"x.scales": np.ones((4, 8), np.int32)}, r"x\.scales is int32 \[4, 8\]"),
        ({"x.qweight": np.ones((8, 8), np.float32)}, r"x\.qweight is float32 \[8, 8\]; .* want int32 \[8, 8\]"),
        ({"x.qweight": np.ones((8, 8, 1), np.int32)}, r"x\.qweight has shape \(8, 8, 1\)"),
        ({"x.g_idx": np.zeros(32, np.int32)}, r"x\.g_idx is int32 \[32\]; .* want int32 \[64\]"),
        ({"x.weight": np.zeros((8, 64), np.float32)}, "both"),
    ],
)
def test_parts_that_are_missing_or_do_not_fit_are_named(change, message):
    tensors = pack("x", *rounded(np.random.default_rng(0).normal(size=(8, 64)), 4, 16), 4) | change
    with pytest.raises(ValueError, match=message):
        dequantised(descriptors({name: a for name, a in tensors.items() if a is not None}), config(4, 16))


def test_groups_that_do_not_exist_are_refused():
    tensors = pack("x", *rounded(np.random.default_rng(0).normal(size=(8, 64)), 4, 16), 4)
    tensors["x.g_idx"] = tensors["x.g_idx"] + np.int32(1)
    with pytest.raises(ValueError, match=r"x\.g_idx names groups 1 to 4; there are 0 to 3"):
        dequantised(descriptors(tensors), config(4, 16))["x.weight"].read()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "awq", "bits": 4}, "here: quant_method='awq' is not read; 'gptq' is"),
        ({"bits": 3}, "here: bits=3; wanted one of"),
        ({}, "here: bits=None"),
        ({"bits": 4, "group_size": 0}, "here: group_size=0"),
        ({"bits": 4, "group_size": "128"}, "here: group_size='128'"),
        ({"bits": 4, "checkpoint_format": "marlin"}, "here: checkpoint_format='marlin' is not read; gptq, gptq_v2 are"),
        ({"bits": 4, "is_marlin_format": True}, "checkpoint_format='marlin'"),
    ],
)
def test_settings_that_are_not_read_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        packing(settings, "here")


# ---- a whole model ----


def quantised_qwen(bits, size, shuffled):
    """The golden model with every linear layer of its blocks packed, each with a bias, as the Int4 releases are."""
    stored = load_file(qwen1.FOLDER / "model.safetensors")
    out, rng = {}, np.random.default_rng(0)
    for name, array in stored.items():
        stem, _, part = name.rpartition(".")
        if array.ndim == 2 and ".h." in name:
            order = rng.permutation(array.shape[1]) if shuffled else None
            out |= pack(stem, *rounded(array, bits, size, order), bits, bias=stored.get(f"{stem}.bias"))
        elif part != "bias":
            out[name] = array
    return out


def logit_errors(params):
    """Distance of every logit from the recorded one of the float model."""
    gold = qwen1.golden("short")
    model = transformer.Transformer(qwen1.config(), Compute(dtype="float32", remat="none").resolved("cpu", 1))
    hidden, _ = jax.jit(model.apply)({"params": params}, gold["input_ids"])
    return np.abs(np.asarray(transformer.logits(params, hidden)) - gold["logits"])


@pytest.mark.parametrize(("bits", "size", "shuffled", "mean"), [(8, -1, False, 0.012), (4, 32, True, 0.18)])
def test_a_quantised_qwen_loads_and_stays_near_the_float_one(bits, size, shuffled, mean):
    """Rounding to nearest, without GPTQ's corrections. Logits have a standard deviation of 1."""
    tensors = dequantised(descriptors(quantised_qwen(bits, size, shuffled)), config(bits, size, desc_act=shuffled))
    error = logit_errors(load_params(HubCheckpoint(qwen1.config(), "qwen", tensors, {})))
    assert 0.5 * mean < error.mean() < 1.5 * mean
    assert error.max() < 15 * mean


def test_a_bias_that_the_model_lacks_must_be_zero():
    packed = quantised_qwen(8, -1, False)
    packed["transformer.h.0.mlp.w1.bias"] = np.ones_like(packed["transformer.h.0.mlp.w1.bias"])
    with pytest.raises(ValueError, match=r"transformer\.h\.0\.mlp\.w1\.bias"):
        load_params(HubCheckpoint(qwen1.config(), "qwen", dequantised(descriptors(packed), config(8, -1)), {}))
