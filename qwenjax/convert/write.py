"""A checkpoint written in each of the formats."""

import dataclasses
from pathlib import Path

from qwenjax import api
from qwenjax.api.checkpoint_path import CheckpointPath
from qwenjax.api.generation_defaults import GenerationDefaults
from qwenjax.api.model import Model
from qwenjax.chat_format.chatml import CHAT_TEMPLATE
from qwenjax.common import progress
from qwenjax.config import Compute
from qwenjax.interop.gguf.write import vocabulary, write_gguf
from qwenjax.interop.huggingface.directory import CONFIG
from qwenjax.interop.huggingface.save import as_tensors
from qwenjax.interop.huggingface.tokenizer import write_tokenizer
from qwenjax.interop.peft import Adapter, save_adapter


def directory(source: CheckpointPath, params: dict, out: Path, layout: str, dtype: str) -> list[str]:
    """Writes a directory of the hubs; returns a sentence for each thing that the layout cannot express."""
    tokenizer = source.tokenizer()
    model = Model(source.config, params, tokenizer, Compute(), None, GenerationDefaults.of(source))
    notes = api.save(model, out, layout, dtype)
    return notes + (["no tokenizer found, so none was written"] if tokenizer is None else [])


def gguf(source: CheckpointPath, params: dict, out: Path, kind: str) -> tuple[Path, list[str]]:
    """Writes a .gguf file, at `out` or inside it; returns its path and what the format cannot express."""
    name, file = source.name, out if out.suffix == ".gguf" else out / f"{source.name}-{kind}.gguf"
    if source.hub_checkpoint and "gguf" in source.hub_checkpoint.files:
        words = source.hub_checkpoint.files["gguf"]  # unchanged
    else:
        tokenizer = source.tokenizer()
        if tokenizer is None:
            raise ValueError(f"{source.path}: no tokenizer found, and a gguf needs one; put tokenizer.json there")
        template = CHAT_TEMPLATE if GenerationDefaults.of(source).chat and tokenizer.chat_template is None else ""
        words = vocabulary(tokenizer, source.config.vocab, template)
    with progress.meter(f"writing {file.name}", source.config.params, "") as step:
        tensors = as_tensors(source.config, params, "qwen2")
        return file, write_gguf(file, source.config, tensors, words, kind, name, step)


def adapters(source: CheckpointPath, adapter: Adapter, out: Path) -> list[str]:
    """Writes adapters for PEFT, and the tokenizer; returns what its reader has to know, in sentences."""
    base, how = source.base, adapter.lora
    layout = base.hub_checkpoint.layout if base.hub_checkpoint else "qwen2"
    save_adapter(out, adapter.trained, how, source.config, adapter.base, layout)
    notes = []
    if not (base.hub_checkpoint and (base.path / CONFIG).is_file()):
        notes.append(
            f"PEFT cannot read the base model; convert it as well: python -m qwenjax.convert --model={base.path} "
            "--to=qwen2 --out=FOLDER, and give FOLDER and the adapters to PeftModel.from_pretrained"
        )
    if how.base_dtype != base.dtype and how.base_dtype != "float32":
        notes.append(f"the base model was {how.base_dtype} in training: load it so in PEFT as well")
    for field in dataclasses.fields(source.config):
        ours, theirs = getattr(source.config, field.name), getattr(base.config, field.name)
        if ours != theirs:
            notes.append(f"adapters do not say that {field.name} is {ours}; in the base model it is {theirs}")
    tokenizer = source.tokenizer()
    if tokenizer is not None:
        notes += write_tokenizer(tokenizer, out, layout, source.config, GenerationDefaults.of(source).chat)
    return notes
