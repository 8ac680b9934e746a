"""What a corpus is made of: sizes, lengths, languages, repeated lines. One pass, in four bytes of memory a document.

Languages are those of a random sample of documents. Lines are counted by lossy counting (Manku and Motwani 2002): every
line that is a 1/LINES part of all lines or more is found.
"""

import importlib.util
import random
import re
import sys
from array import array
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from qwenjax.common import figures
from qwenjax.common.progress import meter
from qwenjax.config import Source
from qwenjax.data.shards.format import SPLITS, Shards
from qwenjax.sources.documents import Report, documents, slices
from qwenjax.tokenizer import load_tokenizer

SAMPLE = 2000  # documents whose language is identified: 1 ms each; shares are then right to about 2 %
EXCERPT = 1000  # characters whose language is identified, from the middle: beginnings and ends are often boilerplate
LINES = 1 << 20  # lines counted at a time
LINE = (24, 200)  # bytes from which a repeated line is worth listing; characters that are compared
CODE = 0.02  # share of signs from which text counts as code or markup: 95 % of Python files have it, none of 600 novels
_SIGNS = re.compile(r"[{}()\[\];=<>_#\\|&*+/]")
EDGES = np.unique([0, *np.ceil(2 ** (np.arange(8 * 32 + 1) / 8))])  # of classes of lengths: an eighth of an octave


