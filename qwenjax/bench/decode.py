"""How fast does a model write: ours, and transformers' `generate` with the same weights.

Three cases, greedy, from the same random prompts: reading a long prompt, and writing after a short one in a batch of 1
and of 8. Both sides keep a key/value cache. The weights are exported to the layout that transformers loads; where it
offers a choice (attention) the faster one is found first, case by case, and used.
"""

import importlib.util
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from qwenjax.bench.train import progress, spread
from qwenjax.bench.workers import BenchTurn, BenchWorker
from qwenjax.common.processes import cores, quiet_logs

TURN_SECONDS = 3.0  # a turn is as many calls as fit
SIDES = ("ours", "transformers")


class Case(NamedTuple):
    """One thing that is measured, by tokens of a call."""

    name: str
    batch: int
    prompt: int
    new: int

    @property
    def tokens(self) -> int:
        """What a rate counts: tokens written, or, where only one is, tokens read."""
        return self.batch * (self.new if self.new > 1 else self.prompt)

    @property
    def title(self) -> str:
        shape = f"{self.batch} x {self.new} after {self.prompt}" if self.new > 1 else f"{self.batch} x {self.prompt}"
        return f"{self.name}, {shape}"


def cases(prefill: int, prompt: int, new: int) -> list[Case]:
    """What is measured, in the order of each round."""
    return [Case("prefill", 1, prefill, 1), Case("decode", 1, prompt, new), Case("decode", 8, prompt, new)]


def bench(
    model: str,
    against: str | None = None,
    *,
    measured: list[Case],
    rounds: int = 5,
    threads: int | None = None,
    dtype: str | None = None,
) -> dict:
    """Measures; see `table` for what is in the result. Progress on stderr.

    Raises:
      ValueError: no such model, PyTorch is asked for and absent, or a worker failed.
    """
    threads = threads or cores()
    if against and not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        raise ValueError("--against=transformers needs torch and transformers: pip install 'qwenjax[parity]'")
    names = SIDES if against else SIDES[:1]
    with ExitStack() as stack:
        specification = {"model": model, "dtype": dtype, "threads": threads, "cases": measured}
        if against:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="qwenjax-bench-"))
            specification["export"] = str(Path(folder, "exported"))
            progress("exporting the model")
            with BenchWorker("export", f"{__name__}:export", specification, threads) as exporter:
                exporter.facts()
        workers, facts = [], {}
        for name in names:  # one after the other: a compilation must not slow the choices of the next worker
            progress(f"{name}: loading and warming up")
            workers.append(stack.enter_context(BenchWorker(name, f"{__name__}:{name}", specification, threads)))
            facts[name] = workers[-1].facts()
        turns: dict[str, list[list[BenchTurn]]] = {name: [[] for _ in measured] for name in names}
        for number in range(rounds):
            for i in range(len(measured)):  # a worker's turns are its cases, over and over
                # the order alternates, so that a steady drift of the machine favours nobody
                for worker in workers if number % 2 == 0 else reversed(workers):
                    calls = max(1, round(TURN_SECONDS / facts[worker.name]["seconds"][i]))
                    turns[worker.name][i].append(worker.turn(calls))
            rates = (
                f"{name} " + " ".join(f"{rate(c, t[-1]):,.1f}" for c, t in zip(measured, turns[name])) for name in names
            )
            progress(f"round {number + 1}/{rounds}, tokens/s: {', '.join(rates)}")
    result = {
        "benchmark": "decode",
        "model": Path(model).resolve().name,
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2),
        "cases": [case._asdict() for case in measured],
        **{name: _summary(measured, facts[name], turns[name]) for name in names},
    }
    if against:
        result["ratio"] = [
            {clock: ratio(*pair, clock) for clock in ("wall", "cpu")} for pair in zip(*(turns[name] for name in SIDES))
        ]
        result["same_tokens"] = _agreement(*(facts[name]["ids"] for name in SIDES))
    return result


def rate(case: Case, turn: BenchTurn, clock: str = "wall") -> float:
    """Tokens per second of a clock: "wall" or "cpu"."""
    return turn.steps * case.tokens / getattr(turn, clock)


def ratio(ours: list[BenchTurn], theirs: list[BenchTurn], clock: str) -> dict[str, float]:
    """Our rate by theirs in one case, taken within each round, where both met the same machine."""
    return spread([a.steps * getattr(b, clock) / (b.steps * getattr(a, clock)) for a, b in zip(ours, theirs)])


def _summary(measured: list[Case], facts: dict, turns: list[list[BenchTurn]]) -> dict:
    """One side's facts and rates."""
    kept = {name: facts[name] for name in ("how", "params", "seconds", "first_seconds")}
    for clock, title in (("wall", "tokens_per_second"), ("cpu", "tokens_per_cpu_second")):
        kept[title] = [spread([rate(case, turn, clock) for turn in of]) for case, of in zip(measured, turns)]
    return kept


def _agreement(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """How much of the texts is the same before they part, the shares of the rows averaged."""
    shared = [len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))) for a, b in zip(ours, theirs)]
    return sum(n / len(row) for n, row in zip(shared, ours)) / len(ours)


