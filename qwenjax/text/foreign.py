"""Other people's vocabularies, read only to count tokens: what the report's Figure 3 compares.

What a file is shows in its first bytes, not in its name: `.tiktoken` ranks, a sentencepiece model (any, not only
ours), a `tokenizer.json` of the library tokenizers, or the vocabulary inside a GGUF file. Texts are counted as they
are, without the tokens that a model puts around them.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenjax.text import load_tokenizer
from qwenjax.text.bpe import PATTERN, QwenBPE, read_ranks
from qwenjax.text.gguf import read_head

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
WHOLE_WORDS = ("llama-bpe",)  # a word that is a token is one, whatever the merges say
UNKNOWN, USER, UNUSED, BYTE = 2, 4, 5, 6  # of `tokenizer.ggml.token_type`, which numbers as sentencepiece does


@dataclass(frozen=True)
class Vocabulary:
    """A name for people, what it was read as, how many ids it has, and the number of tokens in some texts."""

    name: str
    kind: str
    size: int
    count: Callable[[Sequence[str]], int]


def open_vocabulary(spec: str) -> Vocabulary:
    """The vocabulary of 'qwen', of a path, or of NAME=PATH, where NAME is what people will read.

    Raises:
      ValueError: nothing there, no vocabulary that we know, a part of it that we cannot follow (named), or a library
        that is not installed.
    """
    name, _, place = spec.partition("=") if "=" in spec and not Path(spec).exists() else ("", "", spec)
    path = Path(place)
    if place == "qwen" or path.is_dir():
        ours = load_tokenizer(place)
        return Vocabulary(name or ours.name, f"ours ({type(ours).__name__})", ours.size, _ours(ours))
    if not path.is_file():
        raise ValueError(
            f"no tokenizer {place!r}: wanted 'qwen', or a .tiktoken, sentencepiece, tokenizer.json or GGUF file that "
            "exists, with or without NAME= before it"
        )
    name = name or path.name.removesuffix(path.suffix)
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"GGUF"):
        return _gguf(name, path)
    if head.lstrip()[:1] == b"{":
        return _tokenizer_json(name, path)
    if re.match(rb"\s*[A-Za-z0-9+/]+=* +\d+\s", head):
        return _tiktoken(name, path)
    return _sentencepiece(name, path.read_bytes(), str(path))


def _ours(tokenizer) -> Callable[[Sequence[str]], int]:
    return lambda texts: sum(map(len, tokenizer.encode_batch(texts)))


def _tiktoken(name: str, path: Path) -> Vocabulary:
    """Ranks. Tokens of several digits tell cl100k's pattern from Qwen's; the file itself does not say."""
    import tiktoken

    data = path.read_bytes()
    ranks = read_ranks(data, str(path))
    if not any(token.isdigit() and len(token) > 1 for token in ranks):
        return Vocabulary(name, "ranks, cut as Qwen does", len(ranks), _ours(QwenBPE(data, str(path))))
    engine = tiktoken.Encoding(name, pat_str=CL100K, mergeable_ranks=ranks, special_tokens={})

    def count(texts: Sequence[str]) -> int:
        return sum(map(len, engine.encode_ordinary_batch(list(texts), num_threads=os.cpu_count() or 1)))

    return Vocabulary(name, "ranks, cut as cl100k does (it has tokens of several digits)", len(ranks), count)


def _sentencepiece(name: str, model: bytes, source: str) -> Vocabulary:
    from sentencepiece import SentencePieceProcessor

    try:
        if not model:
            raise RuntimeError("it is empty")  # which the engine would take for a model without pieces
        engine = SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise ValueError(
            f"{source} is no vocabulary: neither .tiktoken ranks, tokenizer.json nor GGUF, and no sentencepiece model "
            f"({str(error).splitlines()[0]})"
        ) from None

    def count(texts: Sequence[str]) -> int:
        return sum(map(len, engine.encode(list(texts), num_threads=os.cpu_count() or 1)))

    return Vocabulary(name, "sentencepiece", len(engine), count)


def _tokenizer_json(name: str, path: Path) -> Vocabulary:
    tokenizers = _tokenizers(path)
    try:
        engine = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is no tokenizer.json of the library tokenizers: {error}") from None
    return Vocabulary(name, "tokenizer.json", engine.get_vocab_size(), _counter(engine))


def _counter(engine) -> Callable[[Sequence[str]], int]:
    """Counts with a tokenizer of the library tokenizers: all of each text, and nothing but the text."""
    engine.no_truncation()  # files of sentence encoders carry a limit, which would hide most of a long text
    engine.no_padding()

    def count(texts: Sequence[str]) -> int:
        return sum(len(coded.ids) for coded in engine.encode_batch_fast(list(texts), add_special_tokens=False))

    return count


# ---- GGUF ----


def _gguf(name: str, path: Path) -> Vocabulary:
    prefix = "tokenizer.ggml."
    get = {key.removeprefix(prefix): value for key, value in read_head(path).items() if key.startswith(prefix)}
    model = get.get("model")
    if not get.get("tokens"):
        raise ValueError(f"{path} holds no vocabulary (no tokenizer.ggml.tokens)")
    if model == "gpt2":
        return _gguf_merges(name, path, get)
    if model in ("llama", "t5"):
        return _gguf_pieces(name, path, get)
    raise ValueError(f"{path}: vocabularies of tokenizer.ggml.model={model!r} are not read; 'gpt2', 'llama', 't5' are")


def _gguf_merges(name: str, path: Path, get: dict) -> Vocabulary:
    """Byte-level BPE: tokens in GPT-2's spelling of bytes, merges, and the name of a split pattern."""
    tokenizers = _tokenizers(path)
    said = get.get("pre")
    cuts = CUTS.get(said or "default")
    if cuts is None:
        raise ValueError(f"{path}: text cut as tokenizer.ggml.pre={said!r} is not known; {', '.join(CUTS)} are")
    tokens = get["tokens"]
    try:
        model = tokenizers.models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ", 1)) for merge in get.get("merges", ())],
            ignore_merges=said in WHOLE_WORDS,
        )
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path}: its tokens and merges do not fit together: {error}") from None
    engine = tokenizers.Tokenizer(model)
    split, byte_level = tokenizers.pre_tokenizers.Split, tokenizers.pre_tokenizers.ByteLevel
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [*(split(tokenizers.Regex(cut), "isolated") for cut in cuts), byte_level(False, use_regex=False)]
    )
    types = get.get("token_type", ())
    engine.add_tokens([token for token, kind in zip(tokens, types) if kind == USER])  # found before any cut
    kind = f"GGUF, cut as {said}" if said else "GGUF, cut as default (it does not say how)"
    return Vocabulary(name, kind, len(tokens), _counter(engine))


