"""Any readable checkpoint to each format, and the check that finds what is not the same."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny_model
from flax import linen as nn
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import qwenjax
from qwenjax.api.model import Model
from qwenjax.common import command_line
from qwenjax.config import Lora, ModelConfig
from qwenjax.convert import __main__ as command
from qwenjax.convert import check
from qwenjax.interop.huggingface.save import save_params
from qwenjax.interop.peft import save_adapter
from qwenjax.model import lora


def convert(*words) -> tuple[int, str, str]:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = command_line.main_of("qwenjax.convert", command, list(map(str, words)))
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("convert") / "tiny")


@pytest.fixture
def no_torch(monkeypatch):
    """The check's last part has a test of its own."""
    monkeypatch.setattr("qwenjax.convert.check.importlib.util.find_spec", lambda name: None)


@pytest.mark.usefixtures("no_torch")
def test_there_and_back_through_gguf(folder, tmp_path):
    code, out, err = convert(f"--model={folder}", "--to=gguf", f"--out={tmp_path / 'a.gguf'}", "--check")
    assert (code, err) == (command_line.DONE, "")
    assert "read back, bit by bit" in out
    code, out, _ = convert(f"--model={tmp_path / 'a.gguf'}", "--to=qwen2", f"--out={tmp_path / 'back'}", "--check")
    assert code == command_line.DONE
    there, back = qwenjax.load(folder), qwenjax.load(tmp_path / "back")
    assert back.generation_defaults.chat
    ids = there.encode("import argparse")
    assert back.encode("import argparse") == ids
    np.testing.assert_allclose(back.logits([ids]), there.logits([ids]), atol=0.02)  # float16 between


@pytest.mark.usefixtures("no_torch")
def test_eight_bits_and_a_directory_for_the_file(folder, tmp_path):
    code, out, _ = convert(f"--model={folder}", "--to=gguf", "--quant=q8_0", f"--out={tmp_path}", "--check")
    assert code == command_line.DONE
    assert "q8_0 is off by" in out
    assert (tmp_path / "tiny-q8_0.gguf").is_file()


def test_the_first_releases_layout_and_back(tmp_path, qwen_vocab):
    config = ModelConfig(vocab=151_936, layers=1, embed=8, heads=2, ffn=8, context=32, ntk=True, logn=True)
    params = tiny_model.params(config)
    save_params(config, params, tmp_path / "a", "qwen2", tokenizer=qwen_vocab, dtype="bfloat16")
    words = ["--set", "ntk=true", "--set", "logn=true"]
    code, out, err = convert(f"--model={tmp_path / 'a'}", *words, "--to=qwen", f"--out={tmp_path / 'b'}", "--check")
    assert code == command_line.DONE, err
    assert "qwen.tiktoken" in {path.name for path in (tmp_path / "b").iterdir()}
    assert "bfloat16" in out  # as it was stored
    values = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (values["use_dynamic_ntk"], values["use_logn_attn"]) == (True, True)
    code, out, _ = convert(f"--model={tmp_path / 'a'}", "--to=qwen", f"--out={tmp_path / 'c'}", "--set", "layers")
    assert code == command_line.USAGE


@pytest.mark.usefixtures("no_torch")
def test_a_flipped_bit_is_found(folder, tmp_path, monkeypatch):
    written = check.detect

    def damaged(path):
        source = written(path)
        tensor = source.hub_checkpoint.tensors["model.norm.weight"]

        def read():
            value = np.array(tensor.read())
            value.view(np.uint8)[0] ^= 1
            return value

        source.hub_checkpoint.tensors["model.norm.weight"] = tensor._replace(read=read)
        return source

    monkeypatch.setattr(check, "detect", damaged)
    code, _, err = convert(f"--model={folder}", "--to=qwen2", f"--out={tmp_path / 'x'}", "--check")
    assert code == command_line.FAILED
    assert "tensor 'model.norm.weight'" in err


def test_layer_by_layer_is_the_whole_model(folder):
    """Hidden states fed from layer to layer end in the model's own logits, windows and biases included."""
    for config in (
        tiny_model.CONFIG,
        replace(tiny_model.CONFIG, qkv_bias=True, tie_embeddings=False, windows=(0, 6), kv_heads=0),
    ):
        params = tiny_model.params(config)
        ids = np.arange(3, 35).reshape(2, 16)
        found = dict(check.states(config, params, ids))
        assert list(found) == ["embedding", "layer 0", "layer 1", "logits"]
        model = Model(config, params, None, check.PLAIN)
        np.testing.assert_allclose(found["logits"], model.logits(ids), atol=1e-4)


def test_the_layer_that_parts_is_named(folder, monkeypatch):
    config, params = tiny_model.CONFIG, tiny_model.params()
    other = tiny_model.params()
    other["blocks"]["mlp"]["down"][1, 3] += 0.01  # of layer 1
    ids = np.random.default_rng(0).integers(0, config.vocab, (2, 48))
    theirs = [state for _, state in check.states(config, other, ids)]
    monkeypatch.setattr(check, "_theirs", lambda reference, ids: ("Other", theirs))
    with pytest.raises(ValueError, match="differ after layer 1: Other computes something else"):
        list(check.compare_layers(config, params, folder))
    monkeypatch.setattr(
        check, "_theirs", lambda reference, ids: ("Same", [s for _, s in check.states(config, params, ids)])
    )
    assert "they agree" in list(check.compare_layers(config, params, folder))[-1]


