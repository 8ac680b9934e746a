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

# loss_fn(params, frozen, batch, rng) -> (summed loss, summed weight)
LossFn = Callable[[Any, Any, dict, jax.Array], tuple[jax.Array, jax.Array]]

UNLIMITED = np.full(2, np.inf, np.float32)  # limits of loss and gradient norm that leave out only what is not finite


class State(NamedTuple):
    """All that a step reads and, but for the last, changes on device."""

    step: jax.Array  # int32: optimizer steps done
    params: dict  # float32 masters of what is trained
    opt_state: Any
    frozen: Any = ()  # parameters that nothing changes and no checkpoint of this run holds: a base, a reference


class StepProgram(NamedTuple):
    """An experiment on a mesh, ready to run or to compile ahead of time."""

    mesh: Mesh
    shapes: State  # ShapeDtypeStructs
    shardings: State
    batch: dict[str, jax.ShapeDtypeStruct]  # of one step, in their places
    init: Callable[[], State]  # random parameters, frozen ones too
    start: Callable[..., State]  # given what is trained; everything else fresh, and nothing frozen
    step: Callable[[State, dict, jax.Array], tuple[State, dict]]  # the state is donated

    def abstract_state(self) -> State:
        """The state as ShapeDtypeStructs in their places."""
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.shapes, self.shardings
        )


def gradients(
    loss_fn: LossFn, params: Any, frozen: Any, batch: dict, rng: jax.Array, accumulate: int = 1
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """((summed loss, summed weight or other sums), gradient of the former), in `accumulate` micro-batches.

    Their gradients are added in float32; whoever divides by the weight does so once, so the cut does not show.
    """
    if accumulate == 1:
        return jax.value_and_grad(loss_fn, has_aux=True)(params, frozen, batch, rng)

    def cut(x):  # every device keeps its own rows: micro-batch m takes rows m, m + accumulate, …
        return jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0)

    def micro(carry, xs):
        batch, index = xs
        batch = jax.tree.map(lambda v: sharding.constrain(v, *names(v.shape, length)), batch)
        out = jax.value_and_grad(loss_fn, has_aux=True)(params, frozen, batch, jax.random.fold_in(rng, index))
        return jax.tree.map(jnp.add, carry, out), None

    length = max(x.shape[-1] for x in jax.tree.leaves(batch) if x.ndim > 1)
    cuts = jax.tree.map(cut, batch)
    first = jax.tree.map(lambda x: x[0], cuts)
    shapes = jax.eval_shape(jax.value_and_grad(loss_fn, has_aux=True), params, frozen, first, rng)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(micro, zero, (cuts, jnp.arange(accumulate)))[0]


def names(shape: tuple[int, ...], length: int) -> tuple[str | None, ...]:
    """Logical axes of an array of a batch: rows first, and positions last if it has any."""
    last = ("length" if shape[-1] == length else None,) if len(shape) > 1 else ()
    return ("batch", *[None] * (len(shape) - 2), *last)


