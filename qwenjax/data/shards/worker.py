"""What a tokenising process does in the two passes of `write`. It imports little and no jax, to start fast.

Pass 1 turns a unit (some slices of the input) into a temporary ArrayRecord file. One of its records holds the
documents of a stretch of the unit that belong to one group, which is an output file. Pass 2 collects a group from all
units and writes it in the order of its keys. Both write under a temporary name and rename: a file with its final name
is finished.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from qwenjax.common.hashing import HASH_RANGE, keyed_hash
from qwenjax.common.storage import replace_durably, write_json
from qwenjax.data.shards.format import SPLITS, token_dtype, write_shard
from qwenjax.sources.documents import Report, Slice, read

SEGMENT = 16 << 20  # tokens a worker holds before it writes them out: bounds memory for one endless .jsonl.gz


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

    def stem(self, group: int) -> tuple[str, str]:
        """Split and file name of a group."""
        s = int(group >= self.files[0])
        return SPLITS[s], f"{SPLITS[s]}-{group - s * self.files[0]:05d}-of-{self.files[s]:05d}"

    def unit(self, u: int) -> Path:
        """The finished output of unit u."""
        return self.work_folder / f"unit-{u:06d}.array_record"

    def entry(self, group: int) -> Path:
        """The index entry of a finished group."""
        return self.work_folder / f"{self.stem(group)[1]}.json"


class Stopped(Exception):
    """The caller gave up; nobody waits for this result."""


class ShardWorker:
    """What one process does. It gives up at the next document when `stop` is set."""

    def __init__(self, job: ShardJob, tokenizer, stop: Event):
        self.job, self.tokenizer, self.stop = job, tokenizer, stop
        self.dtype = token_dtype(tokenizer.size)

    def tokenise(self, u: int, pieces: list[tuple[int, Slice]]) -> int:
        """Pass 1: writes unit u from (source number, slice) pairs; returns u."""
        from array_record.python.array_record_module import ArrayRecordWriter

        report, groups, held, size = Report(), [], defaultdict(list), 0
        eot = np.uint32(self.tokenizer.eot)
        temporary = self.job.unit(u).with_suffix(".tmp")
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")  # read once, then deleted

        def flush() -> None:
            for group in sorted(held):
                rows, tokens = zip(*held[group])
                head = json.dumps(rows).encode()
                writer.write(len(head).to_bytes(8, "little") + head + np.concatenate(tokens).tobytes())
                groups.append(group)
            held.clear()

        for source, piece in pieces:
            for document in read(piece, report):
                tokens = np.append(self.tokenizer.encode_array(document.text), eot).astype(self.dtype, copy=False)
                order = keyed_hash("order", self.job.seed, f"{source}/{document.origin}")
                text_bytes = len(document.text.encode("utf-8"))
                row = (order, len(tokens), text_bytes, document.origin)
                held[self.job.group(document.text, order)].append((row, tokens))
                if self.stop.is_set():
                    raise Stopped
                size += len(tokens)
                if size >= SEGMENT:
                    flush()
                    size = 0
        flush()
        writer.write(json.dumps({"groups": groups, "skipped": report}).encode())
        writer.close()
        replace_durably(temporary, self.job.unit(u))
        return u

    def shard(self, group: int, units: int) -> int:
        """Pass 2: writes the files of a group and its index entry (null when the group is empty); returns the group."""
        documents = []
        for u in range(units):
            reader, summary = open_unit(self.job.unit(u))
            for i, owner in enumerate(summary["groups"]):
                if owner == group:
                    documents += _unpack(reader.read([i])[0], self.dtype)
        documents.sort(key=lambda d: d[0])
        split, stem = self.job.stem(group)
        rows = ((tokens, text_bytes, origin) for _, tokens, text_bytes, origin in documents)
        entry = write_shard(self.job.out, stem, rows, self.dtype, self.job.page) if documents else None
        write_json(self.job.entry(group), {"split": split, "entry": entry})
        return group


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
