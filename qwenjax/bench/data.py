"""Tokenising and the data stream: MB of text and tokens per CPU second, and whether a training step would wait.

TEXT is what `python -m qwenjax.data tokenize` reads. A sample of each language is encoded; then the text is tokenised
into shards, in one process and in all; then a mixture of the shards is read back. CPU seconds count the work of all
processes and hardly depend on the load of the machine.
"""

import argparse
import importlib.util
import json
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

from qwenjax.bench.workers import log, spread
from qwenjax.common import jsonl
from qwenjax.common.command_line import DONE, positive
from qwenjax.common.figures import aligned
from qwenjax.common.processes import cores
from qwenjax.data.batches.order import BLOCK, Order
from qwenjax.data.batches.text import Batches, TextMixture
from qwenjax.data.inspect.stats import language
from qwenjax.data.shards.format import SPLITS, Shards
from qwenjax.data.shards.write import tokenize
from qwenjax.sources import documents
from qwenjax.tokenizer import Tokenizer, load_tokenizer

APPETITE = (4 << 20) // 8 // 32  # tokens per second and host: 4M tokens in about 8 s over 32 hosts
SAMPLE = 4 << 20  # characters that the engine encodes per language, and tokens read per turn of the stream
LANGUAGES = 3
LENGTH, BATCH = 2048, 32  # of the rows read
FAR = (10**6, 10**9, 10**12)  # rows whose place is computed
EXAMPLES = """
examples:
  python -m qwenjax.bench data
      the standard library of this Python, in half a minute
  python -m qwenjax.bench data web.jsonl --rounds=5 --json > data.json
      text of your own; give 50 MB or more, for a worker takes a second to start
  python -m qwenjax.bench data web.jsonl --appetite=50000
      compare with another step: the tokens per second and host that `qwenjax.bench train` prints
"""


