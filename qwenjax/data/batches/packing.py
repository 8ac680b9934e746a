"""Items of known lengths into bins of one capacity: best-fit decreasing, exactly and over all items at once.

Longest item first, each goes into the fullest bin that still has room for it. That never takes more than 11/9 of the
fewest possible bins + 6/9 (Dósa, Sgall 2007, for first- and best-fit alike). Items of one length and bins of one
remaining space are handled together, so the work goes with the number of lengths, not of items: a plan for millions
takes seconds.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bins:
    """Which items share a bin: bin b holds `items[starts[b]:starts[b + 1]]`."""

    items: np.ndarray  # int64 [items], numbers of items, bin after bin
    starts: np.ndarray  # int64 [bins + 1]
    utilisation: float  # filled share of all bins, in (0, 1]; 0 without items

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, b: int) -> np.ndarray:
        if not 0 <= b < len(self):
            raise IndexError(f"bin {b} of {len(self)}")
        return self.items[self.starts[b] : self.starts[b + 1]]


def plan(lengths: np.ndarray, capacity: int) -> Bins:
    """Bins for items of these lengths; a function of its arguments alone.

    Args:
      lengths: int [n], each 1 to `capacity`. Of equally long items, earlier ones are placed first.
    Raises:
      ValueError: a length that fits no bin.
    """
    lengths = _checked(lengths, capacity)
    order = np.argsort(-lengths, kind="stable")
    bin_of = np.empty(len(lengths), np.int64)
    rooms: dict[int, list[np.ndarray]] = {}  # remaining space -> the bins that have it, first in, first out
    spaces: list[int] = []  # its keys, rising
    bins = 0

    def keep(space: int, which: np.ndarray) -> None:
        if space and len(which):
            if space not in rooms:
                insort(spaces, space)
            rooms.setdefault(space, []).append(which)

    for same in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        size = int(lengths[same[0]]) if len(same) else 0
        while len(same):
            at = bisect_left(spaces, size)
            if at < len(spaces):
                space = spaces[at]
                which = rooms[space].pop(0)
                if not rooms[space]:
                    del rooms[space], spaces[at]
            else:
                space = capacity
                which = np.arange(bins, bins + -(-len(same) // (space // size)))
                bins += len(which)
            each = space // size  # a bin stays the fullest with room until it has none
            wanted = -(-len(same) // each)
            which, rest = which[:wanted], which[wanted:]
            placed, same = same[: len(which) * each], same[len(which) * each :]
            bin_of[placed] = np.repeat(which, each)[: len(placed)]
            full, last = divmod(len(placed), each)
            keep(space, rest)
            keep(space - each * size, which[:full])
            keep(space - last * size, which[full:])
    items = order[np.argsort(bin_of[order], kind="stable")]
    return _bins(items, np.bincount(bin_of, minlength=bins), lengths, capacity)


def alone(lengths: np.ndarray, capacity: int) -> Bins:
    """Every item in a bin of its own, in order."""
    lengths = _checked(lengths, capacity)
    return _bins(np.arange(len(lengths)), np.ones(len(lengths), np.int64), lengths, capacity)


def _bins(items: np.ndarray, counts: np.ndarray, lengths: np.ndarray, capacity: int) -> Bins:
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    return Bins(items, starts, float(lengths.sum() / (max(len(counts), 1) * capacity)))


def _checked(lengths: np.ndarray, capacity: int) -> np.ndarray:
    lengths = np.asarray(lengths, np.int64)
    wrong = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if wrong.size:
        raise ValueError(f"item {wrong[0]} has length {lengths[wrong[0]]}; wanted 1 to {capacity}, the size of a bin")
    return lengths
