"""Text to shuffled token shards, in parallel, in bounded memory; a killed run is resumed by the same call.

Documents are sorted on a keyed hash of where they came from; a keyed hash of their text decides which are held out.
Pass 1 turns a unit (some slices of the input) into a temporary file. One of its records holds the documents of a
stretch of the unit that belong to one group, which is an output file. Pass 2 collects a group from all units and writes
it in the order of its keys. A file with its final name is finished.
"""

import json
import math
import multiprocessing
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, as_completed
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from qwenjax.common.hashing import HASH_RANGE, json_digest, keyed_hash
from qwenjax.common.processes import cores, worker_pool
from qwenjax.common.progress import meter, printer
from qwenjax.common.storage import exclusive, replace_durably, write_json
from qwenjax.config import Source
from qwenjax.data.shards.format import PAGE, SPLITS, VERSION, Shards, token_dtype, tokenizer_entry, write_shard
from qwenjax.sources.documents import NOT_READ, Report, Slice, as_source, cut, modified, no_documents, read, slices

SHARD_BYTES = 128 << 20  # text per output file; what pass 2 holds in memory, per worker
UNITS = 64  # parts of the input, as far as UNIT_BYTES allows; a killed run loses at most one per worker
UNIT_BYTES = (1 << 20, 256 << 20)
SEGMENT = 16 << 20  # tokens a worker holds before it writes them out: bounds memory for one endless .jsonl.gz
BYTES_PER_WORKER = 4 << 20  # a process takes about a second to start: less text than this does not pay for one

Units = list[list[tuple[int, Slice]]]  # parts of the input: each some slices with the numbers of their sources


@dataclass(frozen=True)
class ShardJob:
    """What all workers know. Groups are output files, numbered: those of train first, then those of validation."""

    out: Path
    seed: int
    validation: float  # share of documents held out
    page: int
    files: tuple[int, int]  # output files of train and of validation

    @property
    def work_folder(self) -> Path:
        """Holds what is finished until all of it is."""
        return self.out / "unfinished"

    def group(self, text: str, order: int) -> int:
        """The group of a document. Its text decides whether it is held out, so that duplicates share a split."""
        held_out = keyed_hash("validation", self.seed, text) < self.validation * HASH_RANGE
        # the high bits choose the file and files are sorted by key: the order does not depend on the number of files
        file = order * self.files[held_out] // HASH_RANGE
        return self.files[0] + file if held_out else file

    def stem(self, group: int) -> str:
        """The file name of a group: its split, and which file of the split it is."""
        s = int(group >= self.files[0])
        return f"{SPLITS[s]}-{group - s * self.files[0]:05d}-of-{self.files[s]:05d}"

    def unit(self, u: int) -> Path:
        """The finished output of unit u."""
        return self.work_folder / f"unit-{u:06d}.array_record"

    def entry(self, group: int) -> Path:
        """The index entry of a finished group."""
        return self.work_folder / f"{self.stem(group)}.json"


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
      sources: what `sources.documents` reads; a `config.Source` also says how.
      tokenizer: picklable.
      validation: share of the documents held out, in [0, 1).
      strict: fail when any document had to be skipped.
    Raises:
      ValueError: no document at all, no training document, `out` holds shards of something else, or strict.
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
            pieces = {piece.file: piece for unit in units for _, piece in unit}
            # unfinished work is of no use once a file has changed
            _begin_or_resume(job, json_digest([plan, [*map(modified, pieces.values())]]), printer(progress))
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
        what = "shards of other text, or made with another tokenizer, seed or setting"
        raise ValueError(f"{out} already holds {what}; choose another directory, or delete it")
    return shards


