"""Tokenizers (report §2.2): text to ids and back; training and comparing vocabularies.

`load_tokenizer` gives the `Tokenizer` of a name or path. Importing this package loads no tokenizer engine.

base           the interface
load           from a name or path to a tokenizer
bpe            the published Qwen vocabulary with identical ids, others like it, and extra tokens
sentencepiece  vocabularies trained here, and those of other models
hub, gguf      vocabularies of other models: tokenizer.json, and GGUF files with their metadata
vocabulary/    training, extending and comparing vocabularies; only this folder may read `sources`
commands/      python -m qwenjax.tokenizer
"""

from qwenjax.tokenizer.base import StreamDecoder, Tokenizer
from qwenjax.tokenizer.load import load_tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "load_tokenizer"]
