"""The training step in tokens per second: ours, and transformers' model of the same shape in eager PyTorch.

Both sides do the whole step on the same random tokens: forward, cross entropy over the full vocabulary, backward,
clipping by global norm, AdamW. Where PyTorch has several implementations (attention, AdamW) the fastest one is used.
Tokens per CPU second count work and not waiting. Compilation and the first step are reported apart.
"""

import argparse
import json
import os
import time
from collections.abc import Callable

from qwenjax import config
from qwenjax.bench import workers
from qwenjax.bench.workers import BenchTurn, rate, ratio, spread
from qwenjax.common.command_line import DONE
from qwenjax.common.figures import aligned
from qwenjax.common.processes import cores, quiet_logs
from qwenjax.config import Experiment
from qwenjax.config.lookup import experiment_arguments, experiment_from

EXAMPLES = """
examples:
  python -m qwenjax.bench train --against=torch
      the quickstart's step against transformers in eager PyTorch, about a minute
  python -m qwenjax.bench train --exp=quickstart --set model.embed=256 --set model.heads=8 --set data.batch_size=8
      ours alone, at another shape
  python -m qwenjax.bench train --against=torch --rounds=11 --json > train.json
      for machines; a longer run has a narrower spread
"""


def arguments(add) -> None:
    """Declares the options."""
    experiment_arguments(add, default="quickstart")
    workers.arguments(add, against="torch")


def run(options: argparse.Namespace) -> int:
    """Measures and prints."""
    result = bench(experiment_from(options), options.against, options.rounds, options.threads)
    print(json.dumps(result, indent=2) if options.json else table(result))
    return DONE


def bench(experiment: Experiment, against: str | None = None, rounds: int = 5, threads: int | None = None) -> dict:
    """Measures and returns {"ours": …, "torch": …, "ratio": …}; see `table` for the rest. Progress on stderr.

    Raises:
      ValueError: PyTorch is not installed or cannot run the same model, or a worker failed.
    """
    workers.check_installed(against)
    threads = threads or cores()

    def line(side: str, last: list[BenchTurn]) -> str:
        return f"{side} {rate(last[0], experiment.tokens_per_step):,.0f}"

    sides = SETUPS if against else {"ours": ours}
    facts, turns = workers.take_turns(sides, experiment, threads, rounds, line)
    sizes = {side: fact["params"] for side, fact in facts.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the two sides have different numbers of parameters: {sizes}")
    result = {
        "benchmark": "train",
        "experiment": experiment.name,
        "model": config.to_dict(experiment)["model"],
        "params": sizes["ours"],
        "batch": experiment.data.batch_size,
        "length": experiment.data.seq_len,
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2),
        **{side: facts[side] | summary(experiment, turns[side][0]) for side in facts},
    }
    if against:
        result["ratio"] = {clock: ratio(turns["ours"][0], turns[against][0], clock) for clock in ("wall", "cpu")}
    return result


def summary(experiment: Experiment, turns: list[BenchTurn]) -> dict:
    """One side's rates."""
    wall, cpu = (spread([rate(turn, experiment.tokens_per_step, clock) for turn in turns]) for clock in ("wall", "cpu"))
    return {
        "tokens_per_second": wall,
        "tokens_per_cpu_second": cpu,
        "model_tflops": wall["median"] * experiment.model.flops_per_token(experiment.data.seq_len) / 1e12,
        "steps": sum(turn.steps for turn in turns),
    }


def table(result: dict) -> str:
    """The result as text."""
    sides = [side for side in SETUPS if side in result]
    rows = [("", "tokens/s", "low", "high", "per CPU-s", "TFLOP/s", "compile s", "1st step s")]
    for side in sides:
        one = result[side]
        rates = [*one["tokens_per_second"].values(), one["tokens_per_cpu_second"]["median"]]
        seconds = f"{one['compile_seconds']:.1f}", f"{one['first_step_seconds']:.2f}"
        rows.append((side, *(f"{x:,.0f}" for x in rates), f"{one['model_tflops']:.3f}", *seconds))
    for title, times in zip(("ratio", "by CPU-s"), result.get("ratio", {}).values()):
        rows.append((title, *(f"{x:.3f}" for x in times.values()), "", "", "", ""))
    return "\n".join(
        [
            f"train step of {result['experiment']}: {result['params']:,} parameters, "
            f"{result['batch']} x {result['length']} tokens, "
            f"{result['threads']} threads, load average {result['load_average']}",
            *(f"  {side:<6} {result[side]['how']}" for side in sides),
            "",
            *aligned(rows),
        ]
    )


# ---- what runs inside the workers ----


