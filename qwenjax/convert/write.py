"""A source's parameters in each of the formats."""

import dataclasses
from pathlib import Path
from typing import Any

from qwenjax.api.checkpoint_path import CheckpointPath
from qwenjax.common import progress
from qwenjax.interop.gguf import vocabulary
from qwenjax.interop.gguf.write import write_gguf
from qwenjax.interop.huggingface.directory import CONFIG
from qwenjax.interop.huggingface.save import as_tensors, save_params, saved_bytes
from qwenjax.interop.huggingface.tokenizer import CHAT_TEMPLATE, write_tokenizer
from qwenjax.interop.peft import Adapter, save_adapter
from qwenjax.tokenizer.gguf import metadata
from qwenjax.tokenizer.hub import HubTokenizer


def directory(source: CheckpointPath, params: dict, out: Path, layout: str, dtype: str) -> tuple[Path, list[str]]:
    """Writes a directory of the hubs; returns it, and a sentence for each thing that it cannot say.

    Raises:
      ValueError: what the layout cannot hold; see `interop.save.save_params`.
    """
    habits, tokenizer = source.habits(), source.tokenizer()
    with progress.meter(f"writing {out.name}", saved_bytes(source.config, layout, dtype), "B") as step:
        notes = save_params(
            source.config,
            params,
            out,
            layout,
            dtype=dtype,
            tokenizer=tokenizer,
            chat=habits.chat,
            generation=habits.generation(tokenizer, layout, source.config),
            progress=step,
        )
    return out, notes + (["no tokenizer lies with the model, so none was written"] if tokenizer is None else [])


def gguf(source: CheckpointPath, params: dict, out: Path, kind: str) -> tuple[Path, list[str]]:
    """Writes a .gguf file, at `out` or inside it; returns its path, and what the format cannot say.

    Raises:
      ValueError: no tokenizer, or what the format cannot hold; see `interop.gguf_write.write_gguf`.
    """
    name, file = source.name, out if out.suffix == ".gguf" else out / f"{source.name}-{kind}.gguf"
    facts = _vocabulary(source)
    with progress.meter(f"writing {file.name}", source.config.params, "") as step:
        tensors = as_tensors(source.config, params, "qwen2")
        return file, write_gguf(file, source.config, tensors, facts, kind, name, step)


def adapter(source: CheckpointPath, found: Adapter, out: Path) -> list[str]:
    """Writes adapters for PEFT, and the tokenizer; returns a sentence for each thing that a reader has to know.

    Raises:
      ValueError: see `interop.peft.save_adapter`.
    """
    base, how = source.base, found.lora
    layout = base.foreign.layout if base.foreign else "qwen2"
    save_adapter(out, found.trained, how, source.config, found.base, layout)
    notes = []
    if not (base.foreign and (base.path / CONFIG).is_file()):
        notes.append(
            f"PEFT cannot read the model beneath; write it, too: python -m qwenjax.convert --model={base.path} "
            "--to=qwen2 --out=FOLDER, and PeftModel.from_pretrained takes FOLDER and the adapters"
        )
    if how.base_dtype != base.dtype and how.base_dtype != "float32":
        notes.append(f"in training the model beneath was held as {how.base_dtype}: read it so in PEFT, too")
    for field in dataclasses.fields(source.config):
        ours, theirs = getattr(source.config, field.name), getattr(base.config, field.name)
        if ours != theirs:
            notes.append(f"adapters do not say that {field.name} is {ours}; beneath it is {theirs}")
    tokenizer = source.tokenizer()
    if tokenizer is not None:
        notes += write_tokenizer(tokenizer, out, layout, source.config, source.habits().chat)
    return notes


def _vocabulary(source: CheckpointPath) -> dict[str, Any]:
    if source.foreign and "gguf" in source.foreign.files:
        return source.foreign.files["gguf"]  # as it was
    tokenizer = source.tokenizer()
    if tokenizer is None:
        raise ValueError(f"{source.path} has no tokenizer, and a gguf holds one: put its file beside the weights")
    template = CHAT_TEMPLATE if source.habits().chat else ""
    if isinstance(tokenizer, HubTokenizer):
        return metadata(tokenizer, source.config.vocab, template)
    return vocabulary.vocabulary(tokenizer, source.config.vocab, template)
