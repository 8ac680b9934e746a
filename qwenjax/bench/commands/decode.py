"""Writing text in tokens per second: ours, and transformers' `generate` with the same weights.

Reading a long prompt, and writing after a short one in a batch of 1 and of 8, greedily. A decode rate counts the
tokens written, and its time includes reading the short prompt. The two sides live in processes of their own and take
turns, round after round, with the same number of threads, so the ratio holds on a busy machine too. Loading and
compilation are not in the rates; the first call is reported apart.
"""

import argparse

from qwenjax.common.command_line import DONE, positive

EXAMPLES = """
examples:
  python -m qwenjax.bench decode --model=SmolLM2.gguf --against=transformers
  python -m qwenjax.bench decode --model=runs/quickstart --new=256
      ours alone, longer texts
  python -m qwenjax.bench decode --model=Qwen-1_8B --against=transformers --rounds=11 --json > decode.json
"""


def arguments(add) -> None:
    """Declares the options."""
    add("--model", required=True, metavar="PATH", help="a directory of the Hugging Face form, .gguf or run")
    add("--against", choices=["transformers"], help="measure this too, in turns, and print the ratio")
    add("--prefill", type=positive, default=512, metavar="N", help="tokens of the prompt that is read (default: 512)")
    add("--prompt", type=positive, default=32, metavar="N", help="tokens of the prompt to write after (default: 32)")
    add("--new", type=positive, default=64, metavar="N", help="tokens written (default: 64)")
    add("--dtype", choices=["float32", "bfloat16"], help="of the weights (default: float32 on CPUs, else bfloat16)")
    add("--rounds", type=positive, default=5, metavar="N", help="turns of about 3 s that each side gets (default: 5)")
    add("--threads", type=positive, metavar="N", help="CPU threads for each side (default: one per core)")
    add("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    """Measures and prints."""
    from qwenjax.bench import decode
    from qwenjax.common.command_line import Usage

    if options.new < 2:
        raise Usage("--new=1 is no writing: wanted 2 or more")
    result = decode.bench(
        options.model,
        options.against,
        measured=decode.cases(options.prefill, options.prompt, options.new),
        rounds=options.rounds,
        threads=options.threads,
        dtype=options.dtype,
    )
    decode.report(result, options.json)
    return DONE
