"""The tokenizer files of a hub folder, put together as transformers puts them together.

A folder has a tokenizer.json, a tokenizer.model, or a vocab.json with merges.txt; beside it added_tokens.json,
special_tokens_map.json and tokenizer_config.json add tokens, change their flags, and say what begins and ends a text.
All of it becomes one tokenizer.json and one tokenizer_config.json, which a `HubTokenizer` keeps.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwenjax.common.storage import read_json
from qwenjax.tokenizer.base import CONTROL_SURFACES, TEMPLATE_FILE
from qwenjax.tokenizer.bpe import PATTERN
from qwenjax.tokenizer.hub import HubTokenizer, named_tokens, surface_of

JINJA, MORE_JINJA = "chat_template.jinja", "additional_chat_templates"
# The tokens that a class of transformers has where no file names them
DEFAULTS = {
    "Qwen2Tokenizer": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
}


def read_folder(folder: Path) -> HubTokenizer:
    """The tokenizer of a hub folder, with its chat template.

    Raises:
      ValueError: no vocabulary, a file that is not what its name says, or tokens that contradict each other.
    """
    config = _config(folder)
    kind = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    vocabulary = folder / "tokenizer.json"
    data = vocabulary.read_bytes() if vocabulary.is_file() else None
    if data is not None:
        facts = read_json(vocabulary)
    elif (model := folder / "tokenizer.model").is_file():
        facts, kind = _of_sentencepiece(model), kind or "LlamaTokenizer"
    else:
        facts = _of_merges(folder)
    source = str(vocabulary if data is not None else folder)
    config = {**DEFAULTS.get(kind, {}), **config}
    changed = kind == "LlamaTokenizer" and _as_llama(facts, config)
    changed |= _add_tokens(facts, folder, config, source)
    if data is None:  # else transformers ignores these flags
        _set_ends(facts, config)
    if changed or data is None:
        data = json.dumps(facts, ensure_ascii=False).encode()
    return HubTokenizer(data, json.dumps(config, ensure_ascii=False).encode(), source)


def _config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the tokens of special_tokens_map.json and the templates of the .jinja files."""
    config = read_json(folder / TEMPLATE_FILE) if (folder / TEMPLATE_FILE).is_file() else {}
    if (folder / "special_tokens_map.json").is_file():
        config = {**read_json(folder / "special_tokens_map.json"), **config}
    own = {"default": folder / JINJA} if (folder / JINJA).is_file() else {}
    more = sorted((folder / MORE_JINJA).glob("*.jinja"))
    if more:
        own |= {file.stem: file for file in more}
    if own:  # they beat all that tokenizer_config.json says
        texts = {name: file.read_text(encoding="utf-8") for name, file in own.items()}
        config["chat_template"] = texts if more else texts["default"]
    return config


