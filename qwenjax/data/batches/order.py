"""Which window of which source row r of a run is: index arithmetic, no state and no files (docs/design.md, Decisions).

    row(r):  b, j = divmod(r, BLOCK);   k = perm(seed, b)(j; BLOCK)
             s: cum[s] <= k < cum[s+1]                                  c_s = exact shares of a block
             rank = b*c_s + (rows of s among the first j of block b)    so epochs follow each other
             e, i = divmod(rank, W_s);   w = perm(seed, s, e)(i; W_s)   W_s = (N_s - 1)//L - 1 windows
             tokens [phase(seed, s, e) + w*L, … + L + 1) of source s

Every window of a source is seen once per epoch, and the cut between windows moves from epoch to epoch. All of this is
part of the format: a change here changes what every saved `next_row` means, so a test freezes these functions.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

BLOCK = 65_536  # rows; within each block every source has exactly its share
ROUNDS = 4
_MASK = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads the round keys


@lru_cache(4096)
def key(*parts: int | str) -> int:
    """A 64-bit key for a tuple such as (seed, 'block', 7)."""
    text = "/".join(map(str, ("qwenjax-order-1", *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _scramble(x, key: int):
    """Hash of x < 2^64 (splitmix64's finaliser), for an int or a uint64 array."""
    x = (x + key) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


@lru_cache(4096)
def _round_keys(key: int) -> tuple[int, ...]:
    return tuple(_scramble(n * _ODD & _MASK, key) for n in range(1, 2 * ROUNDS + 1))


def _feistel(x, bits: int, keys: tuple[int, ...]):
    """A bijection of [0, 2^bits): the halves are in turn xored with a hash of the other (a Feistel network)."""
    low = bits // 2
    left, right = x >> low, x & ((1 << low) - 1)
    for a, b in zip(keys[::2], keys[1::2]):
        left = left ^ (_scramble(right, a) & ((1 << (bits - low)) - 1))
        right = right ^ (_scramble(left, b) & ((1 << low) - 1))
    return (left << low) | right


def permute(i: int | np.ndarray, n: int, key: int) -> int | np.ndarray:
    """Position of i in the permutation of [0, n) that `key` selects; i an int, or int64 [...] -> int64 [...]."""
    # values outside [0, n) are permuted again until they are inside (cycle walking): under 2 rounds on average
    bits, keys = (n - 1).bit_length(), _round_keys(key)
    if not isinstance(i, np.ndarray):
        i = _feistel(int(i), bits, keys)
        while i >= n:
            i = _feistel(i, bits, keys)
        return i
    x = _feistel(i.astype(np.uint64).reshape(-1), bits, keys)
    while (out := np.flatnonzero(x >= n)).size:
        x[out] = _feistel(x[out], bits, keys)
    return x.astype(np.int64).reshape(i.shape)


def shares(weights: tuple[float, ...], rows: int = BLOCK) -> tuple[int, ...]:
    """Rows of each source in a block: in proportion, and exactly `rows` in sum (largest remainders round up)."""
    exact = [w * rows / sum(weights) for w in weights]
    counts = [int(x) for x in exact]
    by_remainder = sorted(range(len(weights)), key=lambda s: (counts[s] - exact[s], s))
    for s in by_remainder[: rows - sum(counts)]:
        counts[s] += 1
    if 0 in counts:
        s = counts.index(0)
        raise ValueError(f"source {s} has weight {weights[s]} of {sum(weights)}: less than 1 row in {rows}")
    return tuple(counts)


def windows(tokens: int, seq_len: int) -> int:
    """Windows of `seq_len` in an epoch of `tokens`: one fewer than fit, so that the cut can move by up to a window."""
    return (tokens - 1) // seq_len - 1


@lru_cache(8)  # 1 MB each; rows that are read together lie in one block or two
def _schedule(seed: int, shares: tuple[int, ...], block: int) -> tuple[np.ndarray, np.ndarray]:
    """Source of each row of a block, and how many rows of that source come before it there; int64 [BLOCK] both."""
    k = permute(np.arange(BLOCK), BLOCK, key(seed, "block", block))
    sources = np.searchsorted(np.cumsum(shares), k, side="right")
    ranks = np.empty(BLOCK, np.int64)
    for s, count in enumerate(shares):
        ranks[sources == s] = np.arange(count)
    return sources, ranks


class RowLocation(NamedTuple):
    """Where the tokens of a row are."""

    source: int
    epoch: int  # how often this source has been read before
    window: int
    offset: int  # its first token in the source


@dataclass(frozen=True)
class Order:
    """The order of the rows of a whole run."""

    tokens: tuple[int, ...]  # per source
    weights: tuple[float, ...]  # per source, relative
    seq_len: int  # inputs per row; a row reads one token more
    seed: int

    def __post_init__(self):
        if not self.tokens or len(self.tokens) != len(self.weights):
            raise ValueError(f"{len(self.tokens)} sources and {len(self.weights)} weights; wanted one for each")
        for s, n in enumerate(self.tokens):
            if windows(n, self.seq_len) < 1:
                needed = f"rows of length {self.seq_len} need {2 * self.seq_len + 1}"
                raise ValueError(f"source {s} has {n} tokens, {needed}: give more text or a shorter data.seq_len")
        _ = self.shares  # raises now, not in the middle of a run, when a weight is too small

    @cached_property
    def shares(self) -> tuple[int, ...]:
        """Rows per block of each source."""
        return shares(self.weights)

    @cached_property
    def windows(self) -> tuple[int, ...]:
        """Rows per epoch of each source."""
        return tuple(windows(n, self.seq_len) for n in self.tokens)

    def locate(self, row: int) -> RowLocation:
        """Row `row` >= 0 of the run; any size, constant time."""
        block, j = divmod(int(row), BLOCK)
        sources, ranks = _schedule(self.seed, self.shares, block)
        s = int(sources[j])
        epoch, i = divmod(block * self.shares[s] + int(ranks[j]), self.windows[s])
        w = permute(i, self.windows[s], key(self.seed, "windows", s, epoch))
        return RowLocation(s, epoch, w, self.phase(s, epoch) + w * self.seq_len)

    def epochs(self, next_row: int) -> tuple[float, ...]:
        """See `Mixture.epochs`."""
        return tuple(next_row * rows / BLOCK / per_epoch for rows, per_epoch in zip(self.shares, self.windows))

    def phase(self, source: int, epoch: int) -> int:
        """Where the first window of an epoch begins, in [0, length)."""
        return key(self.seed, "phase", source, epoch) % self.seq_len


class Mixture:
    """Training rows from several sources, in an order."""

    order: Order

    def locate(self, row: int) -> RowLocation:
        """Where a row is. In a chat file the window is the number of its bin."""
        return self.order.locate(row)

    def epochs(self, next_row: int) -> tuple[float, ...]:
        """How often each source has been read before row `next_row`, on average over a block."""
        return self.order.epochs(next_row)
