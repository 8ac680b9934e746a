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
from qwenjax.api.source import open_source, start_from
from qwenjax.config import Compute, Lora, MeshShape, ModelConfig
from qwenjax.convert import write
from qwenjax.interop.load import param_shardings
from qwenjax.interop.peft import save_adapter
from qwenjax.model import lora, reward, transformer
from qwenjax.sharding import make_mesh
from qwenjax.train import loop

PLAIN = Compute(dtype="float32", remat="none").resolved("cpu", 1)
HOW = Lora(rank=2, alpha=6.0, base="float32")
IDS = np.arange(3, 27).reshape(2, 12)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("adapters") / "base")


def adapters(cfg: ModelConfig, how: Lora, seed: int = 1) -> dict:
    """What a run trains, of random values: {"lora": …, "params": embeddings trained in full}."""
    rng = np.random.default_rng(seed)
    shapes = nn.unbox(jax.eval_shape(lambda: lora.init(cfg, how, jax.random.key(0))))
    pairs = jax.tree.map(lambda x: jnp.float32(0.1 * rng.standard_normal(x.shape)), shapes)
    return {"lora": pairs, "params": {name: jnp.asarray(tiny_model.params(cfg, seed)[name]) for name in how.whole}}


def frozen(below: dict, how: Lora) -> dict:
    """The base as training holds it."""
    held = below if how.base == "float32" else jax.tree.map(lambda x: x.astype(jnp.bfloat16), below)
    return lora.split(held, how)[1]


def write_run(folder: Path, start: Path, cfg: ModelConfig, how: Lora, params: dict, task: str = "sft", **meta) -> Path:
    """A run of ours with one checkpoint."""
    experiment = qwenjax.experiment("quickstart", {"data.length": 64, "init_from": str(start), "task": task})
    experiment = replace(experiment, model=cfg, lora=how)
    tiny_model.tokenizer().save(folder / "tokenizer")
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    meta |= {"next_row": 0, "experiment": config.to_dict(experiment), "tokenizer_fingerprint": "x"}
    checkpoints.save(7, params, {"step": jnp.int32(7)}, meta, folder / "tokenizer")
    checkpoints.close()
    return folder


def tuned(folder: Path, start: Path, how: Lora, cfg: ModelConfig = tiny_model.CONFIG, seed: int = 1) -> tuple:
    """A run that trained adapters on the model at `start`; and the collections that it computed with."""
    trained, below = adapters(cfg, how, seed), frozen(open_source(start).params(), how)
    write_run(folder, start, cfg, how, trained, frozen={"base": checkpoint.fingerprint(below)})
    return folder, lora.variables(trained, below)


def unmerged(collections: dict, how: Lora, cfg: ModelConfig = tiny_model.CONFIG, ids: np.ndarray = IDS) -> np.ndarray:
    """Logits with the adapters beside the weights, as training computes them."""
    network = transformer.Transformer(cfg, PLAIN, lora=replace(how, dropout=0.0))
    hidden, _ = jax.jit(network.apply)(collections, jnp.asarray(ids))
    return np.asarray(transformer.logits(collections["params"], hidden))


def assert_close(got, wanted, atol: float = 2e-4) -> None:
    assert float(np.abs(wanted).max()) > 1
    np.testing.assert_allclose(np.asarray(got), wanted, atol=atol * float(np.abs(wanted).max()))


@pytest.mark.parametrize("held", ["float32", "bfloat16", "int8", "nf4"])
def test_a_run_is_read_as_it_was_trained(base, tmp_path, held):
    how = replace(HOW, base=held)
    run, collections = tuned(tmp_path / "run", base, how)
    wanted = unmerged(collections, how)
    assert np.abs(wanted - qwenjax.load(base).logits(IDS)).max() > 1  # the adapters say something
    model = qwenjax.load(run)
    assert_close(model.logits(IDS), wanted)
    assert model.habits.chat
    assert model.tokenizer.size == 480


def test_a_mesh_changes_where_and_not_what(base, tmp_path):
    run, collections = tuned(tmp_path / "run", base, how := replace(HOW, base="int8"))
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2), tiny_model.CONFIG.embed)
    spread = qwenjax.load(run, mesh)
    places = param_shardings(tiny_model.CONFIG, mesh)
    assert jax.tree.all(jax.tree.map(lambda x, place: x.sharding == place, spread.params, places))
    ids = np.concatenate([IDS, IDS])
    assert_close(spread.logits(ids), unmerged(collections, how, ids=ids))