def random_tokens(experiment: Experiment):
    """[b t + 1] numpy int64, the same on both sides."""
    import numpy as np

    shape = (experiment.data.batch_size, experiment.data.seq_len + 1)
    return np.random.default_rng(experiment.seed).integers(0, experiment.model.vocab, shape)


def seconds_per_step(run: Callable[[int, int], None], steps: int) -> float:
    """Seconds per step of a worker's `run`."""
    start = time.perf_counter()
    run(0, steps)
    return (time.perf_counter() - start) / steps


def ours(experiment: Experiment):
    """A `workers.Setup`: the step of `qwenjax.train`."""
    quiet_logs()
    import jax
    import numpy as np

    from qwenjax import sharding
    from qwenjax.data.batches import text
    from qwenjax.train.stages.pretrain import Pretrain
    from qwenjax.train.step import UNLIMITED

    task = Pretrain(experiment, sharding.make_mesh(experiment.mesh, experiment.model.embed))
    rows = text.pack(random_tokens(experiment).astype(np.int32), eot=-1, document_mask=False)
    batch = task.to_mesh(rows, task.program.batch)
    state = task.program.init()
    start = time.perf_counter()
    compiled, _ = task.compile()
    compile_seconds = time.perf_counter() - start

    def run(case: int, steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = compiled(state, batch, UNLIMITED)
        if not bool(metrics["applied"]):  # reading it also waits for the last step
            raise ValueError("the loss is not finite; lower the learning rate: --set optim.peak_lr=1e-4")

    compute, platform = task.compute, jax.devices()[0].platform
    facts = {
        "how": f"jax {jax.__version__} on {platform}, {compute.dtype}, remat {compute.remat}, scan {compute.scan}",
        "params": experiment.model.params,
        "compile_seconds": compile_seconds,
        "first_step_seconds": seconds_per_step(run, 1),
        "seconds": [seconds_per_step(run, 3)],
    }
    return facts, run


def torch(experiment: Experiment):
    """A `workers.Setup`: transformers' model, eager PyTorch, with its faster attention and AdamW."""
    import torch

    torch.manual_seed(experiment.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = torch.from_numpy(random_tokens(experiment)).to(device)
    model = _torch_model(experiment).to(device)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optim = experiment.optim

    def stepper(attention: str, adamw: str) -> Callable[[int, int], None]:
        groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        chosen = {adamw: True}
        optimizer = torch.optim.AdamW(groups, lr=optim.peak_lr, betas=(optim.b1, optim.b2), eps=optim.eps, **chosen)

        def run(case: int, steps: int) -> None:
            model.set_attn_implementation(attention)
            for _ in range(steps):
                for rows in batch.chunk(experiment.accumulate):
                    with torch.autocast(device, torch.bfloat16, enabled=experiment.compute.dtype == "bfloat16"):
                        scores = model(input_ids=rows[:, :-1], use_cache=False).logits
                    nll = torch.nn.functional.cross_entropy(scores.flatten(0, 1).float(), rows[:, 1:].flatten())
                    (nll / experiment.accumulate).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if not bool(nll.isfinite()):  # reading it also waits for the last step
                raise ValueError("PyTorch's loss is not finite; lower the learning rate: --set optim.peak_lr=1e-4")

        return run

    ways = [("sdpa", "fused"), ("sdpa", "foreach"), ("eager", "fused"), ("eager", "foreach")]
    runs = {way: stepper(*way) for way in ways}
    first = {way: seconds_per_step(run, 1) for way, run in runs.items()}
    seconds = {way: seconds_per_step(run, 3) for way, run in runs.items()}
    best = min(ways, key=seconds.get)
    slower = ", ".join(f"{'+'.join(way)} {seconds[way] / seconds[best]:.2f}x" for way in ways if way != best)
    facts = {
        "how": f"torch {torch.__version__} on {device}, {experiment.compute.dtype}, "
        f"{best[0]} attention, {best[1]} AdamW (time of {slower})",
        "params": sum(p.numel() for p in model.parameters()),
        "compile_seconds": 0.0,
        "first_step_seconds": first[ways[0]],
        "seconds": [seconds[best]],
    }
    return facts, runs[best]


SETUPS = {"ours": ours, "torch": torch}


def _torch_model(experiment: Experiment):
    """The same decoder in transformers, with float32 parameters. ValueError: it has no such model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from qwenjax.interop.huggingface.config import write_config

    if experiment.dropout:
        raise ValueError("transformers drops other things than ours; use --set dropout=0")
    values, left_out = write_config(experiment.model, "qwen2")
    for line in left_out:
        workers.log(line)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**values)).train()
