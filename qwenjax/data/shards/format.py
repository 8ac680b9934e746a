"""A folder of token shards: random access to tokens and to the documents they came from.

    index.json                                     written last: a directory without it is unfinished
    tokenizer/                                     the tokenizer itself
    train-00000-of-00002.array_record              record p = tokens [p*page, (p+1)*page) of the file, little endian
    train-00000-of-00002.documents.array_record    record d = {"start", "tokens", "bytes", "origin"}, by start
    validation-…                                   held-out documents

Every document ends in <|endoftext|> and lies in one file. The index holds sizes and CRCs, because ArrayRecord notices a
flipped bit, but reads a truncated file as an empty one.
"""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qwenjax.common import storage
from qwenjax.common.hashing import crc32, size_and_crc32
from qwenjax.tokenizer.base import check_same

VERSION = 1
SPLITS = ("train", "validation")
PAGE = 8192  # tokens per record: a random read unpacks one; each takes 28 bytes of memory in the reader's index
OPEN_FILES = 256  # most readers kept open at a time
TABLE_GROUP = 128  # documents compressed together


class Span(NamedTuple):
    """Where a document is in the tokens of a split, its end-of-text token included."""

    start: int
    stop: int
    bytes: int  # of UTF-8 text
    origin: str


def tokenizer_entry(tokenizer) -> dict:
    """What the index of encoded data says of the tokenizer."""
    return {name: getattr(tokenizer, name) for name in ("name", "fingerprint", "size", "eot")}


def token_dtype(size: int) -> np.dtype:
    """The narrowest little-endian type that holds ids below `size`."""
    return np.dtype("<u2" if size <= 1 << 16 else "<u4")


def write_shard(
    directory: Path, stem: str, documents: Iterable[tuple[np.ndarray, int, str]], dtype: np.dtype, page: int
) -> dict:
    """Writes one file pair from (tokens with end-of-text, bytes of text, origin); returns its entry in the index."""
    from array_record.python.array_record_module import ArrayRecordWriter

    names = {"tokens": f"{stem}.array_record", "documents": f"{stem}.documents.array_record"}
    temporary = {what: directory / (name + ".tmp") for what, name in names.items()}
    grouping = {"tokens": "group_size:1,zstd:1", "documents": f"group_size:{TABLE_GROUP},zstd:3"}
    writers = {what: ArrayRecordWriter(str(path), grouping[what]) for what, path in temporary.items()}
    count = {"tokens": 0, "documents": 0, "bytes": 0}

    def arrays() -> Iterator[np.ndarray]:
        for tokens, text_bytes, origin in documents:
            row = {"start": count["tokens"], "tokens": len(tokens), "bytes": text_bytes, "origin": origin}
            writers["documents"].write(json.dumps(row, ensure_ascii=False).encode("utf-8"))
            count["tokens"] += len(tokens)
            count["documents"] += 1
            count["bytes"] += text_bytes
            yield tokens

    for record in _pages(arrays(), page):
        writers["tokens"].write(record.astype(dtype).tobytes())
    files = {}
    for what, writer in writers.items():
        writer.close()
        files[what] = {"name": names[what], **size_and_crc32(temporary[what])}
        storage.replace_durably(temporary[what], directory / names[what])
    return count | {"files": files}


def _pages(arrays: Iterable[np.ndarray], page: int) -> Iterator[np.ndarray]:
    """The concatenation of `arrays` in pieces of `page`; the last may be shorter."""
    buffered: list[np.ndarray] = []
    size = 0
    for array in arrays:
        buffered.append(array)
        size += len(array)
        if size >= page:
            joined = np.concatenate(buffered)
            full = size - size % page
            yield from joined[:full].reshape(-1, page)
            buffered, size = [joined[full:]], size - full
    if size:
        yield np.concatenate(buffered)


def files(index: dict) -> list[dict]:
    """Every file that an index lists: {"name", "size", "crc32"}."""
    entries = [entry for split in SPLITS for entry in index["splits"][split]["files"]]
    return [file for entry in entries for file in entry["files"].values()]


