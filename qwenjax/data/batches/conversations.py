"""Rows of conversations: what a fine-tuning loop reads, as `data.stream` is for pretraining. b rows, L inputs per row.

Bins of dialogues are planned once, from the lengths; every dialogue is read once per epoch of its file.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qwenjax.data.batches import text
from qwenjax.data.batches.mixture import VALIDATION, ChatMixture, agreed, sample_held_out
from qwenjax.data.batches.order import key, permute
from qwenjax.data.batches.packing import Bins, alone, plan
from qwenjax.data.conversations.folder import Dialogues


class DialogueMixture(ChatMixture):
    """Training rows of conversations.

    Args:
      files, weights, seed, validation: see `Mixture`. The seed also selects which dialogues share a row.
      packed: as many dialogues in a row as fit, each seeing only itself; else one per row.
    """

    kind, unit = "conversation", "bin"

    def __init__(
        self,
        files: Sequence[Dialogues],
        weights: Sequence[float],
        seed: int,
        packed: bool = True,
        validation: float = VALIDATION,
    ):
        def divide(s: int, rows: np.ndarray) -> Bins:
            # equally long dialogues share a bin by chance, not because they were neighbours in the file
            rows = rows[permute(np.arange(len(rows)), len(rows), key(seed, "dialogues", s))]
            bins = _bins(files[s], rows, packed)
            return replace(bins, items=rows[bins.items])

        super().__init__(files, weights, seed, validation, divide)

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """These rows as `pack` makes them, [len(rows) L]."""
        found = (self.dialogues(int(row)) for row in rows)
        return pack([[self.files[s].read(int(i)) for i in numbers] for s, numbers in found], self.length, self.eot)

    def _trained(self, bins: Bins) -> str:
        return f"{len(bins.items):,} dialogues to train on in {len(bins):,} rows"


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
) -> text.HeldOut:
    """The held-out dialogues as batches [batch L]; the last is filled with rows of weight 0.

    When they have more than `limit` tokens, a sample of them (`sample_held_out`). `tokens` are the trained targets by
    file.
    """
    length, eot = agreed(files, DialogueMixture.kind)
    rows, targets = [], []
    for file, numbers in zip(files, sample_held_out(files, limit, validation)):
        read = [file.read(int(i)) for i in numbers]
        targets.append(np.concatenate([np.zeros(0, np.int32), *(ids[1:][mask[1:] > 0] for ids, mask in read)]))
        bins = _bins(file, numbers, packed)
        rows += [[read[i] for i in bins[b]] for b in range(len(bins))]
    batches = []
    for at in range(0, len(rows), batch):
        some = rows[at : at + batch]
        # rows that are there, not empty ones: an attention kernel may answer those with NaN, and NaN * 0 is NaN
        packed_rows = pack(some + [some[-1]] * (batch - len(some)), length, eot)
        packed_rows["weights"][len(some) :] = 0
        batches.append(packed_rows)
    return text.HeldOut(batches, targets)


def _bins(file: Dialogues, numbers: np.ndarray, packed: bool) -> Bins:
    places = file.table["tokens"][numbers] - 1  # see `pack`
    return (plan if packed else alone)(places, file.encoding.length)
