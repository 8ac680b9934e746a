"""Adapters in PEFT's files: round trips, others' adapters by hand, a golden of the library, and the library itself."""

import json
from dataclasses import replace

import jax
import models
import numpy as np
import pytest
from flax import linen as nn
from paths import GOLDENS
from safetensors.numpy import load_file, save_file

from qwenjax.config import Lora, ModelConfig
from qwenjax.interop.huggingface.save import save_params
from qwenjax.interop.peft import load_adapter, save_adapter
from qwenjax.model.lora import init, merge, variables

LORA = Lora(rank=2, alpha=6.0, dropout=0.1)
QWEN2, QWEN = models.SHAPES["qwen2 grouped"], models.SHAPES["qwen"]
TIED = models.SHAPES["qwen2 tied"]
IDS = np.random.default_rng(3).integers(0, models.PLAIN.vocab, (2, 12)).astype(np.int32)


def train(config: ModelConfig, lora: Lora) -> dict:
    """Adapters, and what else is trained, of random values."""
    rng = np.random.default_rng(4)
    shapes = nn.unbox(jax.eval_shape(lambda: init(config, lora, jax.random.key(0))))
    pairs = jax.tree.map(lambda x: (0.1 * rng.normal(size=x.shape)).astype(np.float32), shapes)
    whole = {name: models.params(config, seed=5)[name] for name in lora.modules_to_save}
    return {"lora": pairs, "params": whole}


def merged(config: ModelConfig, trained: dict, lora: Lora) -> dict:
    return jax.jit(merge, static_argnums=1)(variables(trained, {"params": models.params(config)}), lora)


def assert_same(a: dict, b: dict) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert models.equal(a, b)


@pytest.mark.parametrize(
    ("layout", "config", "lora"),
    [
        ("qwen2", QWEN2, LORA),
        ("qwen2", QWEN2, replace(LORA, targets=("v", "down"), alpha=2.5, modules_to_save=("head",))),
        ("qwen2", TIED, replace(LORA, targets=("q",), modules_to_save=("embed",))),
        ("qwen", QWEN, replace(LORA, modules_to_save=("embed", "head"))),
        ("qwen", QWEN, replace(LORA, targets=("q", "v", "o"))),
        ("qwen", QWEN, replace(LORA, targets=("k", "up", "down"))),
    ],
)
def test_round_trip_is_exact(tmp_path, layout, config, lora):
    trained = train(config, lora)
    for _ in range(2):  # over the first one
        save_adapter(tmp_path / "a", trained, lora, config, "models/base", layout)
    back = load_adapter(tmp_path / "a", config)
    assert_same(back.trained, trained)
    assert back.lora == lora
    assert back.base == "models/base"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize(("layout", "config"), [("qwen2", QWEN2), ("qwen", QWEN)])
def test_files_hold_the_change_of_every_weight(tmp_path, layout, config):
    """alpha/r · B A of the files, with the rank and alpha of each module, is merged minus unmerged."""
    trained = train(config, LORA)
    save_adapter(tmp_path, trained, LORA, config, "", layout)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    after = models.tensors(config, merged(config, trained, LORA), layout)
    seen = set()
    for name, before in models.tensors(config, models.params(config), layout).items():
        module = name.removesuffix(".weight")
        pair = [stored.get(f"base_model.model.{module}.lora_{x}.weight") for x in "AB"]
        if pair[0] is None:
            np.testing.assert_array_equal(after[name], before)
            continue
        short = ".".join(module.split(".")[-2:])
        alpha = values["alpha_pattern"].get(short, values["lora_alpha"])
        assert len(pair[0]) == values["rank_pattern"].get(short, values["r"])
        np.testing.assert_allclose(after[name], before + alpha / len(pair[0]) * pair[1] @ pair[0], atol=1e-5)
        seen.add(short)
    targets = {"qwen2": 7, "qwen": 5}
    assert len(seen) == targets[layout]
    assert {name.split(".")[-1] for name in seen} == set(values["target_modules"])


def test_c_proj_says_which_if_only_one_is_meant(tmp_path):
    save_adapter(tmp_path, train(QWEN, lora := replace(LORA, targets=("o", "up"))), lora, QWEN, "", "qwen")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["attn.c_proj", "w1"]


def theirs(folder, tensors: dict, **values) -> None:
    """An adapter of another program: tensors by module and factor."""
    folder.mkdir(exist_ok=True)
    save_file({f"base_model.model.{name}": x for name, x in tensors.items()}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.05, "bias": "none", **values}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def pair(module: str, rows: int, columns: int, rank: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rank, columns)), rng.normal(size=(rows, rank))
    return {f"{module}.lora_A.weight": a.astype(np.float32), f"{module}.lora_B.weight": b.astype(np.float32)}


