"""Other people's checkpoints: read as our parameters, and ours written as theirs.

A reader gives a `tensors.Foreign` (configuration, names, tensors not read yet); `load.load_params` streams it into
sharded arrays. `save.save_params` is the way back. `layout.py` is the one table of names.
"""

from pathlib import Path

from qwenjax.interop.hub_checkpoint import HubCheckpoint


def open_checkpoint(path: str | Path) -> HubCheckpoint:
    """The checkpoint at a path: a directory of the Hugging Face form, GPTQ or not, or a .gguf file.

    Raises:
      ValueError: neither, or one that is not understood; see `directory.open_directory` and `gguf.open_gguf`.
    """
    place = Path(path)
    if place.suffix == ".gguf":
        from qwenjax.interop.gguf.tensors import open_gguf

        return open_gguf(place)
    if place.is_dir():
        from qwenjax.interop.huggingface.directory import open_directory

        return open_directory(place)
    what = "give the directory it lies in" if place.is_file() else "nothing is there"
    raise ValueError(f"no checkpoint at {path}: wanted a directory with config.json or a .gguf file; {what}")
