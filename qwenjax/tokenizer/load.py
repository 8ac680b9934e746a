"""From a name or path to a tokenizer: the published Qwen vocabulary, one trained here, or another model's."""

import importlib.util
from pathlib import Path

from qwenjax.tokenizer.base import Tokenizer

FILES = ("qwen.tiktoken", "tokenizer.model", "tokenizer.json")  # what `Tokenizer.save` writes, by kind
EXTRA = "extra.tiktoken"  # an extended vocabulary also writes this


def load_tokenizer(name_or_path: str | Path, extra: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a name or path.

    Args:
      name_or_path: 'qwen' (the published vocabulary, from the `vocab` extra); a .tiktoken, sentencepiece .model,
        tokenizer.json or .gguf file; or a directory with one of `FILES`, or with a tokenizer/ that has one (a run
        directory, or a downloaded checkpoint).
      extra: a file written by `qwenjax.tokenizer extend`, whose tokens are added to a .tiktoken vocabulary. Default:
        extra.tiktoken in the directory of a qwen.tiktoken, if there is one.
    Raises:
      ValueError: no vocabulary, two of them in one directory, or a file that is not what its name says.
    """
    path = _published() if str(name_or_path) == "qwen" else _find(Path(name_or_path))
    if extra is None and Path(name_or_path).is_dir() and path.suffix == ".tiktoken":
        beside = path.parent / EXTRA
        extra = beside if beside.is_file() else None
    if extra is not None:
        if path.suffix != ".tiktoken":
            raise ValueError(f"{path} takes no extra tokens: only a .tiktoken vocabulary can be extended, by {extra}")
        from qwenjax.tokenizer.bpe import ExtendedBPE

        return ExtendedBPE(path.read_bytes(), Path(extra).read_bytes(), str(path), str(extra))
    if path.suffix == ".tiktoken":
        from qwenjax.tokenizer.bpe import QwenBPE as Kind
    elif path.suffix == ".json":
        from qwenjax.tokenizer.hub import HubTokenizer as Kind
    elif path.suffix == ".gguf":
        from qwenjax.tokenizer.gguf import read_head, tokenizer_of

        return tokenizer_of(read_head(path), str(path))
    else:
        return _model(path, Path(name_or_path).is_dir())
    return Kind(path.read_bytes(), source=str(path))


def _model(path: Path, search: bool) -> Tokenizer:
    """A sentencepiece model trained here, or another model's, whose folder's tokenizer.json is preferred."""
    from qwenjax.tokenizer.sentencepiece import ForeignSentencePiece, SentencePiece

    data = path.read_bytes()
    try:
        return SentencePiece(data, source=str(path))
    except ValueError:
        beside = path.with_name("tokenizer.json")
        if search and beside.is_file():
            return load_tokenizer(beside)
        return ForeignSentencePiece(data, source=str(path))


def _published() -> Path:
    """The path of the published vocabulary in the package dashscope, whose code is not imported."""
    spec = importlib.util.find_spec("dashscope")  # locates a top-level package without running it
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "resources" / "qwen.tiktoken"
        if path.is_file():
            return path
    raise ValueError(
        "the published Qwen vocabulary is not installed: run `pip install 'qwenjax[vocab]'`, "
        "or give the path of a qwen.tiktoken file instead of the name 'qwen'"
    )


def _find(path: Path) -> Path:
    """The vocabulary file at a path or in its folder."""
    if path.is_file():
        if path.suffix not in (".tiktoken", ".model", ".gguf") and path.name != "tokenizer.json":
            raise ValueError(
                f"{path} is not a tokenizer: wanted a .tiktoken, sentencepiece .model, tokenizer.json or .gguf file"
            )
        return path
    if path.is_dir():
        for folder in (path, path / "tokenizer"):
            found = [folder / name for name in FILES if (folder / name).is_file()]
            if len(found) > 1 and found[1].name == FILES[1]:
                raise ValueError(f"{folder} holds both {FILES[0]} and {FILES[1]}; give the path of one of them")
            if found:
                return found[0]  # `interop` writes a tokenizer.json with the same vocabulary beside it
        raise ValueError(f"no tokenizer found in {path}; put {', '.join(FILES[:-1])} or {FILES[-1]} into the folder")
    raise ValueError(
        f"no tokenizer {str(path)!r}: wanted 'qwen', a .tiktoken, .model, tokenizer.json or .gguf file that exists, "
        "or a directory with one"
    )
