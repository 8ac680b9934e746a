"""Prompts: what a policy is to answer, and what a reward may compare its answers with. b prompts, P tokens each."""

from collections.abc import Sequence

import numpy as np

from qwenjax.data.batches.mixture import VALIDATION, ChatMixture, one_each
from qwenjax.data.batches.packing import Bins
from qwenjax.data.batches.text import BatchShapes
from qwenjax.data.conversations.folder import Dialogues


def batch_shapes(batch_size: int, max_prompt_length: int) -> BatchShapes:
    """The arrays of a batch of b prompts.

    `prompts` [b P]: token ids, end of text on padding, which follows the prompt. `lengths` [b]: tokens of each prompt.
    """
    int32 = np.dtype(np.int32)
    return {"prompts": ((batch_size, max_prompt_length), int32), "lengths": ((batch_size,), int32)}


class PromptMixture(ChatMixture):
    """Prompts to train on: see `Mixture`. Equal ones are read as often as they stand there."""

    kind, unit = "prompt", "prompt"

    def __init__(self, files: Sequence[Dialogues], weights: Sequence[float], seed: int, validation: float = VALIDATION):
        super().__init__(files, weights, seed, validation, lambda s, rows: one_each(files[s], rows, self.length))

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """These rows as `batch_shapes` describes; P is the length of the encoding."""
        return self._batch(self._found(rows))

    def texts(self, rows: Sequence[int] | np.ndarray) -> list[dict]:
        """{"prompt": turns, "answer": text or None} of each row."""
        return self._texts(self._found(rows))

    def held_out(self, n: int) -> tuple[dict[str, np.ndarray], list[dict]]:
        """`batch` and `texts` of up to n different prompts that are not trained on: always the same, whatever the seed.

        Files take turns, each in the order of its hashes: a random sample, and a smaller n takes a part of it. A file
        with too few prompts to hold some out (`Dialogues.held_out`) gives of those trained on.
        """
        ranked = []
        for s, file in enumerate(self.files):
            rows = np.flatnonzero(file.held_out(self.validation))
            rows = np.arange(file.rows) if s in self._without else rows
            _, first = np.unique(file.split_key[rows], return_index=True)  # one of equal prompts; sorted by their hash
            ranked += [(rank, s, int(rows[at])) for rank, at in enumerate(first)]
        found = [(s, i) for _, s, i in sorted(ranked)[:n]]
        return self._batch(found), self._texts(found)

    @property
    def _without(self) -> list[int]:
        """Files that hold out no prompt: too few are there, or chance, or `validation`, left none."""
        return [s for s, file in enumerate(self.files) if file.few or not file.held_out(self.validation).any()]

    @property
    def shared(self) -> list[str]:
        """Files of which `held_out` gives prompts that are trained on."""
        return [self.files[s].index["source"] for s in self._without]

    def _found(self, rows: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
        """File and number of the prompt there, of each row."""
        return [(s, int(number)) for s, (number,) in (self.dialogues(int(row)) for row in rows)]

    def _batch(self, found: list[tuple[int, int]]) -> dict[str, np.ndarray]:
        tokens = np.full((len(found), self.length), self.eot, np.int32)
        lengths = np.zeros(len(found), np.int32)
        for r, (s, i) in enumerate(found):
            ids, _ = self.files[s].read(i)
            tokens[r, : len(ids)], lengths[r] = ids, len(ids)
        return {"prompts": tokens, "lengths": lengths}

    def _texts(self, found: list[tuple[int, int]]) -> list[dict]:
        return [self.files[s].text(i) for s, i in found]

    def _trained(self, bins: Bins) -> str:
        return f"{len(bins):,} prompts to train on"