def test_adapters_on_adapters(base, tmp_path):
    """A run on a run on a PEFT folder; the last one trained its embedding, too."""
    first = adapters(tiny_model.CONFIG, HOW, seed=5)
    save_adapter(tmp_path / "peft", first, HOW, tiny_model.CONFIG, str(base))
    once = lora.merge(lora.variables(first, frozen(open_source(base).params(), HOW)), HOW)
    run, collections = tuned(tmp_path / "one", tmp_path / "peft", HOW, seed=6)
    twice = lora.merge(lora.variables(adapters(tiny_model.CONFIG, HOW, seed=6), frozen(once, HOW)), HOW)
    assert_close(qwenjax.load(run).logits(IDS), unmerged(collections, HOW))
    last, collections = tuned(tmp_path / "two", run, how := replace(HOW, whole=("embed",)), seed=7)
    wanted = unmerged(lora.variables(adapters(tiny_model.CONFIG, how, seed=7), frozen(twice, how)), how)
    assert_close(unmerged(collections, how), wanted)
    assert_close(qwenjax.load(last).logits(IDS), wanted)


def gguf(folder: Path, base: Path) -> Path:
    source = open_source(base)
    return write.gguf(source, source.params(), folder / "base.gguf", "q8_0")[0]


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


@pytest.mark.parametrize("make", [gguf, gptq])
@pytest.mark.parametrize("held", ["bfloat16", "nf4"])
def test_a_base_of_another_form(base, tmp_path, make, held):
    start = make(tmp_path / "start", base)
    cfg, how = open_source(start).config, replace(HOW, base=held)
    run, collections = tuned(tmp_path / "run", start, how, cfg)
    ids = IDS % cfg.vocab
    assert_close(qwenjax.load(run, ntk=False, logn=False).logits(ids), unmerged(collections, how, cfg, ids))


def test_a_base_that_is_another_model_now_is_refused(base, tmp_path):
    start = tiny_model.write(tmp_path / "start")
    run, _ = tuned(tmp_path / "run", start, HOW)
    params = tiny_model.params()
    params["norm"]["scale"][3] += 1
    tiny_model.save_params(tiny_model.CONFIG, params, start)
    with pytest.raises(ValueError, match=r"start is not the model that the adapters in .*run/checkpoints/7 were train"):
        qwenjax.load(run)


def test_a_base_that_is_gone_is_missed(base, tmp_path, monkeypatch):
    start = tiny_model.write(tmp_path / "start")
    monkeypatch.chdir(tmp_path)
    run, _ = tuned(tmp_path / "run", Path("start"), HOW)
    assert open_source(run).base.path == Path("start")
    start.rename(tmp_path / "other")
    with pytest.raises(ValueError, match="adapters of start, and no model is there: run this where it was trained"):
        qwenjax.load(run)


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
    save_adapter(tmp_path / "adapter", adapters(tiny_model.CONFIG, HOW), HOW, tiny_model.CONFIG, str(base))
    return tmp_path / "adapter"


def name_base(folder: Path, name: str | None) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": name}))


def test_a_folder_is_used_like_the_model_beneath(base, folder):
    model, below = qwenjax.load(folder), qwenjax.load(base)
    assert model.tokenizer.fingerprint == below.tokenizer.fingerprint
    assert model.habits == below.habits
    assert open_source(folder, {"ntk": "true"}).config == replace(tiny_model.CONFIG, ntk=True)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 9, "top_p": 0.3}))
    assert open_source(folder).habits().ends == below.habits.ends | {9}
    assert open_source(folder).habits().sampling == {**below.habits.sampling, "top_p": 0.3}
    tiny_model.tokenizer().save(folder)
    (folder / "tokenizer.model").write_bytes(b"no tokenizer")
    with pytest.raises(ValueError, match=r"adapter.tokenizer\.model"):
        qwenjax.load(folder)


@pytest.mark.parametrize("name", ["Qwen/Qwen2-0.5B", None, "."])
def test_a_base_that_is_no_folder_here_is_told(folder, name):
    name_base(folder, name)
    what = {None: "a model that is not named", ".": r"\."}.get(name, name)
    with pytest.raises(ValueError, match=f"adapters of {what}, and no .* write its path into base_model_name_or_path"):
        qwenjax.load(folder)