def arguments(add) -> None:
    """Declares the options."""
    add("text", nargs="?", default="python-stdlib", metavar="TEXT", help="file or folder (default: python-stdlib)")
    add("--tokenizer", default="qwen", metavar="NAME", help="qwen, a .tiktoken or .model file, or a folder")
    add("--workers", type=positive, metavar="N", help="processes (default: one per core)")
    add("--rounds", type=positive, default=3, metavar="N", help="repetitions of each measurement (default: 3)")
    appetite = f"tokens per second and host that a step takes (default: {APPETITE}, the 14B model on a v5p-256)"
    add("--appetite", type=positive, default=APPETITE, metavar="N", help=appetite)
    add("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    """Measures and prints."""
    tokenizer, workers = load_tokenizer(options.tokenizer), options.workers or cores()
    result = bench(options.text, tokenizer, workers, options.rounds, options.appetite)
    print(json.dumps(result, indent=2) if options.json else table(result))
    return DONE


def bench(text: str, tokenizer: Tokenizer, workers: int, rounds: int, appetite: int) -> dict:
    """Measures everything, with progress on stderr. ValueError: there is no text, or fewer than two rows of it."""
    with tempfile.TemporaryDirectory(prefix="qwenjax-bench-") as folder:
        lines = Path(folder, "text.jsonl")
        text_bytes, samples = _write_jsonl(text, lines)
        largest = sorted(samples, key=lambda name: -sum(map(len, samples[name])))[:LANGUAGES]
        engine = {name: _engine(tokenizer, samples[name], rounds) for name in largest}
        log("encoded the sample; tokenising from end to end")
        made = {n: _tokenise(lines, Path(folder), tokenizer, n, rounds) for n in dict.fromkeys((1, workers))}
        shards = Shards(Path(folder, "shards"))
        log("made the shards; reading them")
        stored = sum(path.stat().st_size for path in shards.directory.glob("*.array_record"))
        tokens = sum(shards.tokens(split) for split in SPLITS)
        seq_len = max(1, min(LENGTH, (shards.tokens("train") - 1) // 2))
        masks = {"joined": False, "isolated": True}
        stream = {name: _stream(shards, seq_len, document_mask, rounds) for name, document_mask in masks.items()}
        slowest = min(rate["median"] for rate in stream.values())
        return {
            "benchmark": "data",
            "text": text,
            "tokenizer": tokenizer.name,
            "engine": _versions(tokenizer),
            "load_average": round(os.getloadavg()[0], 2),
            "bytes": text_bytes,
            "tokens": tokens,
            "encode_mb_per_cpu_second": engine,
            "tokenise": {str(n): result for n, result in made.items()},
            "shard_bytes_per_token": stored / tokens,
            "rows": {"length": seq_len, "batch": BATCH},
            "stream_tokens_per_cpu_second": stream,
            "order_microseconds_per_row": _order(shards, seq_len),
            "appetite_tokens_per_second": appetite,
            "ratio_to_appetite": slowest / appetite,
        }


def table(result: dict) -> str:
    """The result as text."""
    rates = {
        f"{how}, {name}: MB per CPU-s": rate
        for name, by_method in result["encode_mb_per_cpu_second"].items()
        for how, rate in by_method.items()
    }
    for n, made in result["tokenise"].items():
        where = "end to end, 1 process" if n == "1" else f"{n} processes, their start included"
        rates[f"{where}: MB per CPU-s"] = made["mb_per_cpu_second"]
        rates[f"{'':<{len(where)}}  MB per second"] = made["mb_per_second"]
    for name, rate in result["stream_tokens_per_cpu_second"].items():
        rates[f"stream, documents {name}: Mtokens per CPU-s"] = {key: value / 1e6 for key, value in rate.items()}
    order = result["order_microseconds_per_row"]
    far = ", ".join(f"{int(n):,}: {us:.1f}" for n, us in order["rows"].items())
    eats = result["appetite_tokens_per_second"]
    head = ("median", "low", "high")
    rows = [("", *head), *((title, *(f"{rate[key]:.2f}" for key in head)) for title, rate in rates.items())]
    return "\n".join(
        [
            f"{result['text']}: {result['bytes'] / 1e6:.1f} MB, {result['tokens']:,} tokens of {result['tokenizer']}, "
            f"load average {result['load_average']}",
            f"engine: {result['engine']}",
            "",
            *aligned(rows),
            "",
            f"shards: {result['shard_bytes_per_token']:.2f} bytes per token",
            f"place of a row, in µs: from row {far}; once per {BLOCK:,} rows {order['block'] / 1e3:.1f} ms",
            f"one core reads {result['ratio_to_appetite']:,.0f} x the appetite of {eats:,} tokens per second and host",
        ]
    )


def _cpu_and_wall_seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a call: of the CPU in all threads and in child processes that have ended, and of the clock."""
    before, wall = os.times(), time.perf_counter()
    run()
    cpu = sum(os.times()[:4]) - sum(before[:4])
    return max(cpu, 1e-3), max(time.perf_counter() - wall, 1e-3)  # the CPU clock has a coarse tick


def _write_jsonl(text: str, lines: Path) -> tuple[int, dict[str, list[str]]]:
    """Writes the documents as JSON lines. Returns the bytes of text, and a sample of each language."""
    known = importlib.util.find_spec("py3langid")
    samples: dict[str, list[str]] = defaultdict(list)
    size: dict[str, int] = defaultdict(int)
    total = 0
    with open(lines, "wb") as file:
        for document in documents.documents(text):
            file.write(jsonl.encode({"text": document.text}))
            total += len(document.text.encode("utf-8"))
            name = language(document.text[:1000]) if known else "all"
            if size[name] < SAMPLE:
                samples[name].append(document.text)
                size[name] += len(document.text)
    return total, samples


def _versions(tokenizer: Tokenizer) -> str:
    """The libraries that compute the ids."""
    if not hasattr(tokenizer, "quicktok"):
        return f"sentencepiece {version('sentencepiece')}"
    record = f"tiktoken {version('tiktoken')}"
    if tokenizer.quicktok:
        return f"quicktok {version('quicktok-v1')} for data, with the ids of {record}"
    return f"{record} alone (pip install 'qwenjax[fast]' makes the published vocabulary quicker)"


def _engine(tokenizer: Tokenizer, texts: list[str], rounds: int) -> dict:
    """MB per CPU second of `encode_array` (fast) and `encode_ordinary` (the reference), in turns."""
    size = sum(len(text.encode("utf-8")) for text in texts) / 1e6
    rates = {"encode_array": [], "encode_ordinary": []}
    tokenizer.encode_array("")  # loads the engine
    for _ in range(rounds):
        for how, found in rates.items():
            encode = getattr(tokenizer, how)
            found.append(size / _cpu_and_wall_seconds(lambda encode=encode: [encode(text) for text in texts])[0])
    return {how: spread(found) for how, found in rates.items()}


def _tokenise(lines: Path, folder: Path, tokenizer: Tokenizer, workers: int, rounds: int) -> dict:
    """MB per second of `tokenize`, by both clocks; leaves the last shards in folder/shards."""
    by_cpu, by_wall = [], []
    for _ in range(rounds):
        shutil.rmtree(folder / "shards", ignore_errors=True)
        make = partial(tokenize, [lines], folder / "shards", tokenizer, workers=workers, progress=False)
        cpu, wall = _cpu_and_wall_seconds(make)
        shards = Shards(folder / "shards")
        size = sum(shards.text_bytes(split) for split in SPLITS) / 1e6
        by_cpu.append(size / cpu)
        by_wall.append(size / wall)
    return {"mb_per_cpu_second": spread(by_cpu), "mb_per_second": spread(by_wall)}


def _stream(shards: Shards, seq_len: int, document_mask: bool, rounds: int) -> dict[str, float]:
    """Tokens per CPU second of a mixture of the shards with themselves in a ratio of 7 to 3."""
    mixture = TextMixture([shards, shards], [0.7, 0.3], seq_len, seed=0)
    steps = max(1, SAMPLE // (BATCH * seq_len))
    read_rows = partial(mixture.batch, eot=shards.tokenizer["eot"], document_mask=document_mask)
    with Batches(read_rows, BATCH, range(BATCH)) as batches:
        next(batches)  # opens the files and fills the queue

        def read() -> None:
            for _ in range(steps):
                next(batches)

        return spread([steps * BATCH * seq_len / _cpu_and_wall_seconds(read)[0] for _ in range(rounds)])


def _order(shards: Shards, seq_len: int) -> dict:
    """Microseconds of the index arithmetic: per row from several rows on, and once for a block."""
    order = Order((shards.tokens("train"),) * 2, (0.7, 0.3), seq_len, seed=os.getpid())

    def microseconds(start: int, rows: int) -> float:
        begin = time.process_time_ns()
        for row in range(start, start + rows):
            order.locate(row)
        return (time.process_time_ns() - begin) / 1e3 / rows

    # the first row of a block makes the block's table, which the others share
    return {
        "block": microseconds(0, 1),
        "rows": {str(n): microseconds(n + 1, 2000) for n in (0, *FAR) if order.locate(n)},
    }
