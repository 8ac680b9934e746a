"""Encoded dialogues of one file on disk: made once, memory-mapped, checked when opened.

    ROOT/<stem of file>-<hash>/
        index.json     what they are of, counts, and size and CRC of each file
        ids.bin        token ids, dialogue after dialogue, little endian, uint16 or uint32
        mask.bin       uint8 per token: predicting it carries loss
        table.bin      per dialogue: tokens, trained targets, hash of its text (`encode.TABLE`)
        places.txt     per dialogue: where it stands in the file, 'NAME:LINE'

The hash is of the file's content, the tokenizer and the encoding, so another of these is another folder. A folder
appears whole or not at all. Plain arrays, not shards: dialogues are read one at a time and in any order, and their
masks go with them.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

import numpy as np

from qwenjax.cli import meter
from qwenjax.data.chat import files
from qwenjax.data.dialogues.encode import TABLE, Encoding, Part, encode_part
from qwenjax.data.rows import Report
from qwenjax.data.shards import token_dtype, write_json
from qwenjax.data.tokenize import PER_WORKER, exclusive, teller
from qwenjax.data.worker import WHOLE
from qwenjax.text import chatml

VERSION = 1
FILES = ("ids.bin", "mask.bin", "table.bin", "places.txt")
CHUNK = 256  # lines that a process encodes at a time


class Dialogues:
    """The dialogues of one prepared folder, in the order of their file.

    Raises:
      ValueError: the folder is unfinished, of another version, or not what was written.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        path = self.directory / "index.json"
        again = f"delete {self.directory} and run again"
        if not path.is_file():
            raise ValueError(f"{self.directory} holds no encoded dialogues: it has no index.json; {again}")
        try:
            self.index = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error}); {again}") from None
        if self.index.get("version") != VERSION:
            raise ValueError(f"{path} has version {self.index.get('version')}, this program reads {VERSION}; {again}")
        for name, entry in self.index["files"].items():
            if not (self.directory / name).is_file() or _entry(self.directory / name) != entry:
                raise ValueError(f"{self.directory / name} is not what was written: truncated or altered; {again}")
        self.encoding = Encoding(**self.index["encoding"])
        self.tokenizer = self.index["tokenizer"]
        self.table = np.fromfile(self.directory / "table.bin", TABLE)
        self._starts = np.concatenate([[0], np.cumsum(self.table["tokens"], dtype=np.int64)])
        self._ids = np.memmap(self.directory / "ids.bin", token_dtype(self.tokenizer["size"]), "r")
        self._mask = np.memmap(self.directory / "mask.bin", np.uint8, "r")

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"Dialogues({str(self.directory)!r})"

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids, int32 [n], and mask, float32 [n], of dialogue i."""
        a, b = self._starts[i], self._starts[i + 1]
        return self._ids[a:b].astype(np.int32), self._mask[a:b].astype(np.float32)

    def place(self, i: int) -> str:
        """Where dialogue i stands in its file: 'NAME:LINE'. Reads up to it: for messages."""
        with open(self.directory / "places.txt", encoding="utf-8") as file:
            return next(islice(file, i, None)).rstrip("\n")

    def held_out(self, share: float) -> np.ndarray:
        """Which dialogues are held out, bool [n]: by a hash of their text alone, so that equal ones stay together and
        runs of every seed, vocabulary and length are judged by the same ones.
        """
        if not 0 <= share < 1:
            raise ValueError(f"validation={share} is the share of dialogues held out; wanted 0 <= share < 1")
        return self.table["key"] < np.uint64(int(share * WHOLE))

    def check_tokenizer(self, tokenizer) -> None:
        """Raises ValueError when these dialogues were encoded with another vocabulary."""
        mine = self.tokenizer
        if tokenizer.fingerprint != mine["fingerprint"]:
            raise ValueError(
                f"{self.directory} was encoded with {mine['name']!r} (fingerprint {mine['fingerprint'][:12]}), but the "
                f"tokenizer given is {tokenizer.name!r} ({tokenizer.fingerprint[:12]}); prepare the file with that one"
            )

    def lines(self) -> list[str]:
        """What there is and what became of the rest, for people."""
        tokens, trained = (int(self.table[name].sum()) for name in ("tokens", "trained"))
        first = (
            f"{self.index['source']}: {len(self):,} dialogues of {tokens:,} tokens, {trained / tokens:.0%} of them "
            f"trained (policy {self.encoding.policy})"
        )
        return [first, *_lines("left out", self.index["left_out"]), *_lines("shortened", self.index["shortened"])]


def prepare(
    path: str | Path,
    tokenizer,
    encoding: Encoding,
    root: str | Path = "data",
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Dialogues:
    """The encoded conversations of a file of our schema (`data.chat.schema`), made now if they are not under `root`.

    Processes of one machine may call this at the same time: one works, the others wait and then find it done. The
    result does not depend on the number of workers; a killed run leaves nothing that is taken for finished.

    Args:
      path: .jsonl (plain or packed), .json or .parquet.
      tokenizer: with ChatML's control tokens; picklable.
    Raises:
      ValueError: no such file, no dialogue in it that can be trained on, or a vocabulary without ChatML.
      ChildProcessError: an encoding process died.
    """
    chatml.check(tokenizer)
    path, root = Path(path), Path(root)
    size = files.size(path)
    if not path.is_file():
        raise ValueError(f"no file {path}; wanted conversations as `python -m qwenjax.data convert` writes them")
    how = dataclasses.asdict(encoding)
    with open(path, "rb") as file:
        content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    what = json.dumps([VERSION, content, tokenizer.fingerprint, how]).encode()
    stem = re.sub(r"[^\w.-]+", "-", path.name.split(".")[0]) or "dialogues"
    directory = root / f"{stem}-{hashlib.blake2b(what, digest_size=8).hexdigest()}"
    root.mkdir(parents=True, exist_ok=True)
    with exclusive(root, teller(progress)):
        if not (directory / "index.json").is_file():
            working = directory.with_name(directory.name + ".tmp")
            for old in (working, directory):
                shutil.rmtree(old, ignore_errors=True)
            working.mkdir()
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            workers = workers or max(1, min(cores, int(size) // PER_WORKER))
            with meter(f"encoding {path.name}", size, "B", hidden=not progress) as step:
                report = Report()
                chunks = _chunks(files.objects(path, report, seen=step))
                with closing(_parts(chunks, tokenizer, encoding, workers)) as parts:
                    index = _write(working, parts, report, path)
            index |= {"version": VERSION, "source": path.name, "content": content, "encoding": how}
            index["tokenizer"] = {name: getattr(tokenizer, name) for name in ("name", "fingerprint", "size", "eot")}
            write_json(working / "index.json", index)
            os.replace(working, directory)
    return Dialogues(directory)


def _write(directory: Path, parts: Iterable[Part], left_out: Report, path: Path) -> dict:
    """Writes the files of a folder; what the index says of them."""
    shortened, number = Report(), 0
    with ExitStack() as stack:
        open_files = [stack.enter_context(open(directory / name, "wb")) for name in FILES]
        for part in parts:
            left_out.merge(part.left_out)
            shortened.merge(part.shortened)
            number += len(part.table)
            lines = "".join(place + "\n" for place in part.places).encode()
            for file, data in zip(open_files, (part.ids, part.mask, part.table, lines)):
                file.write(data)
        for file in open_files:
            file.flush()
            os.fsync(file.fileno())
    if not number:
        reasons = "; ".join(_lines("left out", left_out)) or "it is empty"
        raise ValueError(f"no dialogue to train on in {path}: {reasons}")
    sizes = {name: _entry(directory / name) for name in FILES}
    return {"dialogues": number, "files": sizes, "left_out": left_out, "shortened": shortened}


def _entry(path: Path) -> dict:
    """Size and CRC of a file."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return {"size": path.stat().st_size, "crc32": crc}


