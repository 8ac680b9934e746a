"""The pure training step, and shapes and shardings of its state.

`build` turns an experiment, a loss and a mesh into a `StepProgram`. Nothing is allocated until `init` runs, so the same
program is priced for a pod on a laptop (`plan`) and trains on either. b examples of a step's batch, t positions.
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
from qwenjax.config import RL_TASKS, Experiment
from qwenjax.data.batches.text import BatchShapes

# loss_fn(params, frozen, batch, rng) -> (summed loss, summed weight). The second may also be a dict of sums.
LossFn = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Any]]

UNLIMITED = np.full(2, np.inf, np.float32)  # limits of loss and gradient norm that every finite step is within


class TrainState(NamedTuple):
    """A model in training with its optimizer."""

    params: Any
    opt_state: Any


class State(NamedTuple):
    """The state of a run on the devices. A step changes all of it but `frozen`."""

    step: jax.Array  # int32: optimizer steps done
    params: dict  # float32 masters of the trained parameters
    opt_state: Any
    frozen: Any = ()  # parameters that never change, such as a base or a reference; checkpoints do not hold them


class StepProgram(NamedTuple):
    """An experiment on a mesh, ready to run or to compile ahead of time."""

    mesh: Mesh
    shapes: State  # ShapeDtypeStructs
    shardings: State
    batch: dict[str, jax.ShapeDtypeStruct]  # of one step, with shardings
    init: Callable[[], State]  # random parameters, frozen ones too
    start: Callable[..., State]  # from trained parameters; step and optimizer are fresh, `frozen` is empty
    step: Callable[[State, dict, jax.Array], tuple[State, dict]]  # the state is donated

    def abstract_state(self) -> State:
        """The state as ShapeDtypeStructs with shardings."""
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.shapes, self.shardings
        )


# ---- the step ----


def gradients(
    loss_fn: LossFn, params: Any, frozen: Any, batch: Any, rng: jax.Array, accumulate: int = 1
) -> tuple[tuple[jax.Array, Any], Any]:
    """((summed loss, summed weight), gradient of the summed loss), computed in `accumulate` micro-batches.

    As sums are added and divided only once, the result does not depend on `accumulate`, however uneven the weights are.
    """
    if accumulate == 1:
        return jax.value_and_grad(loss_fn, has_aux=True)(params, frozen, batch, rng)

    def micro(carry, xs):
        batch, index = xs
        batch = jax.tree.map(lambda v: sharding.constrain(v, *batch_axes(v.shape, length)), batch)
        out = jax.value_and_grad(loss_fn, has_aux=True)(params, frozen, batch, jax.random.fold_in(rng, index))
        return jax.tree.map(jnp.add, carry, out), None

    length = max(x.shape[-1] for x in jax.tree.leaves(batch) if x.ndim > 1)
    parts = jax.tree.map(lambda x: split_batch(x, accumulate), batch)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(jax.value_and_grad(loss_fn, has_aux=True), params, frozen, first, rng)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(micro, zero, (parts, jnp.arange(accumulate)))[0]


def split_batch(x: jax.Array, parts: int) -> jax.Array:
    """[b …] -> [parts b/parts …]. Part i holds rows i, i + parts, …: every device keeps its own rows."""
    return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)


def optimizer_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    state: TrainState,
    frozen: Any,
    batch: Any,
    rng: jax.Array,
    *,
    accumulate: int = 1,
    limits: jax.Array | None = None,
    weight_of: Callable[[Any], jax.Array] = lambda sums: sums,
    extra: tuple[LossFn, Any, float] | None = None,
) -> tuple[TrainState, Any, dict[str, jax.Array]]:
    """One optimizer step on the mean loss. Pure.

    Args:
      limits: float32 [2], the largest loss and gradient norm to learn from; None: any finite ones.
      weight_of: the weight to divide by, from the second result of `loss_fn`.
      extra: a second loss, its batch and its coefficient: the pretrained gradient of PPO (report §3.2.2). Each loss is
        divided by its own weight.
    Returns:
      The new state, which is the old one beyond the limits; the second result of `loss_fn`, summed over the batch; and
      the metrics "loss", "grad_norm", "applied" (whether the state changed) and, with a second loss, "extra_loss".
    """
    (total, sums), grads = gradients(loss_fn, state.params, frozen, batch, rng, accumulate)
    metrics = {}
    with jax.named_scope("grad_norm"):
        weight = weight_of(sums)
        grads, loss = jax.tree.map(lambda g: g / weight, grads), total / weight
    if extra is not None:
        extra_fn, extra_batch, coef = extra
        (extra_total, extra_weight), extra_grads = gradients(
            extra_fn, state.params, frozen, extra_batch, rng, accumulate
        )
        grads = jax.tree.map(lambda g, h: g + coef * h / extra_weight, grads, extra_grads)
        metrics["extra_loss"] = extra_total / extra_weight
    with jax.named_scope("grad_norm"):
        norm = optax.tree.norm(grads)
        applied = jnp.isfinite(loss) & jnp.isfinite(norm)
        if limits is not None:
            applied &= (loss <= limits[0]) & (norm <= limits[1])
    with jax.named_scope("optimizer"):
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        new = TrainState(optax.apply_updates(state.params, updates), opt_state)
        new = jax.tree.map(lambda a, b: jnp.where(applied, a, b), new, state)
    return new, sums, metrics | {"loss": loss, "grad_norm": norm, "applied": applied}


# ---- programs: shapes, then shardings, then jitted functions ----


def build(
    experiment: Experiment,
    loss_fn: LossFn,
    mesh: Mesh,
    batch: BatchShapes,
    random: Callable[[jax.Array], tuple[Any, Any]],
) -> StepProgram:
    """The program of a stage with one loss. Dropout is keyed by (seed, step, micro-batch): a resumed run replays it.

    Args:
      random: key -> random parameters, trained and frozen, boxed with their logical axes.
    Raises:
      ValueError: batch, length or a parameter does not divide over the mesh.
    """
    tx = optim.make(experiment.optim, experiment.steps)

    def fresh(params) -> State:
        return State(jnp.int32(0), params, tx.init(params))

    def opt_shardings(opt_state, params):
        return optimizer_shardings(tx, opt_state, params, mesh)

    def train_step(state: State, batch: dict, limits: jax.Array) -> tuple[State, dict]:
        rng = jax.random.fold_in(jax.random.key(experiment.seed), state.step)
        model = TrainState(state.params, state.opt_state)
        new, weight, metrics = optimizer_step(
            loss_fn, tx, model, state.frozen, batch, rng, accumulate=experiment.accumulate, limits=limits
        )
        step = jnp.where(metrics["applied"], state.step + 1, state.step)
        return State(step, new.params, new.opt_state, state.frozen), metrics | {"tokens": weight}

    program = make_program(experiment, mesh, batch, random, fresh, opt_shardings)
    replicated = NamedSharding(mesh, PartitionSpec())
    step = jax.jit(
        train_step,
        in_shardings=(program.shardings, jax.tree.map(lambda x: x.sharding, program.batch), replicated),
        out_shardings=(program.shardings, replicated),
        donate_argnums=0,
        compiler_options=OPTIONS.get(mesh.devices.flat[0].device_kind, {}),
    )
    return program._replace(step=in_mesh(mesh, step))


def make_program(
    experiment: Experiment,
    mesh: Mesh,
    batch: BatchShapes,
    random: Callable[[jax.Array], tuple],
    fresh: Callable[..., State],
    opt_shardings: Callable[..., Any],
    step: Callable | None = None,
) -> StepProgram:
    """Shapes and shardings of a run's state and batch, and the functions that make its first state.

    Args:
      random: key -> (*trained, frozen): random parameters, boxed with their logical axes.
      fresh: *trained -> the first state, with nothing frozen.
      opt_shardings: (shapes of the optimizer state, *shardings of what is trained) -> shardings of the former.
    """
    check_batch(experiment, mesh)

    def init() -> State:
        *trained, frozen = nn.meta.unbox(random(jax.random.key(experiment.seed)))
        return fresh(*trained)._replace(frozen=frozen)

    *trained, frozen = parameter_shardings(mesh, jax.eval_shape(random, jax.random.key(0)))
    shapes = jax.eval_shape(init)
    opt_state = opt_shardings(shapes.opt_state, *trained)
    state = State(NamedSharding(mesh, PartitionSpec()), trained[0], opt_state, frozen)
    start = jax.jit(fresh, in_shardings=tuple(trained), out_shardings=state._replace(frozen=()))
    return StepProgram(
        mesh=mesh,
        shapes=shapes,
        shardings=state,
        batch=sharded_batch(batch, experiment.data.seq_len, mesh),
        init=in_mesh(mesh, jax.jit(init, out_shardings=state)),
        start=in_mesh(mesh, start),
        step=step,
    )


def parameter_shardings(mesh: Mesh, boxed: Any) -> Any:
    """Shardings of a boxed tree of parameters. Those without logical axes are replicated."""

    def of(p):
        if isinstance(p, nn.meta.AxisMetadata):
            return sharding.sharding(mesh, p.names, p.value.shape)
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(of, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))


def optimizer_shardings(tx: optax.GradientTransformation, opt_state: Any, params: Any, mesh: Mesh) -> Any:
    """Adam's moments are split as the parameter they belong to; counters are replicated. `params`: shardings."""
    replicated = NamedSharding(mesh, PartitionSpec())
    return optax.tree_map_params(tx, lambda _, s: s, opt_state, params, transform_non_params=lambda _: replicated)


