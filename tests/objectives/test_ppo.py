"""PPO's losses and diagnostics: numbers worked by hand, identities, and the classic bugs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenjax.objectives.masked import masked_sum
from qwenjax.objectives.ppo import (
    adaptive_kl,
    clip_fraction,
    kl_k1,
    kl_k3,
    policy_loss,
    truncated_mass,
    value_loss,
)
from qwenjax.objectives.reinforce import reinforce_loss

NAN = jnp.nan
ONE = jnp.ones(1, bool)


def close(got, want, tol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tol, rtol=tol), got, want)


def draws(t=7):
    logp, old, advantages, values = jax.random.normal(jax.random.key(0), (4, t))
    return logp, logp + 0.3 * old, advantages, values


# policy


def test_policy_loss_by_hand():
    """ε = 0.2, ratios 2, 2, ½, ½ with A = 3, -3, 3, -3: -3·1.2, 3·2 (free), -3·½ (free), 3·0.8."""
    logp = jnp.log(jnp.array([2.0, 2.0, 0.5, 0.5]))
    advantages, mask = jnp.array([3.0, -3.0, 3.0, -3.0]), jnp.ones(4, bool)
    close(policy_loss(logp, jnp.zeros(4), advantages, mask), (-3.6 + 6.0 - 1.5 + 2.4, 4.0))
    close(clip_fraction(logp, jnp.zeros(4), advantages, mask), (2.0, 4.0))  # the first and the last


def test_the_gradient_is_zero_exactly_where_clipping_helps():
    logp = jnp.log(jnp.array([2.0, 2.0, 0.5, 0.5, 1.1]))
    advantages = jnp.array([3.0, -3.0, 3.0, -3.0, 1.0])
    grads = jax.grad(lambda x: policy_loss(x, jnp.zeros(5), advantages, jnp.ones(5, bool))[0])(logp)
    close(grads, [0, 6.0, -1.5, 0, -1.1])  # -A ρ where it is not clipped


def test_at_ratio_1_the_loss_is_minus_the_advantage_and_the_gradient_reinforces():
    logp, _, advantages, _ = draws()
    mask = jnp.arange(7) < 5
    loss, grads = jax.value_and_grad(lambda x: policy_loss(x, logp, advantages, mask)[0])(logp)
    close(loss, -jnp.sum(advantages[:5]))
    close(grads, jax.grad(lambda x: reinforce_loss(x, advantages, mask)[0])(logp))
    close(grads, jnp.where(mask, -advantages, 0))
    close(clip_fraction(logp, logp, advantages, mask)[0], 0)


def test_old_log_probs_and_advantages_get_no_gradient_even_when_they_depend_on_the_parameters():
    logp, old, advantages, _ = draws()
    mask = jnp.ones(7, bool)
    grads = jax.grad(lambda *xs: policy_loss(*xs, mask)[0], (0, 1, 2))(logp, old, advantages)
    assert np.abs(grads[0]).max() > 0
    close(grads[1:], (np.zeros(7), np.zeros(7)))
    # one array as both, as in a first epoch on fresh samples: a loss that does not detach would have gradient 0
    assert np.abs(jax.grad(lambda x: policy_loss(x, x, advantages, mask)[0])(logp)).max() > 0


@pytest.mark.parametrize(("left", "right"), [(0, 5), (17, 0), (2, 3)])
def test_padding_changes_neither_losses_nor_gradients(left, right):
    logp, old, advantages, _ = draws()
    pad = lambda x: jnp.concatenate([jnp.full(left, NAN), x, jnp.full(right, NAN)])  # noqa: E731
    mask = (jnp.arange(7 + left + right) >= left) & (jnp.arange(7 + left + right) < left + 7)
    for f in (policy_loss, value_loss, clip_fraction):
        plain = jax.value_and_grad(lambda *xs, f=f: f(*xs)[0])(logp, old, advantages, jnp.ones(7, bool))
        padded = jax.value_and_grad(lambda *xs, f=f: f(*xs)[0])(pad(logp), pad(old), pad(advantages), mask)
        close(padded[0], plain[0], 1e-5)
        close(padded[1], jnp.zeros(mask.size).at[left : left + 7].set(plain[1]), 1e-5)
    for f in (kl_k1, kl_k3):
        close(jnp.sum(f(pad(logp), pad(old), mask)), jnp.sum(f(logp, old, jnp.ones(7, bool))), 1e-5)


def test_a_mask_shifted_by_one_is_another_loss():
    """The prompt's last position chooses the first response token, so it counts; the end token's own does not."""
    logp, old, advantages = jnp.zeros(4), jnp.zeros(4), jnp.array([8.0, 1.0, 2.0, 8.0])
    tokens_are_response = jnp.array([False, False, True, True, False])  # of 5 tokens; 4 positions choose the next one
    close(policy_loss(logp, old, advantages, tokens_are_response[1:]), (-3.0, 2.0))


def test_a_step_raises_the_probability_of_the_rewarded_token():
    logits, action = jnp.zeros(3), 1
    logp = lambda logits: jax.nn.log_softmax(logits)[action][None]  # noqa: E731
    for advantage, direction in ((2.0, 1), (-2.0, -1)):
        loss = lambda x, a=advantage: policy_loss(logp(x), logp(logits), jnp.array([a]), ONE)[0]  # noqa: E731
        after = logits - 0.1 * jax.grad(loss)(logits)
        assert np.sign(logp(after) - logp(logits)) == direction


def test_policies_far_apart_give_finite_losses_and_gradients():
    for gap, advantage in [(500.0, 1.0), (500.0, -1.0), (-500.0, 1.0), (-500.0, -1.0)]:
        loss = lambda x, a=advantage: policy_loss(x, jnp.zeros(1), jnp.array([a]), ONE)[0]  # noqa: E731
        assert all(np.isfinite(x).all() for x in jax.value_and_grad(loss)(jnp.array([gap])))
        assert np.isfinite(kl_k3(jnp.array([gap]), jnp.zeros(1), ONE)).all()


# value


def test_value_loss_by_hand():
    """c = 0.15. V = 1, V_old = 0, R = 2: near = 0.15, ½ max(1, 1.85²). R = 0: ½ max(1, 0.15²): never the smaller."""
    close(value_loss(jnp.array([1.0]), jnp.zeros(1), jnp.array([2.0]), ONE)[0], 0.5 * 1.85**2)
    close(value_loss(jnp.array([1.0]), jnp.zeros(1), jnp.zeros(1), ONE)[0], 0.5)


def test_the_value_gradient_stops_only_once_the_value_has_moved_far_towards_its_return():
    grad = lambda v, old, r: jax.grad(  # noqa: E731
        lambda x: value_loss(x, jnp.array([old]), jnp.array([r]), ONE)[0]
    )(jnp.array([v]))
    close(grad(1.0, 0.0, 2.0), [0.0])  # went up by more than 0.15, and the return is further up: enough
    close(grad(1.0, 0.0, -1.0), [2.0])  # went up although the return is below: V - R
    close(grad(0.1, 0.0, 2.0), [-1.9])  # within reach


def test_old_values_and_returns_get_no_gradient():
    _, old, returns, values = draws()
    grads = jax.grad(lambda *xs: value_loss(*xs, jnp.ones(7, bool))[0], (0, 1, 2))(values, old, returns)
    assert np.abs(grads[0]).max() > 0
    close(grads[1:], (np.zeros(7), np.zeros(7)))


# KL


def test_kl_estimators_have_their_signs_and_converge_to_the_exact_kl():
    policy, ref = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.3, 0.5]))
    exact = jnp.sum(jnp.exp(policy) * (policy - ref))  # 0.3 ln 2.5
    close(exact, 0.3 * np.log(2.5))
    mask = jnp.ones(3, bool)
    for estimate in (kl_k1, kl_k3):  # unbiased: the expectation under π, exactly
        close(jnp.sum(jnp.exp(policy) * estimate(policy, ref, mask)), exact)
    tokens = jax.random.categorical(jax.random.key(3), policy, shape=(20_000,))
    for estimate in (kl_k1, kl_k3):
        sampled = estimate(policy[tokens], ref[tokens], jnp.ones(20_000, bool))
        close(sampled.mean(), exact, 4 * float(sampled.std()) / np.sqrt(20_000))
    assert (kl_k3(policy, ref, mask) >= 0).all()
    assert kl_k1(policy, ref, mask)[0] > 0 > kl_k1(policy, ref, mask)[2]
    close(kl_k3(policy, ref, mask)[0], 0.4 - 1 - np.log(0.4))  # e^d - 1 - d, d = ln(0.2 / 0.5)


def test_kl_as_a_loss_pulls_back_and_spares_the_reference():
    ref = jnp.array([-1.0])
    for start in (-0.5, -3.0):
        grads = jax.grad(lambda x, r: kl_k3(x, r, ONE)[0], (0, 1))(jnp.array([start]), ref)
        assert np.sign(grads[0][0]) == np.sign(start + 1)
        close(grads[1], [0.0])


def test_the_kl_controller_by_hand():
    """Target 6, horizon 10,000, 64 sequences: KL 6.6 is 10 % high; 60 and 0 are held at ±20 %."""
    for kl, error in [(6.6, 0.1), (6.0, 0.0), (60.0, 0.2), (0.0, -0.2)]:
        close(adaptive_kl(jnp.float32(0.04), kl, 6.0, 64), 0.04 * (1 + error * 0.0064))


def test_truncated_mass():
    """Probabilities ½, 0.3 kept of ½, 0.3, 0.2: drawn from 0.625, 0.375, so 0.2 was cut off wherever one looks."""
    logp, drawn = jnp.log(jnp.array([0.5, 0.3, NAN])), jnp.log(jnp.array([0.625, 0.375, NAN]))
    close(truncated_mass(logp, drawn, jnp.arange(3) < 2), [0.2, 0.2, 0.0])


# sums


def test_microbatches_of_uneven_length_add_up_to_the_whole_batch():
    logp, old, advantages, values = jax.random.normal(jax.random.key(4), (4, 6, 5))
    mask = jnp.arange(5) < jnp.array([5, 1, 2, 5, 4, 0])[:, None]
    for f, xs in ((jax.jit(policy_loss), (logp, old, advantages)), (jax.jit(value_loss), (values, old, advantages))):
        rows = jax.vmap(f)(*xs, mask)
        whole = f(*xs, mask)
        close(jax.tree.map(jnp.sum, rows), whole, 1e-5)
        parts = [f(*(x[i : i + 2] for x in xs), mask[i : i + 2]) for i in (0, 2, 4)]
        close(tuple(map(sum, zip(*parts))), whole, 1e-5)
    close(masked_sum(logp, mask)[1], 17.0)
