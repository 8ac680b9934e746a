"""The compiled programs of an iteration; each is compiled once, as all its shapes are fixed."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from qwenjax import sharding
from qwenjax.generate.rollout import Rollout, rollout
from qwenjax.generate.sampling import Sample
from qwenjax.model import reward_head, transformer
from qwenjax.train.rl import steps
from qwenjax.train.rl.models import REWARD, Models
from qwenjax.train.rl.steps import Experience, Measured, TrainState
from qwenjax.train.step import StepProgram


class Programs(NamedTuple):
    """Functions of an iteration; `frozen` is State.frozen.

    roll         (params of the policy, frozen, prompts [b p], lengths [b], seeds [b]) -> Rollout
    measure      (policy, value, frozen, Rollout) -> Measured, numbers
    learn        (Measured, ended, scores, running mean, KL coefficient, step) -> Experience, …, numbers
    policy_step  (Learner, frozen policy, Experience, rows, text) -> Learner, numbers; the learner is donated
    value_step   (Learner, frozen value, Experience, rows) -> Learner, numbers; likewise
    roll_before  (frozen, prompts, lengths, seeds) -> Rollout, of the reference
    inspect      (policy, frozen, Rollout) -> per response: KL, length, ended, entropy, scores of models
    inspect_before  (frozen, Rollout) -> the same of the reference
    """

    sample: Callable
    forward_models: Callable
    compute_advantages: Callable
    policy_step: Callable
    value_step: Callable
    sample_reference: Callable
    evaluate_responses: Callable
    evaluate_reference: Callable


def make(models: Models, program: StepProgram, stops: tuple[int, ...], end: int, size: int, pad: int) -> Programs:
    """The programs of an experiment, jitted.

    Args:
      stops, end, size, pad: the tokenizer's: ids that stop a response; the one of them that ends it as it should, where
        a reward model reads; the number of ids; the id behind responses.
    """
    experiment, policy, valuer = models.experiment, models.policy, models.value_backbone
    rl, places = experiment.rl, program.shardings
    parts = rl.minibatches * experiment.accumulate  # as many rows at a time as an update has
    text_loss = policy.loss(learning=False)
    sample = partial(
        rollout,
        transformer.Transformer(experiment.model, models.compute),
        new=rl.max_new_tokens,
        sampling=Sample(top_p=rl.top_p),
        stops=stops,
        size=size,
        pad=pad,
    )

    def ended(rolled: Rollout) -> Rollout:
        """A response that stops as no answer does, by a forged turn or the end of a text, has not ended."""
        last = jnp.take_along_axis(rolled.tokens, steps.responses(rolled).end[:, None], axis=1)[:, 0]
        return rolled._replace(ended=rolled.ended & (last == end))

    def roll(trained, frozen, prompts, lengths, seeds):
        return ended(sample(policy.params(trained, frozen["policy"]), prompts, lengths, seeds))

    def roll_before(frozen, prompts, lengths, seeds):
        return ended(sample(models.reference_params(frozen), prompts, lengths, seeds))

    def both(trained, frozen, read):
        """Log-probabilities and entropy under the policy, and log-probabilities under the reference."""
        logp, entropy = steps.log_probs(policy.plain, policy.variables(trained, frozen["policy"]), read)
        return logp, entropy, of_reference(frozen, read)[0]

    def of_reference(frozen, read):
        return steps.log_probs(models.reference.network, models.reference.variables(frozen), read)

    def measure(trained, value, frozen, rolled: Rollout):
        def part(rolled):
            read = steps.responses(rolled)
            logp, entropy, reference = both(trained, frozen, read)
            values, scores = jnp.zeros(logp.shape, jnp.float32), jnp.zeros(len(logp), jnp.float32)
            if models.critic:
                collections, at = valuer.variables(value["backbone"], frozen["value"]), (read.tokens, read.positions)
                values = reward_head.values(valuer.plain, collections, value["head"], *at) + value["bias"]
            if REWARD in models.scorers:
                scores = models.scorers[REWARD].score(frozen[REWARD], read)
            return Measured(read, logp, entropy, reference, values, scores)

        found = steps.in_parts(part, parts, rolled)
        return found, steps.sampler_numbers(rolled, found.logp)

    def learn(measured, ended, scores, running, kl_coef, step):
        order = None
        if rl.shuffle:
            key = jax.random.fold_in(jax.random.key(experiment.seed + 1), step)
            order = jax.random.permutation(key, len(scores))
        return steps.experience(
            experiment.task, rl, measured, scores, ended, running, kl_coef, order, step >= models.value_warmup_steps
        )

    def policy_step(learner, frozen, experience: Experience, rows, text):
        loss = steps.policy_loss(experiment.task, rl, policy)
        also = (text_loss, text, rl.ptx_coef) if rl.ptx_coef else None
        return steps.update(loss, models.tx, learner, frozen, experience.rows(rows), experiment.accumulate, also)

    def value_step(learner, frozen, experience: Experience, rows):
        loss, some = steps.value_loss(rl, valuer), experience.rows(rows)
        return steps.update(loss, models.value_tx, learner, frozen, some, experiment.accumulate)

    def inspect(trained, frozen, rolled) -> dict[str, Any]:
        read = steps.responses(rolled)
        logp, entropy, reference = both(trained, frozen, read)
        return judged(frozen, read, rolled.ended, jnp.sum(logp - reference, axis=1), entropy)

    def inspect_before(frozen, rolled) -> dict[str, Any]:
        read = steps.responses(rolled)
        return judged(frozen, read, rolled.ended, jnp.zeros(len(rolled.ended)), of_reference(frozen, read)[1])

    def judged(frozen, read, ended, kl, entropy) -> dict[str, Any]:
        length = jnp.sum(read.mask, axis=1)
        found = {"kl": kl, "length": length, "ended": ended}
        found["entropy"] = jnp.sum(entropy, axis=1) / jnp.maximum(length, 1)
        return found | {name: judge.score(frozen[name], read) for name, judge in models.scorers.items()}

    here, rows = places.step, NamedSharding(program.mesh, sharding.spec("batch"))
    learner = TrainState(places.params, places.opt_state["policy"])
    return Programs(
        sample=jax.jit(roll, out_shardings=rows),
        forward_models=jax.jit(measure, out_shardings=(rows, here)),
        compute_advantages=jax.jit(learn, out_shardings=(rows, here, here, here)),
        policy_step=jax.jit(policy_step, donate_argnums=0, out_shardings=(learner, here)),
        value_step=jax.jit(value_step, donate_argnums=0, out_shardings=(places.opt_state["value"] or here, here)),
        sample_reference=jax.jit(roll_before, out_shardings=rows),
        evaluate_responses=jax.jit(inspect),
        evaluate_reference=jax.jit(inspect_before),
    )


def lowered(run: Programs, models: Models, program: StepProgram, text: dict) -> dict[str, Any]:
    """The programs of an iteration, by name, ready to be compiled for the devices of the mesh."""
    experiment, mesh, state = models.experiment, program.mesh, program.abstract_state()
    rows, here = NamedSharding(mesh, sharding.spec("batch")), program.shardings.step

    def abstract(f: Callable, *args, place=rows) -> Any:
        shapes = jax.eval_shape(f, *args)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)

    rest, critic = state.opt_state, state.opt_state["value"]
    seeds = jax.ShapeDtypeStruct((experiment.data.batch_size,), jnp.uint32, sharding=rows)
    size = experiment.data.batch_size // experiment.rl.minibatches
    some = jax.ShapeDtypeStruct((size,), jnp.int32, sharding=here)
    asked = (state.params, state.frozen, program.batch["prompts"], program.batch["lengths"], seeds)
    with jax.set_mesh(mesh):
        rolled = abstract(run.sample, *asked)
        read = (state.params, critic.params if critic else (), state.frozen, rolled)
        measured = abstract(lambda *xs: run.forward_models(*xs)[0], *read)
        scored = (measured, rolled.ended, measured.scores, rest["scores"], rest["kl_coef"], state.step)
        experience = abstract(lambda *xs: run.compute_advantages(*xs)[0], *scored)
        policy = (TrainState(state.params, rest["policy"]), state.frozen["policy"], experience, some, text)
        found = {
            "roll": run.sample.lower(*asked),
            "measure": run.forward_models.lower(*read),
            "learn": run.compute_advantages.lower(*scored),
            "policy_step": run.policy_step.lower(*policy),
        }
        if models.critic:
            found["value_step"] = run.value_step.lower(critic, state.frozen["value"], experience, some)
    return found
