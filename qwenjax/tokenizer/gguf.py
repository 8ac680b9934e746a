"""The vocabulary inside a GGUF file, as a tokenizer: byte-level BPE ('gpt2') or sentencepiece ('llama', 't5')."""

from collections.abc import Mapping
from typing import Any

from qwenjax.tokenizer import hub
from qwenjax.tokenizer.base import CONTROL, ENDS, Tokenizer
from qwenjax.tokenizer.bpe import PATTERN

# How text is cut before merging, for what a GGUF file calls `tokenizer.ggml.pre`: patterns applied one after another,
# each to the pieces that the one before left. As llama.cpp does it; 'default' is what it takes where nothing is said.
CL100K = PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
CUTS = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (GPT2,),
    "mpt": (GPT2,),
    "llama-bpe": (CL100K,),
    "qwen2": (PATTERN,),
    "deepseek-r1-qwen": (PATTERN,),
    "starcoder": (r"\p{N}", GPT2),
    "smollm": (r"\p{N}", GPT2),
    "refact": (r"\p{N}", GPT2),
    "command-r": (r"\p{N}", GPT2),
}
WHOLE_WORDS = ("llama-bpe",)  # a word that is a token is one, whatever the merges say; and a text has a beginning
# Of `tokenizer.ggml.token_type`, which numbers as sentencepiece does
NORMAL, UNKNOWN, CONTROL_TYPE, USER, UNUSED, BYTE = range(1, 7)
MODELS = ("gpt2", "llama", "t5")


def tokenizer_of(head: Mapping[str, Any], source: str) -> Tokenizer:
    """The tokenizer of a file's metadata (`gguf.read_head`, or `files["gguf"]` of what interop opened).

    Rows at the end that only fill the embedding are no ids of it.

    Raises:
      ValueError: no vocabulary, or one that is not read; `source` and the part of it are named.
    """
    facts = vocabulary(head, source)
    if facts["model"] == "gpt2":
        return hub.HubTokenizer(byte_level(facts, source).to_str().encode(), source)
    from qwenjax.tokenizer.foreign_sentencepiece import Pieces
    from qwenjax.tokenizer.sentencepiece import SentencePiece

    model = sentencepiece(facts, source)
    try:
        return SentencePiece(model, source)  # one of ours, which changes no text
    except ValueError:
        return Pieces(model, source)


