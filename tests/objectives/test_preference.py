"""Pairwise, ranked and DPO losses: numbers worked by hand, identities, and the bugs they must not have."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenjax.objectives.masked import is_last, zero_outside
from qwenjax.objectives.preference import (
    calibration,
    dpo_loss,
    dpo_reward,
    pairwise_loss,
    ranked_loss,
)

ALL = jnp.ones(2, bool)
NAN = jnp.nan


def close(got, want, tol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tol, rtol=tol), got, want)


def test_pairwise_by_hand():
    """r_w - r_l = ln 3: σ = 3/4; = 0: σ = 1/2. Their logs add up to -ln(4/3) - ln 2."""
    close(pairwise_loss(jnp.array([np.log(3), 5.0]), jnp.array([0.0, 5.0]), ALL), (np.log(4 / 3) + np.log(2), 2.0))


def test_the_gradient_raises_the_chosen_score_and_swapping_turns_it_round():
    loss = lambda w, l: pairwise_loss(w, l, ALL)[0]  # noqa: E731
    chosen, rejected = jnp.array([1.0, -1.0]), jnp.array([0.0, 2.0])
    better, worse = jax.grad(loss, (0, 1))(chosen, rejected)
    close(better, -worse)
    close(better, [-1 / (1 + np.e), -1 / (1 + np.e**-3)])  # -σ(-(r_w - r_l))
    assert loss(chosen, rejected) != pytest.approx(loss(rejected, chosen))
    close(loss(chosen, rejected) - loss(rejected, chosen), jnp.sum(rejected - chosen), 1e-5)  # -log σ(x) + log σ(-x)


def test_a_margin_moves_the_threshold_and_not_the_scores():
    chosen, rejected = jnp.array([2.0, 0.5]), jnp.array([1.0, 0.0])
    close(pairwise_loss(chosen, rejected, ALL, 0.5), pairwise_loss(chosen - 0.5, rejected, ALL))
    close(pairwise_loss(chosen, rejected, ALL, chosen - rejected)[0], 2 * np.log(2))
    assert pairwise_loss(chosen, rejected, ALL, 0.5)[0] > pairwise_loss(chosen, rejected, ALL)[0]


def test_rows_that_fill_up_a_batch_change_nothing_even_if_they_are_nan():
    chosen, rejected = jnp.array([1.0, -1.0]), jnp.array([0.0, 2.0])
    fill = lambda x: jnp.concatenate([x, jnp.array([NAN, 3.0])])  # noqa: E731
    real = jnp.array([True, True, False, False])
    close(pairwise_loss(fill(chosen), fill(rejected), real), pairwise_loss(chosen, rejected, ALL))
    grads = jax.grad(lambda w: pairwise_loss(w, fill(rejected), real)[0])(fill(chosen))
    close(grads[2:], [0.0, 0.0])
    assert np.isfinite(grads).all()


def test_huge_differences_stay_finite():
    loss, grad = jax.value_and_grad(lambda w: pairwise_loss(w, -w, ALL)[0])(jnp.array([1e4, -1e4]))
    close((loss, grad), (2e4, [0.0, -2.0]))


def test_a_ranked_list_is_the_mean_over_its_pairs_and_weighs_one():
    scores, ratings = [0.3, -1.2, 2.0, 0.9], [1, 3, 2, 0]
    pairs = [(i, j) for i, j in itertools.permutations(range(4), 2) if ratings[i] > ratings[j]]
    want = np.mean([np.log1p(np.exp(scores[j] - scores[i])) for i, j in pairs])
    assert len(pairs) == 6
    close(ranked_loss(jnp.array(scores), jnp.array(ratings), jnp.ones(4, bool)), (want, 1.0))
    padded = ranked_loss(jnp.array([*scores, NAN]), jnp.array([*ratings, 9]), jnp.arange(5) < 4)
    close(padded, (want, 1.0))


def test_a_list_of_two_is_a_pair_a_tie_is_none_and_lists_vmap():
    scores, ratings = jnp.array([[1.0, 3.0], [1.0, 3.0], [4.0, 4.5]]), jnp.array([[5, 2], [1, 1], [0, 1]])
    total, weight = jax.vmap(ranked_loss)(scores, ratings, jnp.ones((3, 2), bool))
    close(weight, [1.0, 0.0, 1.0])
    close(jnp.sum(total), pairwise_loss(jnp.array([1.0, 4.5]), jnp.array([3.0, 4.0]), ALL)[0])


def test_a_ranked_margin_grows_with_the_difference_of_ratings():
    got = ranked_loss(jnp.array([2.0, 1.0]), jnp.array([5, 2]), ALL, margin=0.25)[0]
    close(got, np.log1p(np.exp(0.75 - 1.0)))  # 3 rating steps of ¼, score difference 1


def test_calibrated_scores_have_mean_0_and_std_1_and_keep_their_order():
    scores, real = jnp.array([3.0, 5.0, 9.0, NAN]), jnp.array([True, True, True, False])
    gain, bias = calibration(scores, real)
    after = np.asarray(gain * scores + bias)[:3]
    close((after.mean(), after.std(ddof=1)), (0.0, 1.0))
    assert gain > 0
    close(calibration(jnp.array([2.0, 2.0]), ALL), (1.0, -2.0))


def test_scores_are_read_at_the_last_real_token_under_any_padding():
    tokens = jnp.array([1.0, 2.0, 7.0])
    read = lambda x, mask: jnp.sum(zero_outside(x, is_last(mask)))  # noqa: E731
    for left, right in [(0, 0), (0, 5), (17, 0), (2, 3)]:
        scores = jnp.concatenate([jnp.full(left, NAN), tokens, jnp.full(right, NAN)])
        mask = (jnp.arange(scores.size) >= left) & (jnp.arange(scores.size) < left + 3)
        value, grad = jax.value_and_grad(read)(scores, mask)
        close(value, 7.0)
        close(grad, jnp.zeros(scores.size).at[left + 2].set(1))
    close(read(tokens, jnp.zeros(3, bool)), 0.0)


def test_dpo_by_hand():
    """h = (-1 + 2) - (-4 + 1) = 4, β = ½: -log σ(2) = ln(1 + e⁻²)."""
    pair = [jnp.array([x]) for x in (-1.0, -4.0, -2.0, -1.0)]
    one = jnp.ones(1, bool)
    close(dpo_loss(*pair, one, beta=0.5), (np.log1p(np.exp(-2)), 1.0))
    smooth = 0.9 * np.log1p(np.exp(-2)) + 0.1 * np.log1p(np.exp(2))
    close(dpo_loss(*pair, one, beta=0.5, smoothing=0.1), (smooth, 1.0))
    close(dpo_reward(pair[0], pair[2], 0.5), [0.5])


def test_dpo_starts_at_log_2_and_its_gradient_is_beta_over_2_and_spares_the_reference():
    logp = jnp.array([-3.0, -8.0]), jnp.array([-5.0, -2.0])
    loss = lambda w, l, rw, rl: dpo_loss(w, l, rw, rl, ALL, beta=0.1)[0]  # noqa: E731
    value, grads = jax.value_and_grad(loss, (0, 1, 2, 3))(*logp, *logp)
    close(value, 2 * np.log(2))
    close(grads, ([-0.05, -0.05], [0.05, 0.05], [0.0, 0.0], [0.0, 0.0]))


def test_dpo_is_the_pairwise_loss_of_its_rewards_and_smoothing_by_half_is_blind():
    xs = jax.random.normal(jax.random.key(0), (4, 2)) * 5
    rewards = dpo_reward(xs[0], xs[2], 0.3), dpo_reward(xs[1], xs[3], 0.3)
    close(dpo_loss(*xs, ALL, beta=0.3), pairwise_loss(*rewards, ALL))
    swapped = xs[1], xs[0], xs[3], xs[2]
    close(dpo_loss(*xs, ALL, smoothing=0.5), dpo_loss(*swapped, ALL, smoothing=0.5))
