"""config.json to ModelConfig and back, for both generations of Qwen, Qwen2, Qwen3 and Llama."""

import json
from dataclasses import replace

import models
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import GOLDENS

from qwenjax.config import QWEN_7B, ModelConfig, RopeScaling
from qwenjax.interop.huggingface.config import read_config, write_config

# The fields of the releases that say something about the model (docs/report.md, Sizes and Checkpoint layout).
QWEN = {
    "model_type": "qwen", "hidden_size": 4096, "intermediate_size": 22016, "num_attention_heads": 32,
    "num_hidden_layers": 32, "kv_channels": 128, "vocab_size": 151936, "seq_length": 8192, "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000, "rotary_pct": 1.0, "no_bias": True, "tie_word_embeddings": False,
    "use_dynamic_ntk": True, "use_logn_attn": True, "max_position_embeddings": 32768,
}  # fmt: skip
AUGUST = {
    "model_type": "qwen", "n_embd": 4096, "ffn_hidden_size": 22016, "n_head": 32, "n_layer": 32, "kv_channels": 128,
    "n_positions": 6144, "padded_vocab_size": 151936, "vocab_size": 151851, "seq_length": 2048,
    "layer_norm_epsilon": 1e-5, "rotary_emb_base": 10000, "pos_emb": "rotary", "attn_pdrop": 0.0, "embd_pdrop": 0.1,
}  # fmt: skip
QWEN2 = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True, "hidden_act": "silu",
    "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_hidden_layers": 30, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": True,
}  # fmt: skip


def test_qwen_of_the_later_form():
    config, layout = read_config(QWEN)
    assert layout == "qwen"
    assert config == replace(QWEN_7B, context=8192, ntk=True, logn=True)


def test_qwen_of_august_2023():
    config, layout = read_config(AUGUST)
    assert layout == "qwen"
    assert config == replace(QWEN_7B, context=2048, norm_eps=1e-5)


def test_the_base_of_the_rotary_embedding_under_its_other_name():
    """config.json of the 72B carries rope_theta as well."""
    values = {**QWEN, "rope_theta": 1e6}
    del values["rotary_emb_base"]
    assert read_config(values)[0].rope_base == 1e6


def test_the_golden_config():
    values = json.loads((GOLDENS / "qwen1_tiny" / "base" / "config.json").read_text())
    config, _ = read_config(values)
    assert config == ModelConfig(
        vocab=512, layers=2, embed=48, heads=3, ffn=128, context=32, rope_base=1e4, norm_eps=1e-6, ntk=True, logn=True
    )


def test_qwen2_and_llama():
    config, layout = read_config(QWEN2)
    assert layout == "qwen2"
    assert config == ModelConfig(
        vocab=151936, layers=24, embed=896, heads=14, ffn=4864, kv_heads=2, context=32768, rope_base=1e6,
        tie_embeddings=True,
    )  # fmt: skip
    config, layout = read_config(LLAMA)
    assert layout == "qwen2"
    assert config == ModelConfig(
        vocab=49152, layers=30, embed=576, heads=9, ffn=1536, kv_heads=3, context=8192, rope_base=1e5, norm_eps=1e-5,
        qkv_bias=False, tie_embeddings=True,
    )  # fmt: skip


def test_qwen3_has_heads_of_128_unless_it_says_otherwise():
    values = {**QWEN2, "model_type": "qwen3"}
    assert read_config(values)[0].head_size == 128
    config = read_config({**values, "head_dim": 64, "attention_bias": False})[0]
    assert (config.head_dim, config.qk_norm, config.qkv_bias) == (0, True, False)


def test_rotary_parameters_of_transformers_5():
    values = {k: v for k, v in QWEN2.items() if k != "rope_theta"}
    config = read_config({**values, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})[0]
    assert (config.rope_base, config.rope_scaling) == (5e5, RopeScaling())


