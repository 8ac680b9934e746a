"""Batches from chat files: what their three mixtures share, and the conversations that fine-tuning reads.

b rows per batch, L inputs per row. A file is divided into bins once, and a bin is a row: some packed conversations, the
responses to one prompt (`preferences`), or one prompt (`prompts`). `order` has bins in place of windows.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qwenjax.data.batches import text
from qwenjax.data.batches.order import Mixture, Order, key, permute
from qwenjax.data.batches.packing import Bins, best_fit, one_per_bin
from qwenjax.data.conversations.store import ChatDataset

VALIDATION = 0.03  # share of a file's rows held out: chat files are small, and 1 % would measure little
MAX_NAMED = 8  # origins of one row that a message names


class ChatMixture(Mixture):
    """Training rows from one or more chat files in the proportions of `weights`, without end. A row is of one file.

    Args:
      validation: share of each file's rows that is held out (`ChatDataset.held_out`).
    Raises:
      ValueError: files of another kind, of different lengths or tokenizers, or one whose rows are all held out.
    """

    kind: str  # of the files
    unit: str  # what messages call a bin
    trained: str  # what messages say a file has to train on
    k = 1  # sequences of a bin that a batch reads, where a bin is a row of the file

    def __init__(
        self, files: Sequence[ChatDataset], weights: Sequence[float], seed: int, validation: float = VALIDATION
    ):
        self.files, self.validation = tuple(files), validation
        self.seq_len, self.eot = check_same_encoding(self.files, self.kind)
        self._bins: list[Bins] = []
        for s, file in enumerate(self.files):
            rows = np.flatnonzero(~file.held_out(validation))
            if not len(rows):
                name = file.index["source"]
                raise ValueError(f"all {file.num_rows} rows of {name} are held out; lower validation={validation}")
            self._bins.append(self._divide(s, rows, seed))
        # a window of one token for each bin; two tokens more, as a text source has (`order.windows`)
        self.order = Order(tuple(len(b) + 2 for b in self._bins), tuple(map(float, weights)), 1, seed)

    def _divide(self, s: int, rows: np.ndarray, seed: int) -> Bins:
        """Bins of the rows of file s to train on: here one for each row, with all its sequences."""
        file, wanted = self.files[s], np.zeros(self.files[s].num_rows, bool)
        wanted[rows] = True
        counts = file.sequences_per_row[wanted]
        starts = np.concatenate([[0], np.cumsum(counts)])
        read = file.per_row("tokens")[wanted] * np.minimum(1, self.k / counts)  # tokens, on average
        utilisation = float(read.mean() / (self.k * self.seq_len))
        return Bins(np.flatnonzero(wanted[file.table["group"]]), starts, utilisation)

    @property
    def rows_per_epoch(self) -> tuple[int, ...]:
        """Rows per epoch of each file."""
        return self.order.windows

    @property
    def utilisation(self) -> tuple[float, ...]:
        """Share of the tokens in each file's rows that are not padding."""
        return tuple(bins.utilisation for bins in self._bins)

    def sequences(self, row: int) -> tuple[int, np.ndarray]:
        """A row's file, and the numbers of its sequences there, int64 [k], in their order in the row."""
        location = self.locate(row)
        return location.source, self._bins[location.source][location.window]

    def describe(self, row: int) -> str:
        """Where a row comes from, for a message: 'row 7: epoch 0, bin 3, sft.jsonl:12, sft.jsonl:40'."""
        location, (s, numbers) = self.locate(row), self.sequences(row)
        _, first = np.unique(self.files[s].table["group"][numbers], return_index=True)  # responses share an origin
        named = [self.files[s].origin(int(i)) for i in numbers[np.sort(first)[:MAX_NAMED]]]
        named += [f"and {len(first) - MAX_NAMED} more"] if len(first) > MAX_NAMED else []
        return f"row {row}: epoch {location.epoch}, {self.unit} {location.window}, {', '.join(named)}"

    def lines(self) -> list[str]:
        """A line per file on what is read of it."""
        lines = []
        for file, bins in zip(self.files, self._bins):
            held_out = f"{file.num_rows - len(np.unique(file.table['group'][bins.items])):,} held out"
            if self.kind != "conversation" and file.too_few_prompts:
                held_out += f" (only {file.num_prompts} different prompts)"
            trained = self.trained.format(items=len(bins.items), rows=len(bins))
            lines.append(f"{file.index['source']}: {trained}, {bins.utilisation:.1%} filled; {held_out}")
        return lines


