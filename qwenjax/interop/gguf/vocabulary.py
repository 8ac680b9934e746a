"""Our tokenizers as the metadata `tokenizer.…` of a GGUF file."""

import tempfile
from typing import Any

from qwenjax.tokenizer.base import Tokenizer
from qwenjax.tokenizer.bpe import merges, spell

NORMAL, CONTROL, UNUSED = 1, 3, 5  # of tokenizer.ggml.token_type


def vocabulary(tokenizer: Tokenizer, rows: int, chat_template: str = "") -> dict[str, Any]:
    """Metadata from which llama.cpp gets our ids for text, except that it does not bring text to Unicode NFC first.

    A vocabulary of ranks becomes byte-level BPE, cut as qwen2; a sentencepiece one stays what it is.

    Args:
      rows: of the embedding; ids from the tokenizer's size on become [PAD…], which stands for nothing.
      chat_template: a Jinja template. A model that has one ends its turns with <|im_end|>, others end texts with
        <|endoftext|>.
    Raises:
      ValueError: more ids than rows, or a token that no merging of two others makes.
    """
    if tokenizer.size > rows:
        raise ValueError(f"the tokenizer {tokenizer.name} has {tokenizer.size} ids, the embedding only {rows} rows")
    facts = _pieces(tokenizer) if tokenizer.file.endswith(".model") else _ranks(tokenizer)
    tokens, types = facts["tokens"], facts["token_type"]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), rows)]
    types += [UNUSED] * (rows - len(types))
    if "scores" in facts:
        facts["scores"] += [0.0] * (rows - len(facts["scores"]))
    facts |= {
        "bos_token_id": tokenizer.eot,
        "eos_token_id": tokenizer.im_end if chat_template else tokenizer.eot,
        "eot_token_id": tokenizer.im_end,
        "padding_token_id": tokenizer.eot,
        "add_bos_token": False,
        "add_eos_token": False,
    }
    metadata = {f"tokenizer.ggml.{key}": value for key, value in facts.items()}
    return metadata | ({"tokenizer.chat_template": chat_template} if chat_template else {})


# ---- ranks ----


def _ranks(tokenizer: Tokenizer) -> dict[str, Any]:
    """Byte-level BPE as GPT-2 writes it: bytes as printable characters, and the pair that each token is merged of."""
    extra: dict[bytes, int] = getattr(tokenizer, "extra", {})
    ranks = {tokenizer.decode_bytes([i]): i for i in range(tokenizer.eot)} | extra
    ids = {index: (spell(token), NORMAL) for token, index in ranks.items()}
    ids |= {index: (surface, CONTROL) for surface, index in tokenizer.special.items()}
    every = [ids.get(i, (f"[PAD{i}]", UNUSED)) for i in range(tokenizer.size)]
    return {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": [token for token, _ in every],
        "token_type": [kind for _, kind in every],
        "merges": [f"{spell(left)} {spell(right)}" for left, right in merges(ranks)],
    }


# ---- sentencepiece ----


def _pieces(tokenizer: Tokenizer) -> dict[str, Any]:
    """Pieces, scores and types of a sentencepiece model."""
    from sentencepiece import sentencepiece_model_pb2

    with tempfile.TemporaryDirectory() as folder:
        model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.save(folder).read_bytes())
    return {
        "model": "t5" if model.trainer_spec.model_type == 1 else "llama",
        "pre": "default",
        "tokens": [piece.piece for piece in model.pieces],
        "scores": [piece.score for piece in model.pieces],
        "token_type": [piece.type for piece in model.pieces],  # GGUF numbers types as sentencepiece does
        "unknown_token_id": model.trainer_spec.unk_id,
        "add_space_prefix": model.normalizer_spec.add_dummy_prefix,
        "remove_extra_whitespaces": model.normalizer_spec.remove_extra_whitespaces,
    }
