"""Text to shuffled token shards, in parallel, in bounded memory, restartable after any kind of death.

The result is a function of the text, the tokenizer and the seed: not of the number of workers, nor of how often the
program was killed. Documents are shuffled once, globally, by sorting on a keyed hash of where they came from;
a keyed hash of their text decides which are held out.
"""

import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from qwenjax.common.hashing import json_digest
from qwenjax.common.processes import cores
from qwenjax.common.progress import printer
from qwenjax.common.storage import exclusive, write_json
from qwenjax.config import Source
from qwenjax.data.shards.format import PAGE, SPLITS, VERSION, Shards, token_dtype
from qwenjax.data.shards.worker import ShardJob, ShardWorker, open_unit
from qwenjax.sources.documents import NOT_READ, Report, Slice, as_source, cut, modified, no_documents, slices

SHARD_BYTES = 128 << 20  # text per output file; what pass 2 holds in memory, per worker
UNITS = 64  # parts of the input, as far as UNIT_BYTES allows; a killed run loses at most one per worker
UNIT_BYTES = (1 << 20, 256 << 20)
PER_WORKER = 4 << 20  # a process takes about a second to start: less text than this does not pay for one


def tokenize(
    source_paths: Sequence[str | Path | Source],
    out: str | Path,
    tokenizer,
    *,
    seed: int = 0,
    workers: int | None = None,
    validation: float = 0.01,
    page: int = PAGE,
    strict: bool = False,
    progress: bool = True,
) -> Shards:
    """Writes the shards of some text sources into directory `out`; a repeated call resumes, or returns at once.

    Args:
      source_paths: what `sources.documents` reads; a `config.Source` also says how. Plain .jsonl, .parquet and data
        sets of records are cut for all workers; each other file, or one whose rows are grouped, is read by one.
      tokenizer: `encode_array`, `eot`, `size`, `name`, `fingerprint`, `save`; picklable.
      validation: share of the documents held out, in [0, 1).
      strict: fail when any document had to be skipped.

    Raises:
      ValueError: no document at all, no training document, `out` holds shards of something else, or strict.
      ChildProcessError: a worker died; what is finished stays finished.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation={validation} is the share of documents held out; wanted 0 <= share < 1")
    out, report, sources = Path(out), Report(), [as_source(source) for source in source_paths]
    units, total = plan(sources, report)
    if strict:
        _refuse(Report({reason: seen for reason, seen in report.items() if not reason.startswith(NOT_READ)}))
    files = tuple(max(1, math.ceil(total * share / SHARD_BYTES)) for share in (1 - validation, validation))
    job = ShardJob(out, seed, validation, page, files)
    what = [VERSION, seed, validation, page, files, tokenizer.fingerprint]
    what += [[number, p.origin, p.size, p.start] for unit in units for number, p in unit]
    what += [[number, source.reading] for number, source in enumerate(sources) if source.reading]
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out, printer(progress)):
        if not (out / "index.json").is_file():
            _claim(job, json_digest([what, _times(units)]), printer(progress))
            with _pool(job, tokenizer, workers or max(1, min(cores(), total // PER_WORKER))) as run:
                skipped = _both_passes(job, units, run, strict, progress)
            skipped.merge(report)
            index = {
                "version": VERSION,
                "plan": json_digest(what),
                "seed": seed,
                "validation": validation,
                "page": page,
            }
            index |= {"dtype": token_dtype(tokenizer.size).str, "skipped": skipped}
            index["sources"] = [source.text for source in sources]
            index["reading"] = [source.reading for source in sources]
            index["tokenizer"] = {k: getattr(tokenizer, k) for k in ("name", "fingerprint", "size", "eot")}
            index["splits"] = _splits(job, sources, skipped)
            tokenizer.save(out / "tokenizer")
            write_json(out / "index.json", index)
        shutil.rmtree(job.work, ignore_errors=True)
    shards = Shards(out)
    if shards.index["plan"] != json_digest(what):
        raise ValueError(
            f"{out} already holds shards of other text, or made with another tokenizer, seed or setting; "
            "choose another directory, or delete it"
        )
    return shards


def _times(units: list[list[tuple[int, Slice]]]) -> list[int]:
    """When each file was written: half-finished work is of no use once one of them has changed."""
    files = {piece.file: piece for unit in units for _, piece in unit}
    return [modified(piece) for piece in files.values()]


def plan(sources: Sequence[str | Path | Source], report: Report) -> tuple[list[list[tuple[int, Slice]]], int]:
    """The units of work, each a list of (source number, slice), and the bytes of text they hold, about.

    Depends on nothing but the input files, so that a restarted run finds the same units.
    """
    pieces = [(number, piece) for number, source in enumerate(sources) for piece in slices(source, report)]
    total = sum(piece.size for _, piece in pieces)
    target = min(max(total // UNITS, UNIT_BYTES[0]), UNIT_BYTES[1])
    units: list[list[tuple[int, Slice]]] = []
    size = target
    for number, whole in pieces:
        for piece in cut(whole, target):
            if size >= target:
                units.append([])
                size = 0
            units[-1].append((number, piece))
            size += piece.size
    return units, total


def _both_passes(job: ShardJob, units: list, run: Callable, strict: bool, progress: bool) -> Report:
    """Whatever is missing of pass 1, then of pass 2; what was skipped in all."""
    sizes = {u: sum(piece.size for _, piece in unit) for u, unit in enumerate(units)}
    todo = [(u, unit) for u, unit in enumerate(units) if not job.unit(u).is_file()]
    run("tokenise", todo, _meter("tokenising", sizes, [u for u, _ in todo], progress))
    skipped = Report()
    for u in sizes:
        skipped.merge(open_unit(job.unit(u))[1]["skipped"])
    if strict:
        _refuse(skipped)
    groups = dict.fromkeys(range(sum(job.files)), 1)
    todo = [(group, len(units)) for group in groups if not job.entry(group).is_file()]
    run("shard", todo, _meter("writing shards", groups, [group for group, _ in todo], progress))
    return skipped


def _refuse(skipped: Report) -> None:
    if skipped:
        raise ValueError("; ".join(skipped.lines()) + ". Without strict they are left out")


def _claim(job: ShardJob, digest: str, say: Callable[[str], None]) -> None:
    """Makes the work folder; unfinished work of another plan is dropped, as none of it can be used."""
    path = job.work / "plan.json"
    if path.is_file() and json.loads(path.read_text())["plan"] != digest:
        say(f"{job.out} holds unfinished work of other text or settings: starting over")
        shutil.rmtree(job.work)
        for split in SPLITS:
            for file in job.out.glob(f"{split}-*.array_record"):
                file.unlink()
    job.work.mkdir(exist_ok=True)
    if not path.is_file():
        write_json(path, {"plan": digest})
    elif any(job.work.glob("unit-*.array_record")):
        say(f"resuming unfinished work in {job.out}")


def _splits(job: ShardJob, sources: Sequence[Source], skipped: Report) -> dict:
    """The index's description of both splits, from the entries of pass 2."""
    splits = {split: {"tokens": 0, "documents": 0, "bytes": 0, "files": []} for split in SPLITS}
    for group in range(sum(job.files)):
        row = json.loads(job.entry(group).read_text(encoding="utf-8"))
        if row["entry"]:
            splits[row["split"]]["files"].append(row["entry"])
            for what in ("tokens", "documents", "bytes"):
                splits[row["split"]][what] += row["entry"][what]
    if not any(split["documents"] for split in splits.values()):
        raise ValueError(no_documents(sources, skipped))
    if not splits["train"]["documents"]:
        raise ValueError(
            f"all {splits['validation']['documents']} documents were held out; lower validation={job.validation}"
        )
    return splits


