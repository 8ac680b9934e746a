"""Masked moments, rewards per token, GAE and the running mean: hand-worked, brute force, and the classic bugs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenjax.config import MeshShape
from qwenjax.objectives.advantages import RunningMean, gae, token_rewards
from qwenjax.objectives.masked import explained_variance, is_last, masked_mean, masked_variance, whiten
from qwenjax.sharding import make_mesh

NAN = jnp.nan


def close(got, want, tol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tol, rtol=tol), got, want)


def trajectory(t=9, seed=0):
    return jax.random.normal(jax.random.key(seed), (2, t))


def pad(x, left, right, fill=NAN):
    return jnp.concatenate([jnp.full(left, fill), x, jnp.full(right, fill)])


def padded_mask(t, left, right):
    return pad(jnp.ones(t), left, right, 0) > 0


# masked moments


def test_whitening_by_hand():
    """1, 3, 5: mean 3, variance (4 + 0 + 4) / 2 = 4 over n - 1, so -1, 0, 1. Padding counts nowhere."""
    x, mask = jnp.array([NAN, 1.0, 3.0, 1e9, 5.0, NAN]), jnp.array([False, True, True, False, True, False])
    close((masked_mean(x, mask), masked_variance(x, mask)), (3.0, 4.0))
    close(whiten(x, mask), [0, -1, 0, 0, 1, 0])
    close(whiten(jnp.array([7.0]), jnp.array([True])), [0.0])  # n - 1 = 0
    close(whiten(x, jnp.zeros(6, bool)), np.zeros(6))


def test_whitening_keeps_a_small_spread_on_a_large_mean():
    close(whiten(jnp.array([4096.0, 4096.5, 4097.0]), jnp.ones(3, bool)), [-1, 0, 1])


def test_whitening_is_global_and_sharding_does_not_matter():
    x, mask = jax.random.normal(jax.random.key(0), (8, 6)) + jnp.arange(8.0)[:, None], jnp.arange(6) < 4
    mask = jnp.broadcast_to(mask, x.shape)
    whole = whiten(x, mask)
    close((whole[mask].mean(), whole[mask].std(ddof=1)), (0, 1), 1e-5)
    assert abs(whole[0][mask[0]].mean()) > 1  # a row of its own is not centred
    mesh = make_mesh(MeshShape(fsdp=4, context=2), 64)
    rows = jax.NamedSharding(mesh, jax.P("fsdp", "context"))
    close(jax.jit(whiten)(jax.device_put(x, rows), jax.device_put(mask, rows)), whole, 1e-5)


def test_explained_variance():
    returns, mask = jnp.array([1.0, 2.0, 3.0, NAN]), jnp.arange(4) < 3
    close(explained_variance(returns, returns, mask), 1)
    close(explained_variance(jnp.zeros(4), returns, mask), 0)
    close(explained_variance(returns + 5, returns, mask), 1)  # a constant offset is not unexplained variance
    close(explained_variance(-returns, returns, mask), -3)  # Var(2R) = 4 Var(R)
    close(explained_variance(returns, jnp.ones(4), mask), 0)


# ends and rewards


@pytest.mark.parametrize(("left", "length", "right"), [(0, 4, 0), (2, 1, 3), (2, 4, 2), (0, 3, 5), (6, 2, 0)])
def test_the_score_lands_once_at_the_end_token_under_any_padding(left, length, right):
    t = left + length + right
    rewards = token_rewards(0.7, jnp.zeros(t), jnp.zeros(t), padded_mask(length, left, right))
    close(rewards, jnp.zeros(t).at[left + length - 1].set(0.7))


def test_last_is_nowhere_in_an_empty_mask():
    assert not is_last(jnp.zeros(3, bool)).any()
    close(token_rewards(5.0, trajectory(3)[0], trajectory(3)[1], jnp.zeros(3, bool)), np.zeros(3))


def test_token_rewards_by_hand():
    """β = 0.04, log-ratios 1, -2, 3; the score 0.7 comes on top of the last one's penalty. Padding is nothing."""
    logp, ref = jnp.array([NAN, -1.0, -3.0, -1.0, -9.0]), jnp.array([-1.0, -2.0, -1.0, -4.0, NAN])
    mask = padded_mask(3, 1, 1)
    close(token_rewards(0.7, logp, ref, mask), [0, -0.04, 0.08, 0.7 - 0.12, 0])


def test_rewards_push_back_towards_the_reference_and_carry_no_gradient():
    logp, ref = trajectory()
    mask = jnp.ones(9, bool)
    total = lambda logp, ref: jnp.sum(token_rewards(2.0, logp, ref, mask, 0.1))  # noqa: E731
    close(total(logp, ref), 2.0 - 0.1 * jnp.sum(logp - ref), 1e-5)
    assert total(ref + 1, ref) < 2 < total(ref - 1, ref)  # more likely than the reference costs
    close(jax.grad(total, (0, 1))(logp, ref), (np.zeros(9), np.zeros(9)))


# advantages


def brute_force(rewards, values, gamma, lam):
    """A_t = Σ_k (γλ)^k δ_{t+k}, written out in float64."""
    r, v = np.asarray(rewards, np.float64), np.append(np.asarray(values, np.float64), 0)
    n = len(r)
    delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(n)]
    return [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)]


def test_gae_by_hand():
    """γ = λ = ½; r = 0, 0, 1; V = 4, 2, 1. δ = -3, -1.5, 0; A_2 = 0, A_1 = -1.5, A_0 = -3 - 1.5/4; R = A + V."""
    got = gae(jnp.array([0.0, 0, 1]), jnp.array([4.0, 2, 1]), jnp.ones(3, bool), 0.5, 0.5)
    close(got, ([-3.375, -1.5, 0.0], [0.625, 0.5, 1.0]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (0.99, 0.9)])
