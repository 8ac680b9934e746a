"""Chunked log-probabilities and entropies against plain log-softmax, whole and split over eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenjax.config import MeshShape
from qwenjax.objectives.cross_entropy import next_token_loss
from qwenjax.objectives.log_probs import token_log_probs
from qwenjax.sharding import make_mesh


def plain(hidden, head, targets, chunk=None):
    logp = jax.nn.log_softmax((hidden @ head.astype(hidden.dtype)).astype(jnp.float32))
    return jnp.take_along_axis(logp, targets[..., None], -1)[..., 0], -jnp.sum(jnp.exp(logp) * logp, -1)


def arrays(b=8, t=6, d=16, v=40):
    keys = jax.random.split(jax.random.key(0), 5)
    draw = [jax.random.normal(k, s) for k, s in zip(keys, [(b, t, d), (d, v), (b, t), (b, t)])]
    return draw[0], draw[1], jax.random.randint(keys[4], (b, t), 0, v), draw[2], draw[3]


def weighed(f):
    """A loss that gives every log-probability and every entropy its own cotangent."""

    def loss(hidden, head, targets, a, b, chunk):
        logp, entropy = f(hidden, head, targets, chunk)
        return jnp.sum(a * logp + b * entropy), (logp, entropy)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=5)


def close(got, want, **tol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tol), got, want)


def test_by_hand():
    """Logits 0 and ln 3: p = 1/4, 3/4; H = ¼ ln 4 + ¾ ln 4/3; dlog p_1/dz = onehot - p; dH/dz_j = -p_j (ln p_j + H)."""
    hidden, head, targets = jnp.array([[[1.0]]]), jnp.array([[0.0, np.log(3.0)]]), jnp.array([[1]])
    entropy = np.log(4) / 4 + 0.75 * np.log(4 / 3)
    close(token_log_probs(hidden, head, targets, 4), ([[np.log(3 / 4)]], [[entropy]]), rtol=1e-6)
    (d_logp, d_entropy) = jax.jacrev(lambda w: token_log_probs(hidden, w, targets, 4))(head)
    close(d_logp[0, 0], [[-0.25, 0.25]], rtol=1e-6)
    close(d_entropy[0, 0], [[-0.25 * (entropy - np.log(4)), -0.75 * (entropy - np.log(4 / 3))]], rtol=1e-5)


@pytest.mark.parametrize("chunk", [5, 1000])  # with a padded tail; all at once
def test_chunks_equal_the_whole_and_autodiff(chunk):
    xs = arrays()
    close(weighed(token_log_probs)(*xs, chunk), weighed(plain)(*xs, None), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"fsdp": 2, "tensor": 2, "context": 2}])
def test_sharded_equals_unsharded(mesh):
    xs = arrays()
    want = weighed(token_log_probs)(*xs, 5)
    with jax.set_mesh(make_mesh(MeshShape(**mesh), 64)):
        got = weighed(token_log_probs)(*xs, 5)
    close(got, want, atol=1e-5, rtol=1e-5)


def test_it_is_what_the_language_model_loss_is_made_of():
    hidden, head, targets, weights, _ = arrays()
    ours = lambda h, w: -jnp.sum(weights * token_log_probs(h, w, targets, 7)[0])  # noqa: E731
    theirs = lambda h, w: next_token_loss(h, w, targets, weights, 7)  # noqa: E731
    close(*(jax.value_and_grad(f, (0, 1))(hidden, head) for f in (ours, theirs)), atol=1e-5, rtol=1e-5)


def test_position_t_scores_token_t_plus_1():
    """A bigram table as the model, three tokens: the sequence's probability is a product of table entries."""
    table = np.log([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]])  # p(next | token), by hand
    tokens = np.array([[0, 2, 1, 1]])
    hidden = jnp.eye(3)[tokens]
    logp, _ = token_log_probs(hidden[:, :-1], jnp.asarray(table, jnp.float32), jnp.asarray(tokens[:, 1:]), 8)
    close(jnp.exp(logp), [[0.1, 0.25, 0.6]], rtol=1e-5)


def test_bf16_hidden_keeps_a_float32_head_gradient():
    hidden, head, targets, a, b = arrays()
    xs = hidden.astype(jnp.bfloat16), head, targets, a, b
    (_, (logp, _)), (d_hidden, d_head) = weighed(token_log_probs)(*xs, 7)
    assert (logp.dtype, d_hidden.dtype, d_head.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    want = weighed(plain)(*arrays(), None)
    close((logp, d_head), (want[0][1][0], want[1][1]), atol=0.2)


def test_logits_never_exist_at_once():
    xs = arrays(b=8, t=32, v=512)
    memory = weighed(token_log_probs).lower(*xs, 16).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 256 * 512 * 4


def test_huge_logits_do_not_overflow():
    hidden, *rest = arrays()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(weighed(token_log_probs)(1e4 * hidden, *rest, 8)))
