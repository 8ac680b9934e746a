"""The head of a GGUF file (its metadata), and the vocabulary in it: byte-level BPE ('gpt2') or sentencepiece.

The package gguf takes half a minute for the head of a file with 250,000 tokens.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qwenjax.chat_format.chatml import CHAT_TEMPLATE
from qwenjax.common.storage import lfs_hint
from qwenjax.tokenizer import hub
from qwenjax.tokenizer.base import CONTROL_SURFACES, Tokenizer
from qwenjax.tokenizer.bpe import PATTERN

# How text is split before merging, by the value of `tokenizer.ggml.pre`, as in llama.cpp: patterns applied one after
# another, each to the pieces that the previous one left. A file without that key has 'default'.
CL100K = PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
SPLIT_PATTERNS = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    **dict.fromkeys(("gpt-2", "mpt"), (GPT2,)),
    "llama-bpe": (CL100K,),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), (PATTERN,)),
    **dict.fromkeys(("starcoder", "smollm", "refact", "command-r"), (r"\p{N}", GPT2)),
}
WHOLE_WORDS = ("llama-bpe",)  # a word that is a token is never merged from parts; texts begin with a token
# Values of `tokenizer.ggml.token_type`, the same numbers as in sentencepiece
NORMAL, UNKNOWN, CONTROL_TYPE, USER, UNUSED, BYTE = range(1, 7)
MODELS = ("gpt2", "llama", "t5")
# Types of metadata values, with numpy's names for numbers
STRING, ARRAY = 8, 9
NUMBERS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8", 11: "i8", 12: "f8"}


# ---- the head ----


def read_head(path: str | Path) -> dict[str, object]:
    """The metadata, key -> value: numbers, booleans, strings, and lists of these. Raises ValueError for other files."""
    path = Path(path)
    with path.open("rb") as file:
        try:
            return HeadReader(file, path.stat().st_size).metadata()[0]
        except ValueError as error:  # also invalid UTF-8
            raise ValueError(f"{path} is not a GGUF file, or a damaged one: {error}{lfs_hint(path)}") from None


class HeadReader:
    """Reads the head of a GGUF file, value after value, within the size of the file."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.left = file, size

    def metadata(self) -> tuple[dict[str, Any], int]:
        """Key -> value, and the number of tensors, whose descriptions follow. ValueError: not GGUF 2 or 3."""
        magic, version = self.unpack("<4sI")
        if magic != b"GGUF":
            raise ValueError(f"it begins with {magic!r}, not with b'GGUF'")
        if version & 0xFFFF == 0:
            raise ValueError("it is big-endian; the command gguf-convert-endian of the package gguf converts it")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}; only 2 and 3 can be read")
        tensors, keys = self.unpack("<QQ")
        return {self.text(): self.value(*self.unpack("<I")) for _ in range(keys)}, tensors

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError("it ends within a value")
        self.left -= count
        return self.file.read(count)

    def unpack(self, form: str) -> tuple:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def text(self) -> str:
        return self.take(*self.unpack("<Q")).decode("utf-8")

    def value(self, kind: int) -> object:
        return self.values(*self.unpack("<IQ")) if kind == ARRAY else self.values(kind, 1)[0]

    def values(self, kind: int, count: int) -> list:
        if kind == STRING:
            return [self.text() for _ in range(count)]
        if kind not in NUMBERS:
            raise ValueError(f"it has a value of the unknown type {kind}")
        form = np.dtype(NUMBERS[kind]).newbyteorder("<")
        return np.frombuffer(self.take(count * form.itemsize), form).tolist()


# ---- the vocabulary ----


def tokenizer_of(head: Mapping[str, Any], source: str) -> Tokenizer:
    """The tokenizer of a file's metadata (`read_head`, or `files["gguf"]` of an opened checkpoint).

    Raises:
      ValueError: no vocabulary, or one of an unknown form; the message names `source` and what is unknown.
    """
    facts = vocabulary(head, source)
    config = _config(head, facts)
    if facts["model"] == "gpt2":
        data = json.dumps(config, ensure_ascii=False).encode()
        return hub.HubTokenizer(byte_level(facts, source).to_str().encode(), data, source)
    from qwenjax.tokenizer.sentencepiece import read_model

    tokenizer = read_model(sentencepiece(facts, source), source)
    if config.get("chat_template", CHAT_TEMPLATE) != CHAT_TEMPLATE:  # ours is ChatML, which needs no template
        from qwenjax.chat_format.template import ChatTemplate  # jinja2 is only needed for conversations

        tokenizer.chat_template = ChatTemplate(config["chat_template"], hub.named_tokens(config))
    return tokenizer


