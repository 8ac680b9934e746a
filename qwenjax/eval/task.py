"""What there is to measure, by name, and how it is asked for."""

import importlib
from dataclasses import dataclass
from types import ModuleType

# name -> module of this room with `MODEL`, `measure`, `table` and `draw`; the report's tables by their numbers
TASKS = {"passkey": "passkey", "entropy": "entropy"}
TABLES = {3: "perplexity", 4: "preferences"}


@dataclass(frozen=True)
class Settings:
    """What a user may choose; each task takes what concerns it."""

    text: str = ""  # a file of plain text
    data: tuple[str, ...] = ()  # files of preferences
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768)  # in tokens
    tokens: int = 0  # of the text that are read at each length; 0: as many as the greatest length
    depths: int = 5  # places in a text, from its beginning to its end
    trials: int = 2  # texts for each length and depth
    seed: int = 0

    def __post_init__(self):
        if not self.lengths or min(self.lengths) < 2:
            raise ValueError(f"lengths={self.lengths}: wanted numbers of tokens, at least 2 each")
        if 0 < self.tokens < max(self.lengths):
            raise ValueError(f"tokens={self.tokens} are fewer than the greatest of lengths={self.lengths}")


def task(name: str) -> ModuleType:
    """The module of a name in TASKS or a number in TABLES.

    Raises:
      ValueError: there is none.
    """
    found = TABLES.get(int(name)) if name.isdigit() else TASKS.get(name)
    if found is None:
        known = ", ".join([*TASKS, *(f"table {number}" for number in TABLES)])
        raise ValueError(f"nothing to measure is called {name!r}; known: {known}")
    return importlib.import_module(f"qwenjax.eval.tasks.{found}")
