"""The arithmetic of an iteration on a real, tiny network: each test fails by one of the classic bugs of PPO codes."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_model

from qwenjax.config import RL, Compute, Data, Experiment, ModelConfig
from qwenjax.generate.rollout import Rollout, rollout
from qwenjax.generate.sampling import Sample
from qwenjax.model import reward_head, transformer
from qwenjax.objectives.advantages import RunningMean
from qwenjax.train.backbone import Backbone
from qwenjax.train.rl import experience
from qwenjax.train.rl.experience import Experience, ModelOutputs, Responses
from qwenjax.train.rl.task import ALGORITHMS
from qwenjax.train.step import TrainState

MODEL = ModelConfig(vocab=24, layers=1, embed=16, heads=2, ffn=16, context=48)
COMPUTE = Compute(dtype="float32", remat="none", scan=False, attention="xla", fuse="no", loss_chunk=16)
EXPERIMENT = Experiment("tiny", MODEL, Data(seq_len=16, batch_size=8), 1, compute=COMPUTE, dropout=0.3)
STOP, PAD, NEW = 3, 5, 7
B = 8  # responses
REAL = Backbone(EXPERIMENT, COMPUTE)
PARAMS = tiny_model.params(MODEL)
HEAD = np.random.default_rng(5).normal(size=16).astype(np.float32)
RULES = RL("none", num_samples=2, max_new_tokens=NEW, kl_coef=0.1, gamma=0.9, gae_lambda=0.8)
PPO = ALGORITHMS["ppo"](RULES)


class Bigram(NamedTuple):
    """In the place of a transformer where only arithmetic is at stake: compiled at once. It sees the latest token."""

    compute: Compute = COMPUTE
    dropout: float = 0.0
    lora: None = None

    def apply(self, collections, tokens, positions=None, segments=None, rngs=None):
        return collections["params"]["embed"][tokens], None


BIGRAM = Bigram()


def simple(head: bool) -> Backbone:
    backbone = Backbone(EXPERIMENT, COMPUTE, head)
    backbone.network = backbone.eval_network = BIGRAM
    return backbone


POLICY, VALUE_BACKBONE = simple(True), simple(False)
TRAINED = {name: PARAMS[name] for name in ("embed", "head")}  # of a policy
CRITIC = {"backbone": {"embed": PARAMS["embed"]}, "head": HEAD, "bias": np.float32(0.5)}


def make_rollout(compute: Compute = COMPUTE, params=PARAMS, rows: int = B, **change) -> Rollout:
    """Responses to prompts of 2 to 9 tokens; some end at once, some late, some never."""
    rng = np.random.default_rng(1)
    prompts, lengths = rng.integers(6, 24, (rows, 9)), rng.integers(2, 10, rows)
    how = {"max_new_tokens": NEW, "sampling": Sample(top_p=0.9), "stops": (STOP, 11), "size": 24, "pad": PAD} | change
    make = jax.jit(partial(rollout, transformer.Transformer(MODEL, compute), **how))
    seeds = np.arange(rows, dtype=np.uint32)
    return make(params, prompts.astype(np.int32), lengths.astype(np.int32), seeds)


@pytest.fixture(scope="module")
def some() -> Rollout:
    found = make_rollout()
    ended = np.asarray(found.ended)
    assert 0 < ended.sum() < B  # both kinds
    assert len(set(np.asarray(found.mask).sum(1).tolist())) > 2  # of different lengths
    return found


@partial(jax.jit, static_argnums=2)
def log_probs(params, responses: Responses, network=BIGRAM):
    return experience.log_probs(network, {"params": params}, responses)


def learned(some: Rollout, task: str = "ppo", rl: RL = RULES, params=TRAINED, network=BIGRAM) -> Experience:
    """An experience of which every part is something else."""
    rng = np.random.default_rng(2)
    responses = Responses.of(some)
    logp = log_probs(params, responses, network)[0]
    ref = jnp.where(responses.mask, logp + 0.2 * rng.normal(size=logp.shape), 0).astype(jnp.float32)
    values = jnp.where(responses.mask, 0.3 * rng.normal(size=logp.shape), 0).astype(jnp.float32)
    scores = jnp.asarray(rng.normal(size=len(logp)), jnp.float32)
    outputs = ModelOutputs(responses, logp, 0 * logp, ref, values, 0 * scores)
    start = RunningMean.zero(), jnp.float32(rl.kl_coef)
    return experience.compute_advantages(ALGORITHMS[task](rl), outputs, scores, some.ended, *start)[0]


# ---- train = sample ----


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), pytest.param("bfloat16", 0.15, marks=pytest.mark.slow)]
)
def test_before_an_update_every_ratio_is_1(some, dtype, tolerance):
    """Sampler with caches against the training forward. bfloat16 keeps 8 bits: logits of size 4 are off by 0.016 each.

    A shift of one, a temperature, dropout or other positions are off by more than the probabilities themselves.
    """
    compute = replace(COMPUTE, dtype=dtype)
    found = some if dtype == "float32" else make_rollout(compute)
    backbone = Backbone(replace(EXPERIMENT, compute=compute), compute)
    logp, entropy = log_probs(PARAMS, Responses.of(found), backbone.eval_network)
    numbers = experience.sampler_metrics(found, logp)
    assert numbers["ratio_error"] < tolerance
    assert numbers["ratio_error_mean"] < tolerance / 5
    assert 0 < numbers["truncated_mass"] < 0.2
    assert np.all(np.asarray(entropy)[np.asarray(Responses.of(found).mask)] > 0)
    wrong = experience.sampler_metrics(found, jnp.roll(logp, 1, axis=1))
    assert wrong["ratio_error"] > 0.5
    assert wrong["ratio_error_mean"] > 0.1  # raises the alarm


def test_a_choice_is_scored_by_the_position_before_its_token(some):
    """Against the whole softmax in float64."""
    responses = Responses.of(some)
    tokens, lengths, made = (np.asarray(x) for x in (some.tokens, some.lengths, some.mask.sum(1)))
    forward = jax.jit(
        lambda responses: transformer.logits(PARAMS, REAL.eval_network.apply({"params": PARAMS}, *responses[:2])[0])
    )
    logits = np.asarray(forward(responses), np.float64)
    all_logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = np.asarray(log_probs(PARAMS, responses, REAL.eval_network)[0])
    want = np.zeros(found.shape)
    for row in range(B):
        for at in range(lengths[row], lengths[row] + made[row]):
            want[row, at - 1] = all_logp[row, at - 1, tokens[row, at]]
    np.testing.assert_allclose(found, want, atol=1e-4)


def shifted(responses: Responses, left: int, right: int) -> Responses:
    """The same responses between padding of other tokens."""

    def pad(x, value):
        return jnp.pad(x, ((0, 0), (left, right)), constant_values=value)

    return Responses(
        pad(responses.tokens, 9), pad(responses.positions, -1), pad(responses.mask, False), responses.end + left
    )


@pytest.mark.parametrize("task", ["ppo", "value"])
def test_padding_on_either_side_changes_neither_losses_nor_gradients(some, task):
    """Rows of a rollout are padded on the right; a network reads by positions, so the left is as good."""
    batch, params, loss = (
        learned(some, params=PARAMS, network=REAL.eval_network),
        PARAMS,
        experience.policy_loss(PPO, REAL),
    )
    if task == "value":
        loss = experience.value_loss(PPO, Backbone(EXPERIMENT, COMPUTE, lm_head=False))
        params = {
            "backbone": {name: x for name, x in PARAMS.items() if name != "head"},
            "head": HEAD,
            "bias": np.float32(0),
        }
    wide = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (5, 17))), batch._replace(responses=()))
    wide = wide._replace(responses=shifted(batch.responses, 5, 17))
    run = jax.jit(lambda batch: jax.value_and_grad(loss, has_aux=True)(params, (), batch, None))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), run(batch), run(wide))


def test_garbage_behind_a_response_is_not_read(some):
    batch = learned(some)
    behind = batch.responses.positions < 0
    assert behind.any()
    other = batch._replace(responses=batch.responses._replace(tokens=jnp.where(behind, 7, batch.responses.tokens)))
    other = other._replace(advantages=jnp.where(batch.responses.mask, batch.advantages, jnp.nan))
    loss = jax.jit(jax.value_and_grad(experience.policy_loss(PPO, POLICY), has_aux=True))
    one, two = (loss(TRAINED, (), x, None) for x in (batch, other))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), one, two)


# ---- from scores to advantages ----


def hand(some: Rollout, scores, rl: RL = RULES, task: str = "ppo", kl: float = 0.1, values=None, drift=0.0, **more):
    responses = Responses.of(some)
    logp = jnp.where(responses.mask, -1.0, 0)
    values = jnp.zeros(logp.shape) if values is None else values
    outputs = ModelOutputs(
        responses, logp, 0 * logp, jnp.where(responses.mask, -1 - drift, 0), values, jnp.zeros(len(logp))
    )
    scores = jnp.asarray(scores, jnp.float32)
    start = RunningMean.zero(), jnp.float32(kl)
    return experience.compute_advantages(ALGORITHMS[task](rl), outputs, scores, some.ended, *start, **more)


def test_a_score_of_0_7_lands_once_at_the_end_token_and_what_did_not_end_has_the_fixed_one(some):
    """γ = λ = 1, no values: every action's return is the whole score, less the mean of those that ended."""
    rl = replace(RULES, gamma=1.0, gae_lambda=1.0, missing_eos_score=-2.5)
    scores = np.array([0.7, 0.0] * 4)
    mean = scores[np.asarray(some.ended)].mean()
    found, running, _, numbers = hand(some, scores, rl)
    want = np.where(some.ended, scores - mean, -2.5)[:, None] * np.asarray(Responses.of(some).mask)
    np.testing.assert_allclose(found.returns, want, atol=1e-6)
    assert running.mean == pytest.approx(mean)
    assert numbers["score"] == pytest.approx(mean)
    short = replace(rl, gamma=0.5)
    last = np.asarray(found.responses.end) - 1  # the choice of the response's last token
    for row, at in enumerate(last):
        n = int(np.asarray(found.responses.mask)[row].sum())
        back = np.asarray(hand(some, scores, short)[0].returns)[row, at - n + 1 : at + 1]
        np.testing.assert_allclose(back, want[row, at] * 0.5 ** np.arange(n)[::-1], atol=1e-6)