def test_one_a_for_all_of_c_attn_is_copied(tmp_path):
    """As the released fine-tuning writes it, here for layer 1 alone; alpha/r is 4/2."""
    d, module = QWEN.embed, "transformer.h.1.attn.c_attn"
    tensors = pair(module, 3 * d, d)
    theirs(tmp_path, tensors, target_modules=["c_attn"])
    back = load_adapter(tmp_path, QWEN)
    assert back.lora == Lora(rank=2, alpha=4.0, dropout=0.05, targets=("q", "k", "v"), base_dtype="float32")
    before = models.tensors(QWEN, models.params(QWEN), "qwen")
    after = models.tensors(QWEN, merged(QWEN, back.trained, back.lora), "qwen")
    a, b = tensors.values()
    np.testing.assert_allclose(after[f"{module}.weight"], before[f"{module}.weight"] + 2 * b @ a, atol=1e-5)
    assert [name for name in after if (after[name] != before[name]).any()] == [f"{module}.weight"]


def test_blocks_that_were_trained_on_elsewhere_are_no_blocks_any_more(tmp_path):
    trained = train(QWEN, LORA)
    save_adapter(tmp_path, trained, LORA, QWEN, "", "qwen")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"
    tensors[name] = tensors[name] + 0.5
    header = {"format": "pt", "made_by": "qwenjax", "qwenjax_blocks": "q k v"}
    save_file(tensors, tmp_path / "adapter_model.safetensors", header)
    back = load_adapter(tmp_path, QWEN)
    weight = "transformer.h.0.attn.c_attn.weight"
    after = models.tensors(QWEN, merged(QWEN, back.trained, back.lora), "qwen")[weight]
    a = tensors[name.replace("lora_B", "lora_A")]
    np.testing.assert_allclose(after, models.tensors(QWEN, models.params(QWEN), "qwen")[weight]
                               + 3 * tensors[name] @ a, atol=1e-4)  # fmt: skip


def test_ranks_and_scales_that_differ_by_module_become_one(tmp_path):
    """up: rank 2, alpha 4; down: rank 3, alpha 9 by pattern: scales 2 and 3."""
    d, f, mlp = QWEN2.embed, QWEN2.ffn, "model.layers.0.mlp"
    up, down = pair(f"{mlp}.up_proj", f, d), pair(f"{mlp}.down_proj", d, f, rank=3, seed=1)
    theirs(tmp_path, up | down, rank_pattern={"down_proj": 3}, alpha_pattern={r"layers\.\d\.mlp\.down_proj": 9})
    back = load_adapter(tmp_path, QWEN2)
    assert back.lora.rank == 3
    before = models.tensors(QWEN2, models.params(QWEN2))
    after = models.tensors(QWEN2, merged(QWEN2, back.trained, back.lora))
    for module, scale, (a, b) in (("up_proj", 2, up.values()), ("down_proj", 3, down.values())):
        name = f"{mlp}.{module}.weight"
        np.testing.assert_allclose(after[name], before[name] + scale * b @ a, atol=1e-5)


