"""Policies by hand, and drawn tokens against the distribution they define."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenjax.generate.sampling import Greedy, Sample, needs, pick, repeated, sampling_arrays, truncate


def kept(probs, top_k=0, top_p=1.0):
    out = truncate(jnp.log(jnp.array([probs])), jnp.array([top_k]), jnp.array([top_p]))
    return np.flatnonzero(np.isfinite(out[0])).tolist()


def test_top_p_keeps_the_token_that_crosses():
    probs = [0.5, 0.3, 0.15, 0.05]
    assert kept(probs, top_p=0.4) == [0]
    assert kept(probs, top_p=0.5001) == [0, 1]
    assert kept(probs, top_p=0.79) == [0, 1]
    assert kept(probs, top_p=0.81) == [0, 1, 2]
    assert kept(probs) == [0, 1, 2, 3]


def test_top_k_comes_first_and_top_p_counts_what_it_left():
    probs = [0.1, 0.4, 0.2, 0.3]
    assert kept(probs, top_k=2) == [1, 3]
    assert kept(probs, top_k=9) == [0, 1, 2, 3]
    assert kept(probs, top_p=0.69) == [1, 3]  # 0.4 + 0.3
    assert kept(probs, top_k=2, top_p=0.57) == [1]  # 0.4 / 0.7 = 0.571 of the two that are left
    assert kept([0.25] * 4, top_k=1) == [0, 1, 2, 3]  # equals go together


def test_truncation_equals_sorting():
    logits = 3 * jax.random.normal(jax.random.key(0), (5, 500))
    p = jnp.array([0.1, 0.5, 0.9, 0.99, 1.0])
    got = np.isfinite(truncate(logits, jnp.zeros(5, jnp.int32), p))
    for row, mine, share in zip(np.asarray(jax.nn.softmax(logits), np.float64), got, np.asarray(p)):
        order = np.argsort(-row)
        n = int((np.cumsum(row[order]) < share).sum()) + 1
        assert mine.tolist() == np.isin(np.arange(500), order[:n]).tolist()


def draw(policy, scores, n, **options):
    """n tokens with keys 0 … n-1, as counts by id."""
    scores = jnp.broadcast_to(jnp.array(scores, jnp.float32), (n, len(scores)))
    table = sampling_arrays([policy] * n)
    keys = jax.vmap(jax.random.key)(jnp.arange(n))
    options = {"size": scores.shape[1], "count": jnp.zeros(n, jnp.int32)} | options
    return pick(scores, keys, table, needs(table), **options)


@pytest.mark.parametrize(
    ("policy", "want"),
    [
        (Sample(), [0.1, 0.4, 0.2, 0.3]),
        (Sample(temperature=0.5), np.array([1, 16, 4, 9]) / 30),  # squares
        (Sample(top_k=3), np.array([0, 4, 2, 3]) / 9),
        (Sample(top_p=0.65), np.array([0, 4, 0, 3]) / 7),
        (Sample(temperature=0.5, top_k=3, top_p=0.56), np.array([0, 16, 0, 9]) / 25),  # 16/29 = 0.552 is not enough
    ],
)
def test_draws_follow_the_distribution(policy, want):
    """Chi-square; 16.27 is its 0.1 % point with three degrees of freedom, and the seeds are fixed."""
    n, want = 4000, np.array(want)
    picked = draw(policy, np.log([0.1, 0.4, 0.2, 0.3]), n)
    counts = np.bincount(picked.token, minlength=4)
    possible = want > 0
    assert not counts[~possible].any()
    assert ((counts - n * want)[possible] ** 2 / (n * want[possible])).sum() < 16.27
    np.testing.assert_allclose(picked.logprob, np.log(want[np.asarray(picked.token)]), atol=1e-5)
    np.testing.assert_allclose(
        picked.model_logprob, np.log(np.array([0.1, 0.4, 0.2, 0.3])[np.asarray(picked.token)]), atol=1e-5
    )


def test_repetition_penalty_by_hand():
    """Seen scores: 4 / 2 = 2 and -1 · 2 = -2; the unseen 3 wins."""
    seen = jnp.array([[True, False, True]])
    picked = draw(Greedy(repetition_penalty=2.0), [4.0, 3.0, -1.0], 1, seen=seen)
    assert picked.token.tolist() == [1]
    e = np.exp([2, 3, -2])
    picked = draw(Sample(repetition_penalty=2.0), [4.0, 3.0, -1.0], 1, seen=seen)
    np.testing.assert_allclose(picked.logprob, np.log(e / e.sum())[picked.token], rtol=1e-5)


def test_ending_ids_wait_for_min_new_and_padding_for_ever():
    ending = jnp.array([True, False, False])
    for count, want in ((0, 1), (2, 1), (3, 0)):
        picked = draw(Greedy(min_new_tokens=3), [4.0, 3.0, 9.0], 1, ending=ending, count=jnp.array([count]), size=2)
        assert picked.token.tolist() == [want]


@pytest.mark.parametrize("bad", [{"top_p": 0.0}, {"top_p": 1.5}, {"temperature": 0.0}, {"top_k": -1}])
def test_impossible_policies_are_refused(bad):
    with pytest.raises(ValueError, match="wanted temperature > 0"):
        Sample(**bad)
    with pytest.raises(ValueError, match="repetition_penalty > 0"):
        Greedy(repetition_penalty=0)


def test_min_p_keeps_what_is_near_the_likeliest():
    picked = draw(Sample(min_p=0.6), np.log([0.1, 0.4, 0.2, 0.3]), 400)
    assert set(np.asarray(picked.token).tolist()) == {1, 3}  # 0.3 is 0.75 of 0.4, 0.2 half of it
    with pytest.raises(ValueError, match=r"min_p=1\.5"):
        Sample(min_p=1.5)


def test_banned_ids_are_never_chosen():
    banned = jnp.array([False, True, False, False])
    assert set(np.asarray(draw(Greedy(), [1.0, 9.0, 2.0, 3.0], 3, banned=banned).token).tolist()) == {3}


def test_both_zeros_are_one_value():
    logits = jnp.array([[0.0, -0.0, -1.0, -2.0]])
    assert np.isfinite(truncate(logits, jnp.array([1]), None))[0].tolist() == [True, True, False, False]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_ids_that_would_repeat_an_ngram(n):
    rng = np.random.default_rng(n)
    history = rng.integers(0, 4, (5, 40))
    lengths = np.array([0, 1, 2, 17, 40])
    got = np.asarray(repeated(jnp.asarray(history), jnp.asarray(lengths), jnp.full(5, n), 4))
    for row, length, mine in zip(history, lengths, got):
        text = row[:length].tolist()
        grams = {tuple(text[i : i + n]) for i in range(length - n + 1)}
        for token in range(4):
            last = (*text[length - n + 1 :], token) if n > 1 else (token,)
            assert mine[token] == (len(last) == n and last in grams), (text, token)
    assert not np.asarray(repeated(jnp.asarray(history), jnp.asarray(lengths), jnp.zeros(5, jnp.int32), 4)).any()