def test_rotary_scaling():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert read_config({**QWEN2, "rope_scaling": yarn})[0].rope_scaling == RopeScaling("yarn", 4.0)
    parameters = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2, "original_max_position_embeddings": 8192}
    parameters |= {"beta_fast": 16, "beta_slow": 2, "attention_factor": 1.0693147180559945}
    got = read_config({**QWEN2, "rope_parameters": parameters})[0].rope_scaling
    assert got == RopeScaling("yarn", 2.0, 8192, 16.0, 2.0)
    linear = {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 2.5}}
    assert read_config(linear)[0].rope_scaling == RopeScaling("linear", 2.5)


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ({"rope_type": "longrope", "factor": 8.0}, "rotary scaling 'longrope' is not supported; default, linear, dyn"),
        ({"rope_type": "llama3", "factor": 8.0}, "rope_parameters has no field 'high_freq_factor'"),
        ({"type": "linear"}, "rope_parameters has no field 'factor'"),
        ({"type": "yarn", "factor": 4.0, "truncate": False}, "truncate=False is not supported"),
        ({"type": "yarn", "factor": 4.0, "sharpness": 2}, "sharpness=2 is not known"),
    ],
)
def test_rotary_scaling_that_is_not_known_is_refused_by_name(scaling, said):
    with pytest.raises(ValueError, match=said):
        read_config({**QWEN2, "rope_scaling": scaling})


def test_rotary_scaling_of_other_models():
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3["original_max_position_embeddings"] = 8192
    got = read_config({**LLAMA, "max_position_embeddings": 131_072, "rope_scaling": llama3})[0].rope_scaling
    assert got == RopeScaling("llama3", 8.0, 8192, 4.0, 1.0)
    dynamic = read_config({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}})[0].rope_scaling
    assert dynamic == RopeScaling("dynamic", 2.0)
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    deepseek = {**yarn, "mscale": 1.0, "mscale_all_dim": 0.8}
    for scaling, attention in ((yarn, 0.0), ({**yarn, "attention_factor": 1.5}, 1.5), (deepseek, 1.02496)):
        got = read_config({**QWEN2, "rope_scaling": scaling})[0].rope_scaling
        assert replace(got, attention=0.0) == RopeScaling("yarn", 4.0, 8192)
        assert got.attention == pytest.approx(attention, abs=1e-5)


@pytest.mark.parametrize("form", [QWEN, AUGUST, QWEN2, LLAMA])
def test_a_field_that_nobody_knows_is_refused_by_name_and_one_that_says_nothing_is_not(form):
    with pytest.raises(ValueError, match=r"attention_sinks=4 is not known, so it may change what the model computes"):
        read_config({**form, "attention_sinks": 4, "torch_dtype": "float16"})
    assert read_config({**form, "attention_sinks": None, "use_x": False}) == read_config(form)


