"""The pure training step and where its state lives.

`build` turns an experiment and a mesh into a `Program`: shapes, shardings and the jitted functions. Nothing is
allocated until `init` runs, so the same program is priced for a pod on a laptop (`plan`) and trains on either.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwenjax import optim, sharding
from qwenjax.config import Experiment
from qwenjax.model import transformer
from qwenjax.train import flags

# loss_fn(params, batch, rng) -> (summed loss, summed weight)
LossFn = Callable[[Any, dict, jax.Array], tuple[jax.Array, jax.Array]]

UNLIMITED = np.full(2, np.inf, np.float32)  # limits of loss and gradient norm that leave out only what is not finite


class State(NamedTuple):
    """All that training changes on device."""

    step: jax.Array  # int32: optimizer steps done
    params: dict  # float32 masters
    opt_state: Any


class Program(NamedTuple):
    """An experiment on a mesh, ready to run or to compile ahead of time."""

    mesh: Mesh
    shapes: State  # ShapeDtypeStructs
    shardings: State
    batch_sharding: NamedSharding
    init: Callable[[], State]
    start: Callable[[dict], State]  # given parameters, everything else fresh
    step: Callable[[State, dict, jax.Array], tuple[State, dict]]  # the state is donated


def make_train_step(loss_fn: LossFn, tx: optax.GradientTransformation, accumulate: int = 1, seed: int = 0) -> Callable:
    """The pure step (state, batch, limits) -> (state, metrics).

    The batch is a dict of [b …] arrays. With `accumulate` it is cut into that many micro-batches whose gradients are
    added in float32; sums are divided by the summed weight once, so the cut does not show in the result. Dropout is
    keyed by (seed, step, micro-step): a resumed run replays it. `limits`, float32 [2], are the largest loss and
    gradient norm to learn from, such as UNLIMITED: beyond them, or if either is not finite, the state stays as it was
    and metrics["applied"] is False.
    """

    def gradients(params, batch, rng):
        if accumulate == 1:
            return jax.value_and_grad(loss_fn, has_aux=True)(params, batch, rng)

        def cut(x):  # every device keeps its own rows: micro-batch m takes rows m, m + accumulate, …
            return jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0)

        def micro(carry, xs):
            batch, index = xs
            batch = {k: sharding.constrain(v, "batch", *(["length"] * (v.ndim - 1))) for k, v in batch.items()}
            out = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, jax.random.fold_in(rng, index))
            return jax.tree.map(jnp.add, carry, out), None

        zero = ((jnp.float32(0), jnp.float32(0)), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(micro, zero, (jax.tree.map(cut, batch), jnp.arange(accumulate)))[0]

    def train_step(state: State, batch: dict, limits: jax.Array) -> tuple[State, dict]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        (total, weight), grads = gradients(state.params, batch, rng)
        with jax.named_scope("grad_norm"):
            grads = jax.tree.map(lambda g: g / weight, grads)
            loss, norm = total / weight, optax.tree.norm(grads)
            applied = jnp.isfinite(loss) & jnp.isfinite(norm) & (loss <= limits[0]) & (norm <= limits[1])
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            new = State(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
            new = jax.tree.map(lambda a, b: jnp.where(applied, a, b), new, state)
        return new, {"loss": loss, "grad_norm": norm, "tokens": weight, "applied": applied}

    return train_step


def build(experiment: Experiment, loss_fn: LossFn, mesh: Mesh) -> Program:
    """Shapes, then shardings, then jitted functions.

    Raises:
      ValueError: batch, length or a parameter does not divide over the mesh.
    """
    tx = optim.make(experiment.optim, experiment.steps)
    check_batch(experiment, mesh)

    def fresh(params) -> State:
        return State(jnp.int32(0), params, tx.init(params))

    def init() -> State:
        return fresh(nn.meta.unbox(transformer.init_params(experiment.model, jax.random.key(experiment.seed))))

    boxed = jax.eval_shape(lambda: transformer.init_params(experiment.model, jax.random.key(0)))
    params = jax.tree.map(
        lambda p: sharding.sharding(mesh, p.names, p.value.shape),
        boxed,
        is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata),
    )
    replicated = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(init)
    # Adam's moments live with the parameter they belong to; counters are everywhere
    moments = optax.tree_map_params(
        tx, lambda _, s: s, shapes.opt_state, params, transform_non_params=lambda _: replicated
    )
    places = State(replicated, params, moments)
    batch_sharding = NamedSharding(mesh, sharding.spec("batch", "length"))
    step = make_train_step(loss_fn, tx, experiment.accumulate, experiment.seed)
    options = flags.compiler_options(mesh.devices.flat[0].device_kind)

    def in_mesh(f: Callable) -> Callable:
        def call(*args):
            with jax.set_mesh(mesh):
                return f(*args)

        call.lower = lambda *args: _lower(f, mesh, args)
        return call

    return Program(
        mesh=mesh,
        shapes=shapes,
        shardings=places,
        batch_sharding=batch_sharding,
        init=in_mesh(jax.jit(init, out_shardings=places)),
        start=in_mesh(jax.jit(fresh, in_shardings=(params,), out_shardings=places)),
        step=in_mesh(
            jax.jit(
                step,
                in_shardings=(places, batch_sharding, replicated),
                out_shardings=(places, replicated),
                donate_argnums=0,
                compiler_options=options,
            )
        ),
    )


def _lower(f, mesh, args):
    with jax.set_mesh(mesh):
        return f.lower(*args)


def check_batch(experiment: Experiment, mesh: Mesh) -> None:
    """Raises ValueError, with sizes that would do, if rows or positions do not divide over the mesh."""
    rows, over = experiment.data.batch // experiment.accumulate, mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % over:
        low, high = rows - rows % over, rows + over - rows % over
        fits = " or ".join(str(n * experiment.accumulate) for n in (low, high) if n)
        raise ValueError(
            f"data.batch={experiment.data.batch} in accumulate={experiment.accumulate} micro-steps gives {rows} rows, "
            f"which do not divide over {over} devices (data x fsdp); use --set data.batch={fits}"
        )
    if experiment.data.length % mesh.shape["context"]:
        raise ValueError(
            f"data.length={experiment.data.length} does not divide over mesh.context={mesh.shape['context']}"
        )
