"""Positions split over devices: the order of queries, and that nothing but the place of the work changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from qwenjax.config import Compute, MeshShape, ModelConfig
from qwenjax.model import transformer
from qwenjax.model.attention import attend, splash
from qwenjax.objectives.cross_entropy import next_token_loss
from qwenjax.sharding import make_mesh, per_device, sharding

MESHES = {
    "data 2, fsdp 2, context 2": MeshShape(data=2, fsdp=2, context=2),
    "context 4, tensor 2": MeshShape(data=1, fsdp=1, context=4, tensor=2),
}
ROWS = ("batch", "length")
AXES = ((*ROWS, "heads", None), (*ROWS, "kv_heads", None), (*ROWS, "kv_heads", None), ROWS, ROWS)


@pytest.fixture(params=MESHES, scope="module")
def mesh(request):
    return make_mesh(MESHES[request.param], 512)


def test_order_of_three_devices_by_hand():
    """Chunks of two: 0 to 5 in row order. Device 0 answers 0 and 5, device 1 4 and 1, device 2 2 and 3."""
    assert splash.zigzag_order(12, 3).tolist() == [0, 1, 10, 11, 8, 9, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("parts", range(2, 17))
def test_every_device_does_equal_causal_work(parts):
    order = splash.zigzag_order(6 * parts, parts)
    assert sorted(order) == list(range(6 * parts))
    keys_seen = (order + 1).reshape(parts, -1).sum(axis=1)
    assert len(set(keys_seen)) == 1


def test_spread_follows_the_order_and_collect_undoes_it(mesh):
    t, parts = 64, mesh.shape["context"]
    x = np.broadcast_to(np.arange(t, dtype=np.float32), (4, t))

    def both(x):
        return splash.spread(x, parts), splash.collect(splash.spread(x, parts), parts)

    with jax.set_mesh(mesh):
        there, back = jax.jit(per_device(both, (ROWS,), (ROWS, ROWS)))(x)
    np.testing.assert_array_equal(there, np.broadcast_to(splash.zigzag_order(t, parts), x.shape))
    np.testing.assert_array_equal(back, x)


def shape(mesh):
    """Rows and positions: the least that the kernel takes."""
    return mesh.shape["data"] * mesh.shape["fsdp"], 256 * mesh.shape["context"]


kernel = functools.partial(splash.attend, block=128, interpret=True)  # on any platform


def test_attention_of_split_rows_equals_whole_rows(mesh):
    """A window, grouped queries, packed rows of which one ends in padding; results and the gradients of q, k and v.

    Split rows in the xla backend are in tests/train/test_step.py.
    """
    rng, b, t, window = np.random.default_rng(0), *shape(mesh), 300
    q, k, v = (rng.normal(size=(b, t, n, 128)).astype(np.float32) for n in (4, 2, 2))
    pos = np.broadcast_to(np.arange(t, dtype=np.int32), (b, t)).copy()
    pos[-1, -70:] = -1
    segments = np.sort(rng.integers(0, 3, (b, t)), axis=1).astype(np.int32)
    mix = rng.normal(size=q.shape).astype(np.float32)

    def run(backend, q, k, v, pos, segments):
        out = backend(q, k, v, pos, pos, segments, segments)
        return jnp.sum(out * mix), out

    def results(backend, args):
        return jax.jit(jax.grad(functools.partial(run, backend), (0, 1, 2), has_aux=True))(*args)

    args = (q, k, v, pos, segments)
    want = results(functools.partial(attend, window=window), args)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, sharding(mesh, axes, x.shape)) for x, axes in zip(args, AXES)]
        got = results(lambda *args: kernel(*args, window, 0.0, None), placed)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=0)


def test_loss_and_gradients_of_the_model_are_those_of_one_device(mesh, monkeypatch):
    """Two layers, grouped queries, packed rows, rows recomputed but for the attention; against xla on one device."""
    cfg = ModelConfig(vocab=64, layers=2, embed=32, heads=4, kv_heads=2, head_dim=128, ffn=64, context=1024)
    rng, b, t = np.random.default_rng(0), *shape(mesh)
    tokens = rng.integers(0, cfg.vocab, (b, t + 1)).astype(np.int32)
    segments = np.sort(rng.integers(0, 3, (b, t)), axis=1).astype(np.int32)
    weights = (rng.random((b, t)) < 0.7).astype(np.float32)
    params = nn.unbox(transformer.init_params(cfg, jax.random.key(0)))
    monkeypatch.setattr(splash, "attend", kernel)

    def results(backend, *batch):
        compute = Compute(dtype="float32", remat="attention", attention=backend, fuse="no")
        model = transformer.Transformer(cfg, compute)

        def loss(params, inputs, targets, weights, segments):
            hidden, _ = model.apply({"params": params}, inputs, None, segments)
            return next_token_loss(hidden, transformer.head(params), targets, weights, 128)

        return jax.jit(jax.value_and_grad(loss))(params, *batch)

    batch = (tokens[:, :-1], tokens[:, 1:], weights, segments)
    loss, grads = results("xla", *batch)
    with jax.set_mesh(mesh):
        split, split_grads = results("splash", *(jax.device_put(x, sharding(mesh, ROWS, x.shape)) for x in batch))
    np.testing.assert_allclose(split, loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(split_grads), jax.tree.leaves(grads)):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(b).max()), rtol=0)


def test_rows_that_do_not_divide_into_chunks_are_refused(mesh):
    q, k, v = (jnp.zeros((4, 256, n, 128)) for n in (4, 2, 2))
    pos = jnp.zeros((4, 256), jnp.int32)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"chunks of [0-9]+ and .*use compute\.attention=xla"):
        jax.jit(lambda q, k, v, pos: kernel(q, k, v, pos, pos, None, None, None, 0.0, None))(q, k, v, pos)


def test_cudnn_refuses_split_rows(mesh):
    q, k, v = (jnp.zeros((4, 256, n, 128), jnp.bfloat16) for n in (4, 2, 2))
    pos = jnp.zeros((4, 256), jnp.int32)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"mesh\.context=1\); use compute\.attention=xla"):
        jax.jit(lambda q, k, v, pos: attend(q, k, v, pos, pos, backend="cudnn"))(q, k, v, pos)
