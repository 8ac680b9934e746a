"""Writes any model that is read here in a format that others read.

  qwen    tensors and config.json of the first releases, with qwen.tiktoken (for their remote code)
  qwen2   Qwen2, Qwen3 or Llama, as the model is: stock transformers, vLLM and llama.cpp's converter load it
  gguf    a .gguf file for llama.cpp and what is built on it

--check reads the result back and compares every tensor, bit by bit. Where transformers is installed
(qwenjax[parity]) and can load either side, it also runs both on the same ids and compares the hidden states layer by
layer; the first that parts is named, and the command fails.
"""

import argparse
import sys
from pathlib import Path

from qwenjax import cli
from qwenjax.api import options as shared

EXAMPLES = f"""{shared.MODEL}
examples:
  python -m qwenjax.convert --model=runs/quickstart --to=qwen2 --out=quickstart-hf --check
  python -m qwenjax.convert --model=Qwen-7B --to=qwen2 --out=Qwen-7B-llamafied --dtype=bfloat16
  python -m qwenjax.convert --model=Qwen-7B-Chat-Int4 --to=gguf --quant=q8_0 --out=qwen-7b-chat.gguf
  python -m qwenjax.convert --model=SmolLM2-135M-Instruct.gguf --to=qwen2 --out=smollm2 --check
"""


def arguments(add) -> None:
    """Declares the options."""
    shared.model_arguments(add)
    add("--to", required=True, choices=("qwen", "qwen2", "gguf"), help="the format, see above")
    add("--out", required=True, metavar="DIR", help="directory to write; of gguf also the file, NAME.gguf")
    add("--quant", choices=("f16", "q8_0"), default="f16", help="how a gguf stores matrices (default: f16)")
    add("--check", action="store_true", help="prove that what was written is the same model")


def run(options: argparse.Namespace) -> int:
    """Converts; what was written, and what was found, is on stdout."""
    if options.to == "gguf" and options.dtype:
        raise cli.Usage("--dtype is for --to=qwen and --to=qwen2; a gguf has --quant")
    shared.quiet()
    from qwenjax.api.source import open_source
    from qwenjax.convert import check, write

    source = open_source(options.model, shared.overrides(options))
    dtype = options.dtype or source.dtype
    params = source.params(dtype=dtype)
    if options.to == "gguf":
        out, notes = write.gguf(source, params, Path(options.out), options.quant)
    else:
        out, notes = write.directory(source, params, Path(options.out), options.to, dtype)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{out}: {source.config.params:,} parameters, {options.quant if options.to == 'gguf' else dtype}")
    if options.check:
        for line in check.check(source, params, out, options.to, dtype, options.quant):
            print(line, flush=True)
    return cli.DONE