@pytest.mark.parametrize("task", ALGORITHMS)
def test_what_did_not_end_has_the_fixed_score_even_if_its_own_is_nan(some, task):
    """Nothing of a NaN gets into advantages, returns, the running mean, the coefficient or metrics."""
    rl = replace(RULES, normalize_std=True, missing_eos_score=-2.5)
    scores, ended = np.arange(B) / 7, np.asarray(some.ended)
    plain, found = (hand(some, np.where(ended, scores, other), rl, task) for other in (0.0, np.nan))
    jax.tree.map(np.testing.assert_array_equal, found, plain)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    normalised = (scores - scores[ended].mean()) / scores[ended].std(ddof=1)
    assert found[3]["reward"] == pytest.approx(np.where(ended, normalised, -2.5).mean(), abs=1e-5)


def test_advantages_are_whitened_gae_and_returns_are_of_the_raw_ones(some):
    """Against the double sum A_t = Σ_k (γλ)^k δ_{t+k}, in float64; std over n - 1."""
    rng = np.random.default_rng(3)
    responses = Responses.of(some)
    mask = np.asarray(responses.mask)
    values = np.where(mask, rng.normal(size=mask.shape), 0)
    scores = rng.normal(size=B)
    found = hand(some, scores, values=jnp.asarray(values, jnp.float32), kl=0.1, drift=0.5)[0]
    raw = np.zeros(mask.shape)
    for i in range(B):
        at = np.flatnonzero(mask[i])
        v = np.append(values[i, at], 0)
        r = np.full(len(at), -0.1 * 0.5)  # β (log π - log π_ref)
        r[-1] += scores[i] - scores[np.asarray(some.ended)].mean() if some.ended[i] else RULES.missing_eos_score
        delta = r + RULES.gamma * v[1:] - v[:-1]
        for t in range(len(at)):
            raw[i, at[t]] = sum((RULES.gamma * RULES.gae_lambda) ** k * delta[t + k] for k in range(len(at) - t))
    white = np.where(mask, (raw - raw[mask].mean()) / np.sqrt(raw[mask].var(ddof=1) + 1e-8), 0)
    np.testing.assert_allclose(found.advantages, white, atol=2e-5)
    np.testing.assert_allclose(found.returns, np.where(mask, raw + values, 0), atol=2e-5)


