"""Our tokenizers in the files that readers of each layout expect.

The Qwen-v1 layout has the ranks themselves. The qwen2 layout has a tokenizer.json, in which every token of several
bytes is the merge of two others, and our own file; some ids are compared before they are written.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from qwenjax.chat_format.chatml import CHAT_TEMPLATE
from qwenjax.common.storage import write_json
from qwenjax.config import ModelConfig
from qwenjax.tokenizer import hub
from qwenjax.tokenizer.base import Tokenizer
from qwenjax.tokenizer.bpe import PATTERN, QwenBPE, merges, spell
from qwenjax.tokenizer.hub import HubTokenizer
from qwenjax.tokenizer.sentencepiece import SentencePiece

_PROBES = (
    "It's 3.14159 o'clock; SHE'LL say “hello”.\n\n\tif x[0] != 7:  # 100%\r\n   return 'ok'  \n \n",
    "天地玄黄，宇宙洪荒。１２３ Ⅷ ½ हिन्दी ภาษาไทย 한국어 ümlaut 👩\u200d👧🏽\u3000\xa0 x\u0301 ▁ \x00 ё",
)


def write_tokenizer(
    tokenizer: Tokenizer, folder: Path, layout: str, config: ModelConfig, chat: bool = True
) -> list[str]:
    """Writes the tokenizer's files, and returns sentences about what a reader needs in addition.

    Raises:
      ValueError: more ids than the embedding has rows, a kind that the layout does not have, or a tokenizer that its
        files would not reproduce exactly.
    """
    if tokenizer.ordinary_size > config.vocab:
        raise ValueError(
            f"the tokenizer {tokenizer.name} has {tokenizer.size} ids, the model's embedding only {config.vocab} rows: "
            "they do not belong together"
        )
    if layout == "qwen2":
        _write_qwen2(tokenizer, folder, config, chat)
        return []
    if not isinstance(tokenizer, QwenBPE):
        raise ValueError(
            f"the Qwen-v1 layout needs a qwen.tiktoken, which {tokenizer.name} is not; use --to=qwen2 (layout='qwen2')"
        )
    tokenizer.save(folder)
    values = {
        "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
        "model_max_length": config.context,
        "tokenizer_class": "QWenTokenizer",
    }
    write_json(folder / "tokenizer_config.json", values)
    return [
        "the files name the released code (modeling_qwen.py, configuration_qwen.py, tokenization_qwen.py), which "
        "is not written: copy it from a release to use the checkpoint with transformers"
    ]


def generation_config(tokenizer: Tokenizer, layout: str, config: ModelConfig, chat: bool = True) -> dict[str, Any]:
    """generation_config.json as the releases have it (docs/report.md, Generation defaults)."""
    values: dict[str, Any] = {"do_sample": True, "eos_token_id": tokenizer.eot, "pad_token_id": tokenizer.eot}
    values |= {"top_k": 0, "top_p": 0.8, "max_new_tokens": 512, "transformers_version": "4.32.0"}
    if chat:
        values["repetition_penalty"] = 1.1
    if layout == "qwen2":
        stops = [*dict.fromkeys([tokenizer.turn_end, tokenizer.eot])] if chat else tokenizer.eot
        return values | {"bos_token_id": tokenizer.eot, "eos_token_id": stops}
    if chat:
        return values | {"chat_format": "chatml", "max_window_size": min(6144, config.context)}
    return values | {"chat_format": "raw", "stop_words_ids": [[tokenizer.eot]]}


def _write_qwen2(tokenizer: Tokenizer, folder: Path, config: ModelConfig, chat: bool) -> None:
    if isinstance(tokenizer, HubTokenizer):  # its vocabulary is written unchanged
        tokenizer.save(folder)
        engine = hub.load_engine((folder / "tokenizer.json").read_bytes(), tokenizer.name)
        values = _hub_values(tokenizer, config)
    elif isinstance(tokenizer, QwenBPE | SentencePiece):
        hub.tokenizers("a written tokenizer.json")
        engine = _byte_level(tokenizer) if isinstance(tokenizer, QwenBPE) else _pieces(tokenizer)
        values = _own_values(tokenizer, config, chat)
        _check_ids(engine, tokenizer)
        tokenizer.save(folder)
        engine.save(str(folder / "tokenizer.json"))
    else:
        raise ValueError(f"{type(tokenizer).__name__} vocabularies are not written as tokenizer.json")
    if config.qkv_bias and not config.qk_norm and not _splits_as_qwen2(engine):
        # transformers 5 reads every vocabulary of this model_type as Qwen2's, unless the files name another class
        values["auto_map"] = {"AutoTokenizer": ["tokenization_qwenjax.PreTrainedTokenizerFast", None]}
        (folder / "tokenization_qwenjax.py").write_text("from transformers import PreTrainedTokenizerFast  # noqa\n")
    write_json(folder / "tokenizer_config.json", values)


def _check_ids(engine: Any, tokenizer: Tokenizer) -> None:
    """Adds the control tokens. Raises ValueError if the engine gives other ids than the tokenizer."""
    from tokenizers import AddedToken

    surfaces = sorted(tokenizer.special, key=tokenizer.special.__getitem__)
    engine.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in surfaces])
    for text in (*_PROBES, *surfaces[:3]):
        got, wanted = engine.encode(text, add_special_tokens=False).ids, tokenizer.encode(text)
        if got != wanted:
            raise ValueError(f"{tokenizer.name} cannot be written as tokenizer.json: {text!r} would become {got[:8]} …")


def _own_values(tokenizer: Tokenizer, config: ModelConfig, chat: bool) -> dict[str, Any]:
    """tokenizer_config.json of a vocabulary trained here, or of the published one."""
    surface = {index: surface for surface, index in tokenizer.special.items()}
    end, first = surface[tokenizer.eot], tokenizer.prefix
    values = {
        "add_prefix_space": False,
        "bos_token": surface[first[0]] if first else None,
        "clean_up_tokenization_spaces": False,
        "eos_token": surface[tokenizer.im_end] if chat else end,
        "model_max_length": config.context,
        "pad_token": end,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    return values | ({"chat_template": CHAT_TEMPLATE} if chat else {})


def _hub_values(tokenizer: HubTokenizer, config: ModelConfig) -> dict[str, Any]:
    """tokenizer_config.json of a vocabulary that came in the files of a hub or of a GGUF."""
    surface = {index: surface for surface, index in tokenizer.added.items()}
    named = {"eos_token": surface[tokenizer.eot], "pad_token": surface[tokenizer.eot]}
    named |= {"bos_token": surface[tokenizer.prefix[0]]} if tokenizer.prefix else {}
    plain = {"clean_up_tokenization_spaces": False, "model_max_length": config.context}
    return {**named, **plain, "tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.config}


def _splits_as_qwen2(engine: Any) -> bool:
    """Whether the steps before the merges are those of transformers' Qwen2Tokenizer."""
    facts, qwen2 = json.loads(engine.to_str()), json.loads(_qwen2_engine({}, []).to_str())
    wanted, got = ([x["normalizer"], x["pre_tokenizer"], x["model"]["byte_fallback"]] for x in (qwen2, facts))
    ignore = '"trim_offsets": true', '"trim_offsets": false'
    return json.dumps(wanted).replace(*ignore) == json.dumps(got).replace(*ignore)


