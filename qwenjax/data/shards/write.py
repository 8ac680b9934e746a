"""Text to shuffled token shards, in parallel, in bounded memory; a killed run is resumed by the same call.

The result depends on the text, the tokenizer and the seed only: not on the number of workers, nor on how often the
program was killed. Documents are shuffled once, globally, by sorting on a keyed hash of where they came from. A keyed
hash of their text decides which ones are held out.
"""

import json
import math
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

from qwenjax.common.hashing import json_digest
from qwenjax.common.processes import cores, worker_pool
from qwenjax.common.progress import meter, printer
from qwenjax.common.storage import exclusive, write_json
from qwenjax.config import Source
from qwenjax.data.shards.format import PAGE, SPLITS, VERSION, Shards, token_dtype, tokenizer_entry
from qwenjax.data.shards.worker import ShardJob, ShardWorker, open_unit
from qwenjax.sources.documents import NOT_READ, Report, Slice, as_source, cut, modified, no_documents, slices

SHARD_BYTES = 128 << 20  # text per output file; what pass 2 holds in memory, per worker
UNITS = 64  # parts of the input, as far as UNIT_BYTES allows; a killed run loses at most one per worker
UNIT_BYTES = (1 << 20, 256 << 20)
BYTES_PER_WORKER = 4 << 20  # a process takes about a second to start: less text than this does not pay for one

Units = list[list[tuple[int, Slice]]]  # parts of the input: each some slices with the numbers of their sources


def tokenize(
    sources: Sequence[str | Path | Source],
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
      sources: what `sources.documents` reads; a `config.Source` also says how. Plain .jsonl, .parquet and data
        sets of records are cut for all workers; each other file, or one whose rows are grouped, is read by one.
      tokenizer: `encode_array`, `eot`, `size`, `name`, `fingerprint`, `save`; picklable.
      validation: share of the documents held out, in [0, 1).
      strict: fail when any document had to be skipped.

    Raises:
      ValueError: no document at all, no training document, `out` holds shards of something else, or strict.
      ChildProcessError: a worker process died; finished work is kept.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation={validation} is the share of documents held out; wanted 0 <= share < 1")
    out, report, sources = Path(out), Report(), [as_source(source) for source in sources]
    units, total = plan_units(sources, report)
    if strict:
        _fail_on(Report({reason: seen for reason, seen in report.items() if not reason.startswith(NOT_READ)}))
    files = tuple(max(1, math.ceil(total * share / SHARD_BYTES)) for share in (1 - validation, validation))
    job = ShardJob(out, seed, validation, page, files)
    plan = [VERSION, seed, validation, page, files, tokenizer.fingerprint]
    plan += [[number, p.origin, p.size, p.start] for unit in units for number, p in unit]
    plan += [[number, source.reading] for number, source in enumerate(sources) if source.reading]
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out, printer(progress)):
        if not (out / "index.json").is_file():
            _begin_or_resume(job, json_digest([plan, _modification_times(units)]), printer(progress))
            workers = workers or max(1, min(cores(), total // BYTES_PER_WORKER))
            skipped = _both_passes(job, tokenizer, units, workers, strict, progress)
            skipped.merge(report)
            index = {
                "version": VERSION,
                "plan": json_digest(plan),
                "seed": seed,
                "validation": validation,
                "page": page,
                "dtype": token_dtype(tokenizer.size).str,
                "skipped": skipped,
                "sources": [source.text for source in sources],
                "reading": [source.reading for source in sources],
                "tokenizer": tokenizer_entry(tokenizer),
                "splits": _index_splits(job, sources, skipped),
            }
            tokenizer.save(out / "tokenizer")
            write_json(out / "index.json", index)
        shutil.rmtree(job.work_folder, ignore_errors=True)
    shards = Shards(out)
    if shards.index["plan"] != json_digest(plan):
        raise ValueError(
            f"{out} already holds shards of other text, or made with another tokenizer, seed or setting; "
            "choose another directory, or delete it"
        )
    return shards


def _modification_times(units: Units) -> list[int]:
    """When each file was written, in nanoseconds: unfinished work is of no use once one of them has changed."""
    files = {piece.file: piece for unit in units for _, piece in unit}
    return [modified(piece) for piece in files.values()]


def plan_units(sources: Sequence[str | Path | Source], report: Report) -> tuple[Units, int]:
    """The units of work, and about how many bytes of text they hold.

    They depend on the input files only, so a resumed run has the same units.
    """
    pieces = [(number, piece) for number, source in enumerate(sources) for piece in slices(source, report)]
    total = sum(piece.size for _, piece in pieces)
    target = min(max(total // UNITS, UNIT_BYTES[0]), UNIT_BYTES[1])
    units: Units = []
    size = target
    for number, whole in pieces:
        for piece in cut(whole, target):
            if size >= target:
                units.append([])
                size = 0
            units[-1].append((number, piece))
            size += piece.size
    return units, total


def _both_passes(job: ShardJob, tokenizer, units: Units, workers: int, strict: bool, progress: bool) -> Report:
    """Does what is missing of pass 1, then of pass 2; returns what was skipped."""
    # an event of processes serves a thread too; of spawn, as the pool's processes are
    stop = multiprocessing.get_context("spawn").Event()
    with worker_pool(workers, ShardWorker, job, tokenizer, stop) as submit:
        try:
            todo = [(u, unit) for u, unit in enumerate(units) if not job.unit(u).is_file()]
            sizes = {u: sum(piece.size for _, piece in unit) for u, unit in todo}
            with meter("tokenising", sum(sizes.values()), "B", hidden=not progress) as step:
                _run(submit, ShardWorker.tokenise, todo, lambda u: step(sizes[u]))
            skipped = Report()
            for u in range(len(units)):
                skipped.merge(open_unit(job.unit(u))[1]["skipped"])
            if strict:
                _fail_on(skipped)
            todo = [(group, len(units)) for group in range(sum(job.files)) if not job.entry(group).is_file()]
            with meter("writing shards", len(todo), hidden=not progress) as step:
                _run(submit, ShardWorker.shard, todo, lambda group: step(1))
        finally:
            stop.set()  # units in work end at their next document
    return skipped


def _run(submit: Callable, method: Callable, calls: list[tuple], done: Callable[[int], object]) -> None:
    """Calls a method of `ShardWorker` for each of `calls`; `done` gets each result."""
    waiting = {submit(method, *arguments) for arguments in calls}
    while waiting:
        finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in finished:
            done(future.result())


def _fail_on(skipped: Report) -> None:
    """What `strict` does."""
    if skipped:
        raise ValueError("; ".join(skipped.lines()) + ". Without strict they are left out")


def _begin_or_resume(job: ShardJob, plan: str, say: Callable[[str], None]) -> None:
    """Makes the work folder; unfinished work of another plan is deleted, because none of it can be used."""
    path = job.work_folder / "plan.json"
    if path.is_file() and json.loads(path.read_text())["plan"] != plan:
        say(f"{job.out} holds unfinished work of other text or settings: starting over")
        shutil.rmtree(job.work_folder)
        for split in SPLITS:
            for file in job.out.glob(f"{split}-*.array_record"):
                file.unlink()
    job.work_folder.mkdir(exist_ok=True)
    if not path.is_file():
        write_json(path, {"plan": plan})
    elif any(job.work_folder.glob("unit-*.array_record")):
        say(f"resuming unfinished work in {job.out}")


def _index_splits(job: ShardJob, sources: Sequence[Source], skipped: Report) -> dict:
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