def _config(head: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a tokenizer_config.json would say: the tokens that begin and end texts, and the chat templates."""
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    tokens, config = facts["tokens"], {}
    for gguf, name in names.items():
        index = facts.get(f"{gguf}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            config[name] = tokens[index]
    template, prefix = head.get("tokenizer.chat_template"), "tokenizer.chat_template."
    more = {key.removeprefix(prefix): value for key, value in head.items() if key.startswith(prefix)}
    if more:
        config["chat_template"] = more | ({"default": template} if template else {})
    elif template:
        config["chat_template"] = template
    return config


def vocabulary(head: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The metadata `tokenizer.ggml.…` without that prefix. Raises ValueError for none, or one of an unknown model."""
    prefix = "tokenizer.ggml."
    facts = {key.removeprefix(prefix): value for key, value in head.items() if key.startswith(prefix)}
    if not facts.get("tokens"):
        raise ValueError(f"{source} holds no vocabulary (no tokenizer.ggml.tokens)")
    if (model := facts.get("model")) not in MODELS:
        raise ValueError(f"{source}: tokenizer.ggml.model={model!r} is unknown; known: {', '.join(map(repr, MODELS))}")
    types = facts.get("token_type", ())
    if len(types) == len(facts["tokens"]):
        size = max((i + 1 for i, kind in enumerate(types) if kind != UNUSED), default=0)  # the rest pads the embedding
        facts |= {key: facts[key][:size] for key in ("tokens", "token_type", "scores") if key in facts}
    return facts


def byte_level(facts: Mapping[str, Any], source: str) -> Any:
    """The tokenizer of the library tokenizers, from byte-level tokens, merges, and the name of a split pattern."""
    library = hub.tokenizers(source)
    pre = facts.get("pre")
    patterns = SPLIT_PATTERNS.get(pre or "default")
    if patterns is None:
        raise ValueError(f"{source}: tokenizer.ggml.pre={pre!r} is unknown; known: {', '.join(SPLIT_PATTERNS)}")
    tokens, types = facts["tokens"], facts.get("token_type", ())
    try:
        model = library.models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ", 1)) for merge in facts.get("merges", ())],
            ignore_merges=pre in WHOLE_WORDS,
        )
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{source}: its tokens and merges do not fit together: {error}") from None
    tokenizer = library.Tokenizer(model)
    split, byte_level_step = library.pre_tokenizers.Split, library.pre_tokenizers.ByteLevel(False, use_regex=False)
    steps = [split(library.Regex(pattern), "isolated") for pattern in patterns]
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([*steps, byte_level_step])
    tokenizer.decoder = library.decoders.ByteLevel()
    for kinds, special in (((USER,), False), ((CONTROL_TYPE, UNKNOWN), True)):  # both are searched before splitting
        added = [t for t, kind in zip(tokens, types) if kind in kinds and (special or t not in CONTROL_SURFACES)]
        added += [t for t, kind in zip(tokens, types) if t in CONTROL_SURFACES and kind not in kinds] * special
        tokenizer.add_tokens([library.AddedToken(token, special=special, normalized=False) for token in added])
    first = facts.get("bos_token_id")
    if facts.get("add_bos_token", pre in WHOLE_WORDS) and first is not None:
        tokenizer.post_processor = library.processors.TemplateProcessing(
            single=f"{tokens[first]} $A", special_tokens=[(tokens[first], first)]
        )
    return tokenizer


