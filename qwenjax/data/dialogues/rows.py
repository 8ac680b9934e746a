"""Rows of dialogues: what a fine-tuning loop reads, as `data.stream` is for pretraining. b rows, L inputs per row.

Bins of dialogues are planned once, from the lengths; row r of a run is then a pure function of (seed, r): the order of
`data.order`, with bins in the place of windows. Every dialogue is read once per epoch of its file.
"""

from collections.abc import Sequence

import numpy as np

from qwenjax.data import stream
from qwenjax.data.dialogues.store import Dialogues
from qwenjax.data.order import Order, Place, key, permute
from qwenjax.data.packing import Bins, alone, plan

VALIDATION = 0.03  # of the dialogues held out: files are small, and 1 % of them measures little
NAMED = 8  # dialogues of a row that a message names


class DialogueMixture:
    """Training rows from one or more files in exact proportions, for ever. A row has dialogues of one file.

    Args:
      files, weights: the files and their relative shares of the rows.
      seed: selects which dialogues share a row, and the order of the rows.
      packed: as many dialogues in a row as fit, each seeing only itself; else one per row.
      validation: share of the dialogues that is held out (`Dialogues.held_out`).
    Raises:
      ValueError: files of different lengths or vocabularies, or one whose dialogues are all held out.
    """

    def __init__(
        self,
        files: Sequence[Dialogues],
        weights: Sequence[float],
        seed: int,
        packed: bool = True,
        validation: float = VALIDATION,
    ):
        self.files = tuple(files)
        self.length, self.eot = _agreed(self.files)
        self._numbers, self._bins = [], []
        for s, file in enumerate(self.files):
            numbers = np.flatnonzero(~file.held_out(validation))
            if not len(numbers):
                raise ValueError(
                    f"all {len(file)} dialogues of {file.index['source']} are held out; lower validation={validation}"
                )
            # equally long dialogues share a bin by chance, not because they were neighbours in the file
            numbers = numbers[permute(np.arange(len(numbers)), len(numbers), key(seed, "dialogues", s))]
            self._numbers.append(numbers)
            self._bins.append(_bins(file, numbers, self.length, packed))
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

    def locate(self, row: int) -> Place:
        """File, epoch and bin (as `window`) of a row."""
        return self.order.locate(row)

    def dialogues(self, row: int) -> tuple[int, np.ndarray]:
        """A row's file, and the numbers of its dialogues there, int64 [k], in their order in the row."""
        place = self.locate(row)
        return place.source, self._numbers[place.source][self._bins[place.source][place.window]]

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """These rows as `pack` makes them, [len(rows) L]."""
        found = (self.dialogues(int(row)) for row in rows)
        return pack([[self.files[s].read(int(i)) for i in numbers] for s, numbers in found], self.length, self.eot)

    def epochs(self, next_row: int) -> tuple[float, ...]:
        """How often each file has been read before row `next_row`, on average over a block."""
        shares = self.order.shares
        return tuple(next_row * c / sum(shares) / n for c, n in zip(shares, self.bins))

    def describe(self, row: int) -> str:
        """Where a row comes from, for a message: 'row 7: epoch 0, bin 3, sft.jsonl:12, sft.jsonl:40'."""
        place, (s, numbers) = self.locate(row), self.dialogues(row)
        named = [self.files[s].place(int(i)) for i in numbers[:NAMED]]
        rest = [f"and {len(numbers) - NAMED} more"] if len(numbers) > NAMED else []
        return f"row {row}: epoch {place.epoch}, bin {place.window}, {', '.join(named + rest)}"

    def lines(self) -> list[str]:
        """What is read, for people."""
        return [
            f"{file.index['source']}: {len(numbers):,} dialogues to train on in {len(bins):,} rows, "
            f"{bins.utilisation:.1%} filled; {len(file) - len(numbers):,} held out"
            for file, numbers, bins in zip(self.files, self._numbers, self._bins)
        ]


