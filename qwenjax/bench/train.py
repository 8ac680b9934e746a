"""Speed of a training step: ours, and transformers' Qwen2 of the same shape in eager PyTorch.

Both sides do the whole step on the same random tokens: forward, cross entropy over the full vocabulary, backward,
clipping by global norm, AdamW. Ours is the program that `python -m qwenjax.train` runs. Where PyTorch has several
implementations (attention, AdamW) the fastest one is found first and used.
"""

import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from qwenjax import config
from qwenjax.bench.workers import BenchTurn, BenchWorker
from qwenjax.common.processes import cores, quiet_logs
from qwenjax.config import Experiment

TURN_SECONDS = 3.0  # of one turn: long for a timer, short for the drift of a machine's load


def bench(experiment: Experiment, against: str | None = None, rounds: int = 5, threads: int | None = None) -> dict:
    """Measures and returns {"ours": …, "torch": …, "ratio": …}; see `table` for what is in it. Progress on stderr.

    Raises:
      ValueError: PyTorch is not installed or cannot run the same model, or a worker failed.
    """
    threads = threads or cores()
    if against and not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        raise ValueError("--against=torch needs torch and transformers: pip install 'qwenjax[parity]'")
    names = ["ours", *([against] if against else [])]
    specification = {"experiment": config.to_dict(experiment), "threads": threads}
    with ExitStack() as stack:
        workers, facts = [], {}
        for name in names:  # one after the other: a compilation must not disturb the measurements of the next worker
            log(f"{name}: building and warming up")
            workers.append(stack.enter_context(BenchWorker(name, f"{__name__}:{name}", specification, threads)))
            facts[name] = workers[-1].facts()
        sizes = {name: fact["params"] for name, fact in facts.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the two sides have different numbers of parameters: {sizes}")
        steps = {name: max(1, round(TURN_SECONDS / fact["step_seconds"])) for name, fact in facts.items()}
        turns: dict[str, list[BenchTurn]] = {name: [] for name in names}
        for number in range(rounds):
            # the order alternates, so that a steady drift of the machine favours neither side
            for worker in workers if number % 2 == 0 else reversed(workers):
                turns[worker.name].append(worker.turn(steps[worker.name]))
            rates = ", ".join(f"{n} {rate(experiment, turns[n][-1]):,.0f} tokens/s" for n in names)
            log(f"round {number + 1}/{rounds}: {rates}")
    result = {
        "benchmark": "train",
        "experiment": experiment.name,
        "model": config.to_dict(experiment)["model"],
        "params": sizes["ours"],
        "batch": experiment.data.batch_size,
        "length": experiment.data.seq_len,
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2),
        **{name: summary(experiment, facts[name], turns[name]) for name in names},
    }
    if against:
        pair = turns["ours"], turns[against]
        result["ratio"] = {clock: ratio(experiment, *pair, clock) for clock in ("wall", "cpu")}
    return result


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def rate(experiment: Experiment, turn: BenchTurn, clock: str = "wall") -> float:
    """Tokens per second by the "wall" or "cpu" clock."""
    return turn.steps * experiment.tokens_per_step / getattr(turn, clock)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratio(experiment: Experiment, ours: list[BenchTurn], theirs: list[BenchTurn], clock: str) -> dict[str, float]:
    """Our rate divided by theirs within each round, in which both have the same machine load."""
    return spread([rate(experiment, a, clock) / rate(experiment, b, clock) for a, b in zip(ours, theirs)])


def summary(experiment: Experiment, facts: dict, turns: list[BenchTurn]) -> dict:
    """One side's facts and rates."""
    wall = spread([rate(experiment, turn) for turn in turns])
    flops = experiment.model.flops_per_token(experiment.data.seq_len)
    return {
        **facts,
        "tokens_per_second": wall,
        "tokens_per_cpu_second": spread([rate(experiment, turn, "cpu") for turn in turns]),
        "model_tflops": wall["median"] * flops / 1e12,
        "steps": sum(turn.steps for turn in turns),
    }


def table(result: dict) -> str:
    """The result as text."""
    names = [name for name in ("ours", "torch") if name in result]
    lines = [
        f"train step of {result['experiment']}: {result['params']:,} parameters, "
        f"{result['batch']} x {result['length']} tokens, "
        f"{result['threads']} threads, load average {result['load_average']}",
        *(f"  {name:<6} {result[name]['how']}" for name in names),
        "",
        f"{'':<10}{'tokens/s':>10}{'low':>10}{'high':>10}{'per CPU-s':>11}{'TFLOP/s':>9}"
        f"{'compile s':>11}{'1st step s':>12}",
    ]
    for name in names:
        side = result[name]
        wall, cpu = side["tokens_per_second"], side["tokens_per_cpu_second"]["median"]
        lines.append(
            f"{name:<10}{wall['median']:>10,.0f}{wall['low']:>10,.0f}{wall['high']:>10,.0f}{cpu:>11,.0f}"
            f"{side['model_tflops']:>9.3f}{side['compile_seconds']:>11.1f}{side['first_step_seconds']:>12.2f}"
        )
    for clock, title in (("wall", "ratio"), ("cpu", "by CPU-s")):
        if "ratio" in result:
            times = result["ratio"][clock]
            lines.append(f"{title:<10}{times['median']:>10.3f}{times['low']:>10.3f}{times['high']:>10.3f}")
    return "\n".join(lines)