def sentencepiece(facts: Mapping[str, Any], source: str) -> bytes:
    """The bytes of a sentencepiece model, rebuilt from its pieces, scores and types ('t5' means unigram)."""
    from sentencepiece import sentencepiece_model_pb2

    tokens, scores, types = facts["tokens"], facts.get("scores", ()), facts.get("token_type", ())
    if not len(tokens) == len(scores) == len(types):
        raise ValueError(
            f"{source}: {len(tokens)} tokens, {len(scores)} scores and {len(types)} types; wanted one of each per token"
        )
    unigram = facts["model"] == "t5"
    unknown = facts.get("unknown_token_id", types.index(UNKNOWN) if UNKNOWN in types else 0)
    model = sentencepiece_model_pb2.ModelProto()
    for number, (token, score, kind) in enumerate(zip(tokens, scores, types)):
        if kind == UNKNOWN or number == unknown:  # exactly one; padding tokens may have this type too
            kind = UNKNOWN if number == unknown else UNUSED
        elif kind != CONTROL_TYPE and token in CONTROL_SURFACES:  # else plain text could produce them
            kind = CONTROL_TYPE
        model.pieces.add(piece=token, score=score, type=kind)
    first = facts.get("bos_token_id", -1) if facts.get("add_bos_token", not unigram) else -1
    model.trainer_spec.model_type = 1 if unigram else 2
    model.trainer_spec.byte_fallback = BYTE in types
    model.trainer_spec.bos_id = first
    model.trainer_spec.bos_piece = tokens[first] if first >= 0 else ""
    model.normalizer_spec.precompiled_charsmap = bytes(facts.get("precompiled_charsmap", b""))
    model.normalizer_spec.add_dummy_prefix = facts.get("add_space_prefix", True)
    model.normalizer_spec.remove_extra_whitespaces = facts.get("remove_extra_whitespaces", False)
    return model.SerializeToString()


def hub_facts(tokenizer: hub.HubTokenizer) -> dict[str, Any]:
    """The inverse of `byte_level`, with a token for each id. ValueError: GGUF has no name for the split pattern."""
    facts = tokenizer.facts
    model, steps = facts["model"], facts["pre_tokenizer"] or {}
    if model["type"] == "BPE" and steps.get("type") == "Metaspace" and facts["normalizer"] is None:
        return _metaspace_facts(facts, tokenizer.size)
    patterns = _split_patterns(steps)
    whole_words = bool(model.get("ignore_merges"))
    names = [name for name, own in SPLIT_PATTERNS.items() if own == patterns and (name in WHOLE_WORDS) == whole_words]
    if model["type"] != "BPE" or facts["decoder"]["type"] != "ByteLevel" or not names:
        raise ValueError(f"the vocabulary {tokenizer.name} splits text in a way that has no name in GGUF")
    kinds = {index: (token, NORMAL) for token, index in model["vocab"].items()}
    for token in facts["added_tokens"]:
        kinds[token["id"]] = (token["content"], CONTROL_TYPE if token["special"] else USER)
    tokens, types = zip(*(kinds.get(i, (f"[PAD{i}]", UNUSED)) for i in range(tokenizer.size)))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {"model": "gpt2", "pre": names[0], "tokens": [*tokens], "token_type": [*types], "merges": merges}


def _metaspace_facts(facts: dict[str, Any], size: int) -> dict[str, Any]:
    """Facts of a sentencepiece vocabulary: merges follow the order of ids, which the scores say."""
    pieces = {index: token for token, index in facts["model"]["vocab"].items()}
    added = {token["id"]: token for token in facts["added_tokens"]}
    tokens, types = [], []
    for i in range(size):
        token = added[i]["content"] if i in added else pieces.get(i, f"[PAD{i}]")
        tokens.append(token)
        is_byte = len(token) == 6 and token.startswith("<0x")
        kind = UNKNOWN if token == "<unk>" else BYTE if is_byte else NORMAL if i in pieces else UNUSED
        types.append((CONTROL_TYPE if added[i]["special"] else USER) if i in added and kind != UNKNOWN else kind)
    scores = [-float(i) for i in range(size)]
    prefix = facts["pre_tokenizer"]["prepend_scheme"] != "never"
    more = {"unknown_token_id": tokens.index("<unk>")} if "<unk>" in tokens else {}
    more |= {"add_space_prefix": prefix, "remove_extra_whitespaces": False}
    return {"model": "llama", "pre": "default", "tokens": tokens, "scores": scores, "token_type": types, **more}


def _split_patterns(steps: dict | None) -> tuple[str, ...]:
    """The patterns by which a tokenizer.json splits text, as in `SPLIT_PATTERNS`; () if it splits in another way."""
    patterns = []
    for step in (steps or {}).get("pretokenizers", [steps]):
        kind = (step or {}).get("type")
        if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            patterns.append(step["pattern"].get("Regex", ""))
        elif kind == "Digits" and step["individual_digits"]:
            patterns.append(r"\p{N}")
        elif kind == "ByteLevel" and not step["add_prefix_space"]:
            patterns += [GPT2] * step["use_regex"]
        else:
            return ()
    return tuple(patterns)