def table(result: dict) -> str:
    """The result for people."""
    names = [name for name in SIDES if name in result]
    lines = [
        f"{result['model']}: {result['ours']['params']:,} parameters, {result['threads']} threads, "
        f"load average {result['load_average']}",
        *(f"  {name:<13} {result[name]['how']}" for name in names),
        "",
        f"{'tokens/s':<26}{'':<14}{'median':>9}{'low':>9}{'high':>9}{'per CPU-s':>11}{'1st call s':>12}",
    ]
    for i, case in enumerate(Case(**values) for values in result["cases"]):
        for name in names:
            side = result[name]
            wall, cpu = side["tokens_per_second"][i], side["tokens_per_cpu_second"][i]["median"]
            numbers = "".join(f"{wall[key]:>9,.1f}" for key in ("median", "low", "high"))
            first = side["first_seconds"][i]
            lines.append(f"{case.title if name == 'ours' else '':<26}{name:<14}{numbers}{cpu:>11,.1f}{first:>12.2f}")
        if "ratio" in result:
            of, cpu = result["ratio"][i]["wall"], result["ratio"][i]["cpu"]["median"]
            numbers = "".join(f"{of[key]:>9.2f}" for key in ("median", "low", "high"))
            lines.append(f"{'':<26}{'ratio':<14}{numbers}{cpu:>11.2f}")
    if "same_tokens" in result:
        lines += ["", f"written alike before the first difference, by rounding: {result['same_tokens']:.0%}"]
    return "\n".join(lines)


def report(result: dict, as_json: bool) -> None:
    """Prints the result to stdout."""
    print(json.dumps(result, indent=2) if as_json else table(result))


# ---- what runs inside the workers ----


def prompts(case: Case, vocab: int) -> list[list[int]]:
    """Random ids, the same on both sides."""
    import numpy as np

    return np.random.default_rng(case.prompt).integers(0, vocab, (case.batch, case.prompt)).tolist()


def export(specification: dict):
    """A `workers.Setup`: writes the model for transformers. A process of its own: its memory goes with it."""
    quiet_logs()
    from qwenjax import api

    model = api.load(specification["model"], None, specification["dtype"])
    api.save(model, specification["export"], "qwen2")
    return {}, lambda calls: None


def ours(specification: dict):
    """A `workers.Setup`: the loop of `qwenjax.generate`."""
    quiet_logs()
    import jax

    from qwenjax import api
    from qwenjax.generate import decode
    from qwenjax.model import transformer

    model = api.load(specification["model"], None, specification["dtype"])
    network, params = transformer.prepare(model.network, model.params)
    vocab = model.config.vocab

    def write(case: Case) -> list[list[int]]:
        requests = [decode.Request(ids, case.new) for ids in prompts(case, vocab)]
        return [made.ids for made in decode.generate(network, params, requests, size=vocab)]

    how = f"jax {jax.__version__} on {jax.devices()[0].platform}, {network.compute.dtype}"
    facts, run = _ready(specification, lambda case: [write])
    return {"how": how, "params": model.config.params, **facts}, run


def transformers(specification: dict):
    """A `workers.Setup`: `generate` of the exported model, with its faster attention."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers import __version__ as version

    torch.set_num_threads(specification["threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(specification["export"], dtype="auto").to(device).eval()
    model.generation_config = GenerationConfig()  # what the export says about sampling and ends is not asked here

    def writer(attention: str) -> Callable[[Case], list[list[int]]]:
        def write(case: Case) -> list[list[int]]:
            model.set_attn_implementation(attention)
            ids = torch.tensor(prompts(case, model.config.vocab_size), device=device)
            asked = GenerationConfig(do_sample=False, max_new_tokens=case.new, pad_token_id=0)
            with torch.inference_mode():
                out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=asked)
            return out[:, case.prompt :].tolist()

        return write

    facts, run = _ready(specification, lambda case: [writer("sdpa"), writer("eager")])
    how = f"transformers {version}, torch {torch.__version__} on {device}, {str(model.dtype).removeprefix('torch.')}"
    return {"how": how, "params": sum(p.numel() for p in model.parameters()), **facts}, run


def _ready(specification: dict, ways: Callable[[Case], list[Callable]]) -> tuple[dict, Callable[[int], None]]:
    """Facts, and a `run` whose calls take the cases in turn, each in the quickest of the `ways` there are to do it."""
    measured = [Case(*values) for values in specification["cases"]]
    chosen, seconds, first_seconds, ids = [], [], [], []
    for case in measured:
        tried = []
        for write in ways(case):
            first, ids = _timed(write, case)
            tried.append((_timed(write, case)[0], len(tried), first, write))
        best = min(tried)
        seconds.append(best[0])
        first_seconds.append(best[2])
        chosen.append((case, best[3]))
    turns: Iterator = itertools.cycle(chosen)

    def run(calls: int) -> None:
        case, write = next(turns)
        for _ in range(calls):
            write(case)

    return {"seconds": seconds, "first_seconds": first_seconds, "ids": ids}, run


def _timed(write: Callable, case: Case) -> tuple[float, list[list[int]]]:
    start = time.perf_counter()
    ids = write(case)
    return time.perf_counter() - start, ids