def report(experiment: Experiment, against: str | None, rounds: int, threads: int | None, as_json: bool) -> None:
    """Measures, and prints the result to stdout."""
    result = bench(experiment, against, rounds, threads)
    print(json.dumps(result, indent=2) if as_json else table(result))


# ---- what runs inside the workers ----


def random_tokens(experiment: Experiment):
    """[b t + 1] numpy int64, the same on both sides."""
    import numpy as np

    shape = (experiment.data.batch_size, experiment.data.seq_len + 1)
    return np.random.default_rng(experiment.seed).integers(0, experiment.model.vocab, shape)


def seconds_per_step(run: Callable[[int], None], steps: int) -> float:
    """Seconds per step."""
    start = time.perf_counter()
    run(steps)
    return (time.perf_counter() - start) / steps


def ours(specification: dict):
    """A `workers.Setup`: the step of `qwenjax.train`."""
    quiet_logs()
    import jax
    import numpy as np

    from qwenjax import sharding
    from qwenjax.data.batches import text
    from qwenjax.model import attention
    from qwenjax.train import step
    from qwenjax.train.backbone import Backbone

    experiment = config.from_dict(specification["experiment"])
    mesh = sharding.make_mesh(experiment.mesh, experiment.model.embed)
    platform = mesh.devices.flat[0].platform
    compute = attention.resolve(experiment, platform, mesh.shape)
    loss_fn = Backbone(experiment, compute).loss()
    shapes = text.batch_shapes(experiment.data.batch_size, experiment.data.seq_len, experiment.data.document_mask)
    program = step.build(experiment, loss_fn, mesh, shapes)
    tokens = random_tokens(experiment).astype(np.int32)
    rows = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.broadcast_to(np.arange(experiment.data.seq_len, dtype=np.int32), tokens[:, 1:].shape),
        "weights": np.ones(tokens[:, 1:].shape, np.float32),
        "segments": np.zeros(tokens[:, 1:].shape, np.int32),
    }
    batch = {name: jax.device_put(rows[name], place.sharding) for name, place in program.batch.items()}
    state = program.init()
    start = time.perf_counter()
    compiled = program.step.lower(state, batch, step.UNLIMITED).compile()
    compile_seconds = time.perf_counter() - start

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = compiled(state, batch, step.UNLIMITED)
        if not bool(metrics["applied"]):  # reading it also waits for the last step
            raise ValueError("the loss is not finite; lower the learning rate: --set optim.peak_lr=1e-4")

    facts = {
        "how": f"jax {jax.__version__} on {platform}, {compute.dtype}, remat {compute.remat}, scan {compute.scan}",
        "params": experiment.model.params,
        "compile_seconds": compile_seconds,
        "first_step_seconds": seconds_per_step(run, 1),
        "step_seconds": seconds_per_step(run, 3),
    }
    return facts, run


def torch(specification: dict):
    """A `workers.Setup`: transformers' Qwen2ForCausalLM, eager PyTorch, with its faster attention and AdamW."""
    import torch

    experiment = config.from_dict(specification["experiment"])
    torch.set_num_threads(specification["threads"])
    torch.manual_seed(experiment.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = torch.from_numpy(random_tokens(experiment)).to(device)
    model = _torch_model(experiment).to(device)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optim = experiment.optim

    def stepper(attention: str, adamw: str) -> Callable[[int], None]:
        model.set_attn_implementation(attention)
        groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        chosen = {adamw: True}
        optimizer = torch.optim.AdamW(groups, lr=optim.peak_lr, betas=(optim.b1, optim.b2), eps=optim.eps, **chosen)

        def run(steps: int) -> None:
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

    first = seconds_per_step(stepper("sdpa", "fused"), 1)
    runs, seconds = {}, {}
    for attention, adamw in (("sdpa", "fused"), ("eager", "fused"), (None, "foreach")):
        attention = attention or min(seconds, key=seconds.get)[0]  # optimizers with the faster attention
        run = stepper(attention, adamw)
        run(1)
        runs[attention, adamw] = run
        seconds[attention, adamw] = seconds_per_step(run, 3)
    best = min(seconds, key=seconds.get)
    model.set_attn_implementation(best[0])
    slower = ", ".join(f"{'+'.join(k)} {s / seconds[best]:.2f}x" for k, s in seconds.items() if k != best)
    facts = {
        "how": f"torch {torch.__version__} on {device}, {experiment.compute.dtype}, "
        f"{best[0]} attention, {best[1]} AdamW (time of {slower})",
        "params": sum(p.numel() for p in model.parameters()),
        "compile_seconds": 0.0,
        "first_step_seconds": first,
        "step_seconds": seconds[best],
    }
    return facts, runs[best]


def _torch_model(experiment: Experiment):
    """The same decoder in transformers, with float32 parameters.

    Raises:
      ValueError: Qwen2 lacks an option of the model.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    cfg = experiment.model
    if cfg.qk_norm or not cfg.qkv_bias:
        raise ValueError("transformers' Qwen2 has QKV biases and no QK norm; compare with a model that has these")
    if experiment.dropout:
        raise ValueError("transformers' Qwen2 drops other things than ours; use --set dropout=0")
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=cfg.vocab,
            hidden_size=cfg.embed,
            intermediate_size=cfg.ffn,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            num_key_value_heads=cfg.kv,
            head_dim=cfg.head_size,
            max_position_embeddings=cfg.context,
            rms_norm_eps=cfg.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_base},
            tie_word_embeddings=cfg.tie_embeddings,
            attention_dropout=0.0,
        )
    ).train()
