"""The tokens of one completion as pieces of text that join to the whole."""

from collections.abc import Callable, Sequence

from qwenjax.tokenizer import Tokenizer


class Stream:
    """Emits pieces of text, never half a character. `generate` gives no tokens that a stop may still take back."""

    def __init__(self, tokenizer: Tokenizer, emit: Callable[[str], None]):
        self._decoder, self._emit, self._sent = tokenizer.stream(), emit, 0

    def push(self, ids: Sequence[int]) -> None:
        """Takes the tokens that came, in order."""
        self._send("".join(map(self._decoder.push, ids)))

    def finish(self, text: str) -> None:
        """The completion is `text`: sends what is left of it."""
        self._send(text[self._sent :])

    def _send(self, text: str) -> None:
        if text:
            self._sent += len(text)
            self._emit(text)