def test_groups_are_of_one_prompt_and_reinforce_pays_the_penalty(some):
    """Pairs (0, 1), (2, 3), …: neighbours answer the same prompt."""
    some = some._replace(ended=jnp.ones(B, bool))
    scores = np.array([1.0, 0.0, 0, 0, 5, 9, 2, 2])
    mask = np.asarray(Responses.of(some).mask)
    grpo = np.asarray(hand(some, scores, task="grpo")[0].advantages)
    sign = np.array([1, -1, 0, 0, -1, 1, 0, 0]) / np.sqrt(2)  # ±d/2 over a deviation of d/√2
    np.testing.assert_allclose(grpo, sign[:, None] * mask, atol=1e-5)
    plain, paid = (np.asarray(hand(some, scores, task="reinforce", kl=kl, drift=0.5)[0].advantages) for kl in (0, 0.1))
    gap = np.array([1.0, -1, 0, 0, -4, 4, 0, 0])
    np.testing.assert_allclose(plain, gap[:, None] * mask, atol=1e-5)
    length = mask.sum(1)
    worth = scores - 0.1 * 0.5 * length
    np.testing.assert_allclose(paid, (worth - worth[[1, 0, 3, 2, 5, 4, 7, 6]])[:, None] * mask, atol=1e-5)


