"""Write any model that qwenjax reads in a format for other programs.

  qwen    tensors and config.json of the first releases, with qwen.tiktoken (for their remote code)
  qwen2   Qwen2, Qwen3 or Llama, whichever the model is: transformers, vLLM and llama.cpp's converter load it
  gguf    a .gguf file for llama.cpp and programs built on it
  peft    only the low-rank adapters of a model that was trained with lora.rank, for the PEFT library; tensors are
          named after those of the base model. The other formats have the adapters merged in

--check reads the result back and compares every tensor, bit by bit. If transformers is installed (qwenjax[parity]) and
can load one of the two, it also runs both on the same ids and compares the hidden states layer by layer. The command
fails at the first difference and names the layer.
"""

import argparse
import sys
from pathlib import Path

from qwenjax.api import options as shared
from qwenjax.common import command_line
from qwenjax.common.processes import quiet_logs

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
    add("--out", required=True, metavar="DIR", help="directory to write; for gguf also a file, NAME.gguf")
    add("--quant", choices=("f16", "q8_0"), default="f16", help="dtype of matrices in a gguf (default: f16)")
    add("--check", action="store_true", help="prove that the result is the same model")


def run(options: argparse.Namespace) -> int:
    """Converts; stdout says what was written and what --check found."""
    if options.to in ("gguf", "peft") and options.dtype:
        raise command_line.Usage("--dtype is for --to=qwen and --to=qwen2; a gguf has --quant, adapters are float32")
    quiet_logs()
    import jax

    from qwenjax.api import parameters
    from qwenjax.api.checkpoint_path import detect
    from qwenjax.convert import check, write

    source = detect(options.model).override(shared.overrides(options))
    out, dtype = Path(options.out), options.dtype or source.dtype
    if options.to == "peft":
        adapter = parameters.read_adapter(source)
        notes = write.adapters(source, adapter, out)
        count = sum(x.size for x in jax.tree.leaves(adapter.trained))
        written = f"{out}: {count:,} parameters of rank {adapter.lora.rank} on {adapter.base}, float32"
        checks = check.check_adapter(source, adapter, out)
    else:
        params = parameters.read_params(source, dtype=dtype)
        if options.to == "gguf":
            out, notes = write.gguf(source, params, out, options.quant)
        else:
            notes = write.directory(source, params, out, options.to, dtype)
        kind = options.quant if options.to == "gguf" else dtype
        written = f"{out}: {source.config.params:,} parameters, {kind}"
        checks = check.check(source, params, out, options.to, dtype, options.quant)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(written)
    for line in checks if options.check else ():
        print(line, flush=True)
    return command_line.DONE


if __name__ == "__main__":
    from qwenjax.convert import __main__ as command

    sys.exit(command_line.main_of("qwenjax.convert", command))
