"""The rows of one training step as text, with the documents they were cut from."""

import argparse
import sys

from qwenjax.cli import DONE, Usage, experiment, experiment_arguments, natural, positive

EXAMPLES = """
examples:
  python -m qwenjax.data show --exp=quickstart --step=0
  python -m qwenjax.data show --exp=runs/a/config.json --step=1200 --rows=8
  python -m qwenjax.data show --exp=quickstart --row=81234 --set data.length=256

Step N reads rows N*batch to (N+1)*batch - 1, unless the run skipped data; its telemetry has next_row, for --row.
Documents end in ⟦end⟧; a row begins where the one before it in the document stream ended.
"""


def arguments(add) -> None:
    """Declares the options."""
    experiment_arguments(add, required=True)
    add("--step", type=natural, metavar="N", help="step whose batch to show; the first is 0")
    add("--row", type=natural, metavar="R", help="first row to show, counted over the whole run")
    add("--rows", type=positive, default=4, metavar="K", help="how many rows (default: 4)")
    add("--data-root", default="data", metavar="DIR", help="where data made from text is kept (default: data)")


def run(options: argparse.Namespace) -> int:
    """Prints the rows; how many more the step has goes to stderr."""
    if (options.step is None) == (options.row is None):
        raise Usage("wanted --step=N or --row=R, one of them")
    exp = experiment(options)
    from qwenjax.data.prepare import prepare
    from qwenjax.data.show import describe
    from qwenjax.data.stream import Mixture

    tokenizer, shards, said = prepare(exp.data, exp.seed, options.data_root)
    print(*said, sep="\n", file=sys.stderr)
    mixture = Mixture(shards, [source.weight for source in exp.data.sources], exp.data.length, exp.seed)
    first, end = options.row, None
    if first is None:
        first, end = options.step * exp.data.batch, (options.step + 1) * exp.data.batch
    last = first + options.rows if end is None else min(first + options.rows, end)
    for row in range(first, last):
        print(*describe(mixture, row, tokenizer), sep="\n")
    if end is not None and last < end:
        print(f"({end - last} more rows in this step; --rows shows them)", file=sys.stderr)
    return DONE