def sharded_batch(batch: BatchShapes, length: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Arrays of a batch with their shardings: rows over data x fsdp, positions over context."""

    def of(shape, dtype):
        where = NamedSharding(mesh, sharding.spec(*batch_axes(shape, length)))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    return {name: of(*spec) for name, spec in batch.items()}


def batch_axes(shape: tuple[int, ...], length: int) -> tuple[str | None, ...]:
    """Logical axes of an array of a batch: rows first, and positions last if it has any."""
    last = ("length" if shape[-1] == length else None,) if len(shape) > 1 else ()
    return ("batch", *[None] * (len(shape) - 2), *last)


def in_mesh(mesh: Mesh, f: Callable) -> Callable:
    """A jitted function that runs, and with `.lower` is compiled, on a mesh."""

    def call(*args):
        with jax.set_mesh(mesh):
            return f(*args)

    def lower(*args):
        with jax.set_mesh(mesh):
            return f.lower(*args)

    call.lower = lower
    return call


def check_batch(experiment: Experiment, mesh: Mesh) -> None:
    """Raises ValueError, with sizes that would do, if rows or positions do not divide over the mesh."""
    rl, accumulate, over = experiment.rl, experiment.accumulate, mesh.shape["data"] * mesh.shape["fsdp"]
    parts = accumulate * (rl.minibatches if experiment.task in RL_TASKS else 1)
    batches = (("data.batch_size", experiment.data.batch_size, parts), ("rl.ptx_batch", rl.ptx_batch, accumulate))
    for name, size, split in batches:
        rows = size // split
        if rows % over:
            fits = " or ".join(str(n * split) for n in (rows - rows % over, rows + over - rows % over) if n)
            raise ValueError(
                f"{name}={size} in {split} micro-steps gives {rows} rows, which do not divide over {over} devices "
                f"(data x fsdp); use --set {name}={fits}"
            )
    length, context = experiment.data.seq_len, mesh.shape["context"]
    if length % context:
        raise ValueError(f"data.seq_len={length} does not divide over mesh.context={context}")


# ---- compiler options by kind of accelerator ----
# Gains are seconds of a 14B step of 4M tokens by the compiler's own model (`python -m qwenjax.plan`).

# For loops that gather weights: the next layer's gather starts beside this layer's compute, in several parts.
OVERLAP = {
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
}
# On-chip memory that one fusion may use. With the default of 16 MiB matmuls reach 83 % of peak and anything fused into
# them costs extra; with 32 MiB they reach 95 % and element-wise work is nearly free. More takes minutes to compile.
VMEM = {"xla_tpu_scoped_vmem_limit_kib": "32768"}

OPTIONS = {  # for `jax.jit`, by `jax.Device.device_kind`
    "TPU v5 lite": VMEM,  # 10.86 -> 9.94 s; gathers are asynchronous without flags
    "TPU v5": VMEM | OVERLAP,  # v5p: 7.78 -> 7.11 s, and exposed collectives 0.40 -> 0.17 s
    "TPU v5p": VMEM | OVERLAP,
    "TPU v6 lite": {"xla_tpu_scoped_vmem_limit_kib": "65536"} | OVERLAP,  # matmul units of 256: 3.24 -> 2.66 s
}
