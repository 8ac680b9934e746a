"""The training step in tokens per second: ours, and PyTorch's on the same model and batch.

The two sides live in processes of their own and take turns, round after round, with the same number of threads, so
the ratio holds on a busy machine too. Tokens per CPU second count the work and not the waiting. Compilation and the
first step are reported apart.
"""

import argparse

from qwenjax.common.command_line import DONE, positive
from qwenjax.config.lookup import experiment_arguments, experiment_from

EXAMPLES = """
examples:
  python -m qwenjax.bench train --against=torch
      the quickstart's step against transformers' Qwen2 in eager PyTorch, about a minute
  python -m qwenjax.bench train --exp=quickstart --set model.embed=256 --set model.heads=8 --set data.batch_size=8
      ours alone, at another shape
  python -m qwenjax.bench train --against=torch --rounds=11 --json > train.json
      for machines; a longer run has a narrower spread
"""


def arguments(add) -> None:
    """Declares the options."""
    experiment_arguments(add, default="quickstart")
    add("--against", choices=["torch"], help="measure this too, in turns, and print the ratio")
    add("--rounds", type=positive, default=5, metavar="N", help="turns of about 3 s that each side gets (default: 5)")
    add("--threads", type=positive, metavar="N", help="CPU threads for each side (default: one per core)")
    add("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    """Measures and prints."""
    experiment = experiment_from(options)
    from qwenjax.bench import train

    train.report(experiment, options.against, options.rounds, options.threads, options.json)
    return DONE
