"""The price of a step: the experiment's own program, compiled for a TPU slice on this machine.

It is the program that `qwenjax.train` runs, from `train/step.py`. Memory is what the compiler allocates, so a program
that compiles fits. Time is the compiler's model of every instruction, plus two rules for what it has no model of, the
same for every program: attention kernels run at half of peak, and collectives that nothing hides take what a ring over
all torus axes takes. Use it to compare programs on one topology, not as a promise of seconds.
"""

import math
import re
import time
from dataclasses import dataclass, field
from typing import Any

from qwenjax.config import Experiment
from qwenjax.xla.costs import BETWEEN_SLICES, Collective, Costs, costs
from qwenjax.xla.hardware import Topology
from qwenjax.xla.hlo import HloOp, HloProgram

ATTENTION = 0.5  # of peak
BLOCK = 1024  # causal attention computes whole blocks: half of them and the diagonal
KERNELS = {"dkv": 2.5, "dq": 1.5, "fwd": 1.0}  # products, relative to the forward pass; dkv makes dq, too, when fused


class DoesNotFit(ValueError):
    """The compiler cannot place the program in the chip's memory."""


@dataclass
class Plan:
    """What is known of a compiled step; bytes and FLOPs per chip, seconds per step."""

    experiment: Experiment
    topology: Topology
    mesh: dict[str, int]
    attention: str
    memory: dict[str, int]  # parameters, optimizer, gradients, frozen, vocabulary, code, rest; sums to peak
    peak: int
    matmul_flops: float
    model_flops: float
    seconds: dict[str, float]  # compute, attention, exposed; sums to the step
    hidden: float  # seconds of collectives behind compute
    collectives: dict[str, tuple[int, float, float]]  # "all-gather over 128, hidden" -> count, GB, seconds
    buffers: list[tuple[float, str, str]]  # bytes, type, source line: the largest values
    compile_seconds: float
    text: str = field(repr=False)

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def mfu(self) -> float:
        """Useful FLOPs, recomputation not counted, of what the chips could do."""
        return self.model_flops / self.topology.chip.flops / self.step_seconds

    @property
    def tokens_per_day(self) -> float:
        return self.experiment.tokens_per_step / self.step_seconds * 86_400

    @property
    def days(self) -> float:
        return self.experiment.steps * self.step_seconds / 86_400

    @property
    def chip_hours(self) -> float:
        return self.days * 24 * self.topology.chips


def plan(experiment: Experiment, topology: Topology) -> Plan:
    """Compiles the step of an experiment for a topology.

    Raises:
      DoesNotFit: with how much memory it would take.
      ValueError: the mesh, the batch or a parameter does not divide over the devices; or no TPU compiler.
    """
    from qwenjax import sharding
    from qwenjax.train.loop import TASKS

    mesh = sharding.make_mesh(experiment.mesh, experiment.model.embed, topology.devices())
    task = TASKS[experiment.task](experiment, mesh)
    state = task.program.abstract_state()
    compiled, seconds = compile_for(task.lowered()["step"])
    analysis, text = compiled.memory_analysis(), compiled.as_text()
    parsed = HloProgram(text)
    spent = costs(parsed)
    sizes = {axis: mesh.shape[axis] for axis in mesh.axis_names}
    memory = _memory(experiment, state, sizes, analysis)
    compute = spent.cycles / topology.chip.clock
    exposed, hidden, table = collective_seconds(spent.collectives, topology, compute)
    model = experiment.model.flops_per_token(experiment.data.seq_len) * experiment.tokens_per_step
    return Plan(
        experiment=experiment,
        topology=topology,
        mesh=sizes,
        attention=task.compute.attention,
        memory=memory,
        peak=analysis.peak_memory_in_bytes,
        matmul_flops=spent.matmul_flops,
        model_flops=model / topology.device_count,
        seconds={
            "compute": compute,
            "attention": _attention(experiment, sizes, spent, topology),
            "exposed": exposed,
        },
        hidden=hidden,
        collectives=table,
        buffers=_largest(parsed),
        compile_seconds=seconds,
        text=text,
    )


