"""Tokenising and the data stream: MB of text and tokens per CPU second, and whether a training step would wait.

TEXT is what `python -m qwenjax.data tokenize` reads. Its first part is encoded language by language, then it is written
as JSON lines and made into shards from end to end, in one process and in all of them, and a mixture of these shards is
read back. CPU seconds count the work of all processes and hardly depend on what else the machine does.
"""

import argparse

from qwenjax.common.command_line import DONE, positive

EXAMPLES = """
examples:
  python -m qwenjax.bench data
      the standard library of this Python, in half a minute
  python -m qwenjax.bench data web.jsonl --rounds=5 --json > data.json
      text of your own; give 50 MB or more, for a worker takes a second to start
  python -m qwenjax.bench data web.jsonl --appetite=50000
      compare with another step: the tokens per second and host that `qwenjax.bench train` prints
"""


def arguments(add) -> None:
    """Declares the options."""
    add("text", nargs="?", default="python-stdlib", metavar="TEXT", help="file or folder (default: python-stdlib)")
    add("--tokenizer", default="qwen", metavar="NAME", help="qwen, a .tiktoken or .model file, or a folder")
    add("--workers", type=positive, metavar="N", help="processes (default: one per core)")
    add("--rounds", type=positive, default=3, metavar="N", help="times that each thing is measured (default: 3)")
    add(
        "--appetite",
        type=positive,
        metavar="N",
        help="tokens per second that a host's step eats (default: 16384, the 14B model on a v5p-256: 4M tokens in 8 s "
        "over 32 hosts)",
    )
    add("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    """Measures and prints."""
    import json

    from qwenjax.bench import data
    from qwenjax.tokenizer import load_tokenizer

    appetite = options.appetite or data.APPETITE
    result = data.bench(options.text, load_tokenizer(options.tokenizer), options.workers, options.rounds, appetite)
    print(json.dumps(result, indent=2) if options.json else data.table(result))
    return DONE
