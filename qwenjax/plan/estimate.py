"""The price of a step: the experiment's own program, compiled for a TPU slice on this machine.

Memory is what the compiler allocates, so a program that compiles fits. Time is the compiler's estimate for every
instruction, plus two rules where it has none: attention kernels run at half of peak, and exposed collectives run as a
ring over all torus axes. Use it to compare programs on one topology; it does not predict seconds.
"""

import math
import re
import time
from dataclasses import dataclass
from typing import Any

from qwenjax.config import Experiment
from qwenjax.xla.costs import BETWEEN_SLICES, Collective, Costs, program_costs
from qwenjax.xla.hardware import Topology
from qwenjax.xla.hlo import HloProgram
from qwenjax.xla.scopes import scope

GIB = 1 << 30
ATTENTION_EFFICIENCY = 0.5  # of peak
BLOCK = 1024  # causal attention computes whole blocks: half of them, and the diagonal
# Matmuls of each attention kernel, relative to the forward pass. Without a kernel for dq, dkv also computes it.
KERNELS = {"dkv": 2.5, "dq": 1.5, "fwd": 1.0}


class DoesNotFit(ValueError):
    """The compiler cannot place the program in the chip's memory."""


@dataclass
class Program:
    """A compiled program, priced: seconds are of one call, without attention kernels."""

    hlo: HloProgram
    memory: Any  # the compiler's analysis, in bytes
    costs: Costs
    compute: float  # seconds
    exposed: float  # seconds of collectives, beside `compute`
    hidden: float  # seconds of collectives that run at the same time as compute
    collectives: dict[str, tuple[int, float, float]]  # "all-gather over 128, hidden" -> count, GB, seconds
    compile_seconds: float


@dataclass
class Plan:
    """A compiled step: bytes and FLOPs per device, seconds per step."""

    experiment: Experiment
    topology: Topology
    mesh: dict[str, int]
    attention: str
    program: Program
    memory_bytes: dict[str, int]  # parameters, optimizer, gradients, … as in `report.MEMORY`; sums to the peak
    peak_bytes: int
    model_flops: float  # without recomputation
    seconds: dict[str, float]  # compute, attention, exposed; sums to the step
    largest: list[tuple[float, str, str]]  # bytes, type, part of the model: the largest values

    def __post_init__(self):
        self.step_seconds = sum(self.seconds.values())
        self.mfu = self.model_flops / self.topology.chip.flops / self.step_seconds
        self.tokens_per_day = self.experiment.tokens_per_step / self.step_seconds * 86_400
        self.days = self.experiment.steps * self.step_seconds / 86_400
        self.chip_hours = self.days * 24 * self.topology.chips


def plan(experiment: Experiment, topology: Topology) -> Plan:
    """Compiles the step of an experiment for a topology.

    Raises:
      DoesNotFit: with how much memory it would take.
      ValueError: the mesh, the batch or a parameter does not divide over the devices; or no TPU compiler.
    """
    task = task_on(experiment, topology)
    program = compile_program(task.lowered()["step"], topology)
    mesh = dict(task.mesh.shape)
    attention_seconds = _attention_seconds(experiment, mesh, program.costs, topology)
    flops = experiment.model.flops_per_token(experiment.data.seq_len) * experiment.tokens_per_step
    return Plan(
        experiment=experiment,
        topology=topology,
        mesh=mesh,
        attention=task.compute.attention,
        program=program,
        memory_bytes=_memory(experiment, task.program.abstract_state(), mesh, program.memory),
        peak_bytes=program.memory.peak_memory_in_bytes,
        model_flops=flops / topology.device_count,
        seconds={"compute": program.compute, "attention": attention_seconds, "exposed": program.exposed},
        largest=_largest_values(program.hlo),
    )


def task_on(experiment: Experiment, topology: Topology) -> Any:
    """The `Task` of an experiment on the devices of a topology."""
    from qwenjax import sharding
    from qwenjax.train.loop import TASKS

    mesh = sharding.make_mesh(experiment.mesh, experiment.model.embed, topology.devices())
    return TASKS[experiment.task](experiment, mesh)


def compile_program(lowered: Any, topology: Topology) -> Program:
    """Compiles a lowered program and prices it.

    Raises:
      DoesNotFit: with how much memory it would take. ValueError: the compiler refuses it.
    """
    import jax

    started = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise ValueError(f"the TPU compiler refuses the step: {str(error)[:2000]}") from None
        raise DoesNotFit(_memory_needed(str(error))) from None
    compile_seconds = time.monotonic() - started
    hlo = HloProgram(compiled.as_text())
    costs = program_costs(hlo)
    compute = costs.cycles / topology.chip.clock
    collectives = collective_seconds(costs.collectives, topology, compute)
    return Program(hlo, compiled.memory_analysis(), costs, compute, *collectives, compile_seconds)


def _memory_needed(message: str) -> str:
    """The amounts in the compiler's message: of everything at its peak, or of the temporary values alone."""
    match = re.search(r"Used ([\d.]+\w+) of ([\d.]+\w+) hbm", message)
    match = match or re.search(r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message)
    return f"it would take {match[1]} of {match[2]} of memory per chip" if match else message.split("\n")[0][:300]


