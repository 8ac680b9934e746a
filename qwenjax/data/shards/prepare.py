"""An experiment's `data` as a tokenizer and open shards; whatever is missing is made once, and kept.

    ROOT/tokenizer-<hash>/        sentencepiece vocabulary for 'train:SIZE'
    ROOT/<stem of text>-<hash>/   shards of one text source
    ROOT/<name>-<hash>/           a copy of shards in a bucket

The hash is of what the name stands for (text, tokenizer, seed, format version), so another setting is another folder
and a finished folder is never touched again.
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qwenjax.common import storage
from qwenjax.common.hashing import json_digest, keyed_hash
from qwenjax.common.progress import printer
from qwenjax.common.storage import exclusive
from qwenjax.config import Data, Source
from qwenjax.data.shards.fetch import fetch
from qwenjax.data.shards.format import SPLITS, VERSION, Shards
from qwenjax.data.shards.write import tokenize
from qwenjax.sources.documents import Report, as_source, cut, no_documents, read, slices

SAMPLE = 16 << 20  # bytes of text from which a vocabulary is trained: more takes longer and changes few merges
VALIDATION = 0.03  # of the documents held out: text named in an experiment is small, and 1 % of it measures little


def prepare(data: Data, seed: int, root: str | Path = "data", progress: bool = True, tokenizer=None) -> tuple:
    """(tokenizer, one `Shards` per source, lines that say what was done).

    A tokenizer that is given is used in the place of `data.tokenizer`.

    Processes of one machine may call this at the same time: one works, the others wait and then find it done.

    Raises:
      ValueError: no sources, unreadable text, or shards written with another tokenizer than `data.tokenizer`.
    """
    from qwenjax.tokenizer import load_tokenizer  # here, so that what needs no tokenizer does not load its libraries

    if not data.sources:
        raise ValueError("data.sources is empty; wanted at least one, e.g. Source(text='python-stdlib')")
    for s, source in enumerate(data.sources):
        if not (source.text or source.shards):
            raise ValueError(f"data.sources.{s} names neither text nor shards")
    here = DataCache(data.tokenizer, seed, Path(root), progress)
    if tokenizer is None:
        trains = data.tokenizer.startswith("train:")
        tokenizer = load_tokenizer(here.vocabulary(data.sources) if trains else data.tokenizer)
    shards = [here.shards(source, tokenizer) for source in data.sources]
    for opened in shards:
        opened.check_tokenizer(tokenizer)
        train, held_out = (opened.index["splits"][split] for split in SPLITS)
        here.messages.append(
            f"{opened.directory}: {train['tokens']:,} tokens in {train['documents']:,} documents to train on, "
            f"{held_out['tokens']:,} in {held_out['documents']:,} held out, "
            f"{train['bytes'] / train['tokens']:.2f} bytes per token"
        )
    return tokenizer, shards, here.messages


@dataclass
class DataCache:
    """Where things are kept, for which settings, and what there is to say about it."""

    spec: str  # of config.Data.tokenizer
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
        directory = self.root / f"{name}-{_hash(*_what(source), self.spec, tokenizer.fingerprint, self.seed)}"
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

        texts, size = [source for source in sources if source.text], self.spec.removeprefix("train:")
        if not size.isdigit():
            raise ValueError(f"data.tokenizer={self.spec!r}: wanted 'train:SIZE', e.g. 'train:8192'")
        if not texts:
            raise ValueError(
                f"data.tokenizer={self.spec!r}, but no source has text to train on; name that of the shards"
            )
        directory = self.root / f"tokenizer-{_hash(*(part for source in texts for part in _what(source)), self.spec)}"
        model = directory / "tokenizer.model"
        self.root.mkdir(parents=True, exist_ok=True)
        if not model.is_file():
            with exclusive(self.root, printer(self.progress)):
                if not model.is_file():  # else another process made it while this one waited
                    names = ", ".join(source.text for source in texts)
                    printer(self.progress)(f"training a vocabulary of {size} on {names}")
                    working = directory.with_name(directory.name + ".tmp")  # renamed whole: never half a vocabulary
                    shutil.rmtree(working, ignore_errors=True)
                    working.mkdir()
                    sentencepiece.train(sample_text(texts, SAMPLE), int(size), working / model.name)
                    os.replace(working, directory)
        self.messages.append(f"{self.spec}: vocabulary in {model}")
        return model


def sample_text(sources: Sequence[str | Path | Source], size: int) -> list[str]:
    """Documents of about `size` bytes, an equal part from each source and spread over all of it."""
    return [document for source in sources for document in _spread(as_source(source), size // len(sources))]


def _spread(source: Source, size: int) -> Iterator[str]:
    report = Report()
    pieces = [piece for whole in slices(source, report) for piece in cut(whole, 1 << 20)]
    pieces.sort(key=lambda p: keyed_hash("sample", 0, f"{p.origin}@{p.start}"))  # a fixed shuffle
    share, given = size // min(max(len(pieces), 1), 16), 0
    for piece in pieces:
        seen = kept = 0
        for document in read(piece, report):
            seen += len(document.text.encode("utf-8"))
            if kept < seen * min(1.0, share / max(piece.size, 1)):  # evenly within the piece, too
                kept += len(document.text.encode("utf-8"))
                yield document.text
        given += kept
        if given >= size:
            return
    if not given:
        raise ValueError(no_documents([source], report))


def _what(source: Source) -> list:
    """What is read and how; options at their defaults add nothing, so that a new one leaves old folders valid."""
    return [source.text, source.reading] if source.reading else [source.text]


def _hash(*parts: object) -> str:
    return json_digest([VERSION, *parts], size=4)
