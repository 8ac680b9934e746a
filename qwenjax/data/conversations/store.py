"""Encodes a file of chat data once, into a folder of `folder`'s form: in processes, whole or not at all."""

import dataclasses
import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

from qwenjax.chat_format import chatml
from qwenjax.common.processes import cores
from qwenjax.common.progress import meter, printer
from qwenjax.common.hashing import json_digest, size_and_crc32
from qwenjax.common.storage import exclusive, write_json
from qwenjax.data.conversations import files
from qwenjax.data.conversations.encode import EncodedPart, Encoding, encode_part
from qwenjax.data.conversations.folder import FILES, VERSION, ChatDataset, report_lines
from qwenjax.data.shards.write import PER_WORKER
from qwenjax.sources.slices import Report

CHUNK = 256  # lines that a process encodes at a time


def encode_file(
    path: str | Path,
    tokenizer,
    encoding: Encoding,
    root: str | Path = "data",
    *,
    workers: int | None = None,
    progress: bool = True,
) -> ChatDataset:
    """The encoded rows of a file of our schema (`data.chat.schema`), made now if they are not under `root`.

    Processes of one machine may call this at the same time: one works, the others wait and then find it done. The
    result does not depend on the number of workers; a killed run leaves nothing that is taken for finished.

    Args:
      path: .jsonl (plain or packed), .json or .parquet.
      tokenizer: with ChatML's control tokens; picklable.
    Raises:
      ValueError: no such file, no row in it that can be trained on, or a vocabulary without ChatML.
      ChildProcessError: an encoding process died.
    """
    chatml.check(tokenizer)
    path, root = Path(path), Path(root)
    size = files.unpacked_size(path)
    if not path.is_file():
        raise ValueError(f"no file {path}; wanted {encoding.kind}s as `python -m qwenjax.data convert` writes them")
    how = dataclasses.asdict(encoding)
    with open(path, "rb") as file:
        content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    key = json_digest([VERSION, content, tokenizer.fingerprint, how], size=8)
    stem = re.sub(r"[^\w.-]+", "-", path.name.split(".")[0]) or "dialogues"
    directory = root / f"{stem}-{key}"
    root.mkdir(parents=True, exist_ok=True)
    with exclusive(root, printer(progress)):
        if not (directory / "index.json").is_file():
            working = directory.with_name(directory.name + ".tmp")
            for old in (working, directory):
                shutil.rmtree(old, ignore_errors=True)
            working.mkdir()
            workers = workers or max(1, min(cores(), int(size) // PER_WORKER))
            with meter(f"encoding {path.name}", size, "B", hidden=not progress) as step:
                report = Report()
                chunks = _chunks(files.read_objects(path, report, progress=step))
                with closing(_parts(chunks, tokenizer, encoding, workers)) as parts:
                    index = _write(working, parts, report, path, encoding.kind)
            index |= {"version": VERSION, "source": path.name, "content": content, "encoding": how}
            index["tokenizer"] = {name: getattr(tokenizer, name) for name in ("name", "fingerprint", "size", "eot")}
            write_json(working / "index.json", index)
            os.replace(working, directory)
    return ChatDataset(directory)


def _write(directory: Path, parts: Iterable[EncodedPart], left_out: Report, path: Path, kind: str) -> dict:
    """Writes the files of a folder; what the index says of them."""
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
            places = "".join(place + "\n" for place in part.places).encode()
            for file, data in zip(open_files, (part.ids, part.mask, part.table, places, b"".join(part.texts))):
                file.write(data)
        for file in open_files:
            file.flush()
            os.fsync(file.fileno())
    if not number:
        reasons = "; ".join(report_lines("left out", left_out)) or "it is empty"
        raise ValueError(f"no {kind} to train on in {path}: {reasons}")
    sizes = {name: size_and_crc32(directory / name) for name in names}
    return {"dialogues": number, "files": sizes, "left_out": left_out, "shortened": shortened}


# ---- processes ----


def _chunks(objects: Iterator[tuple[str, object]]) -> Iterator[list[tuple[str, object]]]:
    while chunk := list(islice(objects, CHUNK)):
        yield chunk


def _parts(chunks: Iterable[list], tokenizer, encoding: Encoding, workers: int) -> Iterator[EncodedPart]:
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


def _encode(chunk: list[tuple[str, object]]) -> EncodedPart:
    return encode_part(chunk, *_settings)