def test_gae_equals_the_double_loop_under_any_padding(gamma, lam):
    rewards, values = trajectory()
    want = brute_force(rewards, values, gamma, lam)
    for left, right in [(0, 0), (0, 5), (4, 1)]:
        mask = padded_mask(9, left, right)
        advantages, returns = gae(pad(rewards, left, right), pad(values, left, right), mask, gamma, lam)
        close(advantages, pad(jnp.array(want), left, right, 0), 1e-5)
        close(returns, pad(jnp.array(want) + values, left, right, 0), 1e-5)


def test_an_episode_ends_at_its_last_token_whatever_the_value_model_says_after_it():
    """The last advantage is r - V, with no γ V of the position after the end token."""
    mask = jnp.array([True, True, False])
    advantages, _ = gae(jnp.array([0.0, 1.0, 0.0]), jnp.array([0.0, 0.25, 100.0]), mask)
    close(advantages[1], 0.75)


def test_lambda_1_without_values_is_reward_to_go_and_lambda_0_is_one_step():
    rewards, values = trajectory()
    mask = jnp.ones(9, bool)
    to_go = jnp.cumsum(rewards[::-1])[::-1]
    close(gae(rewards, 0 * values, mask, 1.0, 1.0)[0], to_go, 1e-5)
    close(gae(jnp.ones(3), jnp.zeros(3), mask[:3], 0.5, 1.0)[0], [1.75, 1.5, 1.0])  # R_t = r_t + γ R_{t+1}
    close(gae(rewards, values, mask, 1.0, 1.0)[1], to_go, 1e-5)  # λ = 1: returns do not depend on the values
    close(gae(rewards, values, mask, 1.0, 0.0)[0], rewards + jnp.append(values[1:], 0) - values, 1e-5)


def test_a_tool_output_inside_a_response_is_stepped_over():
    rewards, values = trajectory(4)
    hole = lambda x: jnp.concatenate([x[:2], jnp.full(3, NAN), x[2:]])  # noqa: E731
    mask = jnp.array([True] * 2 + [False] * 3 + [True] * 2)
    close(gae(hole(rewards), hole(values), mask)[0][mask], gae(rewards, values, mask[mask])[0])


def test_returns_are_of_raw_advantages_and_no_gradient_reaches_the_values():
    rewards, values = trajectory()
    mask = jnp.ones(9, bool)
    advantages, returns = gae(rewards, values, mask)
    close(returns - values, advantages)
    assert not np.allclose(returns - values, whiten(advantages, mask))
    total = lambda r, v: sum(jnp.sum(x) for x in gae(r, v, mask))  # noqa: E731
    close(jax.grad(total, (0, 1))(rewards, values), (np.zeros(9), np.zeros(9)))


def test_gae_vmaps_over_responses_of_different_length():
    rewards, values = jax.random.normal(jax.random.key(1), (2, 3, 6))
    mask = jnp.arange(6) < jnp.array([6, 2, 4])[:, None]
    advantages, _ = jax.vmap(gae)(rewards, values, mask)
    for row, n in enumerate([6, 2, 4]):
        close(advantages[row, :n], brute_force(rewards[row, :n], values[row, :n], 1.0, 0.95), 1e-5)


# running mean


def test_the_running_mean_is_the_mean_of_everything_however_it_was_batched():
    scores = jax.random.normal(jax.random.key(2), (24,)) * 3 + 1000
    for real in (jnp.ones(24, bool), jnp.arange(24) % 3 > 0):  # the second leaves the first batch empty
        given = jnp.where(real, scores, NAN)
        parts, whole = RunningMean.zero(), RunningMean.zero().add(given, real)
        for cut in (lambda x: x[:1], lambda x: x[1:9], lambda x: x[9:].reshape(3, 5)):
            parts = jax.jit(RunningMean.add)(parts, cut(given), cut(real))
        want = np.asarray(scores, np.float64)[real]
        for state in (parts, whole):
            assert int(state.count) == want.size
            close((state.mean, state.squares / (want.size - 1)), (want.mean(), want.var(ddof=1)), 1e-5)


def test_only_real_scores_move_the_running_mean():
    """2, 4: mean 3, squares 1 + 1. Then 9: mean 5, squares 9 + 1 + 16. What else the batch holds does not show."""
    for other in (0.0, 1e30, NAN, jnp.inf):
        first = RunningMean.zero().add(jnp.array([other, 2.0, 4.0, other]), jnp.array([False, True, True, False]))
        close(first, RunningMean(2, 3.0, 2.0))
        close(first.add(jnp.array([9.0, other]), jnp.array([True, False])), RunningMean(3, 5.0, 26.0))


def test_a_batch_without_any_real_score_changes_nothing():
    for state in (RunningMean.zero(), RunningMean.zero().add(jnp.array([2.0, 4.0, 1e3]), jnp.ones(3, bool))):
        after = state.add(jnp.array([NAN, 1e30, 7.0]), jnp.zeros(3, bool))
        jax.tree.map(np.testing.assert_array_equal, after, state)
        assert [x.dtype for x in after] == [x.dtype for x in state]  # so it can be carried through a scan


def test_normalising_subtracts_and_divides_only_when_asked():
    """After 1, 3: mean 2, and the deviation over n - 1 is √2; then 8: mean 4."""
    state = RunningMean.zero().add(jnp.array([1.0, 3.0]), jnp.ones(2, bool))
    close(state.normalise(jnp.array([1.0, 3.0])), [-1, 1])
    close(state.normalise(jnp.array([4.0]), normalize_std=True), [2 / np.sqrt(2)])
    close(state.add(jnp.array([8.0]), jnp.ones(1, bool)).normalise(jnp.array([8.0])), [4])