def pack(rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], length: int, eot: int) -> dict[str, np.ndarray]:
    """Rows of dialogues, each (ids int32 [n], mask [n]), as a batch.

    A dialogue of n tokens takes n - 1 places: its first token is no target, its last no input.

    Args:
      eot: stands where there is no dialogue.
    Returns:
      `inputs`, `targets`: int32 [b L]. `weights`: float32 [b L], the target's mask; 0 on padding. `positions`:
      int32 [b L], from 0 in each dialogue; -1 on padding, which the model so leaves out. `segments`: int32 [b L], the
      dialogue's number in the row, from 1; 0 on padding.
    """
    shape = (len(rows), length)
    batch = {name: np.full(shape, eot, np.int32) for name in ("inputs", "targets")}
    batch |= {"weights": np.zeros(shape, np.float32), "positions": np.full(shape, -1, np.int32)}
    batch["segments"] = np.zeros(shape, np.int32)
    for r, row in enumerate(rows):
        at = 0
        for number, (ids, mask) in enumerate(row, 1):
            here = (r, slice(at, at + len(ids) - 1))
            batch["inputs"][here], batch["targets"][here], batch["weights"][here] = ids[:-1], ids[1:], mask[1:]
            batch["positions"][here], batch["segments"][here] = np.arange(len(ids) - 1), number
            at += len(ids) - 1
        assert at <= length, f"{at} tokens in a row of {length}"
    return batch


def validation_rows(
    files: Sequence[Dialogues], limit: int, batch: int, packed: bool = True, validation: float = VALIDATION
) -> stream.HeldOut:
    """The held-out dialogues as batches [batch L]; the last is filled with rows of weight 0.

    When they have more than `limit` tokens, every file gives some of its own, in proportion to its size, in the order
    of their hashes: a random sample, and a smaller limit takes a part of it. `tokens` are the trained targets by file.
    """
    length, eot = _agreed(files)
    held = [np.flatnonzero(file.held_out(validation)) for file in files]
    sizes = [int(file.table["tokens"][numbers].sum()) for file, numbers in zip(files, held)]
    share = min(1.0, limit / max(sum(sizes), 1))
    rows, targets = [], []
    for file, numbers, size in zip(files, held, sizes):
        numbers = numbers[np.argsort(file.table["key"][numbers], kind="stable")]
        within = np.cumsum(file.table["tokens"][numbers], dtype=np.int64) <= size * share
        numbers = numbers[: max(int(within.sum()), 1)]  # one at least, if there is one
        read = [file.read(int(i)) for i in numbers]
        targets.append(np.concatenate([np.zeros(0, np.int32), *(ids[1:][mask[1:] > 0] for ids, mask in read)]))
        bins = _bins(file, numbers, length, packed)
        rows += [[read[i] for i in bins[b]] for b in range(len(bins))]
    batches = []
    for at in range(0, len(rows), batch):
        some = rows[at : at + batch]
        # rows that are there, not empty ones: an attention kernel may answer those with NaN, and NaN * 0 is NaN
        packed_rows = pack(some + [some[-1]] * (batch - len(some)), length, eot)
        packed_rows["weights"][len(some) :] = 0
        batches.append(packed_rows)
    return stream.HeldOut(batches, targets)


def _bins(file: Dialogues, numbers: np.ndarray, length: int, packed: bool) -> Bins:
    places = file.table["tokens"][numbers] - 1  # see `pack`
    return (plan if packed else alone)(places, length)


def _agreed(files: Sequence[Dialogues]) -> tuple[int, int]:
    """Length and end-of-text id that all files were encoded with."""
    if not files:
        raise ValueError("no files of dialogues; wanted at least one")
    for file in files[1:]:
        for what, mine, first in (
            ("row length", file.encoding.length, files[0].encoding.length),
            ("tokenizer", file.tokenizer["fingerprint"], files[0].tokenizer["fingerprint"]),
        ):
            if mine != first:
                raise ValueError(f"{file} and {files[0]} were encoded with another {what}: {mine} and {first}")
    return files[0].encoding.length, files[0].tokenizer["eot"]
