"""The price of an iteration of reinforcement learning: each of its programs, compiled for a TPU slice."""

from dataclasses import dataclass

from qwenjax.config import Experiment
from qwenjax.plan.estimate import GIB, DoesNotFit, bytes_per_device, collective_seconds, compile_lowered
from qwenjax.xla.costs import program_costs
from qwenjax.xla.hardware import Topology
from qwenjax.xla.hlo import HloProgram


@dataclass
class ProgramCost:
    """A program of the iteration: bytes per device, and seconds of one call without its attention kernels."""

    name: str
    calls: int  # in an iteration
    peak: int  # with the models that stay in memory but that it does not use
    seconds: float
    exposed: float  # the part of `seconds` in exposed collectives
    compile_seconds: float


def plan_rl(experiment: Experiment, topology: Topology) -> tuple[list[ProgramCost], dict[str, int]]:
    """The cost of every program, and the bytes of each model per device.

    Raises:
      DoesNotFit: a program and the models that it does not use need more memory than a device has.
      ValueError: a size does not divide over the devices; or no TPU compiler.
    """
    from qwenjax import sharding
    from qwenjax.train.loop import TASKS

    mesh = sharding.make_mesh(experiment.mesh, experiment.model.embed, topology.devices())
    task = TASKS[experiment.task](experiment, mesh)
    state = task.program.abstract_state()
    trees = {"policy": state.params, "optimizer of the policy": state.opt_state["policy"]}
    if value := state.opt_state["value"]:
        trees |= {"value model": value.params, "optimizer of the value model": value.opt_state}
    models = {name: bytes_per_device(tree) for name, tree in trees.items()}
    models |= {name: size for name, tree in state.frozen.items() if (size := bytes_per_device(tree))}
    total, programs = bytes_per_device((state.params, state.opt_state, state.frozen)), []
    updates = experiment.rl.epochs * experiment.rl.minibatches
    for name, lowered in task.lowered().items():
        try:
            compiled, seconds = compile_lowered(lowered)
        except DoesNotFit as error:
            raise DoesNotFit(f"{name}: {error}") from None
        memory = compiled.memory_analysis()
        peak = memory.peak_memory_in_bytes + max(0, total - memory.argument_size_in_bytes)
        if peak > topology.chip.memory:
            raise DoesNotFit(f"{name} takes {peak / GIB:.1f} of {topology.chip.memory / GIB:.0f} GiB with all models")
        costs = program_costs(HloProgram(compiled.as_text()))
        compute = costs.cycles / topology.chip.clock
        exposed = collective_seconds(costs.collectives, topology, compute)[0]
        calls = updates if name.endswith("_step") else 1
        programs.append(ProgramCost(name, calls, peak, compute + exposed, exposed, seconds))
    return programs, models


def text(experiment: Experiment, topology: Topology, programs: list[ProgramCost], models: dict[str, int]) -> str:
    """The plan for people."""
    memory, rl = topology.chip.memory / GIB, experiment.rl
    worst = max(one.peak for one in programs) / GIB
    lines = [
        f"{experiment.name} on {topology.name}: {topology.chips} {topology.chip.name} chips; "
        f"an iteration of {experiment.data.batch_size} responses of up to {rl.max_new_tokens} tokens, "
        f"{rl.epochs * rl.minibatches} updates",
        "",
        f"fits: {worst:.2f} of {memory:.0f} GiB per chip",
        *(f"  {size / GIB:>7.2f}  {name}" for name, size in models.items()),
        "",
        "  peak GiB  seconds  calls  program",
        *(f"  {one.peak / GIB:>8.2f} {one.seconds:>8.2f} {one.calls:>6}  {one.name}" for one in programs),
        "",
        f"{sum(one.seconds * one.calls for one in programs):.1f} s per iteration by the compiler's estimates, if "
        "every response has the maximum length; without attention kernels",
        f"compiled in {sum(one.compile_seconds for one in programs):.0f} s; estimates, not measurements",
    ]
    return "\n".join(lines)


def as_dict(experiment: Experiment, topology: Topology, programs: list[ProgramCost], models: dict[str, int]) -> dict:
    """The numbers of --json."""
    return {
        "experiment": experiment.name,
        "topology": topology.name,
        "chips": topology.chips,
        "model_bytes": models,
        "programs": [vars(one) for one in programs],
    }