def test_sliding_windows():
    on = {**QWEN2, "num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 512, "max_window_layers": 2}
    assert read_config(on)[0].windows == (0, 0, 512, 512)
    kinds = ["sliding_attention", "full_attention"] * 2
    assert read_config({**on, "layer_types": kinds})[0].windows == (512, 0, 512, 0)
    assert read_config({**on, "sliding_window": None})[0].windows == ()
    with pytest.raises(ValueError, match="layer_types has the kind 'linear_attention'"):
        read_config({**on, "layer_types": ["linear_attention"] * 4})
    with pytest.raises(ValueError, match="layer_types has 3 entries for 4 layers"):
        read_config({**on, "layer_types": ["full_attention"] * 3})


@pytest.mark.parametrize("form", [QWEN, AUGUST, QWEN2, {**LLAMA, "rope_theta": None}])
def test_a_missing_field_is_named(form):
    optional = {"kv_channels", "rotary_pct", "no_bias", "tie_word_embeddings", "use_dynamic_ntk", "use_logn_attn"}
    optional |= {"n_positions", "padded_vocab_size", "pos_emb", "attn_pdrop", "embd_pdrop", "hidden_act", "model_type"}
    optional |= {"use_sliding_window", "sliding_window", "max_window_layers", "num_key_value_heads"}
    optional |= {"max_position_embeddings"} if form in (QWEN, AUGUST) else set()
    if form["model_type"] != "qwen":  # transformers has defaults for these
        optional |= {"rope_theta", "rms_norm_eps", "max_position_embeddings"}
    later = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
    later |= {"ffn_hidden_size": "intermediate_size"}
    for name in set(form) - optional - ({"vocab_size"} if form is AUGUST else set()):
        named = "rope_theta" if name == "rotary_emb_base" else later.get(name, name)
        with pytest.raises(ValueError, match=f"here/config.json has no field '{named}'"):
            read_config({k: v for k, v in form.items() if k != name}, "here/config.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mixtral"}, "model_type='mixtral' is not read; qwen, qwen2, qwen3, llama are"),
        ({"model_type": None}, "model_type=None"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu' is"),
        ({"hidden_size": "896"}, "hidden_size='896', wanted int"),
        ({"hidden_size": True}, "hidden_size=True, wanted int"),
        ({"rope_theta": "big"}, "rope_theta='big', wanted float"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"num_key_value_heads": 5}, "kv_heads=5"),
    ],
)
def test_what_cannot_be_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        read_config({**QWEN2, **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rotary_pct": 0.25}, "rotary_pct=0.25"),
        ({"no_bias": False}, "no_bias=False"),
        ({"intermediate_size": 22017}, "intermediate_size=22017 is odd"),
        ({"visual": {"layers": 48}}, "vision models"),
    ],
)
def test_what_the_first_qwen_never_was_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        read_config({**QWEN, **change})


@pytest.mark.parametrize("name", models.SHAPES)
def test_written_and_read_again(name):
    config = models.SHAPES[name]
    values, warnings = write_config(config, "qwen2")
    wanted = replace(config, ntk=False, logn=False, kv_heads=config.kv_heads)
    assert read_config(json.loads(json.dumps(values))) == (wanted, "qwen2")
    assert len(warnings) == (name == "qwen")
    if name in ("qwen", "qwen2"):
        values, warnings = write_config(config, "qwen", "bfloat16")
        assert read_config(json.loads(json.dumps(values))) == (config, "qwen")
        assert (values["intermediate_size"], values["bf16"], values["fp32"], warnings) == (88, True, False, [])


def test_scaling_and_windows_written_and_read_again():
    for scaling in (RopeScaling("linear", 4.0), RopeScaling("yarn", 4.0, 32, 24.0, 2.0), RopeScaling("yarn", 2.0)):
        config = replace(models.PLAIN, rope_scaling=scaling, windows=(0, 16, 16))
        values, warnings = write_config(config, "qwen2")
        assert read_config(values)[0] == config
        assert not warnings


def test_what_is_left_out_is_said():
    _, (said,) = write_config(replace(models.PLAIN, ntk=True, logn=True), "qwen2")
    assert "ntk and logn left out" in said
    assert "up to 64 tokens" in said
    _, (said,) = write_config(replace(models.PLAIN, windows=(8, 16, 0)), "qwen2")
    assert "windows left out" in said
    _, (said,) = write_config(replace(models.SHAPES["llama"], windows=(8, 8, 0)), "qwen2")
    assert "Llama has none" in said
    with pytest.raises(ValueError, match="qk_norm and qkv_bias"):
        write_config(replace(models.PLAIN, qk_norm=True), "qwen2")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(["factor", "type", "rope_type"]), below)
    ),
    max_leaves=4,
)
NAMES = sorted({*QWEN, *AUGUST, *QWEN2, "rope_scaling", "rope_parameters", "layer_types", "attention_bias", "head_dim"})


@given(st.sampled_from([QWEN, AUGUST, QWEN2, LLAMA]), st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3))
def test_any_file_gives_a_model_or_a_value_error(form, changes):
    try:
        config, layout = read_config({**form, **changes})
    except ValueError:
        return
    assert isinstance(config, ModelConfig)
    assert layout in ("qwen", "qwen2")
