"""Which parameters are trained and which stay, read from any checkpoint, and that both together are the model."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import runs
from align_doubles import make_mesh

from qwenjax.api.checkpoint_path import detect
from qwenjax.api.parameters import read_params, read_reward_model
from qwenjax.config import Lora, MeshShape
from qwenjax.model import attention, transformer
from qwenjax.train.backbone import Backbone

IDS = np.random.default_rng(0).integers(0, 500, (2, 12), dtype=np.int32)
BATCH = {
    "inputs": IDS,
    "targets": np.roll(IDS, -1, axis=1),
    "positions": np.broadcast_to(np.arange(12, dtype=np.int32), (2, 12)),
    "weights": np.ones((2, 12), np.float32),
}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshShape(), 16, jax.devices()[:1])


def backbone(chats, head: bool = True, **change) -> Backbone:
    experiment = runs.experiment(chats, **change)
    return Backbone(experiment, attention.resolve(experiment, "cpu", {"tensor": 1, "context": 1}), head)


def loaded(made: Backbone, path, mesh):
    return made.load(path, mesh, 0, lambda text: None)


def same(one, two) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))


def test_without_adapters_all_is_trained_and_nothing_frozen(chats, base, mesh):
    found = loaded(backbone(chats), base, mesh)
    assert found.frozen == ()
    assert found.scorer is None
    assert same(found.trained, read_params(detect(base)))
    assert found.tokenizer.fingerprint == detect(base).tokenizer().fingerprint


def test_with_adapters_the_base_is_frozen_and_together_they_begin_as_it(chats, base, mesh):
    made = backbone(chats, lora=Lora(rank=2, base_dtype="float32"))
    found = loaded(made, base, mesh)
    assert set(found.trained) == {"lora", "params"}
    assert found.trained["params"] == {}
    whole = read_params(detect(base))
    assert same(found.frozen["params"], whole)
    merged = made.params(found.trained, found.frozen)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, whole)


@pytest.mark.parametrize("base_as", ["float32", "nf4"])
def test_merged_parameters_compute_what_the_parts_do(chats, base, mesh, base_as):
    made = backbone(chats, lora=Lora(rank=2, base_dtype=base_as, alpha=8.0))
    found = loaded(made, base, mesh)
    rng = np.random.default_rng(1)
    trained = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), found.trained)
    apart = jax.jit(lambda t: made.eval_network.apply(made.variables(t, found.frozen), IDS)[0])(trained)
    network = transformer.Transformer(made.cfg, made.eval_network.compute)
    whole = jax.jit(lambda t: network.apply({"params": made.params(t, found.frozen)}, IDS)[0])
    merged, still = whole(trained), whole(found.trained)
    np.testing.assert_allclose(apart, merged, atol=1e-4)
    assert np.abs(merged - still).max() > 1e-2


def test_without_a_head_a_language_model_leaves_its_own(chats, base, mesh):
    made = backbone(chats, head=False)
    found = loaded(made, base, mesh)
    whole = read_params(detect(base))
    assert set(found.trained) == set(whole) - {"head"}
    assert same(found.trained["blocks"], whole["blocks"])


def test_a_reward_model_gives_its_head_and_calibration(chats, rm, mesh):
    found = loaded(backbone(chats, head=False), rm, mesh)
    params, head = read_reward_model(detect(rm))[:2]
    assert same(found.trained, params)
    np.testing.assert_array_equal(found.scorer.head, head)
    assert [found.scorer.gain, found.scorer.bias] == detect(rm).meta["calibration"]


def test_only_the_learning_loss_drops(chats, base, mesh):
    """Judged without: the same whatever the key. Dropout is on the adapters' input here."""
    made = backbone(chats, dropout=0.0, lora=Lora(rank=2, base_dtype="float32", dropout=0.5))
    found = loaded(made, base, mesh)
    trained = jax.tree.map(lambda x: x + 0.1, found.trained)
    for learning, differ in ((True, True), (False, False)):
        loss = jax.jit(made.loss(learning))
        one, two = (float(loss(trained, found.frozen, BATCH, jax.random.key(k))[0]) for k in (0, 1))
        assert (one != two) == differ


def test_another_shape_is_refused_with_what_would_fit(chats, base, mesh):
    model = replace(runs.experiment(chats).model, ffn=48)
    with pytest.raises(ValueError, match=r"ffn=32 instead of 48; use --set model=init_from"):
        loaded(backbone(chats, model=model), base, mesh)
