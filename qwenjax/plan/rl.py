"""The price of an iteration of reinforcement learning: each of its programs, compiled for a TPU slice."""

from dataclasses import dataclass

from qwenjax.config import Experiment
from qwenjax.plan.estimate import DoesNotFit, collective_seconds, compile_for, held
from qwenjax.xla.costs import costs
from qwenjax.xla.hardware import Topology
from qwenjax.xla.hlo import HloProgram

GIB = 1 << 30


@dataclass
class ProgramCost:
    """A program of the iteration; bytes per chip and seconds of one call, attention kernels left out."""

    name: str
    calls: int  # in an iteration
    peak: int  # with all that stays on the chip meanwhile
    seconds: float
    exposed: float  # of them in collectives
    compile_seconds: float


def plan_rl(experiment: Experiment, topology: Topology) -> tuple[list[ProgramCost], dict[str, int]]:
    """Every program, and what is held of each model.

    Raises:
      DoesNotFit: a program, with the models that it does not use itself, is more than a chip has.
      ValueError: a size does not divide over the devices; or no TPU compiler.
    """
    from qwenjax import sharding
    from qwenjax.train.loop import TASKS

    mesh = sharding.make_mesh(experiment.mesh, experiment.model.embed, topology.devices())
    task = TASKS[experiment.task](experiment, mesh)
    state = task.program.abstract_state()
    models = {"policy": held(state.params), "optimizer of the policy": held(state.opt_state["policy"])}
    if state.opt_state["value"]:
        models["value model"] = held(state.opt_state["value"].params)
        models["optimizer of the value model"] = held(state.opt_state["value"].opt_state)
    models |= {name: held(tree) for name, tree in state.frozen.items() if held(tree)}
    total, parts = held((state.params, state.opt_state, state.frozen)), []
    updates = experiment.rl.epochs * experiment.rl.minibatches
    for name, one in task.lowered().items():
        try:
            compiled, seconds = compile_for(one)
        except DoesNotFit as error:
            raise DoesNotFit(f"{name}: {error}") from None
        memory = compiled.memory_analysis()
        peak = memory.peak_memory_in_bytes + max(0, total - memory.argument_size_in_bytes)
        if peak > topology.chip.memory:
            raise DoesNotFit(f"{name} takes {peak / GIB:.1f} of {topology.chip.memory / GIB:.0f} GiB with all models")
        spent = costs(HloProgram(compiled.as_text()))
        compute = spent.cycles / topology.chip.clock
        exposed = collective_seconds(spent.collectives, topology, compute)[0]
        calls = updates if name.endswith("_step") else 1
        parts.append(ProgramCost(name, calls, peak, compute + exposed, exposed, seconds))
    return parts, models


def text(experiment: Experiment, topology: Topology, parts: list[ProgramCost], models: dict[str, int]) -> str:
    """A plan as people read it."""
    memory, rl = topology.chip.memory / GIB, experiment.rl
    worst = max(part.peak for part in parts) / GIB
    lines = [
        f"{experiment.name} on {topology.name}: {topology.chips} {topology.chip.name} chips; "
        f"an iteration of {experiment.data.batch_size} responses of up to {rl.max_new_tokens} tokens, "
        f"{rl.epochs * rl.minibatches} updates",
        "",
        f"fits: {worst:.2f} of {memory:.0f} GiB per chip",
        *(f"  {size / GIB:>7.2f}  {name}" for name, size in models.items()),
        "",
        "  peak GiB  seconds  calls  program",
        *(f"  {part.peak / GIB:>8.2f} {part.seconds:>8.2f} {part.calls:>6}  {part.name}" for part in parts),
        "",
        f"{sum(part.seconds * part.calls for part in parts):.1f} s per iteration by the compiler's model, where every "
        "response takes all its tokens; attention kernels left out",
        f"compiled in {sum(part.compile_seconds for part in parts):.0f} s; a model of the machine, not a measurement",
    ]
    return "\n".join(lines)


def as_dict(experiment: Experiment, topology: Topology, parts: list[ProgramCost], models: dict[str, int]) -> dict:
    """For machines."""
    return {
        "experiment": experiment.name,
        "topology": topology.name,
        "chips": topology.chips,
        "model_bytes": models,
        "programs": [vars(part) for part in parts],
    }