def test_transformers_computes_the_same(folder, tmp_path):
    pytest.importorskip("torch", reason="needs the extra parity")
    pytest.importorskip("transformers", reason="needs the extra parity")
    code, out, err = convert(f"--model={folder}", "--to=qwen2", f"--out={tmp_path / 'x'}", "--check")
    assert code == command_line.DONE, err
    assert "LlamaForCausalLM of transformers reads" in out
    assert "they agree" in out


# ---- adapters ----


def write_adapters(folder, base, config, layout="qwen2"):
    """Random ones, as PEFT keeps them."""
    how, rng = Lora(rank=2, alpha=6.0, base_dtype="float32"), np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(lambda: lora.init(config, how, jax.random.key(0))))
    pairs = jax.tree.map(lambda x: (0.1 * rng.standard_normal(x.shape)).astype(np.float32), shapes)
    save_adapter(folder, {"lora": pairs}, how, config, str(base), layout)
    return folder


@pytest.mark.usefixtures("no_torch")
def test_adapters_alone_and_merged(folder, tmp_path):
    source = write_adapters(tmp_path / "source", folder, tiny_model.CONFIG)
    code, out, err = convert(f"--model={source}", "--to=peft", f"--out={tmp_path / 'again'}", "--check")
    assert (code, err) == (command_line.DONE, "")
    assert f"of rank 2 on {folder}, float32" in out
    assert "14 arrays read back, bit by bit" in out
    there, back = (load_file(place / "adapter_model.safetensors") for place in (source, tmp_path / "again"))
    assert there.keys() == back.keys()
    assert all(np.array_equal(there[name], back[name]) for name in there)
    assert (tmp_path / "again" / "tokenizer.model").is_file()
    code, out, err = convert(f"--model={source}", "--to=qwen2", f"--out={tmp_path / 'merged'}", "--check")
    assert (code, err) == (command_line.DONE, "")
    there, back = qwenjax.load(source), qwenjax.load(tmp_path / "merged")
    np.testing.assert_array_equal(back.params["blocks"]["mlp"]["down"], there.params["blocks"]["mlp"]["down"])
    assert np.abs(back.params["blocks"]["mlp"]["down"] - tiny_model.params()["blocks"]["mlp"]["down"]).max() > 0.1


def test_adapters_have_the_names_of_the_base_model(tmp_path):
    config = ModelConfig(vocab=512, layers=1, embed=16, heads=2, ffn=16, context=32)
    save_params(config, tiny_model.params(config), tmp_path / "v1", "qwen")
    source = write_adapters(tmp_path / "source", tmp_path / "v1", config, "qwen")
    code, _, err = convert(f"--model={source}", "--to=peft", f"--out={tmp_path / 'again'}", "--check")
    assert (code, err) == (command_line.DONE, "")
    names = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight" in names
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["target_modules"] == [
        "c_attn",
        "c_proj",
        "w1",
        "w2",
    ]


def test_a_model_without_adapters_has_none_to_write(folder, tmp_path):
    code, _, err = convert(f"--model={folder}", "--to=peft", f"--out={tmp_path / 'x'}")
    assert (code, err) == (command_line.FAILED, f"error: {folder} has no low-rank adapters: it is a whole model\n")
    code, _, err = convert(f"--model={folder}", "--to=peft", f"--out={tmp_path / 'x'}", "--dtype=bfloat16")
    assert code == command_line.USAGE
    assert not (tmp_path / "x").exists()


def test_adapters_on_a_gguf_say_what_peft_cannot_read(folder, tmp_path):
    convert(f"--model={folder}", "--to=gguf", f"--out={tmp_path / 'base.gguf'}")
    source = write_adapters(tmp_path / "source", tmp_path / "base.gguf", tiny_model.CONFIG)
    code, _, err = convert(f"--model={source}", "--to=peft", f"--out={tmp_path / 'again'}", "--check")
    assert code == command_line.DONE
    assert f"python -m qwenjax.convert --model={tmp_path / 'base.gguf'} --to=qwen2 --out=FOLDER" in err


def test_an_adapter_that_is_not_what_was_written_is_found(folder, tmp_path, monkeypatch):
    source = write_adapters(tmp_path / "source", folder, tiny_model.CONFIG)
    opened = check.detect

    def damaged(path):
        file = path / "adapter_model.safetensors"
        with safe_open(file, framework="numpy") as there:
            header = there.metadata()
        tensors = load_file(file)
        tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"][3, 1] += 1e-6
        save_file(tensors, file, header)
        return opened(path)

    monkeypatch.setattr(check, "detect", damaged)
    code, _, err = convert(f"--model={source}", "--to=peft", f"--out={tmp_path / 'again'}", "--check")
    assert code == command_line.FAILED
    assert "['mlp']['up']['b'] of" in err