def vocabulary(head: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The metadata `tokenizer.ggml.…` without that prefix, if they hold a vocabulary that is read."""
    prefix = "tokenizer.ggml."
    facts = {key.removeprefix(prefix): value for key, value in head.items() if key.startswith(prefix)}
    if not facts.get("tokens"):
        raise ValueError(f"{source} holds no vocabulary (no tokenizer.ggml.tokens)")
    if facts.get("model") not in MODELS:
        raise ValueError(
            f"{source}: vocabularies of tokenizer.ggml.model={facts.get('model')!r} are not read; "
            f"{', '.join(map(repr, MODELS))} are"
        )
    types = facts.get("token_type", ())
    while types and len(types) == len(facts["tokens"]) and types[-1] == UNUSED:  # rows that fill the embedding
        facts |= {key: facts[key][:-1] for key in ("tokens", "token_type", "scores") if key in facts}
        types = facts["token_type"]
    return facts


def byte_level(facts: Mapping[str, Any], source: str) -> Any:
    """Of tokens in GPT-2's spelling of bytes, merges, and the name of a split pattern: the library's tokenizer."""
    library = hub.tokenizers(source)
    said = facts.get("pre")
    cuts = CUTS.get(said or "default")
    if cuts is None:
        raise ValueError(f"{source}: text cut as tokenizer.ggml.pre={said!r} is not known; {', '.join(CUTS)} are")
    tokens, types = facts["tokens"], facts.get("token_type", ())
    try:
        model = library.models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ", 1)) for merge in facts.get("merges", ())],
            ignore_merges=said in WHOLE_WORDS,
        )
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{source}: its tokens and merges do not fit together: {error}") from None
    made = library.Tokenizer(model)
    split, bytes_ = library.pre_tokenizers.Split, library.pre_tokenizers.ByteLevel
    steps = [split(library.Regex(cut), "isolated") for cut in cuts]
    made.pre_tokenizer = library.pre_tokenizers.Sequence([*steps, bytes_(False, use_regex=False)])
    made.decoder = library.decoders.ByteLevel()
    for kinds, special in (((USER,), False), ((CONTROL_TYPE, UNKNOWN), True)):  # both are found before any cut
        found = [token for token, kind in zip(tokens, types) if kind in kinds]
        made.add_tokens([library.AddedToken(token, special=special, normalized=False) for token in found])
    first = facts.get("bos_token_id")
    if facts.get("add_bos_token", said in WHOLE_WORDS) and first is not None:
        made.post_processor = library.processors.TemplateProcessing(
            single=f"{tokens[first]} $A", special_tokens=[(tokens[first], first)]
        )
    return made


def sentencepiece(facts: Mapping[str, Any], source: str) -> bytes:
    """A sentencepiece model, put together again from its pieces, scores and types ('t5' means unigram)."""
    from sentencepiece import sentencepiece_model_pb2

    tokens, scores, types = facts["tokens"], facts.get("scores", ()), facts.get("token_type", ())
    if not len(tokens) == len(scores) == len(types):
        raise ValueError(f"{source}: {len(tokens)} tokens, {len(scores)} scores and {len(types)} types; wanted as many")
    unigram = facts["model"] == "t5"
    unknown = facts.get("unknown_token_id", types.index(UNKNOWN) if UNKNOWN in types else 0)
    model = sentencepiece_model_pb2.ModelProto()
    for number, (token, score, kind) in enumerate(zip(tokens, scores, types)):
        if kind == UNKNOWN or number == unknown:  # sentencepiece wants one; padding rows may be called so too
            kind = UNKNOWN if number == unknown else UNUSED
        elif kind == USER and token in (*CONTROL, *ENDS):  # or text could hold them
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


def metadata(tokenizer: hub.HubTokenizer, rows: int, chat_template: str = "") -> dict[str, Any]:
    """The inverse of `tokenizer_of`, for byte-level BPE: metadata `tokenizer.…`, a token for each row of an embedding.

    Raises:
      ValueError: another kind of vocabulary, or text cut in a way that has no name in GGUF.
    """
    facts = tokenizer.facts
    cuts, model = _cuts(facts["pre_tokenizer"]), facts["model"]
    whole = bool(model.get("ignore_merges"))
    named = [name for name, own in CUTS.items() if own == cuts and (name in WHOLE_WORDS) == whole]
    if model["type"] != "BPE" or facts["decoder"]["type"] != "ByteLevel" or not named:
        raise ValueError(f"the vocabulary {tokenizer.name} cuts text in a way that has no name in GGUF")
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    for token, index in model["vocab"].items():
        tokens[index], types[index] = token, NORMAL
    for token in facts["added_tokens"]:
        tokens[token["id"]], types[token["id"]] = token["content"], CONTROL_TYPE if token["special"] else USER
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    chat = chat_template and tokenizer.im_end is not None
    values = {
        "model": "gpt2",
        "pre": named[0],
        "tokens": tokens,
        "token_type": types,
        "merges": merges,
        "eos_token_id": tokenizer.im_end if chat else tokenizer.eot,
        "eot_token_id": tokenizer.im_end if chat else tokenizer.eot,
        "padding_token_id": tokenizer.eot,
        "bos_token_id": (*tokenizer.prefix, tokenizer.eot)[0],
        "add_bos_token": bool(tokenizer.prefix),
        "add_eos_token": False,
    }
    found = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return found | ({"tokenizer.chat_template": chat_template} if chat_template else {})


def _cuts(steps: dict | None) -> tuple[str, ...]:
    """The patterns by which a tokenizer.json cuts text, as in `CUTS`; () for what is not a list of them."""
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
