"""Encoded dialogues of one file on disk: made once, memory-mapped, checked when opened.

    ROOT/<stem of file>-<hash>/
        index.json     what they are of, counts, and size and CRC of each file
        ids.bin        token ids, dialogue after dialogue, little endian, uint16 or uint32
        mask.bin       uint8 per token: predicting it carries loss
        table.bin      per dialogue: tokens, trained targets, hashes of its text, its row, its rating (`encode.TABLE`)
        places.txt     per dialogue: where it stands in the file, 'NAME:LINE'
        texts.jsonl    of prompts only: the turns asked and the answer, for rewards and reports

The hash is of the file's content, the tokenizer and the encoding, so another of these is another folder. A folder
appears whole or not at all. Plain arrays, not shards: dialogues are read one at a time and in any order, and their
masks go with them.
"""

import json
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from qwenjax.common.hashing import size_and_crc32
from qwenjax.data.conversations.encode import TABLE, Encoding
from qwenjax.data.shards.format import token_dtype
from qwenjax.data.shards.worker import WHOLE
from qwenjax.sources.slices import Report

VERSION = 2
FILES = ("ids.bin", "mask.bin", "table.bin", "places.txt", "texts.jsonl")  # the last of prompts only
FEW = 50  # different prompts, below which prompts are not held out; see `Dialogues.held_out`


class Dialogues:
    """The dialogues of one prepared folder, in the order of their file. A row of preferences gave several.

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
        return f"Dialogues({str(self.directory)!r})"

    @property
    def kind(self) -> str:
        """What the rows are used as: one of `schema.KINDS`."""
        return self.encoding.kind

    @property
    def rows(self) -> int:
        """Rows of the file that are kept; of preferences fewer than dialogues."""
        return len(self._first) - 1

    @property
    def counts(self) -> np.ndarray:
        """Dialogues of each row, int64 [rows]."""
        return np.diff(self._first)

    def of_row(self, row: int) -> np.ndarray:
        """Numbers of a row's dialogues, int64 [k]; of preferences best first."""
        return np.arange(self._first[row], self._first[row + 1])

    def per_row(self, column: str) -> np.ndarray:
        """A column of the table [rows]: of each row's first dialogue, but all tokens."""
        values = self.table[column]
        return np.add.reduceat(values, self._first[:-1]) if column == "tokens" else values[self._first[:-1]]

    @cached_property
    def prompts(self) -> int:
        """Different prompts."""
        return len(np.unique(self.table["prompt"]))

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids, int32 [n], and mask, float32 [n], of dialogue i."""
        a, b = self._starts[i], self._starts[i + 1]
        return self._ids[a:b].astype(np.int32), self._mask[a:b].astype(np.float32)

    def place(self, i: int) -> str:
        """Where dialogue i stands in its file: 'NAME:LINE'. Reads up to it: for messages."""
        with open(self.directory / "places.txt", encoding="utf-8") as file:
            return next(islice(file, i, None)).rstrip("\n")

    def text(self, i: int) -> dict:
        """{"prompt": turns of the schema, as many as the ids hold, "answer": text or None} of prompt i."""
        if self.kind != "prompt":
            raise ValueError(f"{self.directory} holds {self.kind}s; only of prompts the text is kept")
        return json.loads(bytes(self._texts[self._text_starts[i] : self._text_starts[i + 1]]))

    def held_out(self, share: float) -> np.ndarray:
        """Which rows are held out, bool [rows]: by a hash of text alone, so that equal ones stay together and runs of
        every seed, vocabulary and length are judged by the same ones.

        Conversations by all they say; preferences and prompts by their prompt, the same ones in both kinds of file.
        That needs prompts: where there are fewer than `FEW` different ones, it would most likely hold out none, or else
        a whole task. Preferences then go by prompt and responses together, and of prompts none is held out.
        """
        if not 0 <= share < 1:
            raise ValueError(f"validation={share} is the share of rows held out; wanted 0 <= share < 1")
        if self.kind == "prompt" and self.few:
            return np.zeros(self.rows, bool)
        return self.split_key < np.uint64(int(share * WHOLE))

    @property
    def few(self) -> bool:
        """Whether there are too few prompts to hold some out."""
        return self.prompts < FEW

    @property
    def split_key(self) -> np.ndarray:
        """What decides on a row, uint64 [rows]: the lowest are held out first."""
        return self.per_row("key" if self.kind == "conversation" or self.few else "prompt")

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
        first = {
            "conversation": f"{len(self):,} dialogues of {tokens:,} tokens, {trained / tokens:.0%} of them trained "
            f"(policy {self.encoding.loss_mask})",
            "preference": f"{self.rows:,} lists of {len(self):,} responses to {self.prompts:,} different prompts; with "
            f"them {tokens:,} tokens",
            "prompt": f"{len(self):,} prompts, {self.prompts:,} different, of {tokens:,} tokens",
        }
        return [
            f"{self.index['source']}: {first[self.kind]}",
            *report_lines("left out", self.index["left_out"]),
            *report_lines("shortened", self.index["shortened"]),
        ]


def _starts(sizes: np.ndarray) -> np.ndarray:
    """Where each of consecutive pieces begins, and the last ends, int64 [pieces + 1]."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def report_lines(what: str, report: dict) -> list[str]:
    """What was `what`, and why, for people."""
    return [line.replace("skipped", what, 1) for line in Report(report).lines()]
