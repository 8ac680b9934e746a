"""The arithmetic of an iteration of reinforcement learning, as pure functions: measure, advantages, update.

b responses, t positions of prompt and response together. Arrays are aligned to actions: entry i belongs to the choice
of token i + 1, made from the tokens up to i (objectives/returns.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from qwenjax import sharding
from qwenjax.config import RL
from qwenjax.generate.rollout import Rollout
from qwenjax.model import reward_head, transformer
from qwenjax.objectives import advantages as returns
from qwenjax.objectives import grpo, ppo
from qwenjax.objectives.advantages import RunningMean
from qwenjax.objectives.log_probs import token_log_probs
from qwenjax.objectives.masked import explained_variance, kept, masked_mean, masked_variance, whiten
from qwenjax.train.backbone import Backbone
from qwenjax.train.step import LossFn, gradients

Numbers = dict[str, jax.Array]


class Responses(NamedTuple):
    """What was sampled, as a network reads it."""

    tokens: jax.Array  # [b t] int32
    positions: jax.Array  # [b t] int32, -1 on padding
    mask: jax.Array  # [b t] bool: actions
    end: jax.Array  # [b] int32: where the response's last token stands


def responses(rolled: Rollout) -> Responses:
    """A rollout, ready to be read."""
    columns = jnp.arange(rolled.tokens.shape[1], dtype=jnp.int32)
    total = rolled.lengths + jnp.sum(rolled.mask, axis=1, dtype=jnp.int32)
    positions = jnp.where(columns < total[:, None], columns, -1)
    return Responses(rolled.tokens, positions, actions(rolled.mask), total - 1)


def actions(mask: jax.Array) -> jax.Array:
    """From a mask of tokens to one of the choices that made them, one position earlier."""
    return jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))


def log_probs(
    network: transformer.Transformer, collections: dict, read: Responses, rngs: dict | None = None
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of every chosen token, and the entropy it was chosen from: float32 [b t], 0 elsewhere."""
    hidden, _ = network.apply(collections, read.tokens, read.positions, rngs=rngs)
    head = transformer.head(collections["params"])
    logp, entropy = token_log_probs(hidden, head, jnp.roll(read.tokens, -1, axis=1), network.compute.loss_chunk)
    return kept(logp, read.mask), kept(entropy, read.mask)


def in_parts(f: Callable, parts: int, *rows: Any) -> Any:
    """f(*rows) [b …], computed on a part of the rows at a time: activations of b / parts rows exist at once."""
    if parts == 1:
        return f(*rows)

    def cut(x):  # every device keeps its own rows
        return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

    def join(x):
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(-1, *x.shape[2:])

    def one(xs):
        return f(*jax.tree.map(lambda x: sharding.constrain(x, "batch", *[None] * (x.ndim - 1)), xs))

    return jax.tree.map(join, jax.lax.map(one, jax.tree.map(cut, rows)))


class Measured(NamedTuple):
    """What the models say of responses; [b t], aligned to actions."""

    read: Responses
    logp: jax.Array
    entropy: jax.Array
    ref_logp: jax.Array
    values: jax.Array  # 0 without a value model
    scores: jax.Array  # [b] of the reward model; 0 without one


class Experience(NamedTuple):
    """All that an update learns from, beside the prompts and responses; each [b t], aligned to actions."""

    read: Responses
    old_logp: jax.Array
    ref_logp: jax.Array
    old_values: jax.Array  # 0 without a value model
    advantages: jax.Array
    returns: jax.Array

    def rows(self, index: jax.Array) -> "Experience":
        """Some of the responses, split over the mesh as all of them are."""

        def take(x):
            return sharding.constrain(x[index], "batch", *[None] * (x.ndim - 1))

        return jax.tree.map(take, self)


def experience(
    task: str,
    rl: RL,
    measured: Measured,
    scores: jax.Array,
    ended: jax.Array,
    running: RunningMean,
    kl_coef: jax.Array,
    order: jax.Array | None = None,
    adapts: jax.Array | bool = True,
) -> tuple[Experience, RunningMean, jax.Array, Numbers]:
    """From scores [b] to advantages: normalised scores, KL penalty, GAE (ppo) or comparison within a prompt's group.

    Args:
      ended: bool [b]; scores of responses that did not end count nowhere.
      order: control: the response whose normalised score each response is given.
      adapts: whether the KL coefficient moves towards `rl.kl_target`: not before the policy does.
    Returns: what to learn from, the running mean with these scores, the next KL coefficient, and numbers to log.
    """
    read, logp, _, ref_logp, values, _ = measured
    mask = read.mask
    running = running.add(scores, ended)
    normalised = returns.unfinished(running.normalise(scores, rl.normalize_std), ended, rl.missing_eos_score)
    normalised = normalised if order is None else normalised[order]
    k1 = jnp.sum(ppo.kl_k1(logp, ref_logp, mask), axis=1)  # nats per response
    earned = normalised if task == "grpo" else normalised - kl_coef * k1  # grpo has the penalty in its loss
    if task == "ppo":
        rewards = jax.vmap(returns.token_rewards, (0, 0, 0, 0, None))(normalised, logp, ref_logp, mask, kl_coef)
        raw, targets = jax.vmap(lambda r, v, m: returns.gae(r, v, m, rl.gamma, rl.gae_lambda))(rewards, values, mask)
        advantages = whiten(raw, mask)
    else:
        compared = grpo.group_advantages if task == "grpo" else grpo.leave_one_out
        one = jax.vmap(compared)(earned.reshape(-1, rl.num_samples))
        advantages, targets = kept(one.reshape(-1, 1), mask), jnp.zeros(mask.shape, jnp.float32)
    kl_next = ppo.adaptive_kl(kl_coef, jnp.mean(k1), rl.kl_target, scores.size) if rl.kl_target else kl_coef
    kl_next = jnp.where(adapts, kl_next, kl_coef)
    numbers = {
        "score": masked_mean(scores, ended),
        "score_std": jnp.sqrt(masked_variance(scores, ended)),
        "reward": jnp.mean(earned),
        "kl": jnp.mean(k1),
        "kl_k3": jnp.mean(jnp.sum(ppo.kl_k3(logp, ref_logp, mask), axis=1)),
        "kl_coef": kl_coef,
        "entropy": masked_mean(measured.entropy, mask),
        "length": jnp.mean(jnp.sum(mask, axis=1, dtype=jnp.float32)),
        "ended": jnp.mean(ended.astype(jnp.float32)),
    }
    if task == "ppo":
        numbers["explained_variance"] = explained_variance(values, targets, mask)
    learned = Experience(read, logp, ref_logp, values, advantages, targets)
    return jax.lax.stop_gradient(learned), running, kl_next, numbers