def test_the_coefficient_moves_towards_the_target_and_stays_without_one(some):
    rl = replace(RULES, kl_target=1.0)
    for drift, up in ((5.0, True), (0.01, False)):
        found = hand(some, np.zeros(B), rl, drift=drift)[2]
        assert (found > 0.1) == up
        assert abs(found / 0.1 - 1) <= 0.2 * B / 10_000 + 1e-6
        assert hand(some, np.zeros(B), rl, drift=drift, adapt_kl=jnp.bool_(False))[2] == np.float32(0.1)
    assert hand(some, np.zeros(B), RULES, drift=5.0)[2] == np.float32(0.1)


def test_shuffled_scores_go_to_other_responses_and_their_mean_stays(some):
    """The control: what is earned is that of the response named by the order; the penalty stays one's own."""
    order, scores = np.roll(np.arange(B), 1), np.arange(B) / 7
    rl = replace(RULES, gamma=1.0, gae_lambda=1.0)
    outputs = learned(some)
    responses, zero = outputs.responses, jnp.zeros(outputs.old_logp.shape)
    given = (ModelOutputs(responses, zero, zero, zero, zero, zero[:, 0]), jnp.asarray(scores, jnp.float32), some.ended)
    start = (RunningMean.zero(), jnp.float32(0.1))
    plain, control = (
        experience.compute_advantages(ALGORITHMS["ppo"](rl), *given, *start, *o) for o in ((), (jnp.asarray(order),))
    )
    first = np.arange(B), np.asarray(some.lengths) - 1
    np.testing.assert_allclose(control[0].returns[first], np.asarray(plain[0].returns[first])[order], atol=1e-6)
    assert control[1].mean == plain[1].mean


def test_penalty_alone_is_a_reward_for_coming_back(some):
    """Where the policy likes a token more than the reference does, the reward is negative: -0.1 · 0.5."""
    found = hand(some, np.zeros(B), replace(RULES, gamma=1.0, gae_lambda=1.0, missing_eos_score=0.0), drift=0.5)[0]
    first = np.asarray(found.returns)[np.arange(B), np.asarray(some.lengths) - 1]
    np.testing.assert_allclose(first, -0.05 * np.asarray(found.responses.mask).sum(1), rtol=1e-5)


# ---- gradients ----


@pytest.mark.parametrize("task", ["ppo", "grpo", "reinforce"])
def test_nothing_but_the_policy_gets_a_gradient(some, task):
    """Log-probabilities of before and of the reference, advantages and returns are data."""
    batch = learned(some, task)
    floats = ("old_logp", "ref_logp", "old_values", "advantages", "returns")

    def total(params, parts):
        return experience.policy_loss(ALGORITHMS[task](RULES), POLICY)(params, (), batch._replace(**parts), None)[0]

    given = {name: getattr(batch, name) for name in floats}
    own, others = jax.jit(jax.grad(total, argnums=(0, 1)))(TRAINED, given)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(own)) > 1e-3
    assert all(not jnp.any(g) for g in others.values())