def _lines(what: str, report: dict) -> list[str]:
    return [line.replace("skipped", what, 1) for line in Report(report).lines()]


# ---- processes ----


def _chunks(objects: Iterator[tuple[str, object]]) -> Iterator[list[tuple[str, object]]]:
    while chunk := list(islice(objects, CHUNK)):
        yield chunk


def _parts(chunks: Iterable[list], tokenizer, encoding: Encoding, workers: int) -> Iterator[Part]:
    """The chunks encoded, in their order, in `workers` processes."""
    if workers == 1:
        for chunk in chunks:
            yield encode_part(chunk, tokenizer, encoding)
        return
    # spawn: a fork of a process whose jax threads hold locks would hang
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start, (tokenizer, encoding))
    waiting: deque = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_encode, chunk))
            if len(waiting) > 2 * workers:  # enough to keep all busy; memory stays bounded
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise ChildProcessError(
            "an encoding process died: out of memory, or the calling script lacks an `if __name__ == '__main__':` "
            "guard. Run again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_settings: tuple = ()  # tokenizer and encoding of a pool process: sent once, not with every chunk


def _start(tokenizer, encoding: Encoding) -> None:
    """Sets a pool process up. It ends with its parent, whatever killed that, and leaves Ctrl-C to it."""
    global _settings
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    _settings = (tokenizer, encoding)


def _encode(chunk: list[tuple[str, object]]) -> Part:
    return encode_part(chunk, *_settings)
