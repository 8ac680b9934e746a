"""Packing: items of known lengths into bins of one capacity, by best-fit decreasing over all items at once.

Longest first, each item goes into the fullest bin that it still fits: at most 11/9 of the fewest possible bins + 6/9
(Dósa, Sgall 2007). Items of one length and bins of one remaining space are handled together: millions take seconds.
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


def best_fit(lengths: np.ndarray, capacity: int) -> Bins:
    """Bins for items of these lengths, int [n] in 1 to `capacity`; of equals the earlier are placed first."""
    lengths = _check_lengths(lengths, capacity)
    order = np.argsort(-lengths, kind="stable")
    bin_of = np.empty(len(lengths), np.int64)
    open_bins: dict[int, list[np.ndarray]] = {}  # remaining space -> the bins that have it, first in, first out
    spaces: list[int] = []  # its keys, rising
    bins = 0

    def keep_open(space: int, which: np.ndarray) -> None:
        if space and len(which):
            if space not in open_bins:
                insort(spaces, space)
            open_bins.setdefault(space, []).append(which)

    for same in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        size = int(lengths[same[0]]) if len(same) else 0
        while len(same):
            at = bisect_left(spaces, size)
            if at < len(spaces):
                space = spaces[at]
                which = open_bins[space].pop(0)
                if not open_bins[space]:
                    del open_bins[space], spaces[at]
            else:
                space = capacity
                which = np.arange(bins, bins + -(-len(same) // (space // size)))
                bins += len(which)
            each = space // size  # a bin takes items of this length until no more fit
            needed = -(-len(same) // each)
            which, unused = which[:needed], which[needed:]
            placed, same = same[: len(which) * each], same[len(which) * each :]
            bin_of[placed] = np.repeat(which, each)[: len(placed)]
            full, last = divmod(len(placed), each)
            keep_open(space, unused)
            keep_open(space - each * size, which[:full])
            keep_open(space - last * size, which[full:])
    items = order[np.argsort(bin_of[order], kind="stable")]
    return _bins(items, np.bincount(bin_of, minlength=bins), lengths, capacity)


def one_per_bin(lengths: np.ndarray, capacity: int) -> Bins:
    """Bins for items of these lengths, one each, in order."""
    lengths = _check_lengths(lengths, capacity)
    return _bins(np.arange(len(lengths)), np.ones(len(lengths), np.int64), lengths, capacity)


def _bins(items: np.ndarray, counts: np.ndarray, lengths: np.ndarray, capacity: int) -> Bins:
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    return Bins(items, starts, float(lengths.sum() / (max(len(counts), 1) * capacity)))


def _check_lengths(lengths: np.ndarray, capacity: int) -> np.ndarray:
    lengths = np.asarray(lengths, np.int64)
    wrong = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if wrong.size:
        raise ValueError(f"item {wrong[0]} has length {lengths[wrong[0]]}; wanted 1 to {capacity}, the size of a bin")
    return lengths
