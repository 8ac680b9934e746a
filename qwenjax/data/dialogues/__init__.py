"""Dialogues for alignment: encoded once with their loss masks (`encode`, `store`, `folder`), then read as a training
loop wants them (`mixture`): conversations packed into rows (`rows`), preferences as lists (`lists`), or `prompts`.

    files   = [prepare(path, tokenizer, Encoding("assistant", 2048, "turns"), "data")]
    mixture = DialogueMixture(files, [1.0], seed=0)
    with stream.Batches(mixture.batch, batch=128, rows=range(128), next_row=0) as batches:
        next_row, batch = next(batches)

With `Encoding(kind="preference")` and `ListMixture`, or `Encoding(kind="prompt")` and `PromptMixture`, the same.
"""

from qwenjax.data.dialogues.encode import TRUNCATIONS, Encoding
from qwenjax.data.dialogues.folder import Dialogues
from qwenjax.data.dialogues.lists import ListMixture, validation_lists
from qwenjax.data.dialogues.prompts import PromptMixture
from qwenjax.data.dialogues.rows import DialogueMixture, validation_rows
from qwenjax.data.dialogues.store import prepare

__all__ = [
    "TRUNCATIONS",
    "DialogueMixture",
    "Dialogues",
    "Encoding",
    "ListMixture",
    "PromptMixture",
    "prepare",
    "validation_lists",
    "validation_rows",
]