def test_nothing_but_the_value_model_gets_a_gradient(some):
    batch = learned(some)

    def total(trained, old_values, returns):
        found = batch._replace(old_values=old_values, returns=returns)
        return experience.value_loss(PPO, VALUE_BACKBONE)(trained, (), found, None)[0]

    trained = CRITIC
    own, *others = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(trained, batch.old_values, batch.returns)
    assert jnp.any(own["head"])
    assert jnp.any(own["bias"])
    assert jnp.any(own["backbone"]["embed"])
    assert not any(jnp.any(g) for g in others)


def test_what_is_learned_carries_no_gradient_to_the_models(some):
    def total(params, values):
        responses = Responses.of(some)
        logp = log_probs(params, responses)[0]
        scores = jnp.sum(logp, axis=1)  # as if the score could be differentiated
        outputs = ModelOutputs(responses, logp, logp, 2 * logp, values, scores)
        given = (some.ended, RunningMean.zero(), jnp.float32(0.1))
        found = experience.compute_advantages(PPO, outputs, scores, *given)[0]
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(found) if x.dtype == jnp.float32)

    found = jax.jit(jax.grad(total, argnums=(0, 1)))(TRAINED, jnp.ones(some.tokens.shape))
    assert all(not jnp.any(g) for g in jax.tree.leaves(found))


@pytest.mark.parametrize("task", ["ppo", "grpo"])
def test_a_policy_that_went_far_enough_learns_no_more_and_one_that_went_wrong_does(some, task):
    """Ratio e^0.5 = 1.6 > 1.2. grpo's KL term is switched off."""
    rl, batch = replace(RULES, kl_coef=0.0, clip_ratio=0.2), learned(some)
    loss = jax.jit(jax.grad(experience.policy_loss(ALGORITHMS[task](rl), POLICY), has_aux=True))
    for advantage, moves in ((1.0, False), (-1.0, True)):
        ahead = jnp.where(batch.responses.mask, batch.old_logp - 0.5, 0)
        given = batch._replace(old_logp=ahead, advantages=jnp.where(batch.responses.mask, advantage, 0.0))
        grads, sums = loss(TRAINED, (), given, None)
        assert any(bool(jnp.any(g)) for g in jax.tree.leaves(grads)) == moves
        assert sums["clip_fraction"] == (0 if moves else sums["tokens"])


def test_a_value_that_went_far_enough_learns_no_more(some):
    """0.2 from the old value, beyond 0.15, and further on towards its return: no gradient. Away from it: one."""
    batch, trained = learned(some), CRITIC
    responses = batch.responses
    now = (
        reward_head.values(
            VALUE_BACKBONE.eval_network, {"params": CRITIC["backbone"]}, HEAD, responses.tokens, responses.positions
        )
        + CRITIC["bias"]
    )
    loss = jax.jit(jax.grad(experience.value_loss(PPO, VALUE_BACKBONE), has_aux=True))
    for gap, moves in ((9.0, False), (-9.0, True)):
        given = batch._replace(old_values=now - 0.2, returns=now + gap)
        grads, _ = loss(trained, (), given, None)
        assert bool(jnp.any(grads["head"])) == moves


# ---- an update ----


def moved(before, after):
    return jax.tree.map(lambda a, b: np.asarray(b) - np.asarray(a), before, after)


