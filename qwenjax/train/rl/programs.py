"""The programs of an iteration: pure functions of the models, each compiled once, as all shapes are fixed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from qwenjax import sharding
from qwenjax.generate import rollout as rollouts
from qwenjax.generate.rollout import Rollout
from qwenjax.generate.sampling import Sample
from qwenjax.model import transformer
from qwenjax.train.rl import experience as rl
from qwenjax.train.rl.experience import Experience, Metrics, ModelOutputs, Responses
from qwenjax.train.rl.models import REWARD, Models
from qwenjax.train.step import StepProgram, TrainState

Programs = dict[str, Callable]  # by name


class TokenIds(NamedTuple):
    """What a rollout has to know of the tokenizer."""

    stops: tuple[int, ...]  # ids that stop a response
    end: int  # the one of them that ends an answer; reward models read their score there
    size: int  # number of ids
    pad: int  # the id of padding


class Iteration:
    """The functions of an iteration, which `jit_programs` jits. b responses, p positions of a prompt.

    `frozen` is State.frozen. `policy` and `value` are trained parameters; `value` is () without a value model.
    """

    def __init__(self, models: Models, ids: TokenIds):
        self.models, self.ids, self.experiment = models, ids, models.experiment

    # ---- sampling ----

    def sample(self, policy, frozen, prompts, lengths, seeds) -> Rollout:
        """Responses of the policy to prompts [b p] of these lengths [b]; seeds: uint32 [b]."""
        return self._rollout(self.models.policy.params(policy, frozen["policy"]), prompts, lengths, seeds)

    def sample_reference(self, frozen, prompts, lengths, seeds) -> Rollout:
        """The same of the reference."""
        params = frozen["reference"] or self.models.policy.params({"params": {}}, frozen["policy"])
        return self._rollout(params, prompts, lengths, seeds)

    def _rollout(self, params, prompts, lengths, seeds) -> Rollout:
        network, settings = transformer.Transformer(self.experiment.model, self.models.compute), self.experiment.rl
        rollout = rollouts.rollout(
            network,
            params,
            prompts,
            lengths,
            seeds,
            max_new_tokens=settings.max_new_tokens,
            sampling=Sample(top_p=settings.top_p),
            stops=self.ids.stops,
            size=self.ids.size,
            pad=self.ids.pad,
        )
        last = jnp.take_along_axis(rollout.tokens, Responses.of(rollout).end[:, None], axis=1)[:, 0]
        # a response that stops at another token, such as the start of a forged turn, has not ended as an answer does
        return rollout._replace(ended=rollout.ended & (last == self.ids.end))

    # ---- learning ----

    def forward_models(self, policy, value, frozen, rollout: Rollout) -> tuple[ModelOutputs, Metrics]:
        """What all models compute for the responses, and how far sampling and training differ."""
        models = self.models

        def part(rollout):
            responses = Responses.of(rollout)
            logp, entropy = self._policy_log_probs(policy, frozen, responses)
            ref_logp, _ = self._reference_log_probs(frozen, responses)
            values, scores = jnp.zeros(logp.shape, jnp.float32), jnp.zeros(len(logp), jnp.float32)
            if models.algorithm.critic:
                values = rl.values(models.value_backbone, value, frozen["value"], responses)
            if REWARD in models.scorers:
                scores = models.scorers[REWARD].score(frozen[REWARD], responses)
            return ModelOutputs(responses, logp, entropy, ref_logp, values, scores)

        # as many responses at a time as an update reads
        outputs = rl.in_parts(part, self.experiment.rl.minibatches * self.experiment.accumulate, rollout)
        return outputs, rl.sampler_metrics(rollout, outputs.logp)

    def _policy_log_probs(self, policy, frozen, responses: Responses):
        backbone = self.models.policy
        return rl.log_probs(backbone.eval_network, backbone.variables(policy, frozen["policy"]), responses)

    def _reference_log_probs(self, frozen, responses: Responses):
        reference = self.models.reference
        return rl.log_probs(reference.network, reference.variables(frozen), responses)

    def compute_advantages(self, outputs: ModelOutputs, ended, scores, running, kl_coef, step):
        """What is learned from scores [b], the next running mean and KL coefficient, and metrics."""
        order = None
        if self.experiment.rl.shuffle:
            key = jax.random.fold_in(jax.random.key(self.experiment.seed + 1), step)
            order = jax.random.permutation(key, len(scores))
        adapt = step >= self.models.value_warmup_steps
        return rl.compute_advantages(
            self.models.algorithm, outputs, scores, ended, running, kl_coef, order=order, adapt_kl=adapt
        )

    def policy_step(self, state, frozen, experience: Experience, index, text):
        """One update of the policy on the responses `index`, and on a batch of pretraining text if there is one."""
        models, settings = self.models, self.experiment.rl
        loss, batch = rl.policy_loss(models.algorithm, models.policy), experience.take(index)
        extra = (models.policy.loss(learning=False), text, settings.ptx_coef) if settings.ptx_coef else None
        return rl.update(loss, models.tx, state, frozen, batch, self.experiment.accumulate, extra)

    def value_step(self, state, frozen, experience: Experience, index):
        """One update of the value model on the responses `index`."""
        models, batch = self.models, experience.take(index)
        loss = rl.value_loss(models.algorithm, models.value_backbone)
        return rl.update(loss, models.value_tx, state, frozen, batch, self.experiment.accumulate)

    # ---- evaluation ----

    def evaluate_responses(self, policy, frozen, rollout: Rollout) -> Metrics:
        """Of every response of the policy [b]: KL, length, whether it ended, entropy, scores of the reward models."""
        responses = Responses.of(rollout)
        logp, entropy = self._policy_log_probs(policy, frozen, responses)
        ref_logp, _ = self._reference_log_probs(frozen, responses)
        return self._per_response(frozen, rollout.ended, responses, jnp.sum(logp - ref_logp, axis=1), entropy)

    def evaluate_reference(self, frozen, rollout: Rollout) -> Metrics:
        """The same of every response of the reference."""
        responses = Responses.of(rollout)
        _, entropy = self._reference_log_probs(frozen, responses)
        return self._per_response(frozen, rollout.ended, responses, jnp.zeros(len(rollout.ended)), entropy)

    def _per_response(self, frozen, ended, responses: Responses, kl, entropy) -> Metrics:
        length = jnp.sum(responses.mask, axis=1)
        entropy = jnp.sum(entropy, axis=1) / jnp.maximum(length, 1)
        scores = {name: model.score(frozen[name], responses) for name, model in self.models.scorers.items()}
        return {"kl": kl, "length": length, "ended": ended, "entropy": entropy} | scores


def jit_programs(models: Models, program: StepProgram, ids: TokenIds) -> Programs:
    """The functions of `Iteration`, jitted, by name. Nothing is compiled yet. Steps donate the state they change."""
    iteration, shardings = Iteration(models, ids), program.shardings
    replicated, batch = shardings.step, NamedSharding(program.mesh, sharding.spec("batch"))
    policy = TrainState(shardings.params, shardings.opt_state["policy"])
    value = shardings.opt_state["value"] or replicated
    options = {
        "sample": {"out_shardings": batch},
        "forward_models": {"out_shardings": (batch, replicated)},
        "compute_advantages": {"out_shardings": (batch, replicated, replicated, replicated)},
        "policy_step": {"donate_argnums": 0, "out_shardings": (policy, replicated)},
        "value_step": {"donate_argnums": 0, "out_shardings": (value, replicated)},
        "sample_reference": {"out_shardings": batch},
        "evaluate_responses": {},
        "evaluate_reference": {},
    }
    return {name: jax.jit(getattr(iteration, name), **how) for name, how in options.items()}


def lowered(programs: Programs, models: Models, program: StepProgram, text: dict) -> dict[str, Any]:
    """The programs of an iteration, by name, ready to be compiled; `text`: shapes of a batch of it, or ()."""
    experiment, mesh, state = models.experiment, program.mesh, program.abstract_state()
    batch, replicated = NamedSharding(mesh, sharding.spec("batch")), program.shardings.step

    def result(name: str) -> Any:
        """Shapes of the rollout or the first value that a program returns, which is split over the batch."""
        shapes = jax.eval_shape(programs[name], *args[name])
        first = shapes if isinstance(shapes, Rollout) else shapes[0]
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch), first)

    rl_state, value, frozen = state.opt_state, state.opt_state["value"], state.frozen
    minibatch = experiment.data.batch_size // experiment.rl.minibatches
    index = jax.ShapeDtypeStruct((minibatch,), jnp.int32, sharding=replicated)
    seeds = jax.ShapeDtypeStruct((experiment.data.batch_size,), jnp.uint32, sharding=batch)
    args: dict[str, tuple] = {
        "sample": (state.params, frozen, program.batch["prompts"], program.batch["lengths"], seeds)
    }
    with jax.set_mesh(mesh):
        rollout = result("sample")
        args["forward_models"] = (state.params, value.params if value else (), frozen, rollout)
        outputs = result("forward_models")
        scores, kl_coef = rl_state["scores"], rl_state["kl_coef"]
        args["compute_advantages"] = (outputs, rollout.ended, outputs.scores, scores, kl_coef, state.step)
        experience = result("compute_advantages")
        policy = TrainState(state.params, rl_state["policy"])
        args["policy_step"] = (policy, frozen["policy"], experience, index, text)
        if models.algorithm.critic:
            args["value_step"] = (value, frozen["value"], experience, index)
        return {name: programs[name].lower(*xs) for name, xs in args.items()}
