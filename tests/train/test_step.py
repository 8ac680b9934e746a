"""The pure step: sharded = unsharded, accumulation = big batch, memorising, non-finite protection."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenjax.config import AdamW, Compute, Data, Experiment, MeshShape, ModelConfig
from qwenjax.data.batches.text import batch_shapes
from qwenjax.sharding import make_mesh
from qwenjax.train import step as steps
from qwenjax.train.backbone import Backbone
from qwenjax.train.step import UNLIMITED

MODEL = ModelConfig(vocab=96, layers=2, embed=32, heads=4, ffn=64, context=32)
BASE = Experiment(
    name="step",
    model=MODEL,
    data=Data(seq_len=16, batch_size=16, document_mask=True),
    optim=AdamW(peak_lr=1e-2, warmup_steps=2, schedule="constant"),
    compute=Compute(dtype="float32", remat="none", loss_chunk=24),
    steps=100,
)


def batch(experiment, seed=0):
    """Packed rows with uneven numbers of weighted tokens per row, on purpose."""
    rng = np.random.default_rng(seed)
    b, t = experiment.data.batch_size, experiment.data.seq_len
    tokens = rng.integers(0, experiment.model.vocab, (b, t + 1)).astype(np.int32)
    segments = np.sort(rng.integers(0, 3, (b, t)), axis=1).astype(np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": (rng.random((b, t)) < np.linspace(0.1, 1, b)[:, None]).astype(np.float32),
        "positions": np.broadcast_to(np.arange(t, dtype=np.int32), (b, t)),
        "segments": segments,
    }


def program(experiment, devices=None):
    devices = jax.devices()[:devices] if devices else jax.devices()
    mesh = make_mesh(experiment.mesh, experiment.model.embed, devices)
    compute = experiment.compute.resolved("cpu", mesh.shape["tensor"])
    batch = batch_shapes(experiment.data.batch_size, experiment.data.seq_len, experiment.data.document_mask)
    backbone = Backbone(experiment, compute)
    return steps.build(experiment, backbone.loss(), mesh, batch, backbone.init_params)


def placed(built, rows):
    return {name: jax.device_put(rows[name], like.sharding) for name, like in built.batch.items()}


def train(experiment, n=3, devices=None):
    """(losses, gradient norms, parameters on the host) of n steps."""
    built = program(experiment, devices)
    state, seen = built.init(), []
    for i in range(n):
        state, metrics = built.step(state, placed(built, batch(experiment, i)), UNLIMITED)
        seen.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    assert int(state.step) == n
    return np.array(seen), jax.device_get(state.params)


def same(got, want):
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(got[1])[0], jax.tree.leaves(want[1])):
        # Adam's first steps are sign-like: a gradient of rounding size may still move by a learning rate
        np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def unsharded():
    return train(replace(BASE, mesh=MeshShape(fsdp=1)), devices=1)


@pytest.mark.parametrize(
    "mesh",
    [
        {"fsdp": 8},
        {"data": 8, "fsdp": 1},
        {"data": 2, "fsdp": 4},
        {"fsdp": 4, "tensor": 2},
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"fsdp": 1, "tensor": 4, "context": 2},
        {"data": 2, "fsdp": 2, "context": 2},
    ],
    ids=str,
)
def test_sharded_steps_equal_unsharded(mesh, unsharded):
    same(train(replace(BASE, mesh=MeshShape(**mesh))), unsharded)


@pytest.mark.parametrize(("accumulate", "mesh"), [(2, {"fsdp": 1}), (4, {"fsdp": 1}), (2, {"data": 2, "fsdp": 4})])
def test_micro_batches_equal_one_batch(accumulate, mesh, unsharded):
    devices = 1 if mesh == {"fsdp": 1} else 8
    same(train(replace(BASE, accumulate=accumulate, mesh=MeshShape(**mesh)), devices=devices), unsharded)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_fewer_kv_heads_than_tensor_shards(kv_heads):
    grouped = replace(BASE, model=replace(MODEL, kv_heads=kv_heads, heads=8, head_dim=8))
    want = train(replace(grouped, mesh=MeshShape(fsdp=1)), n=2, devices=1)
    same(train(replace(grouped, mesh=MeshShape(fsdp=2, tensor=4)), n=2), want)


def test_remat_scan_and_fusing_do_not_change_the_steps(unsharded):
    compute = replace(BASE.compute, remat="full", scan=False, fuse="no")
    same(train(replace(BASE, compute=compute, mesh=MeshShape(fsdp=1)), devices=1), unsharded)


def test_parameters_are_created_in_their_shards_and_equal_everywhere():
    split = program(replace(BASE, mesh=MeshShape(fsdp=4, tensor=2))).init()
    q = split.params["blocks"]["attn"]["q"]
    assert q.addressable_shards[0].data.shape == (2, 32 // 4, 4 // 2, 8)
    moment = split.opt_state[1].mu["blocks"]["attn"]["q"]
    assert moment.sharding == q.sharding  # Adam's moments live with their parameter
    whole = program(replace(BASE, mesh=MeshShape(fsdp=1)), devices=1).init()
    for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(whole)):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_tiny_model_memorises_one_batch():
    experiment = replace(
        BASE, data=replace(BASE.data, batch_size=4), mesh=MeshShape(fsdp=1), optim=replace(BASE.optim, weight_decay=0)
    )
    built = program(experiment, devices=1)
    state, rows = built.init(), batch(experiment)
    rows["weights"][:] = 1
    for _ in range(100):
        state, metrics = built.step(state, placed(built, rows), UNLIMITED)
    assert metrics["loss"] < 0.1  # from ln 96 = 4.6


def test_dropout_is_replayed_by_step_and_differs_between_steps_and_micro_steps():
    experiment = replace(BASE, dropout=0.2, accumulate=2, mesh=MeshShape(fsdp=1))
    built = program(experiment, devices=1)
    rows = placed(built, batch(experiment))

    def loss(step):
        state = built.init()._replace(step=jnp.int32(step))
        return float(built.step(state, rows, UNLIMITED)[1]["loss"])

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)


def one_more(built, state, rows, limits):
    """(state before, state after, metrics) of a step, on the host."""
    before = jax.device_get(state)
    state, metrics = built.step(state, placed(built, rows), np.array(limits, np.float32))
    return before, jax.device_get(state), jax.device_get(metrics)


def identical(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def begun():
    """A program, a function that makes its state after one step, a second batch, and what that does without limits."""
    built = program(replace(BASE, mesh=MeshShape(fsdp=1)), devices=1)

    def state():
        return built.step(built.init(), placed(built, batch(BASE)), UNLIMITED)[0]

    rows = batch(BASE, 1)
    _, after, metrics = one_more(built, state(), rows, UNLIMITED)
    assert metrics["applied"]
    assert int(after.step) == 2
    return built, state, rows, after, metrics


def test_a_non_finite_step_changes_nothing_but_the_flag(begun):
    built, state, rows, *_ = begun
    weights = rows["weights"].copy()
    weights[3, 2] = np.nan
    before, after, metrics = one_more(built, state(), rows | {"weights": weights}, UNLIMITED)
    assert not metrics["applied"]
    assert identical(after, before)


@pytest.mark.parametrize("over", [(1, 0), (0, 1), (1, 1)], ids=["loss", "norm", "both"])
def test_a_batch_beyond_a_limit_changes_nothing_but_the_flag(begun, over):
    """Beyond by one unit in the last place: the limits are the values themselves, less that."""
    built, state, rows, _, seen = begun
    values = seen["loss"], seen["grad_norm"]
    limits = [np.nextafter(x, np.float32(0)) if o else np.inf for x, o in zip(values, over)]
    before, after, metrics = one_more(built, state(), rows, limits)
    assert not metrics["applied"]
    assert identical(after, before)
    assert {**metrics, "applied": True} == seen  # what was left out is said


def test_a_batch_within_the_limits_is_applied_as_without_any(begun):
    built, state, rows, want, seen = begun
    _, after, metrics = one_more(built, state(), rows, (seen["loss"], seen["grad_norm"]))
    assert metrics == seen
    assert identical(after, want)


def test_bf16_compute_keeps_float32_masters_and_learns_alike(unsharded):
    compute = replace(BASE.compute, dtype="bfloat16")
    losses, params = train(replace(BASE, compute=compute, mesh=MeshShape(fsdp=1)), devices=1)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(losses[:, 0], unsharded[0][:, 0], rtol=2e-2)


def test_the_14b_step_traces_with_its_exact_shapes():
    """The real experiment, lowered for a mesh of eight, without a byte of its 170 GB."""
    from qwenjax.config import lookup

    experiment = lookup.experiment("qwen14b", {"data.batch_size": 8})
    built = program(experiment)
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(built.shapes.params)) == experiment.model.params
    lowered = built.step.lower(built.shapes, built.batch, UNLIMITED)
    assert "152064" in lowered.as_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data": replace(BASE.data, batch_size=12)},
            r"do not divide over 8 devices \(data x fsdp\); use .*batch_size=8 or 16",
        ),
        ({"accumulate": 4}, "gives 4 rows"),
        (
            {"model": replace(MODEL, embed=36, heads=2, head_dim=16), "mesh": MeshShape(fsdp=8)},
            "axis 'embed' of size 36 does not divide over fsdp=8",
        ),
        (
            {"mesh": MeshShape(fsdp=1, context=8), "data": replace(BASE.data, seq_len=12)},
            "does not divide over mesh.context",
        ),
    ],
)
def test_what_does_not_divide_is_refused_with_sizes_that_would(change, message):
    with pytest.raises(ValueError, match=message):
        program(replace(BASE, **change))
