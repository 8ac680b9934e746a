"""Benchmarks: speed as ratios, the two sides measured in turns in one run.

examples:
  python -m qwenjax.bench train
  python -m qwenjax.bench train --against=torch
  python -m qwenjax.bench data
  python -m qwenjax.bench decode --model=SmolLM2.gguf --against=transformers
"""

import sys

from qwenjax.bench import data, decode, train
from qwenjax.common import command_line


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m qwenjax.bench COMMAND …`; returns its exit code."""
    return command_line.main("qwenjax.bench", __doc__, {"train": train, "data": data, "decode": decode}, argv)


if __name__ == "__main__":
    sys.exit(main())
