"""Tokenizers (report §2.2): text to ids and back, and vocabularies made and compared.

`load_tokenizer` gives a `Tokenizer` for whatever lies at a path. Importing this package loads no tokenizer engine.

base            the interface · load: from a name or path to one of the kinds
bpe             the published Qwen vocabulary, ids identical · extended_bpe: with extra tokens
sentencepiece   vocabularies trained here · foreign_sentencepiece, hub, gguf: those of other models
vocabulary/     train, extend, compare; its wall: it may read `sources`, the rest of the package may not
commands/       python -m qwenjax.tokenizer
"""

from qwenjax.tokenizer.base import StreamDecoder, Tokenizer
from qwenjax.tokenizer.load import load_tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "load_tokenizer"]
