"""Which settings fit, and which are fastest: predicted for all of them, compiled for the best few.

Three settings change memory and speed but not what is learned: micro-steps, what the backward pass recomputes, and how
many chips share the parameters. The predictions are sums over shapes and only decide what is compiled first.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from qwenjax.config import Experiment, MeshShape
from qwenjax.model.transformer import SAVED
from qwenjax.plan.estimate import GIB, DoesNotFit, Plan, plan
from qwenjax.xla.hardware import Topology

MATMUL_EFFICIENCY = 0.85  # of peak, with the element-wise work around matmuls
EXPOSED_SHARE = 0.3  # of the time of collectives that no compute hides
MEMORY_MARGIN = 1.06  # predictions above this much of the memory are not compiled


class Candidate(NamedTuple):
    """An experiment with other settings, and the prediction for it per device."""

    experiment: Experiment
    memory: float  # bytes
    seconds: float

    @property
    def settings(self) -> str:
        """As words of a command line."""
        one = self.experiment
        values = {"accumulate": one.accumulate, "compute.remat": one.compute.remat}
        values |= {"mesh.fsdp": one.mesh.fsdp, "mesh.data": one.mesh.data}
        return " ".join(f"--set {name}={value}" for name, value in values.items())


def predict(experiment: Experiment, topology: Topology) -> Candidate:
    """Peak memory and seconds of a step, from shapes only."""
    model, compute, chip = experiment.model, experiment.compute, topology.chip
    mesh = experiment.mesh.sizes(topology.device_count, model.embed, topology.slices)
    d, f, q, kv = model.embed, model.ffn, model.heads * model.head_size, model.kv * model.head_size
    width = {"q": q, "k": kv, "v": kv, "attn_out": q, "x_mid": d, "gate": f, "up": f}
    # the weights of the matmul that makes each of these activations
    weights = {"q": d * q, "k": d * kv, "v": d * kv, "x_mid": d * q, "gate": d * f, "up": d * f}
    saved = [name for name in SAVED.get(compute.remat, tuple(width)) if name in width]  # not those of adapters
    shards = mesh["tensor"] * mesh["fsdp"]
    tokens = experiment.tokens_per_step * mesh["tensor"] / topology.device_count  # of a step, on a device
    micro = tokens / experiment.accumulate

    layer = (model.params - model.embedding_params) / model.layers
    gradients = 4 if experiment.accumulate == 1 else 8  # those of a micro-step, and their sum
    state = model.params / shards * (12 + gradients)
    kept = micro * model.layers * (d + sum(width[name] for name in saved)) * 2 / mesh["tensor"]
    inside = micro * (8 * d + 4 * f) * 2 / mesh["tensor"] + 4 * layer / mesh["tensor"]
    vocabulary = (6 * d * model.vocab + 4 * compute.loss_chunk * model.vocab) / mesh["tensor"] + 4 * micro * d

    model_flops = model.flops_per_token(experiment.data.seq_len) * tokens / mesh["tensor"]
    recomputed = 2 * tokens * model.layers * sum(n for name, n in weights.items() if name not in saved) / mesh["tensor"]
    moved = 3 * 2 * model.params / mesh["tensor"] * experiment.accumulate  # two gathers, gradients: bf16
    seconds = (model_flops + recomputed) / chip.flops / MATMUL_EFFICIENCY
    seconds += EXPOSED_SHARE * moved / (chip.ici_bandwidth * topology.axes)
    return Candidate(experiment, state + kept + max(inside, vocabulary), seconds)


def candidates(experiment: Experiment, topology: Topology) -> list[Candidate]:
    """Every setting that divides evenly, quickest first by prediction. A mesh that the user set is kept."""
    sizes = experiment.mesh.sizes(topology.device_count, experiment.model.embed, topology.slices)
    free = experiment.mesh.data == experiment.mesh.fsdp == -1
    predicted = []
    for fewer, accumulate, remat in product((1, 2, 4) if free else (1,), (1, 2, 4, 8, 16, 32), SAVED):
        mesh = MeshShape(**sizes | {"fsdp": sizes["fsdp"] // fewer, "data": sizes["data"] * fewer})
        if sizes["fsdp"] % fewer == 0 == experiment.data.batch_size % (accumulate * mesh.data * mesh.fsdp):
            compute = replace(experiment.compute, remat=remat)
            one = replace(experiment, mesh=mesh, accumulate=accumulate, compute=compute)
            predicted.append(predict(one, topology))
    return sorted(predicted, key=lambda candidate: candidate.seconds)


def likely(experiment: Experiment, topology: Topology) -> list[Candidate]:
    """The candidates that are predicted to fit, or nearly."""
    return [one for one in candidates(experiment, topology) if one.memory < topology.chip.memory * MEMORY_MARGIN]


def search(
    experiment: Experiment, topology: Topology, tries: int, say: Callable[[str], None]
) -> tuple[Candidate, Plan]:
    """Compiles candidates, the most promising first, until `tries` fit; returns the quickest. DoesNotFit: none fits."""
    fitting: list[tuple[Candidate, Plan]] = []
    for candidate in likely(experiment, topology):
        predicted = f"predicted {candidate.memory / GIB:.1f} GiB, {candidate.seconds:.2f} s"
        try:
            compiled = plan(candidate.experiment, topology)
        except DoesNotFit as error:
            say(f"  no     {candidate.settings}: {error} ({predicted})")
            continue
        result = f"{compiled.peak_bytes / GIB:.2f} GiB, {compiled.step_seconds:.3f} s per step"
        say(f"  fits   {candidate.settings}: {result} ({predicted})")
        fitting.append((candidate, compiled))
        if len(fitting) == tries:
            break
    if not fitting:
        raise DoesNotFit("no setting that was tried fits; use more chips")
    return min(fitting, key=lambda pair: pair[1].step_seconds)


def advice(experiment: Experiment, topology: Topology) -> str:
    """The settings that should fit, quickest first, as text."""
    lines = [f"  {one.settings}  (about {one.memory / GIB:.1f} GiB)" for one in likely(experiment, topology)[:3]]
    if not lines:
        return "no setting is likely to fit; use more chips"
    return "\n".join(["should fit, quickest first by prediction; --search compiles and compares them:", *lines])
