"""The compiled programs of an iteration; each is compiled once, as all its shapes are fixed."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qwenjax.generate.rollout import Rollout, rollout
from qwenjax.generate.sampling import Sample
from qwenjax.model import reward, transformer
from qwenjax.train.rl import steps
from qwenjax.train.rl.models import REWARD, Models
from qwenjax.train.rl.steps import Experience, Learner
from qwenjax.train.step import Program, State, placed_batch


class Programs(NamedTuple):
    """Jitted functions; `frozen` is State.frozen.

    roll         (params of the policy, frozen, prompts [b p], lengths [b], seeds [b]) -> Rollout
    roll_before  (frozen, prompts, lengths, seeds) -> Rollout, of the reference
    measure      (policy, value, frozen, Rollout) -> (what was read, log-probabilities, …), numbers
    learn        (measured, ended, scores, running mean, KL coefficient, step) -> Experience, …, numbers
    policy_step  (Learner, frozen policy, Experience, rows, text) -> Learner, numbers; the learner is donated
    value_step   the same for the value model, without text
    look         (policy, frozen, Rollout) -> per response: KL, length, ended, entropy, scores of models
    """

    roll: Callable
    roll_before: Callable
    measure: Callable
    learn: Callable
    policy_step: Callable
    value_step: Callable
    look: Callable


def make(models: Models, places: State, stops: tuple[int, ...], size: int, pad: int) -> Programs:
    """The programs of an experiment.

    Args:
      places: of the state; what comes out of an update lies where it lay.
      stops, size, pad: the tokenizer's: ids that end a response, number of ids, id behind responses.
    """
    experiment, policy, valuer = models.experiment, models.policy, models.valuer
    rl = experiment.rl
    parts = rl.minibatches * experiment.accumulate  # as many rows at a time as an update has
    text_loss = policy.loss(learning=False)
    sample = partial(
        rollout,
        transformer.Transformer(experiment.model, models.compute),
        new=rl.new_tokens,
        sampling=Sample(top_p=rl.top_p),
        stops=stops,
        size=size,
        pad=pad,
    )

    def roll(trained, frozen, prompts, lengths, seeds):
        return sample(policy.params(trained, frozen["policy"]), prompts, lengths, seeds)

    def roll_before(frozen, prompts, lengths, seeds):
        return sample(models.reference_params(frozen), prompts, lengths, seeds)

    def both(trained, frozen, read):
        """Log-probabilities and entropy under the policy, and log-probabilities under the reference."""
        logp, entropy = steps.log_probs(policy.plain, policy.variables(trained, frozen["policy"]), read)
        return logp, entropy, steps.log_probs(models.reference, models.reference_parts(frozen), read)[0]

    def measure(trained, value, frozen, rolled: Rollout):
        def part(rolled):
            read = steps.responses(rolled)
            logp, entropy, reference = both(trained, frozen, read)
            values, scores = jnp.zeros(logp.shape, jnp.float32), jnp.zeros(len(logp), jnp.float32)
            if models.critic:
                collections = valuer.variables(value["backbone"], frozen["value"])
                values = reward.values(valuer.plain, collections, value["reward"], read.tokens, read.positions)
            if REWARD in models.judges:
                scores = models.judges[REWARD].score(frozen[REWARD], read)
            return read, logp, entropy, reference, values, scores

        found = steps.in_parts(part, parts, rolled)
        return found, steps.sampler_numbers(rolled, found[1])

    def learn(measured, ended, scores, running, kl_coef, step):
        read, logp, entropy, reference, values, _ = measured
        if rl.shuffle:
            scores = jax.random.permutation(jax.random.fold_in(jax.random.key(experiment.seed + 1), step), scores)
        experience, running, kl_coef, numbers = steps.experience(
            experiment.task, rl, read, scores, ended, logp, reference, values, running, kl_coef
        )
        numbers["entropy"] = jnp.sum(entropy) / jnp.maximum(jnp.sum(read.mask), 1)
        return experience, running, kl_coef, numbers

    def policy_step(learner, frozen, experience: Experience, rows, text):
        loss = steps.policy_loss(experiment.task, rl, policy)
        also = (text_loss, text, rl.ptx) if rl.ptx else None
        return steps.update(loss, models.tx, learner, frozen, experience.rows(rows), experiment.accumulate, also)

    def value_step(learner, frozen, experience: Experience, rows):
        loss, some = steps.value_loss(rl, valuer), experience.rows(rows)
        return steps.update(loss, models.value_tx, learner, frozen, some, experiment.accumulate)

    def look(trained, frozen, rolled) -> dict[str, Any]:
        read = steps.responses(rolled)
        logp, entropy, reference = both(trained, frozen, read)
        length = jnp.sum(read.mask, axis=1)
        found = {"kl": jnp.sum(logp - reference, axis=1), "length": length, "ended": rolled.ended}
        found["entropy"] = jnp.sum(entropy, axis=1) / jnp.maximum(length, 1)
        return found | {name: judge.score(frozen[name], read) for name, judge in models.judges.items()}

    here = places.step
    policy_places = Learner(places.params, places.opt_state["policy"])
    return Programs(
        jax.jit(roll),
        jax.jit(roll_before),
        jax.jit(measure),
        jax.jit(learn, out_shardings=(None, here, here, here)),
        jax.jit(policy_step, donate_argnums=0, out_shardings=(policy_places, here)),
        jax.jit(value_step, donate_argnums=0, out_shardings=(places.opt_state["value"] or here, here)),
        jax.jit(look),
    )


def lowered(models: Models, program: Program) -> dict[str, Any]:
    """The programs of an iteration for the devices of the mesh, without a tokenizer or any file."""
    experiment, mesh, state = models.experiment, program.mesh, program.abstract_state()
    run = make(models, program.shardings, (0,), experiment.model.vocab, 0)
    length, rl = experiment.data.length, experiment.rl

    def placed(tree):
        return jax.tree.map(lambda x: placed_batch({"x": x}, length, mesh)["x"], tree)

    def abstract(f: Callable, *args) -> Any:
        return jax.eval_shape(f, *args)

    seeds = placed(jax.ShapeDtypeStruct((experiment.data.batch,), jnp.uint32))
    asked = (state.params, state.frozen, program.batch["prompts"], program.batch["lengths"], seeds)
    size = experiment.data.batch // rl.minibatches
    rows = jax.ShapeDtypeStruct((size,), jnp.int32, sharding=program.shardings.step)
    critic = state.opt_state["value"]
    with jax.set_mesh(mesh):
        rolled = placed(abstract(run.roll, *asked))
        measured = placed(abstract(run.measure, state.params, critic.params if critic else (), state.frozen, rolled)[0])
        running = (state.opt_state["scores"], state.opt_state["kl_coef"], state.step)
        learned = (measured, rolled.ended, measured[-1], *running)
        experience = placed(abstract(run.learn, *learned)[0])
        text: Any = ()
        if rl.ptx:
            text = {
                name: jax.ShapeDtypeStruct((rl.ptx_rows, length), jnp.float32 if name == "weights" else jnp.int32)
                for name in ("inputs", "targets", "positions", "weights")
            }
        policy = Learner(state.params, state.opt_state["policy"])
        found = {
            "rollout": run.roll.lower(*asked),
            "measure": run.measure.lower(state.params, critic.params if critic else (), state.frozen, rolled),
            "policy step": run.policy_step.lower(policy, state.frozen["policy"], experience, rows, placed(text)),
        }
        if models.critic:
            found["value step"] = run.value_step.lower(critic, state.frozen["value"], experience, rows)
    return found
