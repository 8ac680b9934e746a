"""Sizes, overrides and what the configuration refuses."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT

from qwenjax import config
from qwenjax.config import Data, Experiment, MeshShape, ModelConfig, Source, lookup, overrides

TINY = Experiment("tiny", ModelConfig(vocab=64, layers=1, embed=16, heads=2, ffn=32), Data((Source(text="x"),)), 10)


@pytest.mark.parametrize(
    ("model", "total", "without_embeddings"),
    [  # docs/report.md, Sizes, to the last digit
        (config.QWEN_1B8, 1_836_828_672, 1_214_498_816),
        (config.QWEN_7B, 7_721_324_544, 6_476_664_832),
        (config.QWEN_14B, 14_167_290_880, 12_610_155_520),
        (config.QWEN_72B, 72_287_920_128, 69_796_503_552),
    ],
)
def test_parameter_counts_of_the_releases(model, total, without_embeddings):
    assert model.params == total
    assert model.params - model.embedding_params == without_embeddings
    assert model.head_size == 128


def test_flops_by_hand():
    m = ModelConfig(vocab=10, layers=2, embed=4, heads=2, ffn=3)
    # matmul parameters: head 40; per layer q,k,v,o 4*16, biases 12, mlp 3*12, norms 8; final norm 4
    assert m.flops_per_token(8) == 6 * (40 + 2 * (64 + 12 + 36 + 8) + 4) + 6 * 2 * 4 * 8


def test_other_families_are_configurations():
    qwen3 = ModelConfig(
        vocab=100, layers=2, embed=64, heads=4, kv_heads=2, head_dim=32, ffn=96, qkv_bias=False, qk_norm=True,
        tie_embeddings=True,
    )  # fmt: skip
    assert (qwen3.head_size, qwen3.kv) == (32, 2)
    layer = 64 * (2 * 128 + 2 * 64) + 3 * 64 * 96 + 2 * 64 + 2 * 32
    assert qwen3.params == 100 * 64 + 2 * layer + 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optm.peak_lr": "1e-3"}, "Did you mean 'optim'"),
        ({"optim.peek_lr": "1e-3"}, "Did you mean 'peak_lr'"),
        ({"model.layer": "2"}, "Did you mean 'layers'"),
        ({"steps": "1.5"}, "whole number"),
        ({"steps": "many"}, "whole number"),
        ({"data.document_mask": "maybe"}, "true or false"),
        ({"optim.peak_lr": "fast"}, "wanted a number"),
        ({"steps.x": "1"}, "single value"),
        ({"data.sources.3.text": "x"}, "no field '3' in data.sources"),
        ({"optim": "1"}, "wanted the fields of AdamW"),
        ({"optim.schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"compute.remat": "ful"}, "Did you mean 'full'"),
        ({"model.heads": "3"}, "not a multiple"),
        ({"model.kv_heads": "3"}, "not a multiple"),
        ({"accumulate": "3"}, "does not divide"),
        ({"data.seq_len": "4096"}, "model.context"),
        ({"task": "pretrian"}, "Did you mean 'pretrain'"),
        ({"task": "reward", "preference.smoothing": "0.1"}, "is for dpo"),
        ({"seed": "-1"}, "seed=-1 must not be negative"),
        ({"task": "ppo", "rl.max_new_tokens": "8", "steps": "50"}, "leaves no step to the policy"),
        ({"task": "reinforce", "rl.max_new_tokens": "8", "rl.minibatches": "2"}, "no ratio that would correct"),
    ],
)
def test_bad_overrides_say_what_is_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        overrides.override(TINY, settings)


def test_overrides_are_typed_and_checked_together():
    new = overrides.override(
        TINY,
        {"model.heads": "8", "model.embed": "64", "data.sources.0.text": "books", "steps": "2e3", "prompts": "a,b"},
    )
    assert (new.model.embed, new.steps, new.prompts) == (64, 2000, ("a", "b"))
    assert new.data.sources == (Source(text="books"),)
    # a new list of sources from JSON, as a whole
    new = overrides.override(TINY, {"data.sources": '[{"shards": "d", "weight": 2}]'})
    assert new.data.sources == (Source(shards="d", weight=2.0),)


@settings(deadline=None)
@given(st.integers(1, 2**40), st.floats(1e-8, 1.0), st.booleans())
def test_any_value_survives_json_and_the_command_line(steps, peak_lr, document_mask):
    new = overrides.override(
        TINY, {"steps": str(steps), "optim.peak_lr": repr(peak_lr), "data.document_mask": str(document_mask)}
    )
    assert (new.steps, new.optim.peak_lr, new.data.document_mask) == (steps, peak_lr, document_mask)
    assert config.from_dict(config.to_dict(new)) == new


def test_config_is_frozen_and_mesh_shape_checks_itself():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.steps = 3
    with pytest.raises(ValueError, match="only one"):
        MeshShape(data=2, fsdp=-1, tensor=-1)
    with pytest.raises(ValueError, match="positive"):
        MeshShape(tensor=0)


@pytest.mark.parametrize("name", ["quickstart", "mid", "qwen1b8", "qwen7b", "qwen14b"])
def test_experiments_load_by_name(name):
    experiment = lookup.experiment(name)
    assert experiment.name == name
    assert config.from_dict(config.to_dict(experiment)) == experiment
    if name.startswith("qwen"):
        assert experiment.tokens_per_step == 4_194_304  # report, Table 1
        assert not experiment.data.document_mask  # report §2.4: documents are packed plainly


def test_unknown_experiment_lists_the_known_and_names_the_nearest():
    with pytest.raises(ValueError, match=r"Did you mean 'quickstart'\?(.|\n)*qwen14b"):
        lookup.experiment("quickstrat")


def test_experiment_from_a_file_a_run_and_broken_files(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from qwenjax.config.lookup import experiment as find\ndef experiment(): return find('quickstart')\n"
    )
    assert lookup.experiment(str(file), {"steps": 7}).steps == 7
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(ValueError, match="is no JSON"):
        lookup.experiment(str(tmp_path))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="defines no experiment"):
        lookup.experiment(str(tmp_path / "empty.py"))
    with pytest.raises(ValueError, match="no experiment file"):
        lookup.experiment(str(tmp_path / "absent.py"))


@pytest.mark.parametrize(
    ("shape", "devices", "embed", "slices", "data", "fsdp"),
    [
        (MeshShape(), 256, 5120, 1, 2, 128),  # 40 rows a device; 256 would leave 20
        (MeshShape(), 256, 4096, 1, 1, 256),
        (MeshShape(), 512, 4096, 2, 2, 256),  # never across slices
        (MeshShape(), 512, 5120, 2, 4, 128),
        (MeshShape(tensor=2, context=2), 32, 2048, 1, 1, 8),
        (MeshShape(), 6, 12, 1, 6, 1),  # no multiple of 8: whole parameters on each
        (MeshShape(data=1), 256, 5120, 1, 1, 256),  # asked for
        (MeshShape(fsdp=4), 8, 64, 1, 2, 4),
    ],
)
def test_a_mesh_is_filled_in_whole_tiles_within_slices(shape, devices, embed, slices, data, fsdp):
    sizes = shape.sizes(devices, embed, slices)
    assert (sizes["data"], sizes["fsdp"]) == (data, fsdp)


def test_slices_share_no_parameters():
    with pytest.raises(ValueError, match=r"data=1, which 2 slices cannot share.*mesh\.data=2"):
        MeshShape(data=1).sizes(512, 4096, 2)


@pytest.mark.parametrize("size", ["1b8", "7b", "14b"])
def test_a_file_of_the_report_stands_for_an_experiment_of_each_size(size):
    ppo = lookup.experiment(f"qwen{size}_ppo")
    assert (ppo.name, ppo.init_from, ppo.rl.reward) == (
        f"qwen{size}_ppo",
        f"runs/qwen{size}_chat_sft",
        f"runs/qwen{size}_rm",
    )
    assert ppo.model == config.QWEN_SIZES[size] == lookup.experiment(f"qwen{size}").model


def test_a_file_of_several_sizes_asks_for_a_name():
    with pytest.raises(ValueError, match="several sizes: use a name, such as --exp=qwen7b_ppo"):
        lookup.experiment(str(ROOT / "experiments" / "qwen_ppo.py"))
