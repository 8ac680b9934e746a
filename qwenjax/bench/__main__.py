"""Speed, and ratios to others taken in one run.

examples:
  python -m qwenjax.bench train
  python -m qwenjax.bench train --against=torch
"""

import argparse
import sys

DONE, FAILED, USAGE = 0, 1, 2

TRAIN = """\
The training step in tokens per second: ours, and PyTorch's on the same model and batch.

The two sides live in processes of their own and take turns, round after round, with the same number of threads, so
the ratio holds on a busy machine too. Tokens per CPU second count the work and not the waiting. Compilation and the
first step are reported apart.
"""
TRAIN_EXAMPLES = """\
examples:
  python -m qwenjax.bench train --against=torch
      the quickstart's step against transformers' Qwen2 in eager PyTorch, about a minute
  python -m qwenjax.bench train --exp=quickstart --set model.embed=256 --set model.heads=8 --set data.batch=8
      ours alone, at another shape
  python -m qwenjax.bench train --against=torch --rounds=11 --json > train.json
      for machines; a longer run has a narrower spread

exit codes: 0 done, 1 failed, 2 bad usage
"""


def main(arguments: list[str] | None = None) -> int:
    """Parses, runs a benchmark, and turns what may go wrong into a line and an exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was measured", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m qwenjax.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")

    def command(name: str, run, text: str, examples: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        added.add_argument("--json", action="store_true", help="print the result as JSON")
        return added

    add = command("train", _train, TRAIN, TRAIN_EXAMPLES).add_argument
    add("--exp", default="quickstart", metavar="NAME", help="experiment: a name, .py file, run or config.json")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field, as in training")
    add("--against", choices=["torch"], help="measure this too, in turns, and print the ratio")
    add("--rounds", type=_positive, default=5, metavar="N", help="turns of about 3 s that each side gets (default: 5)")
    add("--threads", type=_positive, metavar="N", help="CPU threads for each side (default: one per core)")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _train(options: argparse.Namespace) -> int:
    from qwenjax import lookup

    try:
        experiment = lookup.experiment(options.exp, lookup.settings(options.set))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    from qwenjax.bench import train

    train.report(experiment, options.against, options.rounds, options.threads, options.json)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
