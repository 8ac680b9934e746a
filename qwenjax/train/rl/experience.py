"""Responses as networks read them, what is learned from them, and what an `Algorithm` has to give.

b responses, t positions of prompt and response together. Arrays are aligned to actions: entry i belongs to the choice
of token i + 1, made from the tokens up to i (objectives/advantages.py).
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
from qwenjax.objectives.advantages import RunningMean
from qwenjax.objectives.log_probs import token_log_probs
from qwenjax.objectives.masked import masked_mean, masked_variance, zero_outside
from qwenjax.objectives.ppo import adaptive_kl, kl_k1, kl_k3, truncated_mass
from qwenjax.train.backbone import Backbone
from qwenjax.train.step import LossFn, TrainState, optimizer_step, split_batch

Metrics = dict[str, jax.Array]


# ---- what networks read and say ----


class Responses(NamedTuple):
    """Prompts with their responses, as a network reads them."""

    tokens: jax.Array  # [b t] int32
    positions: jax.Array  # [b t] int32, -1 on padding
    mask: jax.Array  # [b t] bool: actions
    end: jax.Array  # [b] int32: position of the response's last token

    @classmethod
    def of(cls, rollout: Rollout) -> "Responses":
        """The responses of a rollout."""
        columns = jnp.arange(rollout.tokens.shape[1], dtype=jnp.int32)
        total = rollout.lengths + jnp.sum(rollout.mask, axis=1, dtype=jnp.int32)
        positions = jnp.where(columns < total[:, None], columns, -1)
        return cls(rollout.tokens, positions, align_to_actions(rollout.mask), total - 1)


def align_to_actions(x: jax.Array) -> jax.Array:
    """From values of tokens [b t] to values of the choices that made them, one position earlier; 0 at the end."""
    return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))


def log_probs(
    network: transformer.Transformer, variables: dict, responses: Responses, rngs: dict | None = None
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of every action, and the entropy of its distribution: float32 [b t], 0 outside the mask."""
    hidden, _ = network.apply(variables, responses.tokens, responses.positions, rngs=rngs)
    head, targets = transformer.head(variables["params"]), jnp.roll(responses.tokens, -1, axis=1)
    logp, entropy = token_log_probs(hidden, head, targets, network.compute.loss_chunk)
    return zero_outside(logp, responses.mask), zero_outside(entropy, responses.mask)


def values(backbone: Backbone, params: dict, frozen: Any, responses: Responses) -> jax.Array:
    """float32 [b t] of a value model with `params` {"backbone": …, "head": [d], "bias": scalar}, at every position."""
    variables = backbone.variables(params["backbone"], frozen)
    at = responses.tokens, responses.positions
    return reward_head.values(backbone.eval_network, variables, params["head"], *at) + params["bias"]


def in_parts(f: Callable, parts: int, *batch: Any) -> Any:
    """f(*batch) [b …], computed for b / parts examples at a time, so that only their activations exist at once."""
    if parts == 1:
        return f(*batch)

    def join(x):
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(-1, *x.shape[2:])

    batch = jax.tree.map(lambda x: split_batch(x, parts), batch)
    return jax.tree.map(join, jax.lax.map(lambda xs: f(*jax.tree.map(_over_batch, xs)), batch))


def _over_batch(x: jax.Array) -> jax.Array:
    return sharding.constrain(x, "batch", *[None] * (x.ndim - 1))


# ---- what is learned ----


class ModelOutputs(NamedTuple):
    """What the models of a run compute for responses."""

    responses: Responses
    logp: jax.Array  # [b t]
    entropy: jax.Array  # [b t]
    ref_logp: jax.Array  # [b t]
    values: jax.Array  # [b t]; 0 without a value model
    scores: jax.Array  # [b] of the reward model; 0 without one


class Experience(NamedTuple):
    """What the updates of an iteration learn from; arrays are [b t], aligned to actions."""

    responses: Responses
    old_logp: jax.Array
    ref_logp: jax.Array
    old_values: jax.Array  # 0 without a value model
    advantages: jax.Array
    returns: jax.Array  # 0 without a value model

    def take(self, index: jax.Array) -> "Experience":
        """The responses of a minibatch, split over the mesh as all of them are."""
        return jax.tree.map(lambda x: _over_batch(x[index]), self)