class ConversationMixture(ChatMixture):
    """Training rows of conversations: see `ChatMixture`. `packed`: as many in a row as fit, each seeing only itself."""

    kind, unit, trained = "conversation", "bin", "{items:,} conversations to train on in {rows:,} rows"

    def __init__(
        self,
        files: Sequence[ChatDataset],
        weights: Sequence[float],
        seed: int,
        packed: bool = True,
        validation: float = VALIDATION,
    ):
        self.packed = packed
        super().__init__(files, weights, seed, validation)

    def _divide(self, s: int, rows: np.ndarray, seed: int) -> Bins:
        # equally long conversations share a bin by chance, not because they were neighbours in the file
        rows = rows[permute(np.arange(len(rows)), len(rows), key(seed, "dialogues", s))]
        bins = _conversation_bins(self.files[s], rows, self.packed)
        return replace(bins, items=rows[bins.items])

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """These rows as `pack` makes them."""
        located = (self.sequences(int(row)) for row in rows)
        return pack([[self.files[s].read(int(i)) for i in numbers] for s, numbers in located], self.seq_len, self.eot)


def pack(rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], seq_len: int, eot: int) -> dict[str, np.ndarray]:
    """Rows of conversations, each (ids int32 [n], mask [n]), as a batch: see `text.batch_shapes`.

    A conversation of n tokens takes n - 1 positions. `segments` counts from 1; 0 is padding, whose ids are `eot`.
    """
    batch = {name: np.zeros(shape, dtype) for name, (shape, dtype) in text.batch_shapes(len(rows), seq_len).items()}
    for name, fill in (("inputs", eot), ("targets", eot), ("positions", -1)):
        batch[name][:] = fill
    for r, row in enumerate(rows):
        at = 0
        for number, (ids, mask) in enumerate(row, 1):
            here = (r, slice(at, at + len(ids) - 1))
            batch["inputs"][here], batch["targets"][here], batch["weights"][here] = ids[:-1], ids[1:], mask[1:]
            batch["positions"][here], batch["segments"][here] = np.arange(len(ids) - 1), number
            at += len(ids) - 1
        assert at <= seq_len, f"{at} tokens in a row of {seq_len}"
    return batch


def validation_batches(
    files: Sequence[ChatDataset], limit: int, batch_size: int, packed: bool = True, validation: float = VALIDATION
) -> text.HeldOut:
    """The held-out conversations (`sample_held_out`) in batches; `tokens` of the result are the trained targets."""
    seq_len, eot = check_same_encoding(files, ConversationMixture.kind)
    rows, targets = [], []
    for file, numbers in zip(files, sample_held_out(files, limit, validation)):
        read = [file.read(int(i)) for i in numbers]
        targets.append(np.concatenate([np.zeros(0, np.int32), *(ids[1:][mask[1:] > 0] for ids, mask in read)]))
        bins = _conversation_bins(file, numbers, packed)
        rows += [[read[i] for i in bins[b]] for b in range(len(bins))]
    batches = []
    for at in range(0, len(rows), batch_size):
        part = rows[at : at + batch_size]
        # repeat a row instead of adding empty ones: an attention kernel may answer those with NaN, and NaN * 0 is NaN
        batch = pack(part + [part[-1]] * (batch_size - len(part)), seq_len, eot)
        batch["weights"][len(part) :] = 0
        batches.append(batch)
    return text.HeldOut(batches, targets)


def _conversation_bins(file: ChatDataset, numbers: np.ndarray, packed: bool) -> Bins:
    """Bins of some conversations; items count in `numbers`."""
    lengths = file.table["tokens"][numbers] - 1  # see `pack`
    return (best_fit if packed else one_per_bin)(lengths, file.encoding.length)


# ---- what preferences and prompts need, too ----


def sample_held_out(files: Sequence[ChatDataset], limit: int, validation: float) -> list[np.ndarray]:
    """Held-out rows of each file in the order of their hashes, together of `limit` tokens at most, but at least one."""
    held = [np.flatnonzero(file.held_out(validation)) for file in files]
    sizes = [file.per_row("tokens")[rows].astype(np.int64) for file, rows in zip(files, held)]
    share = min(1.0, limit / max(sum(int(size.sum()) for size in sizes), 1))
    taken = []
    for file, rows, size in zip(files, held, sizes):
        order = np.argsort(file.split_key[rows], kind="stable")
        within = np.cumsum(size[order]) <= size.sum() * share
        taken.append(rows[order[: max(int(within.sum()), 1)]])
    return taken


def check_same_encoding(files: Sequence[ChatDataset], kind: str) -> tuple[int, int]:
    """Length and end-of-text id with which all files were encoded; ValueError unless all agree and are of this kind."""
    if not files:
        raise ValueError("no chat files; wanted at least one")
    for file in files:
        if file.kind != kind:
            raise ValueError(f"{file} holds {file.kind}s; wanted {kind}s: encode it with Encoding(kind={kind!r})")
        for what, mine, first in (
            ("row length", file.encoding.length, files[0].encoding.length),
            ("tokenizer", file.tokenizer["fingerprint"], files[0].tokenizer["fingerprint"]),
        ):
            if mine != first:
                raise ValueError(f"{file} and {files[0]} were encoded with another {what}: {mine} and {first}")
    return files[0].encoding.length, files[0].tokenizer["eot"]
