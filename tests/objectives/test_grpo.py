"""Group-relative advantages and the loss of GRPO."""

import jax
import jax.numpy as jnp
import numpy as np

from qwenjax.objectives.grpo import group_advantages, grpo_loss
from qwenjax.objectives.ppo import kl_k3, policy_loss


def close(got, want, tol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tol, rtol=tol), got, want)


def test_group_advantages_by_hand():
    """0, 2, 4: mean 2, std over n - 1 is 2. Two responses: ±1/√2 whatever the difference."""
    close(group_advantages(jnp.array([0.0, 2.0, 4.0])), [-1, 0, 1])
    close(group_advantages(jnp.array([3.0, 8.0])), [-(0.5**0.5), 0.5**0.5])
    close(group_advantages(jnp.array([3.0, 3.0])), [0, 0])
    close(group_advantages(jnp.array([3.0])), [0])


def test_groups_do_not_see_each_other():
    scores = jnp.array([[0.0, 2.0, 4.0], [100.0, 102.0, 104.0]])
    close(jax.vmap(group_advantages)(scores), [[-1, 0, 1]] * 2)


def test_grpo_weighs_responses_alike_whatever_their_length():
    """Ratio 1, reference the same: every token's loss is -A. Lengths 1 and 3, A = 1 and -1."""
    mask = jnp.arange(3) < jnp.array([1, 3, 0])[:, None]
    logp = jnp.where(mask, -1.0, jnp.nan)
    advantage = jnp.array([1.0, -1.0, 9.0])
    total, weight = jax.vmap(grpo_loss)(logp, logp, logp, advantage, mask)
    close((total, weight), ([-1, 1, 0], [1, 1, 0]))


def test_grpo_is_ppos_loss_plus_k3_and_only_the_policy_gets_a_gradient():
    logp, old, ref = jax.random.normal(jax.random.key(0), (3, 5)) * 0.3
    mask, a = jnp.arange(5) < 4, jnp.float32(1.5)
    loss = lambda *xs: grpo_loss(*xs, mask, 0.2, 0.04)[0]  # noqa: E731
    want = policy_loss(logp, old, jnp.full(5, a), mask)[0] + 0.04 * jnp.sum(kl_k3(logp, ref, mask))
    close(loss(logp, old, ref, a), want / 4)
    grads = jax.grad(loss, (0, 1, 2, 3))(logp, old, ref, a)
    assert np.abs(grads[0]).max() > 0
    close(grads[1:], (np.zeros(5), np.zeros(5), 0.0))
