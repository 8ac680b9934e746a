"""A plan as text for people and as numbers for programs."""

from dataclasses import asdict

from qwenjax.plan.estimate import GIB, Plan

MEMORY = {
    "parameters": "parameters, float32",
    "optimizer": "optimizer state",
    "gradients": "gradients, float32",
    "frozen": "frozen parameters",
    "vocabulary": "vocabulary loss: head, its gradient, scores of one chunk",
    "activations": "activations and working space",
    "code": "program",
}


def text(plan: Plan, price: float | None = None) -> str:
    """About thirty lines; with the price of a chip-hour, also what the run costs."""
    exp, topology, chip = plan.experiment, plan.topology, plan.topology.chip
    grid = "x".join(map(str, topology.grid))
    slices = f"{topology.slices} slices of " if topology.slices > 1 else ""
    unit = "chip" if chip.devices == 1 else "device, two to a chip"
    mesh = ", ".join(f"{axis} {n}" for axis, n in plan.mesh.items() if n > 1) or "one device"
    lines = [
        f"{exp.name} on {topology.name}: {topology.chips} {chip.name} chips ({slices}{grid}), mesh {mesh}",
        f"step of {exp.data.batch_size:,} x {exp.data.seq_len:,} = {exp.tokens_per_step:,} tokens in {exp.accumulate} "
        f"micro-step{'s' * (exp.accumulate > 1)}; attention {plan.attention}, remat {exp.compute.remat}",
        "",
        f"fits: {plan.peak / GIB:.2f} of {chip.memory / GIB:.0f} GiB per {unit}",
        *(f"  {plan.memory[key] / GIB:>7.2f}  {label}" for key, label in MEMORY.items() if plan.memory[key]),
        "largest values",
        *(f"  {size / GIB:>7.2f}  {shape} from {source}" for size, shape, source in plan.buffers),
        "",
        f"{plan.step_seconds:.3f} s per step by the compiler's estimates, {plan.mfu:.1%} MFU",
        f"  {plan.seconds['compute']:>7.3f}  compute; its matmuls take {plan.matmul_flops / chip.flops:.3f} at peak",
        f"  {plan.seconds['attention']:>7.3f}  attention kernels, assumed to run at half of peak",
        f"  {plan.seconds['exposed']:>7.3f}  exposed collectives; {plan.hidden:.3f} s more are hidden behind compute",
        *(
            f"             {name}: {count:,} of {size:,.1f} GB, {seconds:.3f} s"
            for name, (count, size, seconds) in sorted(plan.collectives.items())
        ),
        f"{plan.matmul_flops / 1e12:,.1f} TFLOP per chip in matmuls, {plan.model_flops / 1e12:,.1f} of them useful "
        "(with attention, without recomputation)",
        "",
        f"{plan.tokens_per_day / 1e9:,.1f} billion tokens a day; {exp.steps:,} steps of this experiment, "
        f"{exp.steps * exp.tokens_per_step / 1e12:.3g} trillion tokens, take {plan.days:,.1f} days and "
        f"{plan.chip_hours:,.0f} chip-hours",
    ]
    if price is not None:
        lines.append(f"at {price:g} per chip-hour: {plan.chip_hours * price:,.0f}")
    lines.append(f"compiled in {plan.compile_seconds:.0f} s; estimates, not measurements")
    return "\n".join(lines)


def as_dict(plan: Plan, price: float | None = None) -> dict:
    """The numbers of --json: seconds, bytes and FLOPs."""
    return {
        "experiment": plan.experiment.name,
        "topology": plan.topology.name,
        "slices": plan.topology.slices,
        "chips": plan.topology.chips,
        "mesh": plan.mesh,
        "attention": plan.attention,
        "compute": asdict(plan.experiment.compute),
        "accumulate": plan.experiment.accumulate,
        "tokens_per_step": plan.experiment.tokens_per_step,
        "peak_bytes": plan.peak,
        "memory_bytes": plan.memory,
        "matmul_flops": plan.matmul_flops,
        "model_flops": plan.model_flops,
        "seconds": plan.seconds,
        "hidden_seconds": plan.hidden,
        "step_seconds": plan.step_seconds,
        "mfu": plan.mfu,
        "collectives": {name: dict(zip(("count", "gb", "seconds"), row)) for name, row in plan.collectives.items()},
        "largest": [dict(zip(("bytes", "type", "source"), row)) for row in plan.buffers],
        "tokens_per_day": plan.tokens_per_day,
        "days": plan.days,
        "chip_hours": plan.chip_hours,
        "cost": None if price is None else plan.chip_hours * price,
        "compile_seconds": plan.compile_seconds,
    }
