"""Text as it is generated: never half a character."""

from collections.abc import Callable, Sequence

from qwenjax.tokenizer import Tokenizer


class Stream:
    """Turns the tokens of one completion into pieces of text that join to the whole.

    `generate` gives no tokens that a stop may still take back.
    """

    def __init__(self, tokenizer: Tokenizer, emit: Callable[[str], None]):
        """`emit` is given every piece."""
        self._decoder, self._emit, self._sent = tokenizer.stream(), emit, 0

    def push(self, ids: Sequence[int]) -> None:
        """Tokens that came, in order."""
        self._give("".join(map(self._decoder.push, ids)))

    def finish(self, text: str) -> None:
        """The completion is `text`: gives what is left of it."""
        self._give(text[self._sent :])

    def _give(self, text: str) -> None:
        if text:
            self._sent += len(text)
            self._emit(text)
