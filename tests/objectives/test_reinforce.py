"""The leave-one-out baseline and the loss of REINFORCE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenjax.objectives.reinforce import leave_one_out, reinforce_loss


def close(got, want, tol=1e-5):
    np.testing.assert_allclose(got, want, atol=tol, rtol=tol)


def test_leave_one_out_by_hand():
    close(leave_one_out(jnp.array([1.0, 2.0, 6.0])), [1 - 4, 2 - 3.5, 6 - 1.5])
    with pytest.raises(ValueError, match="got 1"):
        leave_one_out(jnp.array([1.0]))


def test_reinforce_is_unbiased_with_a_baseline_and_its_gradient_is_the_true_one():
    """Bandit with three arms: Σ_a π(a) ∇loss(a) = -∇ Σ_a π(a) r(a), whatever constant is the baseline."""
    logits, reward = jnp.array([0.3, -0.5, 0.1]), jnp.array([1.0, 0.0, 5.0])
    probs = jax.nn.softmax(logits)
    want = -jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * reward))(logits)
    for baseline in (0.0, 3.0):

        def loss(x, baseline=baseline):
            each = [reinforce_loss(jax.nn.log_softmax(x)[a][None], reward[a] - baseline, jnp.ones(1, bool))[0]
                    for a in range(3)]  # fmt: skip
            return jnp.sum(probs * jnp.stack(each))

        close(jax.grad(loss)(logits), want)
    advantage_grad = jax.grad(lambda a: reinforce_loss(jnp.array([-1.0]), a, jnp.ones(1, bool))[0])(jnp.array([2.0]))
    close(advantage_grad, [0.0])
