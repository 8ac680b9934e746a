"""Dialogues for supervised fine-tuning: encoded once with their loss masks (`encode`, `store`), packed into the rows
that a training loop reads (`rows`).

    files   = [prepare(path, tokenizer, Encoding("assistant", 2048, "turns"), "data")]
    mixture = DialogueMixture(files, [1.0], seed=0)
    with stream.Batches(mixture.batch, batch=128, rows=range(128), next_row=0) as batches:
        next_row, batch = next(batches)
"""

from qwenjax.data.dialogues.encode import TRUNCATIONS, Encoding
from qwenjax.data.dialogues.rows import DialogueMixture, validation_rows
from qwenjax.data.dialogues.store import Dialogues, prepare

__all__ = ["TRUNCATIONS", "DialogueMixture", "Dialogues", "Encoding", "prepare", "validation_rows"]