def policy_loss(task: str, rl: RL, backbone: Backbone) -> LossFn:
    """-> (summed loss, sums over tokens: weight, clipped, KL from the policy that sampled to this one)."""

    def loss_fn(trained, frozen, batch: Experience, rng):
        mask = batch.read.mask
        logp, _ = log_probs(backbone.plain, backbone.variables(trained, frozen), batch.read)
        if task == "ppo":
            total, weight = ppo.policy_loss(logp, batch.old_logp, batch.advantages, mask, rl.clip_ratio)
        elif task == "grpo":
            first = jnp.max(jnp.where(mask, batch.advantages, -jnp.inf), axis=1)  # the same for all tokens of a row
            first = jnp.where(mask.any(axis=1), first, 0)
            one = jax.vmap(lambda *rows: grpo.grpo_loss(*rows, clip=rl.clip_ratio, kl_coef=rl.kl_coef))
            total, weight = map(jnp.sum, one(logp, batch.old_logp, batch.ref_logp, first, mask))
        else:
            total, weight = grpo.reinforce_loss(logp, batch.advantages, mask)
        sums = {"weight": weight, "tokens": jnp.sum(mask, dtype=jnp.float32)}
        sums["approx_kl"] = jnp.sum(ppo.kl_k3(batch.old_logp, logp, mask))
        if task != "reinforce":  # which clips nothing
            sums["clip_fraction"] = ppo.clip_fraction(logp, batch.old_logp, batch.advantages, mask, rl.clip_ratio)[0]
        return total, jax.lax.stop_gradient(sums)

    return loss_fn


def value_loss(rl: RL, backbone: Backbone) -> LossFn:
    """-> (summed clipped squared error, sums: weight)."""

    def loss_fn(trained, frozen, batch: Experience, rng):
        read, network = batch.read, backbone.plain
        collections = backbone.variables(trained["backbone"], frozen)
        values = (
            reward_head.values(network, collections, trained["head"], read.tokens, read.positions) + trained["bias"]
        )
        total, weight = ppo.value_loss(values, batch.old_values, batch.returns, read.mask, rl.value_clip)
        return total, {"weight": weight}

    return loss_fn


class TrainState(NamedTuple):
    """A model in training with its optimizer."""

    params: Any
    opt_state: Any


def update(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    learner: TrainState,
    frozen: Any,
    batch: Any,
    accumulate: int,
    also: tuple[LossFn, Any, float] | None = None,
) -> tuple[TrainState, Numbers]:
    """One optimizer step on the mean loss; the learner stays as it was where that is not finite.

    Args:
      loss_fn: its second result is a dict of sums, "weight" among them.
      also: another loss (sum, weight) on a batch of its own, and its coefficient: the pretrained gradient (report
        §3.2.2). Each loss is divided by its own weight.
    """
    rng = jax.random.key(0)  # nothing is dropped
    (total, sums), grads = gradients(loss_fn, learner.params, frozen, batch, rng, accumulate)
    weight = jnp.maximum(sums["weight"], 1)
    grads, loss = jax.tree.map(lambda g: g / weight, grads), total / weight
    numbers = {"loss": loss}
    if also is not None:
        other, rows, coef = also
        (lm_total, lm_weight), lm_grads = gradients(other, learner.params, frozen, rows, rng, accumulate)
        grads = jax.tree.map(lambda g, h: g + coef * h / lm_weight, grads, lm_grads)
        numbers["lm_loss"] = lm_total / lm_weight
    norm = optax.tree.norm(grads)
    applied = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = tx.update(grads, learner.opt_state, learner.params)
    new = TrainState(optax.apply_updates(learner.params, updates), opt_state)
    new = jax.tree.map(lambda a, b: jnp.where(applied, a, b), new, learner)
    tokens = sums.pop("tokens", weight)
    numbers |= {name: x / jnp.maximum(tokens, 1) for name, x in sums.items() if name != "weight"}
    return new, numbers | {"grad_norm": norm, "applied": applied}


def sampler_numbers(rolled: Rollout, logp: jax.Array) -> Numbers:
    """How far sampling and training are apart before the first update, where the ratio should be 1, and off-policy.

    Args:
      logp: [b t] of `log_probs`, aligned to actions.
    """
    mask = actions(rolled.mask)
    sampled, drawn = (jnp.pad(x[:, 1:], ((0, 0), (0, 1))) for x in (rolled.logp, rolled.drawn_logp))
    off = jnp.abs(jnp.expm1(kept(logp - sampled, mask)))
    return {
        "ratio_error": jnp.max(off),
        "ratio_error_mean": masked_mean(off, mask),
        "truncated_mass": masked_mean(ppo.truncated_mass(sampled, drawn, mask), mask),
    }