def plan_units(sources: Sequence[str | Path | Source], report: Report) -> tuple[Units, int]:
    """The units of work, the same whenever the input files are, and about how many bytes of text they hold."""
    files = [(number, file) for number, source in enumerate(sources) for file in slices(source, report)]
    total = sum(file.size for _, file in files)
    target = min(max(total // UNITS, UNIT_BYTES[0]), UNIT_BYTES[1])
    units: Units = []
    size = target
    for number, file in files:
        for piece in cut(file, target):
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
            todo = {
                submit(ShardWorker.tokenise, u, unit): sum(piece.size for _, piece in unit)
                for u, unit in enumerate(units)
                if not job.unit(u).is_file()
            }
            _wait("tokenising", todo, "B", progress)
            skipped = Report()
            for u in range(len(units)):
                skipped.merge(open_unit(job.unit(u))[1]["skipped"])
            if strict:
                _fail_on(skipped)
            groups = [group for group in range(sum(job.files)) if not job.entry(group).is_file()]
            todo = {submit(ShardWorker.shard, group, len(units)): 1 for group in groups}
            _wait("writing shards", todo, "it", progress)
        finally:
            stop.set()  # units in work end at their next document
    return skipped


def _wait(title: str, sizes: dict[Future, int], unit: str, progress: bool) -> None:
    """Returns when all futures are done; `sizes` are their parts of the progress bar."""
    with meter(title, sum(sizes.values()), unit, hidden=not progress) as step:
        for future in as_completed(sizes):
            future.result()
            step(sizes[future])


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
        count = splits["validation"]["documents"]
        raise ValueError(f"all {count} documents were held out; lower validation={job.validation}")
    return splits


class ShardWorker:
    """What one process does. It gives up at the next document when `stop` is set."""

    def __init__(self, job: ShardJob, tokenizer, stop: Event):
        self.job, self.tokenizer, self.stop = job, tokenizer, stop
        self.dtype = token_dtype(tokenizer.size)

    def tokenise(self, u: int, pieces: list[tuple[int, Slice]]) -> None:
        """Pass 1: writes unit u from (source number, slice) pairs."""
        from array_record.python.array_record_module import ArrayRecordWriter

        report, groups, size = Report(), [], 0
        by_group = defaultdict(list)  # documents not yet written
        eot = np.uint32(self.tokenizer.eot)
        temporary = self.job.unit(u).with_suffix(".tmp")
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")  # read once, then deleted

        def flush() -> None:
            for group in sorted(by_group):
                rows, tokens = zip(*by_group[group])
                head = json.dumps(rows).encode()
                writer.write(len(head).to_bytes(8, "little") + head + np.concatenate(tokens).tobytes())
                groups.append(group)
            by_group.clear()

        for source, piece in pieces:
            for document in read(piece, report):
                tokens = np.append(self.tokenizer.encode_array(document.text), eot).astype(self.dtype, copy=False)
                order = keyed_hash("order", self.job.seed, f"{source}/{document.origin}")
                text_bytes = len(document.text.encode("utf-8"))
                group = self.job.group(document.text, order)
                by_group[group].append(((order, len(tokens), text_bytes, document.origin), tokens))
                if self.stop.is_set():
                    raise CancelledError  # nobody waits for this result
                size += len(tokens)
                if size >= SEGMENT:
                    flush()
                    size = 0
        flush()
        writer.write(json.dumps({"groups": groups, "skipped": report}).encode())
        writer.close()
        replace_durably(temporary, self.job.unit(u))

    def shard(self, group: int, units: int) -> None:
        """Pass 2: writes the files of a group and its index entry (null when the group is empty)."""
        documents = []
        for u in range(units):
            reader, summary = open_unit(self.job.unit(u))
            for i, owner in enumerate(summary["groups"]):
                if owner == group:
                    documents += _unpack(reader.read([i])[0], self.dtype)
        documents.sort(key=lambda d: d[0])
        stem, rows = self.job.stem(group), (document[1:] for document in documents)
        entry = write_shard(self.job.out, stem, rows, self.dtype, self.job.page) if documents else None
        write_json(self.job.entry(group), {"split": stem.partition("-")[0], "entry": entry})


def open_unit(path: Path) -> tuple:
    """A finished unit's reader and its summary {"groups": group of each record, "skipped": report}."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
    if not reader.num_records():  # how ArrayRecord reads a truncated file
        raise ValueError(f"{path} is damaged: delete {path.parent} and tokenise again")
    return reader, json.loads(reader.read([reader.num_records() - 1])[0])


def _unpack(record: bytes, dtype: np.dtype) -> list[tuple[int, np.ndarray, int, str]]:
    """(order key, tokens, bytes of text, origin) of the documents in one record; tokens are views."""
    end = 8 + int.from_bytes(record[:8], "little")
    tokens, at, documents = np.frombuffer(record, dtype, offset=end), 0, []
    for order, n, text_bytes, origin in json.loads(record[8:end]):
        documents.append((order, tokens[at : at + n], text_bytes, origin))
        at += n
    return documents
