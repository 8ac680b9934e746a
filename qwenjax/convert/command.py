"""Writes any model that is read here in a format that others read.

  qwen    tensors and config.json of the first releases, with qwen.tiktoken (for their remote code)
  qwen2   Qwen2, Qwen3 or Llama, as the model is: stock transformers, vLLM and llama.cpp's converter load it
  gguf    a .gguf file for llama.cpp and what is built on it
  peft    of a model with low-rank adapters (trained with lora.rank): these alone, for the PEFT library; the names are
          those of the model beneath. In the other formats adapters are merged in

--check reads the result back and compares every tensor, bit by bit. Where transformers is installed
(qwenjax[parity]) and can load either side, it also runs both on the same ids and compares the hidden states layer by
layer; the first that parts is named, and the command fails.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qwenjax.api import options as shared
from qwenjax.common import command_line
from qwenjax.common.processes import quiet_logs

if TYPE_CHECKING:
    from qwenjax.api.checkpoint_path import CheckpointPath

EXAMPLES = f"""{shared.MODEL}
examples:
  python -m qwenjax.convert --model=runs/quickstart --to=qwen2 --out=quickstart-hf --check
  python -m qwenjax.convert --model=Qwen-7B --to=qwen2 --out=Qwen-7B-llamafied --dtype=bfloat16
  python -m qwenjax.convert --model=Qwen-7B-Chat-Int4 --to=gguf --quant=q8_0 --out=qwen-7b-chat.gguf
  python -m qwenjax.convert --model=SmolLM2-135M-Instruct.gguf --to=qwen2 --out=smollm2 --check
  python -m qwenjax.convert --model=runs/lora --to=peft --out=adapter --check
"""


def arguments(add) -> None:
    """Declares the options."""
    shared.model_arguments(add)
    add("--to", required=True, choices=("qwen", "qwen2", "gguf", "peft"), help="the format, see above")
    add("--out", required=True, metavar="DIR", help="directory to write; of gguf also the file, NAME.gguf")
    add("--quant", choices=("f16", "q8_0"), default="f16", help="how a gguf stores matrices (default: f16)")
    add("--check", action="store_true", help="prove that what was written is the same model")


def run(options: argparse.Namespace) -> int:
    """Converts; what was written, and what was found, is on stdout."""
    if options.to in ("gguf", "peft") and options.dtype:
        raise command_line.Usage(
            "--dtype is for --to=qwen and --to=qwen2; a gguf has --quant, and adapters are float32"
        )
    quiet_logs()
    from qwenjax.api.checkpoint_path import detect

    source = detect(options.model, shared.overrides(options))
    return (_adapter if options.to == "peft" else _model)(source, options)


def _model(source: "CheckpointPath", options: argparse.Namespace) -> int:
    """Writes a whole model."""
    from qwenjax.convert import check, write

    dtype = options.dtype or source.dtype
    params = source.params(dtype=dtype)
    if options.to == "gguf":
        out, notes = write.gguf(source, params, Path(options.out), options.quant)
    else:
        out, notes = write.directory(source, params, Path(options.out), options.to, dtype)
    _tell(notes)
    print(f"{out}: {source.config.params:,} parameters, {options.quant if options.to == 'gguf' else dtype}")
    if options.check:
        _show(check.check(source, params, out, options.to, dtype, options.quant))
    return command_line.DONE


def _adapter(source: "CheckpointPath", options: argparse.Namespace) -> int:
    """Writes adapters alone."""
    import jax

    from qwenjax.convert import check, write

    adapter, out = source.adapter(), Path(options.out)
    _tell(write.adapter(source, adapter, out))
    count = sum(x.size for x in jax.tree.leaves(adapter.trained))
    print(f"{out}: {count:,} parameters of rank {adapter.lora.rank} on {adapter.base}, float32")
    if options.check:
        _show(check.check_adapter(source, adapter, out))
    return command_line.DONE


def _tell(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _show(lines: Iterator[str]) -> None:
    for line in lines:
        print(line, flush=True)
