"""The chunked vocabulary loss against plain log-softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenjax.config import MeshShape
from qwenjax.objectives.cross_entropy import next_token_loss
from qwenjax.sharding import make_mesh


def plain(hidden, head, targets, weights):
    logp = jax.nn.log_softmax(hidden.astype(jnp.float32) @ head.astype(hidden.dtype).astype(jnp.float32))
    return -jnp.sum(jnp.take_along_axis(logp, targets[..., None], -1)[..., 0] * weights)


def arrays(b=8, t=6, d=16, v=40, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (b, t, d)).astype(dtype)
    weights = (jax.random.uniform(keys[3], (b, t)) < 0.7).astype(jnp.float32) * jnp.linspace(0.5, 2, t)
    return hidden, jax.random.normal(keys[1], (d, v)), jax.random.randint(keys[2], (b, t), 0, v), weights


def test_by_hand():
    """One token, two logits 0 and ln 3: p = 1/4, 3/4; the gradient of the logits is p - onehot."""
    hidden, head = jnp.array([[[1.0]]]), jnp.array([[0.0, np.log(3.0)]])
    loss, (dh, dw) = jax.value_and_grad(next_token_loss, (0, 1))(hidden, head, jnp.array([[1]]), jnp.array([[2.0]]), 4)
    np.testing.assert_allclose(loss, 2 * np.log(4 / 3), rtol=1e-6)
    np.testing.assert_allclose(dw, [[0.5, -0.5]], rtol=1e-6)
    np.testing.assert_allclose(dh, [[[-0.5 * np.log(3.0)]]], rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 5, 12, 48, 1000])  # not only divisors of 48 tokens
def test_chunks_equal_the_plain_loss(chunk):
    hidden, head, targets, weights = arrays()
    want = jax.value_and_grad(plain, (0, 1))(hidden, head, targets, weights)
    got = jax.jit(jax.value_and_grad(next_token_loss, (0, 1)), static_argnums=4)(hidden, head, targets, weights, chunk)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(next_token_loss(hidden, head, targets, weights, chunk), want[0], rtol=1e-6)


@pytest.mark.parametrize(
    "mesh", [{"fsdp": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 4, "tensor": 2}, {"fsdp": 2, "tensor": 2, "context": 2}]
)
def test_sharded_equals_plain(mesh):
    hidden, head, targets, weights = arrays()
    want = jax.value_and_grad(plain, (0, 1))(hidden, head, targets, weights)
    with jax.set_mesh(make_mesh(MeshShape(**mesh), 64)):
        got = jax.jit(jax.value_and_grad(next_token_loss, (0, 1)), static_argnums=4)(hidden, head, targets, weights, 4)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_bf16_hidden_keeps_a_float32_head_gradient_and_scales_with_the_cotangent():
    hidden, head, targets, weights = arrays(dtype=jnp.bfloat16)
    loss, (dh, dw) = jax.value_and_grad(lambda h, w: 3 * next_token_loss(h, w, targets, weights, 7), (0, 1))(
        hidden, head
    )
    want, (wh, ww) = jax.value_and_grad(plain, (0, 1))(hidden, head, targets, weights)
    assert dh.dtype == jnp.bfloat16
    assert dw.dtype == jnp.float32
    np.testing.assert_allclose(loss, 3 * want, rtol=1e-3)
    np.testing.assert_allclose(dh.astype(jnp.float32), 3 * wh.astype(jnp.float32), atol=0.15)
    np.testing.assert_allclose(dw, 3 * ww, atol=0.15)


def test_logits_never_exist_at_once():
    """No array of the compiled program is as large as tokens x vocabulary."""
    hidden, head, targets, weights = arrays(b=8, t=32, v=512)
    step = jax.jit(jax.grad(next_token_loss, (0, 1)), static_argnums=4)
    memory = step.lower(hidden, head, targets, weights, 16).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 256 * 512 * 4


def test_huge_logits_do_not_overflow():
    hidden, head, targets, weights = arrays()
    loss, grads = jax.value_and_grad(next_token_loss, (0, 1))(1e4 * hidden, head, targets, weights, 8)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in grads)