@dataclass
class Stats:
    """Counts of a corpus; `add` the documents one by one."""

    documents: int = 0
    tokens: int = 0  # without end-of-text tokens
    bytes: int = 0  # of UTF-8
    characters: int = 0
    longest: tuple[int, str] = (0, "")  # tokens and origin
    lengths: array = field(default_factory=lambda: array("I"))  # tokens of each document
    excerpts: list[tuple[str, int]] = field(default_factory=list)  # of sampled documents: text, bytes of the document
    lines: Counter = field(default_factory=Counter)  # line -> times seen, at least
    counted: int = 0  # lines counted, including those dropped since
    _random: random.Random = field(default_factory=lambda: random.Random(0), repr=False)

    def add(self, text: str, tokens: int, text_bytes: int, origin: str) -> None:
        """Counts one document of `tokens` tokens."""
        self.documents += 1
        self.tokens += tokens
        self.bytes += text_bytes
        self.characters += len(text)
        self.longest = max(self.longest, (tokens, origin))
        self.lengths.append(tokens)
        # reservoir sampling: every document so far is kept with the same probability
        at = len(self.excerpts) if len(self.excerpts) < SAMPLE else self._random.randrange(self.documents)
        if at < SAMPLE:
            start = max(0, (len(text) - EXCERPT) // 2)
            self.excerpts[at : at + 1] = [(text[start : start + EXCERPT], text_bytes)]
        for line in text.splitlines():
            line = line.strip()
            if len(line) >= LINE[0] or len(line.encode()) >= LINE[0]:
                self.lines[line[: LINE[1]]] += 1
                self.counted += 1
        if len(self.lines) > LINES:  # drop those seen no more often than the average of `LINES` lines
            least = max(1, self.counted // LINES)
            self.lines = Counter({line: n for line, n in self.lines.items() if n > least})

    def percentile(self, share: float) -> int:
        """Tokens that this share of the documents does not exceed."""
        return int(np.quantile(self.lengths, share, method="inverted_cdf")) if self.lengths else 0

    @cached_property
    def languages(self) -> dict[str, tuple[float, float]] | None:
        """Language -> share of the documents and of the bytes, most frequent first (cached); None without py3langid."""
        if importlib.util.find_spec("py3langid") is None:
            return None
        documents, size = Counter(), Counter()
        for text, text_bytes in self.excerpts:
            name = language(text)
            documents[name] += 1
            size[name] += text_bytes
        return {name: (n / len(self.excerpts), size[name] / size.total()) for name, n in documents.most_common()}

    def repeated(self, limit: int) -> list[tuple[int, str]]:
        """The lines that were seen most often, more than once, and how often."""
        ranked = sorted(self.lines.items(), key=lambda item: (-item[1], item[0]))
        return [(n, line) for line, n in ranked[:limit] if n > 1]

    def to_dict(self, limit: int) -> dict:
        """All of it, for JSON."""
        counts, edges = np.histogram(self.lengths, EDGES)[0].tolist(), EDGES.astype(int).tolist()
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "characters": self.characters,
            "bytes_per_token": self.bytes / max(self.tokens, 1),
            "tokens_per_document": {
                "mean": self.tokens / max(self.documents, 1),
                **{f"p{round(100 * share)}": self.percentile(share) for share in (0.1, 0.5, 0.9, 0.99)},
                "max": self.longest[0],
                "longest": self.longest[1],
            },
            "histogram": [[low, high, n] for low, high, n in zip(edges, edges[1:], counts) if n],
            "languages": {name: {"documents": a, "bytes": b} for name, (a, b) in (self.languages or {}).items()},
            "repeated_lines": [[n, line] for n, line in self.repeated(limit)],
        }


def read(source: Source, tokenizer: str, report: Report, verify: bool = False) -> Stats:
    """The statistics of text, or of a folder of shards, whose text is decoded; `report` gets what was skipped.

    `tokenizer` is for text. `verify`: first compare the files of shards with their checksums.
    """
    stats, name = Stats(), f"reading {Path(source.text).name}"
    if (Path(source.text) / "index.json").is_file():
        shards = Shards(source.text)
        if verify:
            shards.verify()
            print(f"{source.text}: every file is as it was written", file=sys.stderr)
        decode = load_tokenizer(shards.directory / "tokenizer").decode
        with meter(name, sum(map(shards.text_bytes, SPLITS))) as step:
            for span, tokens in chain.from_iterable(map(shards.all_documents, SPLITS)):
                stats.add(decode(tokens[:-1].tolist()), len(tokens) - 1, span.bytes, span.origin)
                step(span.bytes)
    else:
        encode = load_tokenizer(tokenizer).encode_array
        with meter(name, sum(piece.size for piece in slices(source, Report()))) as step:
            for document in documents(source, report):
                text_bytes = len(document.text.encode())
                stats.add(document.text, len(encode(document.text)), text_bytes, document.origin)
                step(text_bytes)
    return stats


def language(text: str) -> str:
    """ISO 639-1 code by py3langid, or 'code' for source code and markup (which language models call English)."""
    import py3langid

    if len(_SIGNS.findall(text)) >= CODE * max(len(text), 1):
        return "code"
    return py3langid.classify(text)[0]


def table(stats: dict[str, Stats], num_lines: int) -> str:
    """A column of numbers for each corpus, then the languages and repeated lines of each."""
    columns = []
    for s in stats.values():
        values = s.to_dict(0)
        numbers = {name: values[name] for name in ("documents", "tokens", "bytes", "characters", "bytes_per_token")}
        lengths = values["tokens_per_document"].items()
        columns.append(numbers | {f"tokens of a document: {what}": n for what, n in lengths if what != "longest"})
    rows = [
        [name, *(f"{n:,}" if isinstance(n := c[name], int) else f"{n:,.3f}" for c in columns)] for name in columns[0]
    ]
    lines = figures.aligned([["", *stats], *rows])
    for name, s in stats.items():
        lines += ["", f"{name}: the longest document is {s.longest[1]}"]
        languages = s.languages
        if languages is None:
            lines.append("languages: not identified; pip install 'qwenjax[data]'")
        else:
            top = ", ".join(f"{lang} {a:.1%} ({b:.1%} of the bytes)" for lang, (a, b) in list(languages.items())[:8])
            lines.append(f"languages of {len(s.excerpts):,} sampled documents: {top}")
        repeated = s.repeated(num_lines)
        lines.append("lines repeated most:" if repeated else f"no line of {LINE[0]} bytes or more is repeated")
        lines += [f"{n:>9,} x {line}" for n, line in repeated]
    return "\n".join(lines)


def figure(stats: dict[str, Stats], path: str) -> None:
    """Draws lengths and languages of the corpora side by side into a PNG."""
    drawing, (left, right) = figures.canvas(11, 4, 2)
    for name, s in stats.items():
        edges = EDGES[1 : np.searchsorted(EDGES, s.longest[0], side="right") + 1]
        weights = np.full(s.documents, 100 / max(s.documents, 1))
        left.hist(s.lengths, edges, weights=weights, histtype="step", label=Path(name).name)
    left.set(xscale="log", xlabel="tokens per document", ylabel="% of documents", title="lengths")
    left.legend()
    sizes = {
        name: Counter({lang: 100 * size for lang, (_, size) in (s.languages or {}).items()})
        for name, s in stats.items()
    }
    names = [lang for lang, _ in sum(sizes.values(), Counter()).most_common(10)]
    height = 0.8 / len(sizes)
    for i, shares in enumerate(sizes.values()):
        right.barh([j + i * height for j in range(len(names))], [shares[lang] for lang in names], height, align="edge")
    right.set(xlabel="% of bytes", title="languages of a sample" if names else "languages: not identified")
    right.set_yticks([j + 0.4 for j in range(len(names))], names)
    right.invert_yaxis()
    figures.save(drawing, Path(path))
