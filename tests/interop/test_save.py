"""Written checkpoints: bit-identical when read again, whole or not there, and never over someone's files."""

import json
from dataclasses import replace

import jax
import ml_dtypes
import models
import numpy as np
import pytest
import qwen1
from jax.sharding import AxisType, Mesh
from safetensors import safe_open
from safetensors.numpy import load_file

from qwenjax import sharding
from qwenjax.interop.huggingface import save
from qwenjax.interop.huggingface.directory import open_directory
from qwenjax.interop.huggingface.load import load_params, param_shardings
from qwenjax.interop.huggingface.save import as_tensors, save_params


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "layout"), [("qwen", "qwen"), *((name, "qwen2") for name in models.SHAPES if name != "qwen")]
)
def test_round_trip_is_bit_identical(tmp_path, name, layout, dtype):
    config = models.SHAPES[name]
    params = models.params(config, dtype=save.DTYPES[dtype])
    assert save_params(config, params, tmp_path / "out", layout) == []
    checkpoint = open_directory(tmp_path / "out")
    assert (checkpoint.config, checkpoint.layout) == (config, layout)
    assert models.equal(load_params(checkpoint, dtype=save.DTYPES[dtype]), params)


def test_the_original_checkpoint_is_written_as_it_was(tmp_path):
    checkpoint = open_directory(qwen1.FOLDER)
    save_params(checkpoint.config, load_params(checkpoint), tmp_path / "out", "qwen")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", qwen1.FOLDER))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", qwen1.FOLDER))
    # the golden records longer positions than it was trained on; nothing that is computed depends on it
    assert theirs | {"max_position_embeddings": 32} == {name: ours[name] for name in theirs}


def test_from_shards_on_many_devices(tmp_path):
    config = models.SHAPES["qwen2 grouped"]
    params = models.params(config)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 4)
    spread = jax.device_put(params, param_shardings(config, mesh))
    save_params(config, spread, tmp_path / "out")
    assert models.equal(load_params(open_directory(tmp_path / "out")), params)


def test_files_keep_to_their_size_and_the_index_names_them(tmp_path):
    config = models.PLAIN
    seen = []
    save_params(config, models.params(config), tmp_path / "out", file_bytes=20_000, progress=seen.append)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [f.name for f in files] == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    stored = {}
    for path in files:
        with safe_open(path, framework="numpy") as file:
            assert file.metadata()["format"] == "pt"
            names = list(file.keys())
            size = sum(file.get_tensor(name).nbytes for name in names)
            assert size <= 20_000 or len(names) == 1
            stored |= dict.fromkeys(names, path.name)
    assert index["weight_map"] == stored
    assert index["metadata"]["total_size"] == sum(seen) == 4 * config.params


def test_left_out_context_extension_is_returned(tmp_path):
    config = models.SHAPES["qwen"]
    (said,) = save_params(config, models.params(config), tmp_path / "out", "qwen2")
    assert "ntk and logn left out" in said


def test_another_model_is_refused_and_nothing_is_left(tmp_path):
    config = models.PLAIN
    params = models.params(config)
    for wrong, said in (
        (replace(config, qkv_bias=False), "blocks/attn/k_bias.* on one side only"),
        (replace(config, vocab=97), r"parameter embed has shape \(96, 32\), the config says \(97, 32\)"),
    ):
        with pytest.raises(ValueError, match=said):
            save_params(wrong, params, tmp_path / "out")
    with pytest.raises(ValueError, match="dtype='int8' is not written; known: float32, bfloat16"):
        save_params(config, params, tmp_path / "out", dtype="int8")
    with pytest.raises(ValueError, match="layout='gguf' is unknown"):
        save_params(config, params, tmp_path / "out", "gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_someone_else_is_never_replaced(tmp_path):
    config = models.PLAIN
    params = models.params(config)
    out = tmp_path / "out"
    out.mkdir()
    save_params(config, params, out)  # an empty one may be used
    other = models.params(config, seed=1)
    save_params(config, other, out)  # and one of ours be replaced
    assert models.equal(load_params(open_directory(out)), other)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="was not written by qwenjax"):
        save_params(config, params, out)
    (out / "notes.txt").unlink()
    (out / "model.safetensors").write_bytes((qwen1.FOLDER / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="was not written by qwenjax"):
        save_params(config, params, out)
    with pytest.raises(ValueError, match="was not written by qwenjax"):
        save_params(config, params, out / "config.json")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_what_was_there(tmp_path):
    config = models.PLAIN
    params = models.params(config)
    save_params(config, params, tmp_path / "out")

    def full(size):
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        save_params(config, models.params(config, seed=1), tmp_path / "out", progress=full)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert models.equal(load_params(open_directory(tmp_path / "out")), params)


def test_tensors_are_cast_when_they_are_read():
    config = models.PLAIN
    params = models.params(config)
    tensors = as_tensors(config, params, "qwen", "bfloat16")
    name = "transformer.h.1.mlp.w2.weight"
    assert (tensors[name].shape, tensors[name].dtype) == ((44, 32), ml_dtypes.bfloat16)
    want = params["blocks"]["mlp"]["gate"][1].T.astype(ml_dtypes.bfloat16)
    assert tensors[name].read().tobytes() == want.tobytes()