class Shards:
    """A finished folder of shards, opened for reading by any number of threads.

    Raises:
      ValueError: no index, an index of another version, or a file that is missing or not as long as it was.
    """

    def __init__(self, directory: str | Path):
        if storage.remote(directory):
            advice = f"mount the bucket, or copy them: `gcloud storage cp --recursive {directory} .`"
            raise ValueError(f"{directory} is in a bucket, and shards are read at random: {advice}")
        self.directory = Path(directory)
        path = self.directory / "index.json"
        if not path.is_file():
            what = "is unfinished" if self.directory.is_dir() else "does not exist"
            command = f"`python -m qwenjax.data tokenize TEXT… --out={self.directory}`"
            raise ValueError(f"{self.directory} {what}: it has no index.json. {command} makes it, or resumes")
        self.index = storage.read_json(path)
        version = self.index.get("version")
        if version != VERSION:
            raise ValueError(f"{path} has version {version}, this program reads {VERSION}; tokenise again")
        self.page = self.index["page"]
        self.dtype = np.dtype(self.index["dtype"])
        self.tokenizer = self.index["tokenizer"]
        self._files = {split: self.index["splits"][split]["files"] for split in SPLITS}
        self._starts = {s: [0, *accumulate(f["tokens"] for f in files)] for s, files in self._files.items()}
        for file in files(self.index):
            path, wanted = self.directory / file["name"], file["size"]
            size = path.stat().st_size if path.is_file() else 0
            if size != wanted:
                wrong = f"it has {size:,} bytes, wanted {wanted:,}"
                raise ValueError(f"{path} is missing or truncated: {wrong}; copy it again")
        self._reader = lru_cache(OPEN_FILES)(_open)  # an evicted reader closes once its last user lets go

    def tokens(self, split: str) -> int:
        """Tokens of a split, end-of-text tokens included."""
        return self.index["splits"][split]["tokens"]

    def text_bytes(self, split: str) -> int:
        """Bytes of UTF-8 text of a split."""
        return self.index["splits"][split]["bytes"]

    def check_tokenizer(self, tokenizer) -> None:
        """Raises ValueError when these shards were written with another vocabulary."""
        advice = f"use the one in {self.directory / 'tokenizer'}, or tokenise again"
        name, fingerprint = self.tokenizer["name"], self.tokenizer["fingerprint"]
        check_same(tokenizer, fingerprint, str(self.directory), advice, other=f"tokenizer {name!r}")

    def read(self, split: str, start: int, n: int) -> np.ndarray:
        """Tokens [start, start + n) of a split, int32 [n]."""
        if not 0 <= start <= start + n <= self.tokens(split):
            size = self.tokens(split)
            raise ValueError(f"tokens {start} to {start + n - 1} of {split} of {self.directory}, which has {size}")
        starts, parts, at, stop = self._starts[split], [], start, start + n
        while at < stop:
            f = bisect_right(starts, at) - 1
            end = min(stop, starts[f + 1])
            parts.append(self._read_file(self._files[split][f], at - starts[f], end - starts[f]))
            at = end
        return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)

    def _read_file(self, entry: dict, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of one file."""
        first, last = start // self.page, (stop - 1) // self.page
        joined = np.frombuffer(b"".join(self._records(entry, "tokens", range(first, last + 1))), self.dtype)
        wanted = min(entry["tokens"], (last + 1) * self.page) - first * self.page
        if len(joined) != wanted:
            name = entry["files"]["tokens"]["name"]
            raise ValueError(f"{self.directory / name} is not the file that was written: copy it again")
        return joined[start - first * self.page : stop - first * self.page]

    def _records(self, entry: dict, what: str, numbers: Sequence[int]) -> list[bytes]:
        """Pages of tokens, or rows of the table of documents."""
        path = self.directory / entry["files"][what]["name"]
        try:
            return self._reader(str(path)).read(list(numbers))
        except RuntimeError as error:
            record = "page" if what == "tokens" else "document"
            raise ValueError(f"{path}: {record} {numbers[0]} cannot be read ({error}); copy the file again") from None

    def documents(self, split: str, start: int, stop: int) -> list[Span]:
        """The documents that have tokens in [start, stop), by binary search in the tables on disk."""
        spans, starts = [], self._starts[split]
        for f, entry in enumerate(self._files[split]):
            low, high = max(start, starts[f]) - starts[f], min(stop, starts[f + 1]) - starts[f]
            if low >= high:
                continue
            first = bisect_right(range(entry["documents"]), low, key=lambda d: self._document(entry, d)["start"]) - 1
            for d in range(first, entry["documents"]):
                row = self._document(entry, d)
                if row["start"] >= high:
                    break
                at = starts[f] + row["start"]
                spans.append(Span(at, at + row["tokens"], row["bytes"], row["origin"]))
        return spans

    def all_documents(self, split: str) -> Iterator[tuple[Span, np.ndarray]]:
        """Every document of a split in stream order, with its tokens, int32 [n], end-of-text included."""
        for at, entry in zip(self._starts[split], self._files[split]):
            for d in range(0, entry["documents"], TABLE_GROUP):
                numbers = range(d, min(d + TABLE_GROUP, entry["documents"]))
                rows = [json.loads(record) for record in self._records(entry, "documents", numbers)]
                first, last = rows[0]["start"], rows[-1]["start"] + rows[-1]["tokens"]
                tokens = self._read_file(entry, first, last).astype(np.int32)
                for row in rows:
                    start, stop = row["start"], row["start"] + row["tokens"]
                    yield Span(at + start, at + stop, row["bytes"], row["origin"]), tokens[start - first : stop - first]

    def _document(self, entry: dict, d: int) -> dict:
        return json.loads(self._records(entry, "documents", [d])[0])

    def verify(self) -> None:
        """Reads all files and compares their CRCs; ValueError names the first that has changed."""
        for file in files(self.index):
            path = self.directory / file["name"]
            if crc32(path) != file["crc32"]:
                raise ValueError(f"{path} has changed since it was written; copy it again or tokenise again")


def _open(path: str):
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0")  # random access, no threads of its own
