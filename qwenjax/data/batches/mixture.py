"""What rows of conversations, of preferences and of prompts have in common: order, proportions, held-out rows of files.

A file is divided into bins once; bin by bin is then the order of `data.order`, with bins in the place of windows, so
row r of a run is a pure function of (seed, r), and every bin of a file is read once per epoch.
"""

from collections.abc import Callable, Sequence

import numpy as np

from qwenjax.data.batches.order import Order, RowLocation
from qwenjax.data.batches.packing import Bins
from qwenjax.data.conversations.folder import Dialogues

VALIDATION = 0.03  # of a file's rows held out: files are small, and 1 % of them measures little
NAMED = 8  # places of a row that a message names


class ChatMixture:
    """Training rows from one or more files in exact proportions, for ever. A row has dialogues of one file.

    Args:
      files, weights: the files and their relative shares of the rows.
      seed: selects the order.
      validation: share of each file's rows that is held out (`Dialogues.held_out`).
      divide: (number of a file, its rows to train on) to bins of dialogues.
    Raises:
      ValueError: files of different lengths or vocabularies, of another kind, or one whose rows are all held out.
    """

    kind: str  # of the files
    unit: str  # what a bin is called

    def __init__(
        self,
        files: Sequence[Dialogues],
        weights: Sequence[float],
        seed: int,
        validation: float,
        divide: Callable[[int, np.ndarray], Bins],
    ):
        self.files, self.validation = tuple(files), validation
        self.length, self.eot = agreed(self.files, self.kind)
        self._bins: list[Bins] = []
        for s, file in enumerate(self.files):
            rows = np.flatnonzero(~file.held_out(validation))
            if not len(rows):
                raise ValueError(
                    f"all {file.rows} rows of {file.index['source']} are held out; lower validation={validation}"
                )
            self._bins.append(divide(s, rows))
        # a window of one token for each bin; two tokens more, as a pretraining source has (`order.windows`)
        self.order = Order(tuple(len(b) + 2 for b in self._bins), tuple(map(float, weights)), 1, seed)

    @property
    def bins(self) -> tuple[int, ...]:
        """Rows per epoch of each file."""
        return self.order.windows

    @property
    def utilisation(self) -> tuple[float, ...]:
        """Share of the rows of each file that is no padding."""
        return tuple(bins.utilisation for bins in self._bins)

    def locate(self, row: int) -> RowLocation:
        """File, epoch and bin (as `window`) of a row."""
        return self.order.locate(row)

    def dialogues(self, row: int) -> tuple[int, np.ndarray]:
        """A row's file, and the numbers of its dialogues there, int64 [k], in their order in the row."""
        place = self.locate(row)
        return place.source, self._bins[place.source][place.window]

    def epochs(self, next_row: int) -> tuple[float, ...]:
        """How often each file has been read before row `next_row`, on average over a block."""
        shares = self.order.shares
        return tuple(next_row * c / sum(shares) / n for c, n in zip(shares, self.bins))

    def describe(self, row: int) -> str:
        """Where a row comes from, for a message: 'row 7: epoch 0, bin 3, sft.jsonl:12, sft.jsonl:40'."""
        place, (s, numbers) = self.locate(row), self.dialogues(row)
        _, first = np.unique(self.files[s].table["group"][numbers], return_index=True)  # responses share a place
        named = [self.files[s].place(int(i)) for i in numbers[np.sort(first)[:NAMED]]]
        rest = [f"and {len(first) - NAMED} more"] if len(first) > NAMED else []
        return f"row {row}: epoch {place.epoch}, {self.unit} {place.window}, {', '.join(named + rest)}"

    def lines(self) -> list[str]:
        """What is read, for people."""
        said = []
        for file, bins in zip(self.files, self._bins):
            held = file.rows - len(np.unique(file.table["group"][bins.items]))
            note = f" (only {file.prompts} different prompts)" if self.kind != "conversation" and file.few else ""
            said.append(
                f"{file.index['source']}: {self._trained(bins)}, {bins.utilisation:.1%} filled; {held:,} held out{note}"
            )
        return said

    def _trained(self, bins: Bins) -> str:
        raise NotImplementedError


def one_each(file: Dialogues, rows: np.ndarray, length: int, most: int = 1) -> Bins:
    """A bin for each row of a file, with all its dialogues, of which `most` of `length` tokens are read at a time."""
    wanted = np.zeros(file.rows, bool)
    wanted[rows] = True
    starts = np.concatenate([[0], np.cumsum(file.counts[wanted])])
    read = file.per_row("tokens")[wanted] * np.minimum(1, most / file.counts[wanted])  # on average
    filled = float(read.mean() / (most * length))
    return Bins(np.flatnonzero(wanted[file.table["group"]]), starts, filled)


def sample_held_out(files: Sequence[Dialogues], limit: int, validation: float) -> list[np.ndarray]:
    """Held-out rows of each file, of `limit` tokens together at most, but one of each file that has one.

    Every file gives some of its own, in proportion to its size, in the order of their hashes: a random sample, and a
    smaller limit takes a part of it.
    """
    held = [np.flatnonzero(file.held_out(validation)) for file in files]
    sizes = [file.per_row("tokens")[rows].astype(np.int64) for file, rows in zip(files, held)]
    share = min(1.0, limit / max(sum(int(size.sum()) for size in sizes), 1))
    taken = []
    for file, rows, size in zip(files, held, sizes):
        order = np.argsort(file.split_key[rows], kind="stable")
        within = np.cumsum(size[order]) <= size.sum() * share
        taken.append(rows[order[: max(int(within.sum()), 1)]])
    return taken


def agreed(files: Sequence[Dialogues], kind: str) -> tuple[int, int]:
    """Length and end-of-text id that all files, of one kind, were encoded with."""
    if not files:
        raise ValueError("no files of dialogues; wanted at least one")
    for file in files:
        if file.kind != kind:
            raise ValueError(f"{file} holds {file.kind}s; wanted {kind}s: prepare it with Encoding(kind={kind!r})")
        for what, mine, first in (
            ("row length", file.encoding.length, files[0].encoding.length),
            ("tokenizer", file.tokenizer["fingerprint"], files[0].tokenizer["fingerprint"]),
        ):
            if mine != first:
                raise ValueError(f"{file} and {files[0]} were encoded with another {what}: {mine} and {first}")
    return files[0].encoding.length, files[0].tokenizer["eot"]