# ---- processes ----


@contextmanager
def _pool(job: ShardJob, tokenizer, count: int) -> Iterator[Callable]:
    """Yields run(method, argument tuples, meter), which calls a `Worker` method for each, in `count` processes."""
    if count == 1:

        def run_here(method: str, items: list[tuple], meter: Callable) -> None:
            seen = [0]

            def step(n: int) -> None:
                seen[0] += n
                meter(None, seen[0])

            worker = ShardWorker(job, tokenizer, step)
            for item in items:
                meter(getattr(worker, method)(*item), seen[0])

        yield run_here
        return
    # spawn: a fork of a process whose jax threads hold locks would hang
    context = multiprocessing.get_context("spawn")
    stop, read_bytes = context.Event(), context.Value("q", 0)
    pool = ProcessPoolExecutor(count, context, _start, (job, tokenizer, stop, read_bytes))

    def run(method: str, items: list[tuple], meter: Callable) -> None:
        waiting = {pool.submit(_call, method, item) for item in items}
        while waiting:
            finished, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
            for future in finished:
                meter(future.result(), read_bytes.value)
            meter(None, read_bytes.value)

    try:
        yield run
    except BrokenProcessPool:
        raise ChildProcessError(
            "a tokenising process died: out of memory (use fewer workers), or the calling script lacks an "
            "`if __name__ == '__main__':` guard. What is finished is kept; run again to resume"
        ) from None
    finally:
        stop.set()  # units in flight end at their next document
        pool.shutdown(cancel_futures=True)


_worker: ShardWorker | None = None  # of a pool process: the tokenizer is sent once, not with every unit


class _Stopped(Exception):
    """The parent gave up; nobody waits for this result."""


def _start(job: ShardJob, tokenizer, stop, read_bytes) -> None:
    """Sets a pool process up. It ends with its parent, whatever killed that, and leaves Ctrl-C to it."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()

    def step(n: int) -> None:
        with read_bytes.get_lock():
            read_bytes.value += n
        if stop.is_set():
            raise _Stopped

    _worker = ShardWorker(job, tokenizer, step)


def _call(method: str, arguments: tuple) -> int:
    return getattr(_worker, method)(*arguments)


# ---- what people see meanwhile ----


def _meter(name: str, sizes: dict[int, int], todo: list[int], progress: bool) -> Callable[[int | None, int], None]:
    """meter(finished item or None, text bytes read so far): now and then a line with speed and time left."""
    started = said = time.monotonic()
    begun = done = sum(sizes.values()) - sum(sizes[i] for i in todo)

    def meter(item: int | None, read_bytes: int) -> None:
        nonlocal done, said
        done += sizes[item] if item is not None else 0
        now = time.monotonic()
        if not progress or now - said < 2:
            return
        said, total = now, sum(sizes.values())
        speed = f", {read_bytes / (now - started) / 1e6:.1f} MB/s of text" if name == "tokenising" else ""
        left = f", about {(now - started) * (total - done) / (done - begun):.0f} s left" if done > begun else ""
        print(f"{name}: {100 * done // max(total, 1)} %{speed}{left}", file=sys.stderr, flush=True)

    return meter
