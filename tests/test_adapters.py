"""Low-rank adapters through `qwenjax.load` and training: runs of ours and PEFT's folders, on every kind of base."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwen1
import tiny_model
from flax import linen as nn
from paths import GOLDENS
from safetensors.numpy import load_file, save_file

import qwenjax
from qwenjax import checkpoint, config
from qwenjax.api.checkpoint_path import detect
from qwenjax.api.generation_defaults import GenerationDefaults
from qwenjax.api.parameters import read_adapter, read_params, read_reward_model
from qwenjax.config import Compute, Lora, MeshShape, ModelConfig
from qwenjax.convert import write
from qwenjax.interop.huggingface.load import param_shardings
from qwenjax.interop.peft import save_adapter
from qwenjax.model import lora, reward_head, transformer
from qwenjax.model.quantise import dequantise
from qwenjax.sharding import make_mesh
from qwenjax.train.backbone import Backbone

CONFIG = tiny_model.CONFIG
HOW = Lora(rank=2, alpha=6.0, base_dtype="float32")
IDS = np.arange(3, 27).reshape(2, 12)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("adapters") / "base")


def adapters(cfg: ModelConfig, how: Lora, seed: int = 1) -> dict:
    """What a run trains, of random values: {"lora": …, "params": embeddings trained in full}."""
    rng = np.random.default_rng(seed)
    shapes = nn.unbox(jax.eval_shape(lambda: lora.init(cfg, how, jax.random.key(0))))
    pairs = jax.tree.map(lambda x: jnp.float32(0.1 * rng.standard_normal(x.shape)), shapes)
    return {
        "lora": pairs,
        "params": {name: jnp.asarray(tiny_model.params(cfg, seed)[name]) for name in how.modules_to_save},
    }


def held(below: dict, how: Lora) -> dict:
    """Parameters of the base as training holds them, frozen."""
    rounded = below if how.base_dtype == "float32" else jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), below)
    return jax.jit(lambda x: lora.split(x, how)[1])(rounded)


def merged(trained: dict, frozen: dict, how: Lora) -> dict:
    """W + alpha/r A B, in numpy; letters as in model/lora.py."""
    sums = dict.fromkeys("qkv", "lde,lenh->ldnh") | {"o": "lnhe,led->lnhd", "down": "lfe,led->ldf"}
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), frozen["params"] | trained["params"])
    for module, codes in frozen["quantised"].get("blocks", {}).items():
        params["blocks"][module] |= {name: np.asarray(dequantise(q)) for name, q in codes.items()}
    for module, pairs in trained["lora"]["blocks"].items():
        for name, ab in pairs.items():
            product = np.einsum(sums.get(name, "lde,lef->ldf"), np.asarray(ab["a"]), np.asarray(ab["b"]))
            params["blocks"][module][name] = params["blocks"][module][name] + how.alpha / how.rank * product
    return params


def write_run(folder: Path, start: Path, cfg: ModelConfig, how: Lora, params: dict, task: str = "sft", **meta) -> Path:
    """A run of ours with one checkpoint."""
    experiment = qwenjax.experiment("quickstart", {"data.seq_len": 32, "init_from": str(start), "task": task})
    experiment = replace(experiment, model=cfg, lora=how)
    tiny_model.tokenizer().save(folder / "tokenizer")
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    meta |= {"next_row": 0, "experiment": config.to_dict(experiment), "tokenizer_fingerprint": "x"}
    checkpoints.save(7, params, {"step": jnp.int32(7)}, meta, folder / "tokenizer")
    checkpoints.close()
    return folder


def tuned(folder: Path, start: Path, how: Lora, below: dict, cfg: ModelConfig = CONFIG, seed: int = 1) -> dict:
    """Makes a run that trained adapters on the model at `start`, of parameters `below`; returns the sum of the two."""
    trained, frozen = adapters(cfg, how, seed), held(below, how)
    write_run(folder, start, cfg, how, trained, frozen={"base": checkpoint.fingerprint(frozen)})
    return merged(trained, frozen, how)


def assert_same(got: dict, wanted: dict) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(np.asarray(a), b, atol=1e-5)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "nf4"])
def test_a_run_is_read_as_it_was_trained(base, tmp_path, kind):
    wanted = tuned(tmp_path / "run", base, replace(HOW, base_dtype=kind), tiny_model.params())
    model = qwenjax.load(tmp_path / "run")
    assert_same(model.params, wanted)
    assert np.abs(wanted["blocks"]["attn"]["q"] - tiny_model.params()["blocks"]["attn"]["q"]).max() > 0.1
    assert model.generation_defaults.chat
    assert model.tokenizer.size == 480
    source = detect(tmp_path / "run")
    assert [source.name, replace(source.base, path=Path("Qwen1.5-0.5B")).name] == ["run", "Qwen1.5-0.5B"]


def test_a_mesh_changes_where_and_not_what(base, tmp_path):
    wanted = tuned(tmp_path / "run", base, replace(HOW, base_dtype="int8"), tiny_model.params())
    places = param_shardings(CONFIG, make_mesh(MeshShape(data=2, fsdp=2, tensor=2), CONFIG.embed))
    spread = read_params(detect(tmp_path / "run"), places)
    assert jax.tree.all(jax.tree.map(lambda x, place: x.sharding == place, spread, places))
    assert_same(spread, wanted)


def test_adapters_on_adapters(base, tmp_path):
    """A run on a run on a PEFT folder; the last one trained its embedding, too."""
    first = adapters(CONFIG, HOW, seed=5)
    save_adapter(tmp_path / "peft", first, HOW, CONFIG, str(base))
    once = merged(first, held(tiny_model.params(), HOW), HOW)
    twice = tuned(tmp_path / "one", tmp_path / "peft", HOW, qwenjax.load(tmp_path / "peft").params, seed=6)
    assert_same(twice, merged(adapters(CONFIG, HOW, seed=6), held(once, HOW), HOW))
    how = replace(HOW, modules_to_save=("embed",))
    thrice = tuned(tmp_path / "two", tmp_path / "one", how, qwenjax.load(tmp_path / "one").params, seed=7)
    assert_same(qwenjax.load(tmp_path / "two").params, thrice)
    assert_same(thrice, merged(adapters(CONFIG, how, seed=7), held(twice, how), how))


def gguf(folder: Path, base: Path) -> Path:
    source = detect(base)
    return write.gguf(source, read_params(source), folder / "base.gguf", "q8_0")[0]


def gptq(folder: Path, base: Path) -> Path:
    """The golden Qwen-v1 with random words of 8 bits in its blocks: 0.002 (q - 128)."""
    folder.mkdir()
    rng, stored = np.random.default_rng(2), {}
    for name, array in load_file(qwen1.FOLDER / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        if array.ndim < 2 or ".h." not in name:
            stored[name] = array
            continue
        out, width = array.shape
        stored[f"{stem}.qweight"] = rng.integers(-(2**31), 2**31, (width // 4, out)).astype(np.int32)
        stored[f"{stem}.qzeros"] = np.full((1, out // 4), 0x7F7F7F7F, np.int32)
        stored[f"{stem}.scales"] = np.full((1, out), 0.002, np.float16)
    save_file(stored, folder / "model.safetensors")
    values = json.loads((qwen1.FOLDER / "config.json").read_text())
    packed = {"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": False}
    (folder / "config.json").write_text(json.dumps(values | {"quantization_config": packed}))
    return folder


@pytest.mark.parametrize(("make", "kind"), [(gguf, "nf4"), (gptq, "bfloat16")])
def test_a_base_of_another_form(base, tmp_path, make, kind):
    start = detect(make(tmp_path / "start", base))
    wanted = tuned(tmp_path / "run", start.path, replace(HOW, base_dtype=kind), read_params(start), start.config)
    assert_same(read_params(detect(tmp_path / "run")), wanted)


def test_a_run_is_written_for_peft_and_reads_back(base, tmp_path):
    """What 8 bits and bfloat16 made of the base, the adapters say themselves; the rest is noted."""
    how = replace(HOW, base_dtype="int8", targets=("down", "v"), modules_to_save=("embed",))
    wanted = tuned(tmp_path / "run", base, how, tiny_model.params())
    source = detect(tmp_path / "run")
    notes = write.adapters(source, read_adapter(source), tmp_path / "peft")
    assert notes == ["the base model was int8 in training: load it so in PEFT as well"]
    again = detect(tmp_path / "peft")
    assert again.base.path == base
    assert GenerationDefaults.of(again).chat
    assert_same(read_params(again), wanted)
    longer = detect(tmp_path / "run").override({"rope_base": 5e5})
    assert "do not say that rope_base is 500000.0" in write.adapters(longer, read_adapter(longer), tmp_path / "peft")[1]


def test_a_base_that_is_another_model_now_is_refused(tmp_path):
    start, params = tiny_model.write(tmp_path / "start"), tiny_model.params()
    tuned(tmp_path / "run", start, HOW, params)
    params["norm"]["scale"][3] += 1
    tiny_model.save_params(CONFIG, params, start)
    with pytest.raises(ValueError, match=r"start is not the model that the adapters in .*run/checkpoints/7 were train"):
        qwenjax.load(tmp_path / "run")


def test_a_base_that_is_gone_is_missed(tmp_path, monkeypatch):
    start = tiny_model.write(tmp_path / "start")
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", Path("start"), CONFIG, HOW, adapters(CONFIG, HOW))
    assert detect("run").base.path == Path("start")
    start.rename(tmp_path / "other")
    with pytest.raises(ValueError, match="adapters of start, and no model is there: run this where it was trained"):
        qwenjax.load("run")


# ---- folders of PEFT ----


def test_the_golden_of_peft_computes_what_peft_did(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "interop")
    import models

    cfg, golden = models.SHAPES["qwen2 grouped"], GOLDENS / "peft"
    tiny_model.save_params(cfg, models.params(cfg), tmp_path / "tiny-qwen2")
    for file in golden.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    recorded = np.load(golden / "logits.npz")
    model = qwenjax.load(tmp_path)  # its base lies inside its folder
    np.testing.assert_allclose(model.logits(recorded["ids"]), recorded["logits"], atol=2e-4)
    assert model.tokenizer is None


@pytest.fixture
def folder(base, tmp_path) -> Path:
    """Adapters that name their base."""
    save_adapter(tmp_path / "adapter", adapters(CONFIG, HOW), HOW, CONFIG, str(base))
    return tmp_path / "adapter"


def name_base(folder: Path, name: str | None) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": name}))


def test_a_folder_is_used_like_the_base_model(base, folder):
    model, below = qwenjax.load(folder), qwenjax.load(base)
    assert model.tokenizer.fingerprint == below.tokenizer.fingerprint
    assert model.generation_defaults == below.generation_defaults
    assert detect(folder).override({"ntk": "true"}).config == replace(CONFIG, ntk=True)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 9, "top_p": 0.3}))
    assert GenerationDefaults.of(detect(folder)).eos_ids == below.generation_defaults.eos_ids | {9}
    assert GenerationDefaults.of(detect(folder)).sampling == {**below.generation_defaults.sampling, "top_p": 0.3}
    tiny_model.tokenizer().save(folder)
    (folder / "tokenizer.model").write_bytes(b"no tokenizer")
    with pytest.raises(ValueError, match=r"adapter.tokenizer\.model"):
        qwenjax.load(folder)


@pytest.mark.parametrize("name", ["Qwen/Qwen2-0.5B", None, "."])
def test_a_base_that_is_no_folder_here_is_told(folder, name, monkeypatch):
    name_base(folder, name)
    monkeypatch.chdir(folder)  # where "." is the folder itself
    what = {None: "a model that is not named", ".": r"\."}.get(name, name)
    with pytest.raises(ValueError, match=f"adapters of {what}, and no .* write its path into base_model_name_or_path"):
        qwenjax.load(folder)


def test_adapters_of_another_model_are_refused(folder, tmp_path):
    tiny_model.write(tmp_path / "wide", replace(CONFIG, embed=64))
    name_base(folder, "../wide")
    with pytest.raises(ValueError, match="shapes do not match the model and adapter_config"):
        qwenjax.load(folder)


def test_training_starts_from_adapters_and_its_run_loads(folder, tmp_path):
    """What a mesh of eight reads, holds in 4 bits and trains on is what one device finds under the adapters again."""
    how = Lora(rank=2, base_dtype="nf4", dropout=0.0)
    experiment = qwenjax.experiment("quickstart", {"data.seq_len": 32, "init_from": str(folder), "dropout": 0.0})
    experiment = replace(experiment, model=CONFIG, lora=how)
    network = Backbone(experiment, Compute(dtype="float32", remat="none").resolved("cpu", 2))
    found = network.load(folder, make_mesh(MeshShape(data=2, fsdp=2, tensor=2), CONFIG.embed), 0, lambda text: None)
    below = merged(adapters(CONFIG, HOW), held(tiny_model.params(), HOW), HOW)
    assert found.tokenizer.size == 480
    trained, frozen = adapters(CONFIG, how, seed=8), held(below, how)
    assert jax.tree.structure(trained) == jax.tree.structure(found.trained)
    for a, b in zip(jax.tree.leaves(found.frozen), jax.tree.leaves(frozen)):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    prints = {"base": checkpoint.fingerprint(found.frozen)}
    write_run(tmp_path / "run", folder, CONFIG, how, trained, frozen=prints)
    hidden, _ = jax.jit(network.eval_network.apply)(lora.variables(trained, frozen), jnp.asarray(IDS))
    wanted = transformer.logits(frozen["params"], hidden)  # adapters beside the weights, as in training
    np.testing.assert_allclose(qwenjax.load(tmp_path / "run").logits(IDS), wanted, atol=1e-3)


# ---- reward models ----


def test_a_reward_model_with_adapters_scores(tmp_path):
    """On a language model with a head of its own, then on that reward model; the latter on a mesh, too."""
    cfg = replace(CONFIG, tie_embeddings=False)
    headless, how = reward_head.headless(cfg), replace(HOW, base_dtype="bfloat16", modules_to_save=("embed",))
    below, start = tiny_model.params(cfg), tiny_model.write(tmp_path / "lm", cfg)
    del below["head"]
    for name, seed in (("pmp", 1), ("rm", 2)):
        trained, frozen = adapters(headless, how, seed), held(below, how)
        about = {"frozen": {"base": checkpoint.fingerprint(frozen)}, "calibration": [1.0, 0.0]}
        tree = {"backbone": trained, "reward": jnp.arange(cfg.embed, dtype=jnp.float32)}
        start = write_run(tmp_path / name, start, cfg, how, tree, "reward", **about)
        below, head = read_reward_model(detect(start))[:2]
        assert_same(below, merged(trained, frozen, how))
        np.testing.assert_array_equal(head, np.arange(cfg.embed))
        with pytest.raises(ValueError, match="is a reward model: it scores texts"):
            qwenjax.load(start)
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2), cfg.embed)
    spread, head = read_reward_model(detect(start), param_shardings(headless, mesh))[:2]
    assert_same(spread, below)
    assert len(head.sharding.device_set) == 8
    with pytest.raises(ValueError, match="no reward model of ours; train one"):
        read_reward_model(detect(tmp_path / "lm"))


def test_a_reward_model_in_full_is_read_on_a_mesh(base, tmp_path):
    tree = {"backbone": jax.tree.map(jnp.asarray, tiny_model.params()), "reward": jnp.ones(CONFIG.embed)}
    run = write_run(tmp_path / "rm", base, CONFIG, Lora(), tree, "reward", calibration=[1.0, 0.0])
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2), CONFIG.embed)
    params, head = read_reward_model(detect(run), param_shardings(CONFIG, mesh))[:2]
    assert len(head.sharding.device_set) == 8
    assert_same(params, tiny_model.params())
