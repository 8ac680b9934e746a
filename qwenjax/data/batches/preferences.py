"""Batches of preferences, for reward models and DPO: b prompts, k rated responses to each, L tokens per sequence.

A sequence is a prompt and one response; those of a row of the file are a list.
"""

from collections.abc import Sequence

import numpy as np

from qwenjax.data.batches.conversations import VALIDATION, ChatMixture, check_same_encoding, sample_held_out
from qwenjax.data.batches.order import key, permute
from qwenjax.data.batches.text import BatchShapes
from qwenjax.data.conversations.store import ChatDataset


def batch_shapes(batch_size: int, responses: int, seq_len: int) -> BatchShapes:
    """The arrays of a batch of b lists of k responses.

    `tokens` [b k L]: a prompt and a response, then end of text. `positions` [b k L]: from 0; -1 on padding.
    `mask` [b k L]: 1 on the response's tokens and its <|im_end|>. `end` [b k]: where that <|im_end|> is.
    `ratings` [b k]: higher is better. `real` [b k]: False where the last of fewer than k responses is repeated, mask 0.
    """
    lists = (batch_size, responses)
    per_token = {"tokens": np.int32, "positions": np.int32, "mask": np.float32}
    per_response = {"end": np.int32, "ratings": np.float32, "real": np.bool_}
    shapes = {name: ((*lists, seq_len), np.dtype(dtype)) for name, dtype in per_token.items()}
    return shapes | {name: (lists, np.dtype(dtype)) for name, dtype in per_response.items()}


class PreferenceMixture(ChatMixture):
    """Training rows of preferences, each a list of up to `responses` responses: see `ChatMixture`."""

    kind, unit = "preference", "list"

    def __init__(
        self,
        files: Sequence[ChatDataset],
        weights: Sequence[float],
        seed: int,
        validation: float = VALIDATION,
        responses: int = 2,
    ):
        self.k = responses
        self.trained = f"{{rows:,}} lists of up to {responses} responses to train on"
        super().__init__(files, weights, seed, validation)

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """These rows as `pack` makes them. Of a list with more than k responses, every reading draws k anew."""
        lists = []
        for row in rows:
            s, numbers = self.sequences(int(row))
            draw_key = key(self.order.seed, "responses", int(row))
            lists.append((self.files[s], sample_responses(numbers, self.k, draw_key)))
        return pack(lists, self.k, self.seq_len, self.eot)


def sample_responses(numbers: np.ndarray, k: int, draw_key: int) -> np.ndarray:
    """At most k of these numbers, drawn by a key, in their order."""
    if len(numbers) <= k:
        return numbers
    return numbers[np.sort(permute(np.arange(len(numbers)), len(numbers), draw_key)[:k])]


def pack(lists: Sequence[tuple[ChatDataset, np.ndarray]], k: int, seq_len: int, eot: int) -> dict[str, np.ndarray]:
    """Lists, each a file and the numbers of its sequences there, as a batch: see `batch_shapes`."""
    batch = {name: np.zeros(shape, dtype) for name, (shape, dtype) in batch_shapes(len(lists), k, seq_len).items()}
    batch["tokens"][:], batch["positions"][:] = eot, -1
    for r, (file, numbers) in enumerate(lists):
        for j in range(k):
            i = int(numbers[min(j, len(numbers) - 1)])  # no empty row: an attention kernel may answer it with NaN
            ids, mask = file.read(i)
            n = len(ids)
            batch["tokens"][r, j, :n], batch["positions"][r, j, :n] = ids, np.arange(n)
            if j < len(numbers):
                batch["mask"][r, j, :n], batch["end"][r, j] = mask, n - 1
                batch["ratings"][r, j], batch["real"][r, j] = file.table["rating"][i], True
    return batch


def validation_batches(
    files: Sequence[ChatDataset], limit: int, batch_size: int, validation: float = VALIDATION, responses: int = 2
) -> list[dict[str, np.ndarray]]:
    """The held-out lists (`sample_held_out`) in batches with `file`: int32 [b], the number of a list's file.

    Lists without a real response fill the last batch.
    """
    (seq_len, eot), k = check_same_encoding(files, PreferenceMixture.kind), responses
    taken = sample_held_out(files, limit, validation)
    lists = [
        (s, sample_responses(file.sequences_of_row(int(row)), k, key(0, "held out", s, int(row))))
        for s, (file, rows) in enumerate(zip(files, taken))
        for row in rows
    ]
    batches = []
    for at in range(0, len(lists), batch_size):
        part = lists[at : at + batch_size]
        filled = part + [part[-1]] * (batch_size - len(part))
        packed = pack([(files[s], numbers) for s, numbers in filled], k, seq_len, eot)
        for name in ("mask", "end", "ratings", "real"):
            packed[name][len(part) :] = 0
        batches.append(packed | {"file": np.array([s for s, _ in filled], np.int32)})
    return batches