def test_adapters_of_another_model_are_refused(folder, tmp_path):
    tiny_model.write(tmp_path / "wide", replace(tiny_model.CONFIG, embed=64))
    name_base(folder, "../wide")
    with pytest.raises(ValueError, match="not of the shapes that the model and adapter_config"):
        qwenjax.load(folder)


def test_training_starts_from_adapters_and_its_run_loads(base, folder, tmp_path):
    """Three real steps of QLoRA: what is loaded is what the task judged at the end."""
    places = param_shardings(tiny_model.CONFIG, make_mesh(MeshShape(), tiny_model.CONFIG.embed))
    params, tokenizer, differing = start_from(folder, tiny_model.CONFIG, places)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, qwenjax.load(folder).params))
    assert (tokenizer.size, differing) == (480, [])

    words = [f"{a} {b}" for a in ("add", "print", "raise") for b in ("one", "two", "three", "four", "five", "six")]
    rows = [{"messages": [{"role": "user", "content": w}, {"role": "assistant", "content": w[::-1]}]} for w in words]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"init_from": str(folder), "chat.files.0.path": str(tmp_path / "chat.jsonl"), "data.length": 64}
    changes |= {"lora.rank": 2, "lora.base": "nf4", "lora.dropout": 0.0, "steps": 3, "optim.warmup": 0}
    changes |= {"eval_every": 3, "chat.validation": 0.3, "data.eval_tokens": 64}
    experiment = replace(qwenjax.experiment("tiny_sft", changes), model=tiny_model.CONFIG, prompts=("add",))
    outcome = loop.fit(experiment, tmp_path / "run", data_root=tmp_path / "data")
    assert outcome.finished
    loaded = qwenjax.load(tmp_path / "run")  # with the fingerprint of the base that training took
    held = open_source(tmp_path / "run").adapter()
    assert held.lora == experiment.lora
    assert max(float(jnp.abs(pair["b"]).max()) for x in held.trained["lora"]["blocks"].values() for pair in x.values())
    below = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    collections = lora.variables(held.trained, lora.split(below, held.lora)[1])
    assert_close(loaded.logits(IDS), unmerged(collections, held.lora))


# ---- reward models ----


def test_a_reward_model_with_adapters_scores(base, tmp_path):
    """On a language model with a head of its own, then on that reward model; alone and on a mesh."""
    cfg = replace(tiny_model.CONFIG, tie_embeddings=False)
    tiny_model.write(tmp_path / "lm", cfg)
    headless, how = reward.headless(cfg), replace(HOW, base="bfloat16", whole=("embed",))
    below = {name: x for name, x in tiny_model.params(cfg).items() if name != "head"}
    start, mesh = tmp_path / "lm", make_mesh(MeshShape(data=2, fsdp=2, tensor=2), cfg.embed)
    for name, seed in (("pmp", 1), ("rm", 2)):
        trained, head = adapters(headless, how, seed), jnp.arange(cfg.embed, dtype=jnp.float32)
        held = frozen(below, how)
        prints = {"base": checkpoint.fingerprint(held)}
        tree = {"backbone": trained, "reward": head}
        run = write_run(tmp_path / name, start, cfg, how, tree, "reward", frozen=prints, calibration=[1.0, 0.0])
        wanted = unmerged(lora.variables(trained, held), how, headless)
        for places in (None, param_shardings(headless, mesh)):
            params, found = open_source(run).scorer(places)
            assert_close(unmerged({"params": params}, Lora(), headless), wanted)
            np.testing.assert_array_equal(found, head)
        with pytest.raises(ValueError, match="is a reward model: it scores texts"):
            qwenjax.load(run)
        below, start = open_source(run).scorer()[0], run


def test_a_reward_model_in_full_is_read_on_a_mesh(base, tmp_path):
    cfg = reward.headless(tiny_model.CONFIG)
    tree = {"backbone": jax.tree.map(jnp.asarray, tiny_model.params(cfg)), "reward": jnp.ones(cfg.embed)}
    run = write_run(tmp_path / "rm", base, cfg, Lora(), tree, "reward", calibration=[1.0, 0.0])
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2), cfg.embed)
    params, head = open_source(run).scorer(param_shardings(cfg, mesh))
    assert len(head.sharding.device_set) == 8
    np.testing.assert_array_equal(params["embed"], tree["backbone"]["embed"])
