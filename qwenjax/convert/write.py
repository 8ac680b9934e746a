"""A source's parameters in each of the formats."""

from pathlib import Path
from typing import Any

from qwenjax import cli
from qwenjax.api.source import Source
from qwenjax.interop import gguf_tokens
from qwenjax.interop.gguf_write import write_gguf
from qwenjax.interop.save import as_tensors, save_params, saved_bytes
from qwenjax.interop.vocabulary import CHAT_TEMPLATE
from qwenjax.text.gguf_vocab import metadata
from qwenjax.text.hub import HubTokenizer


def directory(source: Source, params: dict, out: Path, layout: str, dtype: str) -> tuple[Path, list[str]]:
    """Writes a directory of the hubs; returns it, and a sentence for each thing that it cannot say.

    Raises:
      ValueError: what the layout cannot hold; see `interop.save.save_params`.
    """
    habits, tokenizer = source.habits(), source.tokenizer()
    with cli.meter(f"writing {out.name}", saved_bytes(source.config, layout, dtype), "B") as step:
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


def gguf(source: Source, params: dict, out: Path, kind: str) -> tuple[Path, list[str]]:
    """Writes a .gguf file, at `out` or inside it; returns its path, and what the format cannot say.

    Raises:
      ValueError: no tokenizer, or what the format cannot hold; see `interop.gguf_write.write_gguf`.
    """
    name = source.path.stem if source.foreign else source.path.parent.parent.name
    file = out if out.suffix == ".gguf" else out / f"{name}-{kind}.gguf"
    facts = _vocabulary(source)
    with cli.meter(f"writing {file.name}", source.config.params, "") as step:
        tensors = as_tensors(source.config, params, "qwen2")
        return file, write_gguf(file, source.config, tensors, facts, kind, name, step)


def _vocabulary(source: Source) -> dict[str, Any]:
    if source.foreign and "gguf" in source.foreign.files:
        return source.foreign.files["gguf"]  # as it was
    tokenizer = source.tokenizer()
    if tokenizer is None:
        raise ValueError(f"{source.path} has no tokenizer, and a gguf holds one: put its file beside the weights")
    template = CHAT_TEMPLATE if source.habits().chat else ""
    if isinstance(tokenizer, HubTokenizer):
        return metadata(tokenizer, source.config.vocab, template)
    return gguf_tokens.vocabulary(tokenizer, source.config.vocab, template)
