"""Chat files as token ids on disk: encoded once, in processes, then memory-mapped and checked when opened.

    ROOT/<stem of file>-<hash>/
        index.json     what was encoded and how, counts, and size and CRC of each file
        ids.bin        token ids, sequence after sequence, little endian, uint16 or uint32
        mask.bin       uint8 per token: predicting it carries loss
        table.bin      per sequence: tokens, trained targets, hashes of its text, its row, its rating (`encode.TABLE`)
        places.txt     per sequence: its origin, 'NAME:LINE' of the file
        texts.jsonl    of prompts only: the turns asked and the answer, for rewards and reports

A conversation or a prompt is one sequence, a preference one for each response. The hash is of the file's content, the
tokenizer and the encoding. A folder appears when it is complete.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from qwenjax.common.hashing import HASH_RANGE, json_digest, size_and_crc32
from qwenjax.common.processes import cores, worker_pool
from qwenjax.common.progress import meter, printer
from qwenjax.common.storage import exclusive, read_json, write_json
from qwenjax.data.conversations import files
from qwenjax.data.conversations.encode import TABLE, EncodedPart, Encoding, encode_part
from qwenjax.data.shards.format import token_dtype, tokenizer_entry
from qwenjax.data.shards.write import BYTES_PER_WORKER
from qwenjax.sources.slices import Report

VERSION = 2
FILES = ("ids.bin", "mask.bin", "table.bin", "places.txt", "texts.jsonl")  # the last of prompts only
MIN_PROMPTS = 50  # different prompts, below which prompts are not held out: see `ChatDataset.held_out`
CHUNK = 256  # rows that a process encodes at a time


class ChatDataset:
    """The encoded rows of one chat file, in its order; ValueError if the folder is not what was written."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        path = self.directory / "index.json"
        again = f"delete {self.directory} and run again"
        try:
            self.index = read_json(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.directory} holds no encoded chat file: {error}; {again}") from None
        if self.index.get("version") != VERSION:
            raise ValueError(f"{path} has version {self.index.get('version')}, this program reads {VERSION}; {again}")
        for name, written in self.index["files"].items():
            if not (self.directory / name).is_file() or size_and_crc32(self.directory / name) != written:
                raise ValueError(f"{self.directory / name} is not what was written: truncated or altered; {again}")
        self.encoding = Encoding(**self.index["encoding"])
        self.tokenizer = self.index["tokenizer"]
        self.table = np.fromfile(self.directory / "table.bin", TABLE)
        self._starts = _starts(self.table["tokens"])
        self._first = np.append(np.flatnonzero(np.diff(self.table["group"], prepend=-1)), len(self.table))
        self._ids = np.memmap(self.directory / "ids.bin", token_dtype(self.tokenizer["size"]), "r")
        self._mask = np.memmap(self.directory / "mask.bin", np.uint8, "r")
        if self.kind == "prompt":
            self._text_starts = _starts(self.table["text"])
            self._texts = np.memmap(self.directory / "texts.jsonl", np.uint8, "r")

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"ChatDataset({str(self.directory)!r})"

    @property
    def kind(self) -> str:
        """What the rows are used as: one of `schema.KINDS`."""
        return self.encoding.kind

    @property
    def num_rows(self) -> int:
        """Rows of the file that were kept."""
        return len(self._first) - 1

    @property
    def sequences_per_row(self) -> np.ndarray:
        """How many sequences each row has, int64 [rows]."""
        return np.diff(self._first)

    def sequences_of_row(self, row: int) -> np.ndarray:
        """Numbers of a row's sequences, int64 [k]; of preferences best first."""
        return np.arange(self._first[row], self._first[row + 1])

    def per_row(self, column: str) -> np.ndarray:
        """A column of the table by row, [rows]: the sum of `tokens`, the first sequence's value of any other."""
        values = self.table[column]
        return np.add.reduceat(values, self._first[:-1]) if column == "tokens" else values[self._first[:-1]]

    @cached_property
    def num_prompts(self) -> int:
        """How many different prompts there are."""
        return len(np.unique(self.table["prompt"]))

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids, int32 [n], and mask, float32 [n], of sequence i."""
        a, b = self._starts[i], self._starts[i + 1]
        return self._ids[a:b].astype(np.int32), self._mask[a:b].astype(np.float32)

    def origin(self, i: int) -> str:
        """Where sequence i came from, 'NAME:LINE', for messages: it reads the list up to there."""
        with open(self.directory / "places.txt", encoding="utf-8") as file:
            return next(islice(file, i, None)).rstrip("\n")

    def text(self, i: int) -> dict:
        """{"prompt": the turns that are in the ids, "answer": text or None} of prompt i."""
        if self.kind != "prompt":
            raise ValueError(f"{self.directory} holds {self.kind}s; the text is kept for prompts only")
        return json.loads(bytes(self._texts[self._text_starts[i] : self._text_starts[i + 1]]))

    def held_out(self, share: float) -> np.ndarray:
        """Which rows are held out, bool [rows].

        A hash of the text decides, so that equal rows stay together, and preferences and prompts hold out the same
        prompts. With fewer than `MIN_PROMPTS` different ones that would hold out none, or a whole task: preferences are
        then hashed with their responses, and no prompt is held out.
        """
        if not 0 <= share < 1:
            raise ValueError(f"validation={share} is the share of rows held out; wanted 0 <= share < 1")
        if self.kind == "prompt" and self.too_few_prompts:
            return np.zeros(self.num_rows, bool)
        return self.split_key < np.uint64(int(share * HASH_RANGE))

    @property
    def too_few_prompts(self) -> bool:
        """Whether there are too few prompts to hold some out."""
        return self.num_prompts < MIN_PROMPTS

    @property
    def split_key(self) -> np.ndarray:
        """The hash that decides on each row, uint64 [rows]: the lowest are held out first."""
        return self.per_row("key" if self.kind == "conversation" or self.too_few_prompts else "prompt")

    def lines(self) -> list[str]:
        """What there is, what was left out and what was shortened, for people."""
        tokens, trained = int(self.table["tokens"].sum()), self.table["trained"].sum()
        share = f"{trained / tokens:.0%} of them trained (loss mask {self.encoding.loss_mask})"
        first = {
            "conversation": f"{len(self):,} conversations of {tokens:,} tokens, {share}",
            "preference": f"{self.num_rows:,} lists of {len(self):,} responses to {self.num_prompts:,} different "
            f"prompts; with them {tokens:,} tokens",
            "prompt": f"{len(self):,} prompts, {self.num_prompts:,} different, of {tokens:,} tokens",
        }
        return [
            f"{self.index['source']}: {first[self.kind]}",
            *Report(self.index["left_out"]).lines("left out"),
            *Report(self.index["shortened"]).lines("shortened"),
        ]


def _starts(sizes: np.ndarray) -> np.ndarray:
    """Where each of consecutive pieces begins, then where the last ends, int64 [pieces + 1]."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def encode_file(
    path: str | Path,
    tokenizer,
    encoding: Encoding,
    root: str | Path = "data",
    *,
    workers: int | None = None,
    progress: bool = True,
) -> ChatDataset:
    """The encoded rows of a file of our schema (`conversations.schema`), made now if they are not below `root`.

    Of several processes on a machine that call it, one works and the others wait for its result.

    Raises:
      ValueError: no such file, no row in it that can be trained on, or a vocabulary without ChatML.
    """
    tokenizer.check_chat()
    path, root = Path(path), Path(root)
    size = files.unpacked_size(path)
    if not path.is_file():
        raise ValueError(f"no file {path}; wanted {encoding.kind}s as `python -m qwenjax.data convert` writes them")
    how = dataclasses.asdict(encoding)
    with open(path, "rb") as file:
        content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    key = json_digest([VERSION, content, tokenizer.chat_fingerprint, how], size=8)
    stem = re.sub(r"[^\w.-]+", "-", path.name.split(".")[0]) or "dialogues"
    directory = root / f"{stem}-{key}"
    root.mkdir(parents=True, exist_ok=True)
    with exclusive(root, printer(progress)):
        if not (directory / "index.json").is_file():
            working = directory.with_name(directory.name + ".tmp")
            for old in (working, directory):
                shutil.rmtree(old, ignore_errors=True)
            working.mkdir()
            workers = workers or max(1, min(cores(), int(size) // BYTES_PER_WORKER))
            with meter(f"encoding {path.name}", size, "B", hidden=not progress) as step:
                report = Report()
                objects = files.read_objects(path, report, progress=step)
                with closing(_encode_chunks(objects, tokenizer, encoding, workers)) as parts:
                    index = _write(working, parts, report, path, encoding.kind)
            index |= {"version": VERSION, "source": path.name, "content": content, "encoding": how}
            index["tokenizer"] = tokenizer_entry(tokenizer)
            write_json(working / "index.json", index)
            os.replace(working, directory)
    return ChatDataset(directory)


def _write(directory: Path, parts: Iterable[EncodedPart], left_out: Report, path: Path, kind: str) -> dict:
    """Writes the files of a folder; returns what the index says of them."""
    shortened, number, rows = Report(), 0, 0
    names = FILES if kind == "prompt" else FILES[:-1]
    with ExitStack() as stack:
        open_files = [stack.enter_context(open(directory / name, "wb")) for name in names]
        for part in parts:
            left_out.merge(part.left_out)
            shortened.merge(part.shortened)
            part.table["group"] += rows
            if len(part.table):
                number, rows = number + len(part.table), int(part.table["group"][-1]) + 1
            origins = "".join(origin + "\n" for origin in part.origins).encode()
            for file, data in zip(open_files, (part.ids, part.mask, part.table, origins, b"".join(part.texts))):
                file.write(data)
        for file in open_files:
            file.flush()
            os.fsync(file.fileno())
    if not number:
        raise ValueError(f"no {kind} to train on in {path}: {'; '.join(left_out.lines('left out')) or 'it is empty'}")
    sizes = {name: size_and_crc32(directory / name) for name in names}
    return {"dialogues": number, "files": sizes, "left_out": left_out, "shortened": shortened}


def _encode_chunks(objects: Iterator[tuple], tokenizer, encoding: Encoding, workers: int) -> Iterator[EncodedPart]:
    """The objects encoded chunk by chunk, in their order, in `workers` processes."""
    waiting: deque = deque()
    with worker_pool(workers, tuple, (tokenizer, encoding)) as submit:
        while chunk := list(islice(objects, CHUNK)):
            waiting.append(submit(_encode_chunk, chunk))
            if len(waiting) > 2 * workers:  # enough to keep all busy; memory stays bounded
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _encode_chunk(settings: tuple, chunk: list[tuple[str, object]]) -> EncodedPart:
    return encode_part(chunk, *settings)
