"""Tokenizers (report §2.2): text to ids and back; training and comparing vocabularies.

`load_tokenizer` gives the `Tokenizer` of a name or path. Importing this package loads no tokenizer engine.

base           the interface
bpe            the published Qwen vocabulary with identical ids, others like it, and extra tokens
sentencepiece  vocabularies trained here, and those of other models
hub, gguf      vocabularies of other models: tokenizer.json, and GGUF files with their metadata
vocabulary/    training, extending and comparing vocabularies; only this folder may read `sources`
"""

import importlib.util
from pathlib import Path

from qwenjax.tokenizer.base import EXTRA, StreamDecoder, Tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "load_tokenizer"]

FILES = ("qwen.tiktoken", "tokenizer.model", "tokenizer.json", "vocab.json")  # `Tokenizer.save` writes the first three
WANTED = ".tiktoken, sentencepiece .model, tokenizer.json or .gguf file"


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
    is_directory = Path(name_or_path).is_dir()
    if extra is None and is_directory and path.suffix == ".tiktoken" and path.with_name(EXTRA).is_file():
        extra = path.with_name(EXTRA)
    if extra is not None:
        if path.suffix != ".tiktoken":
            raise ValueError(f"{path} takes no extra tokens: only a .tiktoken vocabulary can be extended, by {extra}")
        from qwenjax.tokenizer.bpe import ExtendedBPE

        return ExtendedBPE(path.read_bytes(), Path(extra).read_bytes(), str(path), str(extra))
    if path.suffix == ".tiktoken":
        from qwenjax.tokenizer.bpe import QwenBPE

        return QwenBPE(path.read_bytes(), str(path))
    if path.suffix.lower() == ".gguf":
        from qwenjax.tokenizer.gguf import read_head, tokenizer_of

        return tokenizer_of(read_head(path), str(path))
    if path.suffix == ".model":
        from qwenjax.tokenizer.sentencepiece import SentencePiece, read_model

        tokenizer = read_model(path.read_bytes(), str(path))
        # The folder of another model may hold a tokenizer.json or more tokens
        if isinstance(tokenizer, SentencePiece) or not is_directory:
            return tokenizer
    from qwenjax.tokenizer.hub_folder import read_folder

    return read_folder(path.parent)


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
        if path.suffix.lower() not in (".tiktoken", ".model", ".gguf") and path.name != "tokenizer.json":
            raise ValueError(f"{path} is not a tokenizer: wanted a {WANTED}")
        return path
    if path.is_dir():
        for folder in (path, path / "tokenizer"):
            found = [folder / name for name in FILES if (folder / name).is_file()]
            if len(found) > 1 and found[1].name == FILES[1]:
                raise ValueError(f"{folder} holds both {FILES[0]} and {FILES[1]}; give the path of one of them")
            if found:
                return found[0]  # `interop` writes a tokenizer.json with the same vocabulary beside it
        raise ValueError(f"no tokenizer found in {path}; put {', '.join(FILES[:-1])} or {FILES[-1]} into the folder")
    raise ValueError(f"no tokenizer {str(path)!r}: wanted 'qwen', a {WANTED}, or a directory with one")
