"""Batches of prompts, for PPO, GRPO and REINFORCE: b prompts of P tokens, and the reference answers of rewards."""

from collections.abc import Sequence

import numpy as np

from qwenjax.data.batches.conversations import ChatMixture
from qwenjax.data.batches.text import BatchShapes
from qwenjax.data.conversations.store import ChatDataset


def batch_shapes(batch_size: int, max_prompt_length: int) -> BatchShapes:
    """`prompts` [b P]: token ids, then end of text. `lengths` [b]: tokens of each prompt."""
    int32 = np.dtype(np.int32)
    return {"prompts": ((batch_size, max_prompt_length), int32), "lengths": ((batch_size,), int32)}


class PromptMixture(ChatMixture):
    """Prompts to train on: see `ChatMixture`. A prompt that is in a file twice is read twice per epoch."""

    kind, unit, trained = "prompt", "prompt", "{rows:,} prompts to train on"

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """These rows as `batch_shapes` describes; P is the length of the encoding."""
        return self._batch(self._prompts(rows))

    def texts(self, rows: Sequence[int] | np.ndarray) -> list[dict]:
        """{"prompt": turns, "answer": text or None} of each row."""
        return [self.files[s].text(i) for s, i in self._prompts(rows)]

    def held_out(self, n: int) -> tuple[dict[str, np.ndarray], list[dict]]:
        """`batch` and `texts` of up to n different held-out prompts; the same ones for every seed.

        Files take turns, each in the order of its hashes. One that holds out no prompt gives prompts to train on.
        """
        ranked = []
        for s, file in enumerate(self.files):
            rows = np.arange(file.num_rows)
            rows = rows if self._holds_out_none(file) else rows[file.held_out(self.validation)]
            _, first = np.unique(file.split_key[rows], return_index=True)  # one of equal prompts; sorted by their hash
            ranked += [(rank, s, int(rows[at])) for rank, at in enumerate(first)]
        prompts = [(s, i) for _, s, i in sorted(ranked)[:n]]
        return self._batch(prompts), [self.files[s].text(i) for s, i in prompts]

    @property
    def files_without_held_out(self) -> list[str]:
        """Files of which `held_out` gives prompts that are trained on."""
        return [file.index["source"] for file in self.files if self._holds_out_none(file)]

    def _holds_out_none(self, file: ChatDataset) -> bool:
        """Whether a file holds out no prompt: it has too few, or `validation` or chance left none."""
        return file.too_few_prompts or not file.held_out(self.validation).any()

    def _prompts(self, rows: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
        """File of each row, and the number of the prompt there."""
        return [(s, int(number)) for s, (number,) in (self.sequences(int(row)) for row in rows)]

    def _batch(self, prompts: list[tuple[int, int]]) -> dict[str, np.ndarray]:
        tokens = np.full((len(prompts), self.seq_len), self.eot, np.int32)
        lengths = np.zeros(len(prompts), np.int32)
        for r, (s, i) in enumerate(prompts):
            ids, _ = self.files[s].read(i)
            tokens[r, : len(ids)], lengths[r] = ids, len(ids)
        return {"prompts": tokens, "lengths": lengths}
