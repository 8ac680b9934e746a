"""Generation in tokens per second: ours, and transformers' `generate` with the same weights.

Prefill of a long prompt, and greedy decoding after a short one in a batch of 1 and of 8, from the same random
prompts. A decode rate counts the generated tokens; its time includes the prefill of the short prompt. transformers
loads an export of the weights and uses its faster attention in each case. Loading and compilation are not in the
rates; the first call is reported apart.
"""

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from qwenjax.bench import workers
from qwenjax.bench.workers import BenchTurn, rate, ratio, spread
from qwenjax.common.command_line import DONE, Usage, positive
from qwenjax.common.figures import aligned
from qwenjax.common.processes import cores, quiet_logs

EXAMPLES = """
examples:
  python -m qwenjax.bench decode --model=SmolLM2.gguf --against=transformers
  python -m qwenjax.bench decode --model=runs/quickstart --max-new-tokens=256
      ours alone, longer texts
  python -m qwenjax.bench decode --model=Qwen-1_8B --against=transformers --rounds=11 --json > decode.json
"""


def arguments(add) -> None:
    """Declares the options."""
    add("--model", required=True, metavar="PATH", help="a directory of the Hugging Face form, .gguf or run")
    workers.arguments(add, against="transformers")
    add("--prefill", type=positive, default=512, metavar="N", help="prompt tokens of the prefill case (default: 512)")
    add("--prompt", type=positive, default=32, metavar="N", help="prompt tokens of the decode cases (default: 32)")
    add("--max-new-tokens", type=positive, default=64, metavar="N", help="tokens to generate (default: 64)")
    add("--dtype", choices=["float32", "bfloat16"], help="of the weights (default: float32 on CPUs, else bfloat16)")


def run(options: argparse.Namespace) -> int:
    """Measures and prints."""
    if options.max_new_tokens < 2:
        raise Usage("--max-new-tokens=1 measures no decoding; use 2 or more")
    cases = prefill_and_decode_cases(options.prefill, options.prompt, options.max_new_tokens)
    result = bench(options.model, options.against, cases, options.rounds, options.threads, options.dtype)
    print(json.dumps(result, indent=2) if options.json else table(result))
    return DONE


class Case(NamedTuple):
    """One measurement, in tokens of a call."""

    name: str
    batch: int
    prompt: int
    max_new_tokens: int

    @property
    def tokens(self) -> int:
        """The tokens that a rate counts: generated ones, or prompt tokens if only one token is generated."""
        return self.batch * (self.max_new_tokens if self.max_new_tokens > 1 else self.prompt)

    @property
    def title(self) -> str:
        if self.max_new_tokens == 1:
            return f"{self.name}, {self.batch} x {self.prompt}"
        return f"{self.name}, {self.batch} x {self.max_new_tokens} after {self.prompt}"


def prefill_and_decode_cases(prefill: int, prompt: int, max_new_tokens: int) -> list[Case]:
    """The measurements of a round, in order."""
    decoding = [Case("decode", batch, prompt, max_new_tokens) for batch in (1, 8)]
    return [Case("prefill", 1, prefill, 1), *decoding]


def bench(
    model: str, against: str | None, cases: list[Case], rounds: int, threads: int | None, dtype: str | None
) -> dict:
    """Measures; see `table` for the result. Progress on stderr.

    Raises:
      ValueError: no such model, PyTorch is not installed, or a worker failed.
    """
    workers.check_installed(against)
    threads = threads or cores()

    def line(side: str, last: list[BenchTurn]) -> str:
        return f"{side} " + " ".join(f"{rate(turn, case.tokens):,.1f}" for case, turn in zip(cases, last))

    with tempfile.TemporaryDirectory(prefix="qwenjax-bench-") as folder:
        job = DecodeJob(model, dtype, cases, str(Path(folder, "exported")))
        if against:
            workers.log("exporting the model")
            with workers.worker("export", export, job, threads):
                pass
        sides = SETUPS if against else {"ours": ours}
        facts, turns = workers.take_turns(sides, job, threads, rounds, line)
    result = {
        "benchmark": "decode",
        "model": Path(model).resolve().name,
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2),
        "cases": [case._asdict() for case in cases],
        **{side: _summary(cases, facts[side], turns[side]) for side in sides},
    }
    if against:
        pairs = zip(turns["ours"], turns[against])
        result["ratio"] = [{clock: ratio(*pair, clock) for clock in ("wall", "cpu")} for pair in pairs]
        result["same_tokens"] = _shared_prefix(facts["ours"]["ids"], facts[against]["ids"])
    return result


def _summary(cases: list[Case], facts: dict, turns: list[list[BenchTurn]]) -> dict:
    """One side's facts and rates, the rates by case."""
    rates = {
        title: [spread([rate(turn, case.tokens, clock) for turn in of]) for case, of in zip(cases, turns)]
        for clock, title in (("wall", "tokens_per_second"), ("cpu", "tokens_per_cpu_second"))
    }
    return {name: facts[name] for name in ("how", "params", "seconds", "first_seconds")} | rates


