"""An experiment's `data` as a tokenizer and open shards; what is missing is made once and kept.

    ROOT/tokenizer-<hash>/        sentencepiece vocabulary for 'train:SIZE'
    ROOT/<stem of text>-<hash>/   shards of one text source
    ROOT/<name>-<hash>/           a local copy of shards in a bucket, where reading at random is too slow

The hash is of all settings that matter, or of the index in the bucket. A finished folder is never changed.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from qwenjax.common import storage
from qwenjax.common.hashing import crc32, json_digest, keyed_hash
from qwenjax.common.progress import meter, printer
from qwenjax.common.storage import exclusive
from qwenjax.config import Data, Source
from qwenjax.data.shards import format
from qwenjax.data.shards.format import SPLITS, VERSION, Shards
from qwenjax.data.shards.write import tokenize
from qwenjax.sources.documents import Report, as_source, cut, no_documents, read, slices

SAMPLE = 16 << 20  # bytes of text from which a vocabulary is trained: more takes longer and changes few merges
THREADS = 8  # files copied at a time
CHUNK = 8 << 20  # bytes copied at a time
VALIDATION = 0.03  # of the documents held out: text named in an experiment is small, and 1 % of it measures little


def prepare(data: Data, seed: int, root: str | Path = "data", progress: bool = True, tokenizer=None) -> tuple:
    """(tokenizer, one `Shards` per source, lines that say what was done); a given `tokenizer` replaces the data's.

    Of several processes on a machine that call it, one works and the others wait for its result.
    """
    from qwenjax.tokenizer import load_tokenizer  # here, so that what needs no tokenizer does not load its libraries

    if not data.sources:
        raise ValueError("data.sources is empty; wanted at least one, e.g. Source(text='python-stdlib')")
    for s, source in enumerate(data.sources):
        if not (source.text or source.shards):
            raise ValueError(f"data.sources.{s} names neither text nor shards")
    cache = DataCache(data.tokenizer, seed, Path(root), progress)
    if tokenizer is None:
        trains = data.tokenizer.startswith("train:")
        tokenizer = load_tokenizer(cache.vocabulary(data.sources) if trains else data.tokenizer)
    shards = [cache.shards(source, tokenizer) for source in data.sources]
    for opened in shards:
        opened.check_tokenizer(tokenizer)
        train, held_out = (opened.index["splits"][split] for split in SPLITS)
        cache.messages.append(
            f"{opened.directory}: {train['tokens']:,} tokens in {train['documents']:,} documents to train on, "
            f"{held_out['tokens']:,} in {held_out['documents']:,} held out, "
            f"{train['bytes'] / train['tokens']:.2f} bytes per token"
        )
    return tokenizer, shards, cache.messages


@dataclass
class DataCache:
    """The folders below `root`, and what was done in them, as lines for people."""

    tokenizer_spec: str  # config.Data.tokenizer
    seed: int
    root: Path
    progress: bool
    messages: list[str] = field(default_factory=list)

    def shards(self, source: Source, tokenizer) -> Shards:
        """The shards of one source, tokenised now if they are not there."""
        if storage.remote(source.shards):
            return Shards(fetch(source.shards, self.root, self.progress))
        if source.shards:
            return Shards(source.shards)
        name = re.sub(r"[:@#%\[\]]+", "-", Path(source.text).name.split(".")[0])
        # the fingerprint too: what 'train:SIZE' means depends on the other sources
        key = _hash(*_source_key(source), self.tokenizer_spec, tokenizer.fingerprint, self.seed)
        directory = self.root / f"{name}-{key}"
        if (directory / "index.json").is_file():
            self.messages.append(f"{source.text}: already tokenised")
            return Shards(directory)
        printer(self.progress)(f"tokenising {source.text} into {directory}, once")
        shards = tokenize([source], directory, tokenizer, seed=self.seed, validation=VALIDATION, progress=self.progress)
        self.messages += [f"{source.text}: tokenised", *Report(shards.index["skipped"]).lines()]
        return shards

    def vocabulary(self, sources: tuple[Source, ...]) -> Path:
        """The .model file of a 'train:SIZE' vocabulary, trained now if it is not there."""
        from qwenjax.tokenizer import sentencepiece

        texts, size = [source for source in sources if source.text], self.tokenizer_spec.removeprefix("train:")
        if not size.isdigit():
            raise ValueError(f"data.tokenizer={self.tokenizer_spec!r}: wanted 'train:SIZE', e.g. 'train:8192'")
        if not texts:
            raise ValueError(f"data.tokenizer={self.tokenizer_spec!r}, but no source has text to train on")
        keys = [part for source in texts for part in _source_key(source)]
        directory = self.root / f"tokenizer-{_hash(*keys, self.tokenizer_spec)}"
        model = directory / "tokenizer.model"
        self.root.mkdir(parents=True, exist_ok=True)
        with exclusive(self.root, printer(self.progress)):
            if not model.is_file():
                names = ", ".join(source.text for source in texts)
                printer(self.progress)(f"training a vocabulary of {size} on {names}")
                working = directory.with_name(directory.name + ".tmp")  # renamed when it is complete
                shutil.rmtree(working, ignore_errors=True)
                working.mkdir()
                sentencepiece.train(sample_text(texts, SAMPLE), int(size), working / model.name)
                os.replace(working, directory)
        self.messages.append(f"{self.tokenizer_spec}: vocabulary in {model}")
        return model


def sample_text(sources: Sequence[str | Path | Source], size: int) -> list[str]:
    """Documents of about `size` bytes together, equally many bytes from each source and spread over all of it."""
    return [text for source in sources for text in _sample_source(as_source(source), size // len(sources))]


def _sample_source(source: Source, size: int) -> Iterator[str]:
    report = Report()
    pieces = [piece for file in slices(source, report) for piece in cut(file, 1 << 20)]
    pieces.sort(key=lambda p: keyed_hash("sample", 0, f"{p.origin}@{p.start}"))  # a fixed shuffle
    share, taken = size // min(max(len(pieces), 1), 16), 0
    for piece in pieces:
        seen = kept = 0
        for document in read(piece, report):
            seen += (text_bytes := len(document.text.encode("utf-8")))
            if kept < seen * min(1.0, share / max(piece.size, 1)):  # evenly within the piece, too
                kept += text_bytes
                yield document.text
        taken += kept
        if taken >= size:
            return
    if not taken:
        raise ValueError(no_documents([source], report))


def _source_key(source: Source) -> list:
    """What is read and how, for a hash. Options at their defaults add nothing: old folders outlive a new option."""
    return [source.text, source.reading] if source.reading else [source.text]


def _hash(*parts: object) -> str:
    return json_digest([VERSION, *parts], size=4)


# ---- shards in a bucket ----


def fetch(where: str, root: Path, progress: bool = True) -> Path:
    """The local copy of a gs:// folder of shards, made or resumed now if it is not complete.

    Raises:
      ValueError: no finished shards there, too little space on the disk, or a file that is not what was written.
    """
    source = storage.path(where)
    try:
        index = (source / "index.json").read_bytes()
        files = format.files(json.loads(index))
    except FileNotFoundError:
        raise ValueError(f"{where} holds no finished shards: it has no index.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}/index.json is not an index of shards ({error}); copy it there again") from None
    folder = root / f"{source.name}-{hashlib.blake2b(index, digest_size=4).hexdigest()}"
    if (folder / "index.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder, printer(progress)):
        missing = [file for file in files if not (folder / file["name"]).is_file()]
        size, free = sum(file["size"] for file in missing), shutil.disk_usage(folder).free
        if size > free:
            advice = "mount the bucket (tpu_setup/README.md, section 3), or give a --data-root with more space"
            raise ValueError(f"{where} has {size:,} bytes to copy, and {folder} has {free:,} bytes free: {advice}")
        with meter(f"copying {where}", size, "B", hidden=not progress) as step, ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda file: _copy(source, folder, file, step), missing))
        (folder / "tokenizer").mkdir(exist_ok=True)
        for file in storage.files(source / "tokenizer"):
            storage.write_atomically(folder / "tokenizer" / file.name, file.read_bytes())
        storage.write_json(folder / "index.json", json.loads(index))
    return folder


def _copy(source: Path, folder: Path, file: dict, step: Callable[[int], object]) -> None:
    temporary = folder / (file["name"] + ".tmp")
    with (source / file["name"]).open("rb") as remote, temporary.open("wb") as local:
        shutil.copyfileobj(remote, local, CHUNK)
    if crc32(temporary) != file["crc32"]:
        raise ValueError(f"{source / file['name']} is not the file that was written: copy it to the bucket again")
    storage.replace_durably(temporary, folder / file["name"])
    step(file["size"])
