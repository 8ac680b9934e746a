"""Lists of rated responses: what reward models and DPO read. b lists, k responses each, L tokens per response.

A list is a row of a file of preferences. `objectives.preference` says what becomes of it.
"""

from collections.abc import Sequence

import numpy as np

from qwenjax.data.batches.mixture import VALIDATION, ChatMixture, agreed, one_each, sample_held_out
from qwenjax.data.batches.order import key, permute
from qwenjax.data.batches.packing import Bins
from qwenjax.data.batches.text import BatchShapes
from qwenjax.data.conversations.folder import Dialogues


def batch_shapes(batch_size: int, responses: int, seq_len: int) -> BatchShapes:
    """The arrays of a batch of b lists, each of k responses to one prompt.

    `tokens` [b k L]: prompt and response; end of text on padding. `positions` [b k L]: from 0; -1 on padding.
    `mask` [b k L]: 1 on the response's tokens and its <|im_end|>. `end` [b k]: the position of that <|im_end|>.
    `ratings` [b k]: higher is better. `real` [b k]: False where a list has fewer than k responses. There its last
    response is repeated (an attention kernel may answer an empty row with NaN), with mask, end and rating 0.
    """
    b, k, length = batch_size, responses, seq_len
    shapes = {
        "tokens": ((b, k, length), np.int32),
        "positions": ((b, k, length), np.int32),
        "mask": ((b, k, length), np.float32),
        "end": ((b, k), np.int32),
        "ratings": ((b, k), np.float32),
        "real": ((b, k), np.bool_),
    }
    return {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in shapes.items()}


class ListMixture(ChatMixture):
    """Training rows of preferences: see `Mixture`."""

    kind, unit = "preference", "list"

    def __init__(
        self,
        files: Sequence[Dialogues],
        weights: Sequence[float],
        seed: int,
        validation: float = VALIDATION,
        responses: int = 2,
    ):
        self.k, self.seed = responses, seed
        super().__init__(
            files, weights, seed, validation, lambda s, rows: one_each(files[s], rows, self.length, self.k)
        )

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """These rows as `pack_lists` makes them. Of a list with more than k responses, k others at each reading."""
        lists = []
        for row in rows:
            s, numbers = self.dialogues(int(row))
            lists.append((self.files[s], some_of(numbers, self.k, key(self.seed, "responses", int(row)))))
        return pack_lists(lists, self.k, self.length, self.eot)

    def _trained(self, bins: Bins) -> str:
        return f"{len(bins):,} lists of up to {self.k} responses to train on"


def some_of(numbers: np.ndarray, k: int, draw: int) -> np.ndarray:
    """At most k of these, drawn by a key, in their order."""
    if len(numbers) <= k:
        return numbers
    return numbers[np.sort(permute(np.arange(len(numbers)), len(numbers), draw)[:k])]


def pack_lists(lists: Sequence[tuple[Dialogues, np.ndarray]], k: int, length: int, eot: int) -> dict[str, np.ndarray]:
    """Lists, each a file and the numbers of its dialogues there, as a batch.

    Returns:
      `tokens`: int32 [b k L], `eot` behind a response. `positions`: int32 [b k L], from 0; -1 on padding. `mask`:
      float32 [b k L], 1 on the response's tokens and its <|im_end|>. `end`: int32 [b k], where that one stands.
      `ratings`: float32 [b k], higher is better. `real`: bool [b k], False where a list has fewer than k responses:
      there the tokens and positions of its last one stand again (an attention kernel may answer an empty row with
      NaN), and mask, end and rating are 0.
    """
    shape = (len(lists), k)
    batch = {"tokens": np.full((*shape, length), eot, np.int32), "positions": np.full((*shape, length), -1, np.int32)}
    batch |= {"mask": np.zeros((*shape, length), np.float32), "end": np.zeros(shape, np.int32)}
    batch |= {"ratings": np.zeros(shape, np.float32), "real": np.zeros(shape, bool)}
    for r, (file, numbers) in enumerate(lists):
        for j in range(k):
            i = int(numbers[min(j, len(numbers) - 1)])
            ids, mask = file.read(i)
            n = len(ids)
            batch["tokens"][r, j, :n], batch["positions"][r, j, :n] = ids, np.arange(n)
            if j < len(numbers):
                batch["mask"][r, j, :n], batch["end"][r, j] = mask, n - 1
                batch["ratings"][r, j], batch["real"][r, j] = file.table["rating"][i], True
    return batch


def validation_lists(
    files: Sequence[Dialogues], limit: int, batch: int, validation: float = VALIDATION, responses: int = 2
) -> list[dict[str, np.ndarray]]:
    """The held-out lists as batches of `batch`, each once, with `file`: int32 [batch], the number of its file.

    When they have more than `limit` tokens, a sample of them (`sample_held_out`). The last batch is filled with lists
    of which no response is real.
    """
    (length, eot), k = agreed(files, ListMixture.kind), responses
    taken = sample_held_out(files, limit, validation)
    lists = [
        (s, some_of(file.of_row(int(row)), k, key(0, "held out", s, int(row))))
        for s, (file, rows) in enumerate(zip(files, taken))
        for row in rows
    ]
    batches = []
    for at in range(0, len(lists), batch):
        some = lists[at : at + batch]
        filled = some + [some[-1]] * (batch - len(some))
        packed = pack_lists([(files[s], numbers) for s, numbers in filled], k, length, eot)
        for name in ("mask", "end", "ratings", "real"):
            packed[name][len(some) :] = 0
        batches.append(packed | {"file": np.array([s for s, _ in filled], np.int32)})
    return batches
