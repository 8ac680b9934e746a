"""What ends a completion: ids and sequences of ids, matched in the decode loop, and texts, matched on the host."""

from collections.abc import Callable, Sequence

import numpy as np

Stop = int | Sequence[int] | str


class Stops:
    """Stops by kind, from ids, sequences of ids and texts in any order."""

    def __init__(self, stops: Sequence[Stop], decode: Callable[[list[int]], str] | None = None):
        """Raises ValueError for an empty stop, or a text without the function that turns ids into text."""
        ids = [stop for stop in stops if not isinstance(stop, str)]
        self.sequences = [tuple(map(int, stop)) if isinstance(stop, Sequence) else (int(stop),) for stop in ids]
        self.texts, self.decode = [stop for stop in stops if isinstance(stop, str)], decode
        if not all(self.sequences) or not all(self.texts):
            raise ValueError(f"an empty stop would end every text at once: {list(stops)}")
        if self.texts and decode is None:
            raise ValueError(f"stop texts {self.texts} need `decode`, which turns ids into text")

    def matrix(self) -> np.ndarray:
        """[stops, longest] int32, right-aligned; -1 before a shorter one."""
        width = max(map(len, self.sequences), default=1)
        out = np.full((len(self.sequences), width), -1, np.int32)
        for row, sequence in zip(out, self.sequences):
            row[width - len(sequence) :] = sequence
        return out

    def cut(self, ids: list[int], min_new_tokens: int) -> int | None:
        """How many of the ids stay, if a stop has come; else None. A sequence counts only at the end of the ids."""
        ends = [n for s in self.sequences if len(ids) > min_new_tokens and tuple(ids[(n := len(ids) - len(s)) :]) == s]
        return min((n for n in ends if n >= 0), default=None)

    def cut_text(self, ids: list[int], min_new_tokens: int) -> tuple[int, str] | None:
        """(how many ids end before a stop text begins, the text before it), or None where no stop text has come."""
        if not self.texts or len(ids) <= min_new_tokens:
            return None
        text = self.decode(ids)
        start = len(self.decode(ids[:min_new_tokens])) if min_new_tokens else 0
        begins = [at for stop in self.texts if (at := text.find(stop, start)) >= 0]
        return (self._tokens_within(ids, min(begins)), text[: min(begins)]) if begins else None

    def settled(self, ids: list[int]) -> int:
        """How many of the ids no later match can remove: all but what may be the beginning of a stop."""
        held = max((n for s in self.sequences for n in range(1, len(s)) if tuple(ids[-n:]) == s[:n]), default=0)
        settled = len(ids) - held
        if self.texts:
            text = self.decode(ids).rstrip("\ufffd")  # half a character may become part of a stop
            begun = max((n for s in self.texts for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
            settled = min(settled, self._tokens_within(ids, len(text) - begun))
        return settled

    def _tokens_within(self, ids: list[int], end: int) -> int:
        """How many ids lie within the first `end` characters."""
        n = len(ids)
        while n and len(self.decode(ids[:n])) > end:
            n -= 1
        return n