def bandit(rows: int) -> tuple[Rollout, np.ndarray]:
    """One token after another, drawn as the policy has it, and the probabilities [rows v]; neighbours answer alike."""
    asked = np.repeat(np.random.default_rng(6).integers(0, 24, rows // 2), 2)
    scores = PARAMS["embed"][asked] @ PARAMS["head"]
    drawn = np.argmax(scores + np.random.default_rng(7).gumbel(size=scores.shape), axis=1)
    tokens = np.stack([asked, drawn], axis=1).astype(np.int32)
    mask, zeros = np.tile([False, True], (rows, 1)), np.zeros((rows, 2), np.float32)
    found = Rollout(tokens, mask, np.ones(rows, np.int32), np.ones(rows, bool), zeros, zeros)
    return jax.tree.map(jnp.asarray, found), np.exp(scores) / np.exp(scores).sum(1, keepdims=True)


@pytest.mark.parametrize("task", ["ppo", "grpo", "reinforce"])
def test_an_update_makes_rewarded_tokens_likelier(task):
    """Half of the tokens earn 1. One step of plain gradient descent."""
    found, before = bandit(256)
    good = np.arange(24) % 2 == 0
    responses, scores = Responses.of(found), jnp.asarray(good[found.tokens[:, 1]], jnp.float32)
    logp = log_probs(TRAINED, responses)[0]
    outputs = ModelOutputs(responses, logp, 0 * logp, logp, 0 * logp, scores)
    batch = experience.compute_advantages(
        ALGORITHMS[task](RULES), outputs, scores, found.ended, RunningMean.zero(), jnp.float32(0)
    )[0]
    tx = optax.sgd(20.0)
    state, loss = TrainState(TRAINED, tx.init(TRAINED)), experience.policy_loss(ALGORITHMS[task](RULES), POLICY)
    after = jax.jit(partial(experience.update, loss, tx, accumulate=1))(state, (), batch)[0].params
    scores = np.asarray(after["embed"])[found.tokens[:, 0]] @ np.asarray(after["head"])
    likely = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert likely[:, good].sum(1).mean() > before[:, good].sum(1).mean() + 0.01


@pytest.mark.parametrize("task", ["ppo", "grpo", "reinforce", "value"])
def test_micro_batches_equal_the_whole_batch(some, task):
    """Responses of unequal lengths, so that a mean of means would differ."""
    if task == "value":
        loss, params = experience.value_loss(PPO, VALUE_BACKBONE), CRITIC
    else:
        loss, params = experience.policy_loss(ALGORITHMS[task](RULES), POLICY), TRAINED
    batch = learned(some, "ppo" if task == "value" else task)
    tx = optax.sgd(1.0)
    one, four = (
        jax.jit(partial(experience.update, loss, tx, accumulate=n))(TrainState(params, tx.init(params)), (), batch)
        for n in (1, 4)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, four)


def text() -> dict[str, np.ndarray]:
    ids = np.random.default_rng(4).integers(6, 24, (4, 13), dtype=np.int32)
    weights = np.ones((4, 12), np.float32)
    weights[0, 5:] = 0
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), (4, 12))
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:], "positions": positions, "weights": weights}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_pretrained_gradient_is_added_and_changes_nothing_else(some, accumulate):
    """With plain gradient descent: step with ptx - step without = -c · gradient of the mean loss on the text."""
    loss, lm, batch, tx = (
        experience.policy_loss(PPO, POLICY),
        POLICY.loss(learning=False),
        learned(some),
        optax.sgd(1.0),
    )

    def step(extra):
        return jax.jit(
            lambda: experience.update(loss, tx, TrainState(TRAINED, tx.init(TRAINED)), (), batch, accumulate, extra)
        )()

    (plain, numbers), (both, more) = step(None), step((lm, text(), 0.25))
    mean = jax.jit(jax.grad(lambda p: lm(p, (), text(), None)[0] / lm(p, (), text(), None)[1]))(TRAINED)
    close = partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(lambda d, g: close(d, -0.25 * np.asarray(g)), moved(plain.params, both.params), mean)
    assert more["loss"] == numbers["loss"]
    assert more["lm_loss"] == pytest.approx(float(lm(TRAINED, (), text(), None)[0]) / 41, rel=1e-5)


def test_an_update_that_is_not_finite_leaves_the_state_as_it_was(some):
    loss, tx = experience.policy_loss(PPO, POLICY), optax.adam(0.1)
    bad = learned(some)
    bad = bad._replace(advantages=bad.advantages.at[0, np.asarray(some.lengths)[0] - 1].set(jnp.inf))
    before = TrainState(TRAINED, tx.init(TRAINED))
    after, numbers = jax.jit(partial(experience.update, loss, tx, accumulate=1))(before, (), bad)
    assert not numbers["applied"]
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_parts_equal_the_whole(some):
    """Outputs for a part of the responses at a time, in the order of the responses."""

    def f(part):
        return Responses.of(part), log_probs(TRAINED, Responses.of(part))

    one, four = (jax.jit(partial(experience.in_parts, f, parts))(some) for parts in (1, 4))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), one, four)


def test_no_dropout_in_forward_passes_and_updates(some):
    """The experiment has dropout 0.3; a ratio of two draws would not be 1."""
    batch = learned(some, params=PARAMS, network=REAL.eval_network)
    _, sums = jax.jit(experience.policy_loss(PPO, REAL))(PARAMS, (), batch, jax.random.key(0))
    assert sums["clip_fraction"] == 0
    assert sums["approx_kl"] < 1e-6
