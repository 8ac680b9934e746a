"""A plan as text for people and as numbers for programs."""

from dataclasses import asdict

from qwenjax.plan.estimate import GIB, Plan, RLPlan

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
    program, flops, seconds = plan.program, plan.program.costs.matmul_flops, plan.seconds
    grid = "x".join(map(str, topology.grid))
    slices = f"{topology.slices} slices of " if topology.slices > 1 else ""
    unit = "chip" if chip.devices == 1 else "device, two to a chip"
    mesh = ", ".join(f"{axis} {n}" for axis, n in plan.mesh.items() if n > 1) or "one device"
    lines = [
        f"{exp.name} on {topology.name}: {topology.chips} {chip.name} chips ({slices}{grid}), mesh {mesh}",
        f"step of {exp.data.batch_size:,} x {exp.data.seq_len:,} = {exp.tokens_per_step:,} tokens in {exp.accumulate} "
        f"micro-step{'s' * (exp.accumulate > 1)}; attention {plan.attention}, remat {exp.compute.remat}",
        "",
        f"fits: {plan.peak_bytes / GIB:.2f} of {chip.memory / GIB:.0f} GiB per {unit}",
        *(f"  {size / GIB:>7.2f}  {MEMORY[key]}" for key, size in plan.memory_bytes.items() if size),
        "largest values",
        *(f"  {size / GIB:>7.2f}  {shape} from {part}" for size, shape, part in plan.largest),
        "",
        f"{plan.step_seconds:.3f} s per step by the compiler's estimates, {plan.mfu:.1%} MFU",
        f"  {seconds['compute']:>7.3f}  compute; its matmuls take {flops / chip.flops:.3f} at peak",
        f"  {seconds['attention']:>7.3f}  attention kernels, assumed to run at half of peak",
        f"  {seconds['exposed']:>7.3f}  exposed collectives; {program.hidden:.3f} s more are hidden behind compute",
        *(
            f"             {name}: {count:,} of {size:,.1f} GB, {time:.3f} s"
            for name, (count, size, time) in sorted(program.collectives.items())
        ),
        f"{flops / 1e12:,.1f} TFLOP per chip in matmuls, {plan.model_flops / 1e12:,.1f} of them useful "
        "(with attention, without recomputation)",
        "",
        f"{plan.tokens_per_day / 1e9:,.1f} billion tokens a day; {exp.steps:,} steps of this experiment, "
        f"{exp.steps * exp.tokens_per_step / 1e12:.3g} trillion tokens, take {plan.days:,.1f} days and "
        f"{plan.chip_hours:,.0f} chip-hours",
    ]
    if price is not None:
        lines.append(f"at {price:g} per chip-hour: {plan.chip_hours * price:,.0f}")
    lines.append(f"compiled in {program.compile_seconds:.0f} s; estimates, not measurements")
    return "\n".join(lines)


def as_dict(plan: Plan, price: float | None = None) -> dict:
    """The numbers of --json: seconds, bytes and FLOPs."""
    exp, topology = plan.experiment, plan.topology
    collectives = {key: dict(zip(("count", "gb", "seconds"), row)) for key, row in plan.program.collectives.items()}
    names = ("mesh", "attention", "peak_bytes", "memory_bytes", "model_flops", "seconds", "step_seconds", "mfu")
    return {
        "experiment": exp.name,
        "topology": topology.name,
        "slices": topology.slices,
        "chips": topology.chips,
        "compute": asdict(exp.compute),
        "accumulate": exp.accumulate,
        "tokens_per_step": exp.tokens_per_step,
        "matmul_flops": plan.program.costs.matmul_flops,
        "hidden_seconds": plan.program.hidden,
        "collectives": collectives,
        "largest": [dict(zip(("bytes", "type", "scope"), row)) for row in plan.largest],
        **{name: getattr(plan, name) for name in (*names, "tokens_per_day", "days", "chip_hours")},
        "cost": None if price is None else plan.chip_hours * price,
        "compile_seconds": plan.program.compile_seconds,
    }


def rl_text(plan: RLPlan) -> str:
    """The plan of an iteration for people."""
    exp, topology, rl = plan.experiment, plan.topology, plan.experiment.rl
    worst = max(one.peak for one in plan.programs) / GIB
    lines = [
        f"{exp.name} on {topology.name}: {topology.chips} {topology.chip.name} chips; "
        f"an iteration of {exp.data.batch_size} responses of up to {rl.max_new_tokens} tokens, "
        f"{rl.epochs * rl.minibatches} updates",
        "",
        f"fits: {worst:.2f} of {topology.chip.memory / GIB:.0f} GiB per chip",
        *(f"  {size / GIB:>7.2f}  {name}" for name, size in plan.models.items()),
        "",
        "  peak GiB  seconds  calls  program",
        *(f"  {one.peak / GIB:>8.2f} {one.seconds:>8.2f} {one.calls:>6}  {one.name}" for one in plan.programs),
        "",
        f"{sum(one.seconds * one.calls for one in plan.programs):.1f} s per iteration by the compiler's estimates, if "
        "every response has the maximum length; without attention kernels",
        f"compiled in {sum(one.compile_seconds for one in plan.programs):.0f} s; estimates, not measurements",
    ]
    return "\n".join(lines)


def rl_as_dict(plan: RLPlan) -> dict:
    """The numbers of --json."""
    return {
        "experiment": plan.experiment.name,
        "topology": plan.topology.name,
        "chips": plan.topology.chips,
        "model_bytes": plan.models,
        "programs": [asdict(one) for one in plan.programs],
    }