def _gguf_pieces(name: str, path: Path, get: dict) -> Vocabulary:
    """A sentencepiece model, put together again from its pieces, scores and types ('t5' means unigram)."""
    from sentencepiece import sentencepiece_model_pb2

    tokens, scores, types = get["tokens"], get.get("scores", ()), get.get("token_type", ())
    if not len(tokens) == len(scores) == len(types):
        raise ValueError(f"{path}: {len(tokens)} tokens, {len(scores)} scores and {len(types)} types; wanted as many")
    unigram = get["model"] == "t5"
    unknown = get.get("unknown_token_id", types.index(UNKNOWN) if UNKNOWN in types else 0)
    model = sentencepiece_model_pb2.ModelProto()
    for number, (token, score, kind) in enumerate(zip(tokens, scores, types)):
        if kind == UNKNOWN or number == unknown:  # sentencepiece wants one; padding rows may be called so too
            kind = UNKNOWN if number == unknown else UNUSED
        model.pieces.add(piece=token, score=score, type=kind)
    model.trainer_spec.model_type = 1 if unigram else 2
    model.trainer_spec.byte_fallback = BYTE in types
    model.normalizer_spec.precompiled_charsmap = bytes(get.get("precompiled_charsmap", b""))
    model.normalizer_spec.add_dummy_prefix = get.get("add_space_prefix", True)
    model.normalizer_spec.remove_extra_whitespaces = get.get("remove_extra_whitespaces", False)
    vocabulary = _sentencepiece(name, model.SerializeToString(), str(path))
    kind = f"GGUF, sentencepiece {'unigram' if unigram else 'BPE'}"
    return Vocabulary(name, kind, vocabulary.size, vocabulary.count)


def _tokenizers(path: Path):
    try:
        import tokenizers
    except ImportError:
        raise ValueError(f"to read {path} run `pip install 'qwenjax[tokenizers]'`") from None
    return tokenizers