def _byte_level(tokenizer: QwenBPE) -> Any:
    """Ranks as byte-level BPE: bytes are spelled as printable characters, as in GPT-2."""
    vocab = {spell(token): i for token, i in tokenizer.ranks.items()}
    # control tokens between the ranks and extra tokens keep their ids only if they are in the table
    vocab |= {surface: i for surface, i in tokenizer.special.items() if surface not in vocab}
    pairs = [(spell(left), spell(right)) for left, right in merges(tokenizer.ranks)]
    return _qwen2_engine(vocab, pairs)


def _qwen2_engine(vocab: dict[str, int], pairs: list[tuple[str, str]]) -> Any:
    """Byte-level BPE that normalises and splits as Qwen2's."""
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers

    engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, pairs))
    engine.normalizer = normalizers.NFC()
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    return engine


def sentencepiece_model(tokenizer: Tokenizer) -> Any:
    """The ModelProto of a sentencepiece vocabulary."""
    from sentencepiece import sentencepiece_model_pb2

    with tempfile.TemporaryDirectory() as folder:
        return sentencepiece_model_pb2.ModelProto.FromString(tokenizer.save(folder).read_bytes())


def _pieces(tokenizer: SentencePiece) -> Any:
    """A sentencepiece BPE: merges of characters, unknown ones as bytes. Blanks are not replaced by U+2581."""
    import tokenizers
    from tokenizers import decoders

    model = sentencepiece_model(tokenizer)
    kinds = model.SentencePiece
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise ValueError(f"{tokenizer.name} is a unigram vocabulary; only BPE can be written as tokenizer.json exactly")
    pieces = [p.piece.replace("▁", " ") if p.type == kinds.NORMAL else p.piece for p in model.pieces]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    learned = [i for i, piece in enumerate(model.pieces) if piece.type == kinds.NORMAL]
    learned.sort(key=lambda i: -model.pieces[i].score)
    ranks = {pieces[i]: rank for rank, i in enumerate(learned)}
    unknown = next(piece.piece for piece in model.pieces if piece.type == kinds.UNKNOWN)
    engine = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, merges(ranks), unk_token=unknown, fuse_unk=False, byte_fallback=True)
    )
    engine.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return engine