def _add_tokens(facts: dict, folder: Path, config: Mapping[str, Any], source: str) -> bool:
    """Adds the tokens of all files to `added_tokens`, and marks control tokens as such. Returns whether it changed."""
    before = json.dumps(facts["added_tokens"], sort_keys=True)
    added = {token["content"]: token for token in facts["added_tokens"]}
    vocab = facts["model"]["vocab"]
    ids = dict(vocab) if isinstance(vocab, dict) else {token: i for i, (token, _) in enumerate(vocab)}
    ids |= {content: token["id"] for content, token in added.items()}
    others: dict[str, dict[str, Any]] = {}
    for index, token in (config.get("added_tokens_decoder") or {}).items():
        others[token["content"]] = {"normalized": not token.get("special", False), **token, "id": int(index)}
    if (folder / "added_tokens.json").is_file():
        for content, index in read_json(folder / "added_tokens.json").items():
            others.setdefault(content, {"id": index})
    named = {*named_tokens(config).values()}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = config.get(key) or ()
        named |= {surface_of(token) for token in (listed.values() if isinstance(listed, dict) else listed)} - {None}
    for content in named:
        others.setdefault(content, {"special": True})
    for content, fields in others.items():
        index = ids.get(content, fields.get("id", max(ids.values(), default=-1) + 1))
        if fields.get("id", index) != index:
            raise ValueError(
                f"{source}: the token {content!r} has the id {index} in one file and {fields['id']} in another"
            )
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        known = {key: value for key, value in fields.items() if key in plain}
        added[content] = {**plain, **added.get(content, {}), **known, "id": index, "content": content}
        ids[content] = index
    for content, token in added.items():
        token["special"] = token["special"] or content in named or content in CONTROL_SURFACES
    facts["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])
    return json.dumps(facts["added_tokens"], sort_keys=True) != before


def _set_ends(facts: dict, config: Mapping[str, Any]) -> None:
    """What stands before and after a text by `add_bos_token` and `add_eos_token`."""
    named, ids = named_tokens(config), {token["content"]: token["id"] for token in facts["added_tokens"]}
    first, last = (
        [named[name]] if config.get(f"add_{name}") and named.get(name) in ids else []
        for name in ("bos_token", "eos_token")
    )
    around = [{"SpecialToken": {"id": surface, "type_id": 0}} for surface in (*first, *last)]
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    single = around[: len(first)] + text + around[len(first) :]
    facts["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {s: {"id": s, "ids": [ids[s]], "tokens": [s]} for s in (*first, *last)},
    }


def _as_llama(facts: dict, config: Mapping[str, Any]) -> bool:
    """The steps of transformers' LlamaTokenizer, which reads only the vocabulary of a file; whether they differ."""
    if "ByteLevel" in json.dumps(facts["pre_tokenizer"]):  # Llama 3: transformers takes the file as it is
        return False
    prefix = config.get("add_prefix_space") is not False
    scheme = "never" if not prefix else "always" if config.get("legacy") else "first"
    steps: list[dict] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *[{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix,
    ]
    wanted = {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "decoder": {"type": "Sequence", "decoders": steps},
    }
    changed = any(facts[key] != value for key, value in wanted.items())
    facts.update(wanted)
    return changed


# ---- folders without a tokenizer.json ----


def _of_merges(folder: Path) -> dict[str, Any]:
    """vocab.json and merges.txt, as Qwen2's and GPT-2's tokenizers keep byte-level BPE; split as Qwen2 splits."""
    vocab = read_json(folder / "vocab.json")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return _facts(
        {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": False, "fuse_unk": False},
        normalizer={"type": "NFC"},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, byte_level]},
        decoder=byte_level,
    )


def _of_sentencepiece(path: Path) -> dict[str, Any]:
    """A tokenizer.model as the library tokenizers reads it: blanks become ▁, and merges follow the order of pieces."""
    from sentencepiece import sentencepiece_model_pb2

    from qwenjax.tokenizer.sentencepiece import load_engine

    load_engine(path.read_bytes(), str(path))  # its message says what is wrong
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    kinds = model.SentencePiece
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise ValueError(f"{path} is a unigram vocabulary without a tokenizer.json beside it; only BPE is read")
    vocab = {piece.piece: i for i, piece in enumerate(model.pieces)}
    facts = _facts(
        {
            "type": "BPE",
            "vocab": vocab,
            "merges": _merges(vocab),
            "unk_token": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
        },
    )
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for i, piece in enumerate(model.pieces):
        if piece.type in (kinds.CONTROL, kinds.USER_DEFINED):
            special = piece.type == kinds.CONTROL
            facts["added_tokens"].append({"id": i, "content": piece.piece, "special": special, **plain})
    return facts


def _merges(vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """All ways to merge two pieces into a third, in the order of the third's id."""
    merges = []
    for piece, index in vocab.items():
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in vocab and piece[i:] in vocab]
        cuts.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        merges += [(index, len(left), len(right), left, right) for left, right in cuts]
    merges.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in merges]


def _facts(model: dict, normalizer=None, pre_tokenizer=None, decoder=None) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