def _shared_prefix(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of a text before the first difference of the two sides, averaged over the texts."""
    shared = [len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))) for a, b in zip(ours, theirs)]
    return sum(n / len(row) for n, row in zip(shared, ours)) / len(ours)


def table(result: dict) -> str:
    """The result as text."""
    sides = [side for side in SETUPS if side in result]
    rows = [("tokens/s", "", "median", "low", "high", "per CPU-s", "1st call s")]
    for i, case in enumerate(Case(**values) for values in result["cases"]):
        for side in sides:
            one = result[side]
            rates = [*one["tokens_per_second"][i].values(), one["tokens_per_cpu_second"][i]["median"]]
            title = case.title if side == "ours" else ""
            rows.append((title, side, *(f"{x:,.1f}" for x in rates), f"{one['first_seconds'][i]:.2f}"))
        if "ratio" in result:
            times = [*result["ratio"][i]["wall"].values(), result["ratio"][i]["cpu"]["median"]]
            rows.append(("", "ratio", *(f"{x:.2f}" for x in times), ""))
    lines = [
        f"{result['model']}: {result['ours']['params']:,} parameters, {result['threads']} threads, "
        f"load average {result['load_average']}",
        *(f"  {side:<13} {result[side]['how']}" for side in sides),
        "",
        *aligned(rows, left=2),
    ]
    if "same_tokens" in result:
        lines += ["", f"the same tokens before the first difference (rounding): {result['same_tokens']:.0%}"]
    return "\n".join(lines)


# ---- what runs inside the workers ----


def prompts(case: Case, vocab: int) -> list[list[int]]:
    """Random ids, the same on both sides."""
    import numpy as np

    return np.random.default_rng(case.prompt).integers(0, vocab, (case.batch, case.prompt)).tolist()


class DecodeJob(NamedTuple):
    """What the workers do."""

    model: str
    dtype: str | None
    cases: list[Case]
    export: str  # where transformers finds the model


def export(job: DecodeJob):
    """A `workers.Setup`: writes the model for transformers. A process of its own: its memory goes with it."""
    quiet_logs()
    from qwenjax import api

    api.save(api.load(job.model, None, job.dtype), job.export, "qwen2")
    return {}, None


def ours(job: DecodeJob):
    """A `workers.Setup`: the loop of `qwenjax.generate`."""
    quiet_logs()
    import jax

    from qwenjax import api
    from qwenjax.generate import decode
    from qwenjax.model import transformer

    model = api.load(job.model, None, job.dtype)
    network, params = transformer.prepare(model.network, model.params)
    vocab = model.config.vocab

    def write(case: Case) -> list[list[int]]:
        requests = [decode.Request(ids, case.max_new_tokens) for ids in prompts(case, vocab)]
        return [made.ids for made in decode.generate(network, params, requests, size=vocab)]

    how = f"jax {jax.__version__} on {jax.devices()[0].platform}, {network.compute.dtype}"
    facts, run = _fastest_way(job.cases, [write])
    return {"how": how, "params": model.config.params, **facts}, run


def transformers(job: DecodeJob):
    """A `workers.Setup`: `generate` of the exported model, with its faster attention."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers import __version__ as version

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(job.export, dtype="auto").to(device).eval()
    model.generation_config = GenerationConfig()  # without the sampling and stop tokens of the export

    def writer(attention: str) -> Callable[[Case], list[list[int]]]:
        def write(case: Case) -> list[list[int]]:
            model.set_attn_implementation(attention)
            ids = torch.tensor(prompts(case, model.config.vocab_size), device=device)
            generation_config = GenerationConfig(do_sample=False, max_new_tokens=case.max_new_tokens, pad_token_id=0)
            with torch.inference_mode():
                out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=generation_config)
            return out[:, case.prompt :].tolist()

        return write

    facts, run = _fastest_way(job.cases, [writer("sdpa"), writer("eager")])
    how = f"transformers {version}, torch {torch.__version__} on {device}, {str(model.dtype).removeprefix('torch.')}"
    return {"how": how, "params": sum(p.numel() for p in model.parameters()), **facts}, run


SETUPS = {"ours": ours, "transformers": transformers}


def _fastest_way(cases: Sequence[Case], ways: Sequence[Callable]) -> tuple[dict, Callable[[int, int], None]]:
    """Facts, and a `run` that writes each case in the fastest of the `ways`."""
    found = []
    for case in cases:
        tried = []
        for write in ways:
            first, _ = _timed(write, case)
            tried.append((*_timed(write, case), first, write))
        found.append(min(tried, key=lambda one: one[0]))
    seconds, ids, first_seconds, writers = zip(*found)

    def run(case: int, calls: int) -> None:
        for _ in range(calls):
            writers[case](cases[case])

    return {"seconds": seconds, "first_seconds": first_seconds, "ids": ids[-1]}, run


def _timed(write: Callable, case: Case) -> tuple[float, list[list[int]]]:
    start = time.perf_counter()
    ids = write(case)
    return time.perf_counter() - start, ids