def make_train_step(loss_fn: LossFn, tx: optax.GradientTransformation, accumulate: int = 1, seed: int = 0) -> Callable:
    """The pure step (state, batch, limits) -> (state, metrics).

    The batch is a dict of [b …] arrays; `accumulate`: see `gradients`. Dropout is keyed by (seed, step, micro-step): a
    resumed run replays it. `limits`, float32 [2], are the largest loss and gradient norm to learn from, such as
    UNLIMITED: beyond them, or if either is not finite, the state stays as it was and metrics["applied"] is False.
    """

    def train_step(state: State, batch: dict, limits: jax.Array) -> tuple[State, dict]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        (total, weight), grads = gradients(loss_fn, state.params, state.frozen, batch, rng, accumulate)
        with jax.named_scope("grad_norm"):
            grads = jax.tree.map(lambda g: g / weight, grads)
            loss, norm = total / weight, optax.tree.norm(grads)
            applied = jnp.isfinite(loss) & jnp.isfinite(norm) & (loss <= limits[0]) & (norm <= limits[1])
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            new = State(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
            new = jax.tree.map(lambda a, b: jnp.where(applied, a, b), new, state._replace(frozen=()))
        return new._replace(frozen=state.frozen), {
            "loss": loss,
            "grad_norm": norm,
            "tokens": weight,
            "applied": applied,
        }

    return train_step


def build(
    experiment: Experiment,
    loss_fn: LossFn,
    mesh: Mesh,
    batch: dict[str, jax.ShapeDtypeStruct],
    parts: Callable[[jax.Array], tuple[Any, Any]] | None = None,
) -> StepProgram:
    """Shapes, then shardings, then jitted functions.

    Args:
      batch: of one step.
      parts: key -> random parameters, trained and frozen, boxed with their logical axes; None: those of the model,
        all of them trained.
    Raises:
      ValueError: batch, length or a parameter does not divide over the mesh.
    """
    tx = optim.make(experiment.optim, experiment.steps)
    check_batch(experiment, mesh)
    parts = parts or (lambda key: (transformer.init_params(experiment.model, key), ()))

    def fresh(params) -> State:
        return State(jnp.int32(0), params, tx.init(params))

    def init() -> State:
        params, frozen = nn.meta.unbox(parts(jax.random.key(experiment.seed)))
        return fresh(params)._replace(frozen=frozen)

    params, frozen = shardings(mesh, jax.eval_shape(lambda: parts(jax.random.key(0))))
    replicated = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(init)
    places = State(replicated, params, optimizer_places(tx, shapes.opt_state, params, replicated), frozen)
    batch = placed_batch(batch, experiment.data.seq_len, mesh)
    step = make_train_step(loss_fn, tx, experiment.accumulate, experiment.seed)
    options = flags.compiler_options(mesh.devices.flat[0].device_kind)
    return StepProgram(
        mesh=mesh,
        shapes=shapes,
        shardings=places,
        batch=batch,
        init=in_mesh(mesh, jax.jit(init, out_shardings=places)),
        start=in_mesh(mesh, jax.jit(fresh, in_shardings=(params,), out_shardings=places._replace(frozen=()))),
        step=in_mesh(
            mesh,
            jax.jit(
                step,
                in_shardings=(places, jax.tree.map(lambda x: x.sharding, batch), replicated),
                out_shardings=(places, replicated),
                donate_argnums=0,
                compiler_options=options,
            ),
        ),
    )


def shardings(mesh: Mesh, boxed: Any) -> Any:
    """Where the parameters of a boxed tree live; those without logical axes are everywhere."""

    def place(p):
        if isinstance(p, nn.meta.AxisMetadata):
            return sharding.sharding(mesh, p.names, p.value.shape)
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(place, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))


def optimizer_places(tx: optax.GradientTransformation, opt_state: Any, params: Any, rest: NamedSharding) -> Any:
    """Adam's moments live with the parameter they belong to; counters are everywhere."""
    return optax.tree_map_params(tx, lambda _, s: s, opt_state, params, transform_non_params=lambda _: rest)


def placed_batch(batch: dict[str, jax.ShapeDtypeStruct], length: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch with their places: rows over data x fsdp, positions over context."""

    def place(x):
        where = NamedSharding(mesh, sharding.spec(*names(x.shape, length)))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(place, batch)


def in_mesh(mesh: Mesh, f: Callable) -> Callable:
    """A jitted function that runs, and with `.lower` is compiled, on a mesh."""

    def call(*args):
        with jax.set_mesh(mesh):
            return f(*args)

    call.lower = lambda *args: _lower(f, mesh, args)
    return call


def _lower(f, mesh, args):
    with jax.set_mesh(mesh):
        return f.lower(*args)


def check_batch(experiment: Experiment, mesh: Mesh) -> None:
    """Raises ValueError, with sizes that would do, if rows or positions do not divide over the mesh."""
    rows, over = experiment.data.batch_size // experiment.accumulate, mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % over:
        low, high = rows - rows % over, rows + over - rows % over
        fits = " or ".join(str(n * experiment.accumulate) for n in (low, high) if n)
        raise ValueError(
            f"data.batch_size={experiment.data.batch_size} in accumulate={experiment.accumulate} micro-steps gives "
            f"{rows} rows, which do not divide over {over} devices (data x fsdp); use --set data.batch_size={fits}"
        )
    if experiment.data.seq_len % mesh.shape["context"]:
        raise ValueError(
            f"data.seq_len={experiment.data.seq_len} does not divide over mesh.context={mesh.shape['context']}"
        )