GOOD = pair("model.layers.0.self_attn.q_proj", 32, 32)
REFUSED = {
    "dora": ({}, {"use_dora": True}, "use_dora=True is not supported"),
    "a field of tomorrow": ({}, {"use_tomorrow": {"x": 1}}, "use_tomorrow="),
    "biases": ({}, {"bias": "lora_only"}, "bias='lora_only' is not supported"),
    "another method": ({}, {"peft_type": "IA3"}, "peft_type='IA3' is not read"),
    "no rank": ({}, {"r": 0}, "r=0; wanted a positive number"),
    "changed base": ({}, {"init_lora_weights": "pissa"}, "changed the base model's weights"),
    "a module that is no projection": (
        pair("model.layers.0.mlp.router", 4, 32), {}, "mlp.router has an adapter but is no projection",
    ),
    "a layer too many": (pair("model.layers.3.self_attn.q_proj", 32, 32), {}, "layers.3.self_attn.q_proj has an"),
    "a norm": ({"model.norm.weight": np.ones(32, np.float32)}, {}, "model.norm.weight is not supported"),
    "half a pair": (
        {"model.layers.1.mlp.up_proj.lora_A.weight": np.ones((2, 32), np.float32)}, {}, "lora_B.weight is missing",
    ),
    "another width": (
        pair("model.layers.1.self_attn.q_proj", 32, 48), {}, r"q_proj.lora_A \[2, 48\] instead of \[2, 32\]",
    ),
    "another rank": (pair("model.layers.1.self_attn.q_proj", 32, 32, 5), {}, r"\[5, 32\] instead of \[2, 32\]"),
    "another vocabulary": (
        {"lm_head.weight": np.ones((97, 32), np.float32)}, {}, r"\[97, 32\], in the model \[96, 32\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_adapter_of_the_model_is_refused(tmp_path, case):
    tensors, values, message = REFUSED[case]
    theirs(tmp_path, GOOD | tensors, **values)
    with pytest.raises(ValueError, match=message):
        load_adapter(tmp_path, QWEN2)


def test_the_least_that_is_an_adapter_is_read(tmp_path):
    theirs(tmp_path, GOOD)
    assert load_adapter(tmp_path, QWEN2).lora.targets == ("q",)


def test_a_tied_embedding_cannot_be_trained_on_one_side(tmp_path):
    theirs(tmp_path, GOOD | {"model.embed_tokens.weight": np.ones((96, 32), np.float32)})
    with pytest.raises(ValueError, match="only one of the two was trained"):
        load_adapter(tmp_path, TIED)


def test_places_without_an_adapter_or_with_anothers_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no adapter_config\.json"):
        load_adapter(tmp_path, QWEN2)
    theirs(tmp_path, GOOD)
    with pytest.raises(ValueError, match="was not written by qwenjax"):
        save_adapter(tmp_path, train(QWEN2, LORA), LORA, QWEN2, "")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"neither adapter_model\.safetensors nor"):
        load_adapter(tmp_path, QWEN2)


def test_adapters_of_another_rank_or_model_are_not_written(tmp_path):
    for lora, config in ((replace(LORA, rank=3), QWEN2), (LORA, QWEN)):
        with pytest.raises(ValueError, match="the trained parameters do not match the model and lora"):
            save_adapter(tmp_path / "a", train(QWEN2, LORA), lora, config, "")
    assert not (tmp_path / "a").exists()


def logits(config: ModelConfig, trained: dict, lora: Lora, ids: np.ndarray) -> np.ndarray:
    return models.logits(config, merged(config, trained, lora), ids)


def test_an_adapter_that_peft_wrote_gives_its_logits():
    """See tests/goldens/peft/README.md."""
    golden = np.load(GOLDENS / "peft" / "logits.npz")
    back = load_adapter(GOLDENS / "peft", QWEN2)
    assert back.lora.targets == ("q", "k", "o", "up", "down")
    assert (back.lora.rank, back.lora.modules_to_save, back.base) == (3, ("head",), "tiny-qwen2")
    np.testing.assert_allclose(logits(QWEN2, back.trained, back.lora, golden["ids"]), golden["logits"], atol=1e-5)


@pytest.mark.parametrize(
    ("config", "lora"),
    [(QWEN2, replace(LORA, modules_to_save=("head",))), (TIED, replace(LORA, modules_to_save=("embed",)))],
)
def test_peft_reads_what_we_write(tmp_path, config, lora):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    import torch

    trained = train(config, lora)
    save_params(config, models.params(config), tmp_path / "base")
    save_adapter(tmp_path / "adapter", trained, lora, config, str(tmp_path / "base"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="float32")
    model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    with torch.no_grad():
        got = model(torch.from_numpy(IDS).long()).logits.numpy()
    want = logits(config, trained, lora, IDS)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("targets", [LORA.targets, ("q", "v", "o")], ids="-".join)
def test_peft_reads_what_we_write_in_the_first_layout(tmp_path, targets):
    """Into modules of the released names; merged there, the weights are ours."""
    peft = pytest.importorskip("peft")
    import torch

    lora = replace(LORA, targets=targets)
    trained = train(QWEN, lora)
    save_adapter(tmp_path, trained, lora, QWEN, "", "qwen")
    root = torch.nn.Module()
    for name, x in models.tensors(QWEN, models.params(QWEN), "qwen").items():
        *path, kind = name.split(".")
        if kind == "weight" and x.ndim == 2 and path[-1] not in ("wte", "lm_head"):
            at = root
            for step in path[:-1]:
                if not hasattr(at, step):
                    at.add_module(step, torch.nn.Module())
                at = getattr(at, step)
            linear = torch.nn.Linear(x.shape[1], x.shape[0], bias=False)
            linear.weight.data = torch.from_numpy(x.copy())
            at.add_module(path[-1], linear)
    settings = peft.LoraConfig.from_pretrained(tmp_path)
    settings.task_type = None
    model = peft.PeftModel(root, settings)
    told = peft.set_peft_model_state_dict(model, peft.utils.load_peft_weights(str(tmp_path), device="cpu"))
    assert not told.unexpected_keys
    got = {f"{name}.weight": m.weight for name, m in model.merge_and_unload().named_modules() if hasattr(m, "weight")}
    want = models.tensors(QWEN, merged(QWEN, trained, lora), "qwen")
    assert len(got) == 5 * QWEN.layers
    for name, weight in got.items():
        np.testing.assert_allclose(weight.detach().numpy(), want[name], atol=1e-5)
