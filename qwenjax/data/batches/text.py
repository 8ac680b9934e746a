"""Rows, batches and held-out rows of text, for pretraining. b rows, L inputs per row.

A row is a pure function of its number (`order`), so a stream has no state, and hosts need not talk to each other.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from qwenjax.data.batches.order import Mixture, Order
from qwenjax.data.shards.format import Shards, Span

THREADS = 4  # batches read at the same time, and kept ready
Read = Callable[[np.ndarray], dict[str, np.ndarray]]  # numbers of rows, int [n], to these rows as a batch [n …]
BatchShapes = dict[str, tuple[tuple[int, ...], np.dtype]]  # (shape, dtype) of every array of a batch


def batch_shapes(batch_size: int, seq_len: int, document_mask: bool = True) -> BatchShapes:
    """The arrays of a batch for next-token prediction, of text or of conversations; all are [b L].

    `inputs`, `targets`: token ids. `weights`: of each target's loss. `positions`: from 0 in each row or document; -1 on
    padding. `segments`: the number of the document in its row, for attention that sees one only (`document_mask`).
    """
    names = {"inputs": np.int32, "targets": np.int32, "weights": np.float32, "positions": np.int32}
    if document_mask:
        names["segments"] = np.int32
    return {name: ((batch_size, seq_len), np.dtype(dtype)) for name, dtype in names.items()}


class TextMixture(Mixture):
    """Training rows from several sources in the proportions of `weights`, without end.

    A row has L + 1 tokens, because the last input needs a target.
    """

    def __init__(self, shards: Sequence[Shards], weights: Sequence[float], seq_len: int, seed: int):
        self.shards, self.seq_len = tuple(shards), seq_len
        self.order = Order(tuple(s.tokens("train") for s in shards), tuple(map(float, weights)), seq_len, seed)

    def row(self, row: int) -> np.ndarray:
        """Tokens of a row, int32 [L + 1]."""
        location = self.locate(row)
        return self.shards[location.source].read("train", location.offset, self.seq_len + 1)

    def batch(self, rows: np.ndarray, eot: int, document_mask: bool) -> dict[str, np.ndarray]:
        """These rows as `pack` makes them."""
        return pack(np.stack([self.row(int(row)) for row in rows]), eot, document_mask)

    def documents(self, row: int) -> list[Span]:
        """The documents whose tokens are in a row, in order."""
        source, _, _, first = self.locate(row)
        return self.shards[source].documents("train", first, first + self.seq_len + 1)


def pack(tokens: np.ndarray, eot: int, document_mask: bool) -> dict[str, np.ndarray]:
    """Rows of tokens, int32 [b L+1], as a batch: see `batch_shapes`. All weights are 1.

    Without `document_mask` all `segments` are 0. End-of-text is the last target of the document that it ends and the
    first input of the next one, as in sampling, where a text begins after end-of-text.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    positions = np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape)
    weights, segments = np.ones(inputs.shape, np.float32), np.zeros(inputs.shape, np.int32)
    if document_mask:
        first = inputs == eot
        segments = np.cumsum(first, axis=1, dtype=np.int32)
        positions = positions - np.maximum.accumulate(np.where(first, positions, 0), axis=1)
    batch = {"inputs": inputs, "targets": targets, "weights": weights, "positions": positions, "segments": segments}
    return {name: np.ascontiguousarray(array) for name, array in batch.items()}


class Batches(Iterator, AbstractContextManager):
    """Iterates over (next_row, batch): this process's rows of each global batch, and the row to resume from after it.

    Close it, or use `with`: threads read ahead. An error in reading is raised by `next`, and closes the stream.

    Args:
      read: the `batch` of a mixture.
      rows: int [n], the rows of a global batch of `batch_size` that this process reads, in this order.
    """

    def __init__(self, read: Read, batch_size: int, rows: Sequence[int] | np.ndarray, next_row: int = 0):
        import grain  # not at the top: it loads jax, which nothing else in `data` needs

        rows = np.asarray(rows, np.int64)
        if not rows.size or rows.min() < 0 or rows.max() >= batch_size:
            raise ValueError(f"rows {rows.tolist()} of a batch of {batch_size}; wanted some of 0 to {batch_size - 1}")
        if next_row < 0:
            raise ValueError(f"next_row={next_row} is negative; a run starts at row 0")
        self.next_row, self.batch_size = next_row, batch_size
        steps = grain.MapDataset.range(sys.maxsize).map(lambda i: read(next_row + i * batch_size + rows))  # no end
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=THREADS)  # the default of 500 is of rows
        self._iterator = iter(steps.to_iter_dataset(options))

    def __next__(self) -> tuple[int, dict[str, np.ndarray]]:
        try:
            batch = next(self._iterator)
        except BaseException:
            self.close()  # asked again, grain would go on with the batch after the one that failed
            raise
        self.next_row += self.batch_size
        return self.next_row, batch

    def close(self) -> None:
        """Stops reading ahead. May be called twice."""
        self._iterator.close()

    def __exit__(self, *_) -> None:
        self.close()


class HeldOut(NamedTuple):
    """Held-out batches, and the tokens that they evaluate."""

    batches: list[dict[str, np.ndarray]]  # all of one size; rows of weight 0 fill the last one
    tokens: list[np.ndarray]  # int32, of each source: the targets, in order; decoded, they give the bytes of text


def validation_batches(
    shards: Sequence[Shards], seq_len: int, limit: int, batch_size: int, document_mask: bool = False
) -> HeldOut:
    """Held-out text as batches in which every token is a target exactly once; a row never mixes sources.

    When there is more than `limit` tokens, every source gives its beginning, in proportion to its size.
    """
    sizes = [s.tokens("validation") for s in shards]
    share = min(1.0, limit / max(sum(sizes), 1))
    taken = [s.read("validation", 0, int(n * share)) for s, n in zip(shards, sizes)]
    eot, rows, weights = shards[0].tokenizer["eot"], [], []
    for tokens in taken:
        targets = np.arange(-(-len(tokens) // seq_len) * seq_len).reshape(-1, seq_len)
        padded = np.full(targets.size + 1, eot, np.int32)  # its first token, too, is predicted from end-of-text
        padded[1 : len(tokens) + 1] = tokens
        rows += [padded[at : at + seq_len + 1] for at in range(0, targets.size, seq_len)]
        weights += [*(targets < len(tokens))]
    missing = -len(rows) % batch_size
    rows += rows[-1:] * missing
    weights += [np.zeros(seq_len)] * missing
    batches = []
    for at in range(0, len(rows), batch_size):
        batches.append(pack(np.stack(rows[at : at + batch_size]), eot, document_mask))
        batches[-1]["weights"] *= np.stack(weights[at : at + batch_size])
    return HeldOut(batches, taken)
