"""The tasks and tables that can be measured, by name, and their settings."""

import importlib
from dataclasses import dataclass
from types import ModuleType

# name -> module of `tasks/`; the report's tables by their numbers
TASKS = {"passkey": "passkey", "entropy": "entropy"}
TABLES = {3: "perplexity", 4: "preferences"}


@dataclass(frozen=True)
class Settings:
    """Settings of all tasks; each task reads those that concern it."""

    text: str = ""  # a file of plain text
    data: tuple[str, ...] = ()  # files of preferences
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768)  # in tokens
    tokens: int = 0  # of the text, read at each length; 0: as many as the greatest length
    depths: int = 5  # positions of the passkey, from the start of a text to its end
    trials: int = 2  # texts for each length and depth
    seed: int = 0

    def __post_init__(self):
        if not self.lengths or min(self.lengths) < 2:
            raise ValueError(f"lengths={self.lengths}: wanted numbers of tokens, at least 2 each")
        if 0 < self.tokens < max(self.lengths):
            raise ValueError(f"tokens={self.tokens} are fewer than the greatest of lengths={self.lengths}")


def find_task(name: str) -> ModuleType:
    """The module of a name in TASKS or a number in TABLES.

    Raises:
      ValueError: there is none.
    """
    module = TABLES.get(int(name)) if name.isdigit() else TASKS.get(name)
    if module is None:
        known = ", ".join([*TASKS, *(f"table {number}" for number in TABLES)])
        raise ValueError(f"no table or task {name!r} (known: {known})")
    return importlib.import_module(f"qwenjax.eval.tasks.{module}")
