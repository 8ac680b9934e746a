"""Checkpoints of the Hugging Face form: what is read, into which shards, and what is refused."""

import json
import pickle
from dataclasses import replace

import jax
import ml_dtypes
import models
import numpy as np
import pytest
import qwen1
from jax.sharding import AxisType, Mesh
from safetensors.numpy import load_file, save_file

from qwenjax import sharding
from qwenjax.api.checkpoint_path import detect
from qwenjax.common import command_line
from qwenjax.convert import __main__ as convert
from qwenjax.interop import HubCheckpoint, Tensor
from qwenjax.interop.huggingface.directory import open_directory
from qwenjax.interop.huggingface.load import load_params, param_shardings, total_bytes
from qwenjax.interop.huggingface.save import save_params


def mesh(data=1, fsdp=1, tensor=1):
    devices = np.array(jax.devices()[: data * fsdp * tensor]).reshape(data, fsdp, tensor, 1)
    return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 4)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint in two files, its config and its parameters."""
    config = models.SHAPES["qwen2 grouped"]
    params = models.params(config)
    save_params(config, params, tmp_path / "model", file_bytes=60_000)
    return tmp_path / "model", config, params


# ---- reading ----


def test_the_original_checkpoint_gives_the_original_logits():
    checkpoint = open_directory(qwen1.FOLDER)
    assert checkpoint.layout == "qwen"
    params = load_params(checkpoint)
    assert models.equal(params, jax.tree.map(np.asarray, qwen1.params()))
    gold = qwen1.golden("short")
    np.testing.assert_allclose(
        models.logits(checkpoint.config, params, gold["input_ids"]), gold["logits"], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("shape", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}, {"tensor": 4, "data": 2}])
def test_any_mesh_gets_the_same_parameters_in_its_own_shards(saved, shape):
    folder, config, params = saved
    places = param_shardings(config, mesh(**shape))
    loaded = load_params(open_directory(folder), places)
    assert models.equal(loaded, params)
    assert jax.tree.all(jax.tree.map(lambda x, place: x.sharding.is_equivalent_to(place, x.ndim), loaded, places))


def test_bfloat16_is_read_and_cast_as_asked(saved, tmp_path):
    _, config, params = saved
    save_params(config, params, tmp_path / "half", dtype="bfloat16")
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
    checkpoint = open_directory(tmp_path / "half")
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert models.equal(load_params(checkpoint, dtype=ml_dtypes.bfloat16), half)
    assert models.equal(load_params(checkpoint), jax.tree.map(lambda x: x.astype(np.float32), half))


def test_progress_adds_up_and_each_tensor_is_read_once(saved):
    folder, _, _ = saved
    checkpoint = open_directory(folder)
    reads, seen = [], []

    def counting(name, tensor):
        return tensor._replace(read=lambda: reads.append(name) or tensor.read())

    counted = checkpoint._replace(tensors={name: counting(name, t) for name, t in checkpoint.tensors.items()})
    load_params(counted, progress=seen.append)
    assert sorted(reads) == sorted(checkpoint.tensors)
    assert sum(seen) == total_bytes(checkpoint) == sum(4 * int(np.prod(t.shape)) for t in checkpoint.tensors.values())


def test_opening_reads_headers_only(saved):
    folder, _, _ = saved
    for file in folder.glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        head = 8 + int.from_bytes(data[:8], "little")
        data[head:] = b"\xff" * (len(data) - head)  # would be NaN everywhere
        file.write_bytes(data)
    assert open_directory(folder).config == models.SHAPES["qwen2 grouped"]


def test_buffers_of_older_files_are_ignored_and_zero_biases_pass(tmp_path):
    tensors = load_file(qwen1.FOLDER / "model.safetensors")
    tensors["transformer.h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    tensors["transformer.h.1.attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    tensors["transformer.h.1.mlp.w1.bias"] = np.zeros(128, np.float32)
    (tmp_path / "config.json").write_text((qwen1.FOLDER / "config.json").read_text())
    save_file(tensors, tmp_path / "gptq_model-4bit.safetensors")  # the only file may have any name
    assert models.equal(load_params(open_directory(tmp_path)), jax.tree.map(np.asarray, qwen1.params()))
    tensors["transformer.h.1.mlp.w1.bias"][3] = 1e-3
    save_file(tensors, tmp_path / "gptq_model-4bit.safetensors")
    with pytest.raises(ValueError, match=r"'transformer.h.1.mlp.w1.bias', a bias .* not zero"):
        load_params(open_directory(tmp_path))


def test_a_tied_model_may_carry_a_copy_of_its_embedding():
    config = models.SHAPES["qwen2 tied"]
    table = models.tensors(config, models.params(config))
    table["lm_head.weight"] = table["model.embed_tokens.weight"]
    checkpoint = HubCheckpoint(config, "qwen2", models.descriptors(table), {})
    assert "head" not in load_params(checkpoint)


# ---- what is refused, before anything is read ----


def test_tensors_that_do_not_fit_are_named():
    config = models.PLAIN
    table = models.tensors(config, models.params(config))
    del table["model.layers.1.mlp.up_proj.weight"]
    table["model.layers.7.mlp.up_proj.weight"] = np.zeros((44, 32), np.float32)
    table["model.norm.weight"] = np.zeros(33, np.float32)
    table["model.layers.0.mlp.gate_proj.weight"] = np.zeros((44, 32), np.int32)

    def unread():
        raise AssertionError("read")

    closed = {name: Tensor(x.shape, x.dtype, unread) for name, x in table.items()}
    with pytest.raises(ValueError, match="not those of the config") as error:
        load_params(HubCheckpoint(config, "qwen2", closed, {}))
    said = str(error.value)
    assert "1 missing: model.layers.1.mlp.up_proj.weight" in said
    assert "1 left over: model.layers.7.mlp.up_proj.weight" in said
    assert "model.norm.weight [33] instead of [32]" in said
    assert "model.layers.0.mlp.gate_proj.weight is int32" in said


def test_a_vocabulary_of_another_size_is_a_wrong_shape():
    config = models.PLAIN
    table = models.descriptors(models.tensors(config, models.params(config)))
    with pytest.raises(ValueError, match=r"model.embed_tokens.weight \[96, 32\] instead of \[100, 32\]"):
        load_params(HubCheckpoint(replace(config, vocab=100), "qwen2", table, {}))


def test_a_truncated_file_is_named(saved):
    folder, _, _ = saved
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{file.name} is cut short or no safetensors"):
        open_directory(folder)


def test_a_missing_file_of_the_index_is_named(saved):
    folder, _, _ = saved
    file = sorted(folder.glob("*.safetensors"))[0]
    file.unlink()
    with pytest.raises(ValueError, match=rf"index.json names {file.name} for \d+ tensors, and there is no such file"):
        open_directory(folder)


def edit_index(folder, change):
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    change(values)
    index.write_text(json.dumps(values))


def test_an_index_that_is_wrong_about_a_file(saved):
    folder, _, _ = saved
    files = sorted(p.name for p in folder.glob("*.safetensors"))
    edit_index(folder, lambda v: v["weight_map"].update({"model.norm.weight": files[-1]}))
    with pytest.raises(ValueError, match=f"says that {files[-1]} holds 'model.norm.weight', which it does not"):
        open_directory(folder)


def test_an_index_must_not_lead_out_of_its_directory(saved):
    folder, _, _ = saved
    edit_index(folder, lambda v: v["weight_map"].update({"model.norm.weight": "../other/model.safetensors"}))
    with pytest.raises(ValueError, match="not a file beside it"):
        open_directory(folder)
    edit_index(folder, lambda v: v.pop("weight_map"))
    with pytest.raises(ValueError, match="no 'weight_map'"):
        open_directory(folder)


def test_shards_without_their_index(saved):
    folder, _, _ = saved
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"model-00001-of-0000\d.safetensors is there, its index is not"):
        open_directory(folder)


def test_a_pointer_of_git_lfs_is_recognised(saved):
    folder, _, _ = saved
    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        open_directory(folder)


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(ValueError, match="nothing is there"):
        detect(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"holds no config.json"):
        detect(tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ValueError, match=r"config.json is no JSON"):
        detect(tmp_path)
    (tmp_path / "config.json").write_text((qwen1.FOLDER / "config.json").read_text())
    with pytest.raises(ValueError, match="holds no weights"):
        detect(tmp_path)
    with pytest.raises(ValueError, match="give the directory"):
        detect(qwen1.FOLDER / "model.safetensors")


# ---- files of torch.save ----


@pytest.fixture
def pickled(tmp_path):
    """A directory with the golden config, and a function that saves a value as its pytorch_model.bin."""
    torch = pytest.importorskip("torch", reason="needs the extra parity")
    (tmp_path / "config.json").write_text((qwen1.FOLDER / "config.json").read_text())
    return tmp_path, torch


def test_pickled_weights_are_read(pickled):
    folder, torch = pickled
    tensors = {name: torch.from_numpy(x) for name, x in load_file(qwen1.FOLDER / "model.safetensors").items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    want = jax.tree.map(np.asarray, qwen1.params())
    assert models.equal(load_params(open_directory(folder)), want)
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert models.equal(load_params(open_directory(folder)), want)
    torch.save({name: x.bfloat16() for name, x in tensors.items()}, folder / "part.bin")
    (folder / "pytorch_model.bin").unlink()
    index = {"weight_map": dict.fromkeys(tensors, "part.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), want)
    assert models.equal(load_params(open_directory(folder), dtype=ml_dtypes.bfloat16), half)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_is_no_weights_is_refused_and_not_run(pickled, capsys):
    folder, torch = pickled
    path = folder / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"pytorch_model.bin is refused"):
        open_directory(folder)
    torch.save({"lm_head.weight": Evil()}, path)
    with pytest.raises(ValueError, match=r"pytorch_model.bin is refused"):
        open_directory(folder)
    torch.save([torch.zeros(3)], path)
    with pytest.raises(ValueError, match="wanted a dictionary of tensors"):
        open_directory(folder)
    torch.save({"lm_head.weight": torch.zeros(512, 48)}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cut short"):
        open_directory(folder)
    assert "executed" not in capsys.readouterr().out


@pytest.fixture
def single(tmp_path):
    """A checkpoint in one file."""
    config = models.SHAPES["qwen2 grouped"]
    save_params(config, models.params(config), tmp_path / "one")
    return tmp_path / "one"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: name.replace("model.", "model.language_model.", 1),
        lambda name: f"language_model.{name}",
        lambda name: name.removeprefix("model."),
    ],
    ids=["compiled", "parallel and compiled", "peft", "vision", "older vision", "backbone"],
)
def test_a_name_is_the_models_whatever_wrapped_it(single, wrap):
    tensors = load_file(single / "model.safetensors")
    save_file({wrap(name): array for name, array in tensors.items()}, single / "model.safetensors")
    assert open_directory(single).tensors.keys() == tensors.keys()


def test_one_name_for_a_tensor(single):
    tensors = load_file(single / "model.safetensors")
    save_file(tensors | {"module.model.norm.weight": tensors["model.norm.weight"]}, single / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds 'model.norm.weight' twice, once as 'module.model.norm.weight'"):
        open_directory(single)


def test_a_tied_flag_beside_another_output_embedding_is_refused(tmp_path, capsys):
    config = models.SHAPES["qwen2 tied"]
    save_params(config, models.params(config), tmp_path / "tied")
    tensors = load_file(tmp_path / "tied" / "model.safetensors")
    other = {"lm_head.weight": 2 * tensors["model.embed_tokens.weight"]}
    save_file(tensors | other, tmp_path / "tied" / "model.safetensors")
    words = ["--model", str(tmp_path / "tied"), "--to", "qwen2", "--out", str(tmp_path / "out")]
    assert command_line.main_of("qwenjax.convert", convert, words) == 1
    assert "lm_head.weight is another matrix than model.embed_tokens.weight" in capsys.readouterr().err
    assert command_line.main_of("qwenjax.convert", convert, [*words, "--set", "tie_embeddings=false"]) == 0