def compile_for(lowered: Any) -> tuple[Any, float]:
    """The compiled program, and seconds that took.

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
        raise DoesNotFit(_used(str(error))) from None
    return compiled, time.monotonic() - started


def _used(message: str) -> str:
    """The amounts in the compiler's message: of everything at its peak, or of the temporary values alone."""
    found = re.search(r"Used ([\d.]+\w+) of ([\d.]+\w+) hbm", message)
    found = found or re.search(r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message)
    return f"it would take {found[1]} of {found[2]} of memory per chip" if found else message.split("\n")[0][:300]


def _memory(experiment: Experiment, state: Any, mesh: dict[str, int], analysis: Any) -> dict[str, int]:
    """Bytes of a chip by what they are for. What the shapes do not tell is in `activations`."""
    model, compute = experiment.model, experiment.compute
    parts = {
        "parameters": held(state.params),
        "optimizer": held(state.opt_state),
        "gradients": held(state.params),
        "frozen": held(state.frozen),
        "code": analysis.generated_code_size_in_bytes,
    }
    rest = analysis.peak_memory_in_bytes - sum(parts.values())
    # the head gathered in bf16, its gradient in float32, the scores of one chunk; all at once only while loss is made
    columns = model.embed * model.vocab // mesh["tensor"]
    vocabulary = columns * (2 + 4) + 4 * compute.loss_chunk * model.vocab // mesh["tensor"]
    vocabulary = min(vocabulary, rest)
    return parts | {"vocabulary": vocabulary, "activations": rest - vocabulary}


def held(tree: Any) -> int:
    """Bytes of ShapeDtypeStructs on each device."""
    import jax

    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _attention(experiment: Experiment, mesh: dict[str, int], spent: Costs, topology: Topology) -> float:
    """Seconds in attention kernels, which the compiler does not estimate."""
    model, length = experiment.model, experiment.data.seq_len
    rows = experiment.data.batch_size / experiment.accumulate / (mesh["data"] * mesh["fsdp"] * mesh["context"])
    block = min(BLOCK, length if mesh["context"] == 1 else length // (2 * mesh["context"]))
    products = 4 * length**2 * model.head_size * model.heads / mesh["tensor"] * rows / 2 * (1 + block / length)
    once, total = products / topology.chip.flops / ATTENTION, 0.0
    separate = any("dq" in name for name in spent.kernels)
    for name, calls in spent.kernels.items():
        kind = next((kind for kind in KERNELS if kind in name), "fwd")
        total += calls * once * (2.0 if kind == "dkv" and separate else KERNELS[kind])
    return total


def collective_seconds(found: list[Collective], topology: Topology, compute: float) -> tuple[float, float, dict]:
    """Seconds of the exposed and of the hidden ones, and a table by kind and group size.

    What slices send each other goes on beside all compute, and is exposed as far as it takes longer than that.
    """
    exposed = hidden = network = 0.0
    table: dict[str, tuple[int, float, float]] = {}
    for one in found:
        if one.kind == BETWEEN_SLICES:
            share = 2 * (topology.slices - 1) / topology.slices  # of its value that each sends
            seconds = share * one.bytes * one.trips / topology.chip.network
            network += seconds
            key = f"{one.kind}, beside compute"
        else:
            # a ring passes everything on once, and twice to add and give back
            moved = one.bytes * one.trips * (2 if one.kind == "all-reduce" else 1)
            seconds = moved / (topology.chip.link * topology.axes)
            exposed, hidden = exposed + seconds * (not one.hidden), hidden + seconds * one.hidden
            key = f"{one.kind} over {one.group}, {'hidden' if one.hidden else 'exposed'}"
        count, size, before = table.get(key, (0, 0.0, 0.0))
        table[key] = (count + one.trips, size + one.bytes * one.trips / 1e9, before + seconds)
    return exposed + max(0.0, network - compute), hidden + min(network, compute), table


def _largest(program: HloProgram, count: int = 3) -> list[tuple[float, str, str]]:
    """The largest values that single instructions make, with the line of the package that asked for them."""
    made: dict[str, tuple[float, str, str]] = {}
    for op in program.executed():
        if not op.type.startswith("("):
            kind, place = op.type.split("{")[0], program.source(op)
            made.setdefault(f"{kind} {place}", (op.bytes, kind, place or _scope(op)))
    return sorted(made.values(), key=lambda item: -item[0])[:count]


def _scope(op: HloOp) -> str:
    return op.scope or op.name