def _memory(experiment: Experiment, state: Any, mesh: dict[str, int], analysis: Any) -> dict[str, int]:
    """Bytes per device by purpose. `activations` is what the shapes do not explain."""
    model = experiment.model
    memory = {
        "parameters": bytes_per_device(state.params),
        "optimizer": bytes_per_device(state.opt_state),
        "gradients": bytes_per_device(state.params),
        "frozen": bytes_per_device(state.frozen),
        "code": analysis.generated_code_size_in_bytes,
    }
    unexplained = analysis.peak_memory_in_bytes - sum(memory.values())
    # The head gathered in bf16, its gradient in float32, the scores of one chunk. All three exist only in the loss.
    head = model.embed * model.vocab // mesh["tensor"]
    vocabulary = head * (2 + 4) + 4 * experiment.compute.loss_chunk * model.vocab // mesh["tensor"]
    vocabulary = min(vocabulary, unexplained)
    return memory | {"vocabulary": vocabulary, "activations": unexplained - vocabulary}


def bytes_per_device(tree: Any) -> int:
    """Bytes of a tree of ShapeDtypeStructs on each device."""
    import jax

    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _attention_seconds(experiment: Experiment, mesh: dict[str, int], costs: Costs, topology: Topology) -> float:
    """Seconds in attention kernels, for which the compiler has no estimate."""
    model, length = experiment.model, experiment.data.seq_len
    sequences = experiment.data.batch_size / experiment.accumulate / (mesh["data"] * mesh["fsdp"] * mesh["context"])
    block = min(BLOCK, length if mesh["context"] == 1 else length // (2 * mesh["context"]))
    flops = 4 * length**2 * model.head_size * model.heads / mesh["tensor"] * sequences / 2 * (1 + block / length)
    work = KERNELS | ({"dkv": 2.0} if any("dq" in name for name in costs.kernels) else {})
    calls = sum(n * next((work[key] for key in work if key in name), 1.0) for name, n in costs.kernels.items())
    return calls * flops / topology.chip.flops / ATTENTION_EFFICIENCY


def collective_seconds(
    collectives: list[Collective], topology: Topology, compute: float
) -> tuple[float, float, dict[str, tuple[int, float, float]]]:
    """Seconds of exposed and of hidden collectives, and (count, GB, seconds) by kind and group size.

    Transfers between slices overlap with all compute; only what takes longer than `compute` seconds is exposed.
    """
    exposed = hidden = between_slices = 0.0
    table: dict[str, tuple[int, float, float]] = {}
    for one in collectives:
        if one.kind == BETWEEN_SLICES:
            share = 2 * (topology.slices - 1) / topology.slices  # of its value that each slice sends
            seconds = share * one.bytes * one.trips / topology.chip.dcn_bandwidth
            between_slices += seconds
            key = f"{one.kind}, beside compute"
        else:
            # A ring passes every byte on once; an all-reduce twice, to add and to distribute.
            moved = one.bytes * one.trips * (2 if one.kind == "all-reduce" else 1)
            seconds = moved / (topology.chip.ici_bandwidth * topology.axes)
            exposed, hidden = exposed + seconds * (not one.hidden), hidden + seconds * one.hidden
            key = f"{one.kind} over {one.group}, {'hidden' if one.hidden else 'exposed'}"
        count, size, before = table.get(key, (0, 0.0, 0.0))
        table[key] = (count + one.trips, size + one.bytes * one.trips / 1e9, before + seconds)
    return exposed + max(0.0, between_slices - compute), hidden + min(between_slices, compute), table


def _largest_values(program: HloProgram, count: int = 3) -> list[tuple[float, str, str]]:
    """The largest results of single instructions: bytes, type, and the part of the model that they belong to."""
    arrays = [op for op in program.executed() if not op.type.startswith("(")]
    values = {(op.bytes, op.type.split("{")[0], str(scope(op.scope)) or op.name) for op in arrays}
    return sorted(values, reverse=True)[:count]


@dataclass
class ProgramCost:
    """A program of an iteration of reinforcement learning: bytes per device, and seconds of one call."""

    name: str
    calls: int  # in an iteration
    peak: int  # with the models that stay in memory but that it does not use
    seconds: float  # without attention kernels
    exposed: float  # the part of `seconds` in exposed collectives
    compile_seconds: float


@dataclass
class RLPlan:
    """The compiled programs of an iteration, and the bytes of each model per device."""

    experiment: Experiment
    topology: Topology
    models: dict[str, int]
    programs: list[ProgramCost]


def plan_rl(experiment: Experiment, topology: Topology) -> RLPlan:
    """Compiles every program of an iteration.

    Raises:
      DoesNotFit: a program and the models that it does not use need more memory than a device has.
      ValueError: as `plan`.
    """
    task = task_on(experiment, topology)
    state = task.program.abstract_state()
    trees = {"policy": state.params, "optimizer of the policy": state.opt_state["policy"]}
    if value := state.opt_state["value"]:
        trees |= {"value model": value.params, "optimizer of the value model": value.opt_state}
    # Those of policy and value are the bases of adapters, empty without them.
    trees |= {name: tree for name, tree in state.frozen.items() if bytes_per_device(tree)}
    total, programs = bytes_per_device((state.params, state.opt_state, state.frozen)), []
    for name, lowered in task.lowered().items():
        try:
            one = compile_program(lowered, topology)
        except DoesNotFit as error:
            raise DoesNotFit(f"{name}: {error}") from None
        peak = one.memory.peak_memory_in_bytes + max(0, total - one.memory.argument_size_in_bytes)
        if peak > topology.chip.memory:
            raise DoesNotFit(f"{name} takes {peak / GIB:.1f} of {topology.chip.memory / GIB:.0f} GiB with all models")
        calls = experiment.rl.epochs * experiment.rl.minibatches if name.endswith("_step") else 1
        programs.append(ProgramCost(name, calls, peak, one.compute + one.exposed, one.exposed, one.compile_seconds))
    return RLPlan(experiment, topology, {name: bytes_per_device(tree) for name, tree in trees.items()}, programs)
