"""Sentencepiece models of other people (Llama 1 and 2, Mistral), whatever they do to a text."""

from collections.abc import Sequence

from qwenjax.common.processes import cores
from qwenjax.tokenizer.base import Tokenizer, whole_text
from qwenjax.tokenizer.sentencepiece import BLANK


class Pieces(Tokenizer):
    """A sentencepiece .model with its own control tokens.

    Most put a blank before a text, and some bring it to a normal form first, so `decode` gives back what the model
    sees. What they have no piece for, and cannot write as bytes, is U+FFFD.
    """

    file = "tokenizer.model"

    def __init__(self, data: bytes, source: str = "the model"):
        """From the bytes of a .model file; `source` names it in errors.

        Raises:
          ValueError: no sentencepiece model, or one without an end of text.
        """
        self._engine = engine(data, source)
        ids = range(len(self._engine))
        names = [self._engine.id_to_piece(i) for i in ids]
        special = {names[i]: i for i in ids if self._engine.is_control(i)}
        first = self._engine.bos_id()
        pieces = [self._bytes_of(i, name) for i, name in enumerate(names)]
        super().__init__(data, f"pieces-{len(ids)}", pieces, special, [] if first < 0 else [first])

    def _bytes_of(self, index: int, name: str) -> bytes:
        if self._engine.is_byte(index):
            return bytes([int(name[3:5], 16)])  # written <0x41>
        if self._engine.is_unknown(index):
            return "\ufffd".encode()
        return name.encode() if self._engine.is_control(index) else name.replace(BLANK, " ").encode()

    def _normalize(self, text: str) -> str:
        return whole_text(text)  # the engine does the rest

    def _ordinary(self, text: str) -> list[int]:
        return self._engine.encode(text)

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """`encode_ordinary` of each text, on the threads of the engine."""
        return self._engine.encode([self._normalize(t) for t in texts], num_threads=threads or cores())


def engine(data: bytes, source: str):
    """The sentencepiece processor of a model. Raises ValueError if it is none."""
    from sentencepiece import SentencePieceProcessor

    try:
        if not data:
            raise RuntimeError("it is empty")  # which the engine would take for a model without pieces
        return SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise ValueError(f"{source} is not a sentencepiece model: {str(error).splitlines()[0]}") from None
