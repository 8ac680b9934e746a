"""Text to ids and back: the published Qwen vocabulary, our own sentencepiece models, and ChatML (report §2.2, A.1.1).

`load_tokenizer` returns a `Tokenizer` whichever kind is found. Importing this package loads no tokenizer engine.
"""

import importlib.util
from pathlib import Path

from qwenjax.text.base import StreamDecoder, Tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "load_tokenizer"]

FILES = ("qwen.tiktoken", "tokenizer.model")  # what `Tokenizer.save` writes, by kind
EXTRA = "extra.tiktoken"  # what an extended vocabulary writes beside qwen.tiktoken


def load_tokenizer(name_or_path: str | Path, extra: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a name or path.

    Args:
      name_or_path: 'qwen' (the published vocabulary, from the `vocab` extra), a .tiktoken file, a sentencepiece .model
        file, or a directory holding qwen.tiktoken or tokenizer.model, itself or in its tokenizer/ (a run directory).
      extra: a file of `qwenjax.tokenizer extend`, whose tokens are added to a .tiktoken vocabulary; by default
        extra.tiktoken beside the qwen.tiktoken of a directory, if it is there.
    Raises:
      ValueError: nothing there, two vocabularies in one directory, or a file that is not what its name says.
    """
    path = _published() if str(name_or_path) == "qwen" else _find(Path(name_or_path))
    if extra is None and Path(name_or_path).is_dir() and path.suffix == ".tiktoken":
        beside = path.parent / EXTRA
        extra = beside if beside.is_file() else None
    if extra is not None:
        if path.suffix != ".tiktoken":
            raise ValueError(f"{path} takes no extra tokens: only a .tiktoken vocabulary can be extended, by {extra}")
        from qwenjax.text.extended import ExtendedBPE

        return ExtendedBPE(path.read_bytes(), Path(extra).read_bytes(), str(path), str(extra))
    if path.suffix == ".tiktoken":
        from qwenjax.text.bpe import QwenBPE as Kind
    else:
        from qwenjax.text.spm import SentencePiece as Kind
    return Kind(path.read_bytes(), source=str(path))


def _published() -> Path:
    """The published vocabulary, as the package dashscope ships it; its code is not imported."""
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
    """The vocabulary file that a path means."""
    if path.is_file():
        if path.suffix not in (".tiktoken", ".model"):
            raise ValueError(f"{path} is no tokenizer: wanted a .tiktoken or a sentencepiece .model file")
        return path
    if path.is_dir():
        for folder in (path, path / "tokenizer"):
            found = [folder / name for name in FILES if (folder / name).is_file()]
            if len(found) > 1:
                raise ValueError(f"{folder} holds both {' and '.join(FILES)}; give the path of one of them")
            if found:
                return found[0]
        raise ValueError(f"{path} holds no tokenizer: wanted {' or '.join(FILES)}, in it or in its tokenizer/")
    raise ValueError(
        f"no tokenizer {str(path)!r}: wanted 'qwen', a .tiktoken or .model file that exists, or a directory with one"
    )