class Algorithm:
    """The interface of an algorithm (`algorithms.py`): its advantages and losses.

    Attributes:
      critic: whether a value model is trained.
      kl_in_reward: whether the KL penalty is part of the reward (report §3.2.2); if not, the loss has it.
    """

    critic = False
    kl_in_reward = True

    def __init__(self, rl: RL):
        self.rl = rl

    def advantages(
        self, scores: jax.Array, outputs: ModelOutputs, kl_coef: jax.Array
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        """Advantages and returns [b t], 0 outside the mask, and metrics. Without a value model returns are 0.

        `scores` [b] are normalised; responses to the same prompt are neighbours, `rl.num_samples` of them.
        """
        raise NotImplementedError

    def policy_loss(self, logp: jax.Array, batch: Experience) -> tuple[jax.Array, Metrics]:
        """The summed loss, and sums: its "weight", and over tokens whatever else is logged.

        Only `logp` [b t], under the policy in training, gets a gradient.
        """
        raise NotImplementedError

    def value_loss(self, values: jax.Array, batch: Experience) -> tuple[jax.Array, Metrics]:
        """The same of a value model; values: [b t]."""
        raise NotImplementedError

    def per_prompt(self, f: Callable[[jax.Array], jax.Array], scores: jax.Array, mask: jax.Array) -> jax.Array:
        """[b t]: f(scores of the responses to one prompt [g]) -> [g], the same for all tokens of a response."""
        compared = jax.vmap(f)(scores.reshape(-1, self.rl.num_samples))
        return zero_outside(compared.reshape(-1, 1), mask)


def compute_advantages(
    algorithm: Algorithm,
    outputs: ModelOutputs,
    scores: jax.Array,
    ended: jax.Array,
    running: RunningMean,
    kl_coef: jax.Array,
    order: jax.Array | None = None,
    adapt_kl: jax.Array | bool = True,
) -> tuple[Experience, RunningMean, jax.Array, Metrics]:
    """From raw scores [b] to what is learned: normalised scores, then the algorithm's advantages.

    Args:
      ended: bool [b]; scores of responses that did not end are not used.
      order: control experiment: response i is given the normalised score of response order[i].
      adapt_kl: whether the KL coefficient moves towards `rl.kl_target`: not before the policy learns.
    Returns the experience, the running mean with these scores, the next KL coefficient, and metrics.
    """
    rl, mask = algorithm.rl, outputs.responses.mask
    running = running.add(scores, ended)
    normalised = running.normalise(scores, rl.normalize_std)
    # a response that was cut off has no end token to be scored at; the report says nothing about them, and
    # Ziegler et al. 2019 give them a fixed low score, too
    normalised = jnp.where(ended, normalised, rl.missing_eos_score)
    normalised = normalised if order is None else normalised[order]
    advantage, returns, metrics = algorithm.advantages(normalised, outputs, kl_coef)
    experience = Experience(outputs.responses, outputs.logp, outputs.ref_logp, outputs.values, advantage, returns)

    kl = jnp.sum(kl_k1(outputs.logp, outputs.ref_logp, mask), axis=1)  # nats per response
    next_kl_coef = adaptive_kl(kl_coef, jnp.mean(kl), rl.kl_target, scores.size) if rl.kl_target else kl_coef
    next_kl_coef = jnp.where(adapt_kl, next_kl_coef, kl_coef)
    metrics |= {
        "score": masked_mean(scores, ended),
        "score_std": jnp.sqrt(masked_variance(scores, ended)),
        "reward": jnp.mean(normalised - kl_coef * kl if algorithm.kl_in_reward else normalised),
        "kl": jnp.mean(kl),
        "kl_k3": jnp.mean(jnp.sum(kl_k3(outputs.logp, outputs.ref_logp, mask), axis=1)),
        "kl_coef": kl_coef,
        "entropy": masked_mean(outputs.entropy, mask),
        "length": jnp.mean(jnp.sum(mask, axis=1, dtype=jnp.float32)),
        "ended": jnp.mean(ended.astype(jnp.float32)),
    }
    return jax.lax.stop_gradient(experience), running, next_kl_coef, metrics


# ---- updates ----


def policy_loss(algorithm: Algorithm, backbone: Backbone) -> LossFn:
    """The algorithm's loss as a function of parameters, which adds to its sums what all algorithms log."""

    def loss_fn(trained, frozen, batch: Experience, rng):
        mask = batch.responses.mask
        logp, _ = log_probs(backbone.eval_network, backbone.variables(trained, frozen), batch.responses)
        total, sums = algorithm.policy_loss(logp, batch)
        approx_kl = jnp.sum(kl_k3(batch.old_logp, logp, mask))  # from the policy that sampled to this one
        sums |= {"tokens": jnp.sum(mask, dtype=jnp.float32), "approx_kl": approx_kl}
        return total, jax.lax.stop_gradient(sums)

    return loss_fn


def value_loss(algorithm: Algorithm, backbone: Backbone) -> LossFn:
    """The algorithm's value loss as a function of the value model's parameters."""
    return lambda params, frozen, batch, rng: algorithm.value_loss(
        values(backbone, params, frozen, batch.responses), batch
    )


def update(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    state: TrainState,
    frozen: Any,
    batch: Experience,
    accumulate: int,
    extra: tuple[LossFn, Any, float] | None = None,
) -> tuple[TrainState, Metrics]:
    """One optimizer step on the mean loss, and what it logs. `extra`: the language-modelling loss, as there."""
    rng, options = jax.random.key(0), {"accumulate": accumulate, "extra": extra}  # the key is not used: nothing drops
    options["weight_of"] = lambda sums: jnp.maximum(sums["weight"], 1)
    state, sums, metrics = optimizer_step(loss_fn, tx, state, frozen, batch, rng, **options)
    if extra is not None:
        metrics["lm_loss"] = metrics.pop("extra_loss")
    weight = sums.pop("weight")
    tokens = jnp.maximum(sums.pop("tokens", weight), 1)
    return state, metrics | {name: total / tokens for name, total in sums.items()}


def sampler_metrics(rollout: Rollout, logp: jax.Array) -> Metrics:
    """How far sampling and training (`logp` [b t]) differ before the first update, where every ratio should be 1."""
    mask, sampled, drawn = map(align_to_actions, (rollout.mask, rollout.logp, rollout.drawn_logp))
    error = jnp.abs(jnp.expm1(zero_outside(logp - sampled, mask)))
    return {
        "ratio_error": jnp.max(error),
        "ratio_error_mean": masked_mean(error, mask),
        "truncated_mass": masked_mean(truncated_mass(sampled, drawn, mask), mask),
    }
