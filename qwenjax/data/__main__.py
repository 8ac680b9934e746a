"""Commands of the data room: text to token shards, and what a training step reads.

examples:
  python -m qwenjax.data tokenize books/ web.jsonl.gz --out=shards --tokenizer=qwen
  python -m qwenjax.data show --exp=quickstart --step=100
"""

import argparse
import signal
import sys

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 3

TOKENIZE = """\
Text to shuffled token shards, in parallel. Killed or interrupted, the same command goes on where it was.

TEXT is a .jsonl or .jsonl.gz (one object a line, the text in its field "text"), a text file (cut at line ends into
documents of 16 KB), a folder of such files and of source code (each file one document), or python-stdlib: the library
and reference that come with every Python.
"""
TOKENIZE_EXAMPLES = """\
examples:
  python -m qwenjax.data tokenize python-stdlib --out=shards/stdlib --tokenizer=qwen
  python -m qwenjax.data tokenize web-*.jsonl.gz books/ --out=shards/web --validation=0.001
  python -m qwenjax.data tokenize notes/ --out=shards/notes --tokenizer=data/tokenizer-1a2b3c4d/tokenizer.model

A single .jsonl.gz is read by one worker; several files, or plain .jsonl, use all of them. Text that cannot be read is
left out, counted by reason and reported; --strict makes that a failure. A training run uses the result with
--set data.sources.0.shards=shards/web
"""
SHOW = "The rows of one training step as text, with the documents they were cut from."
SHOW_EXAMPLES = """\
examples:
  python -m qwenjax.data show --exp=quickstart --step=0
  python -m qwenjax.data show --exp=runs/a/config.json --step=1200 --rows=8
  python -m qwenjax.data show --exp=quickstart --row=81234 --set data.length=256

Step N reads rows N*batch to (N+1)*batch - 1, unless the run skipped data; its telemetry has next_row, for --row.
Documents end in ⟦end⟧; a row begins where the one before it in the document stream ended.
"""


def main(arguments: list[str] | None = None) -> int:
    """Parses, runs a subcommand, and turns what may go wrong into a line and an exit code."""
    options = _parser().parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # a polite kill is an interruption, too; a job begun with & ignores
        signal.signal(number, signal.default_int_handler)  # SIGINT unless told
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        return DONE
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m qwenjax.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, text: str, examples: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    add = command("tokenize", _tokenize, TOKENIZE, TOKENIZE_EXAMPLES).add_argument
    add("text", nargs="+", metavar="TEXT", help="files and folders, or python-stdlib")
    add("--out", required=True, metavar="DIR", help="directory for the shards")
    add("--tokenizer", default="qwen", metavar="NAME", help="qwen, a .tiktoken or .model file, or a folder")
    add("--workers", type=_positive, metavar="N", help="processes (default: one per core, fewer for little text)")
    add("--validation", type=float, default=0.01, metavar="SHARE", help="share of documents held out (default: 0.01)")
    add("--seed", type=int, default=0, help="of the shuffle and the held-out choice (default: 0)")
    add("--strict", action="store_true", help="fail if any text cannot be read")

    add = (shown := command("show", _show, SHOW, SHOW_EXAMPLES)).add_argument
    add("--exp", required=True, metavar="NAME", help="experiment name, .py file, config.json or run directory")
    which = shown.add_mutually_exclusive_group(required=True)
    which.add_argument("--step", type=_natural, metavar="N", help="step whose batch to show; the first is 0")
    which.add_argument("--row", type=_natural, metavar="R", help="first row to show, counted over the whole run")
    add("--rows", type=_positive, default=4, metavar="K", help="how many rows (default: 4)")
    add("--data-root", default="data", metavar="DIR", help="where data made from text is kept (default: data)")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field, as in training")
    return parser


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _tokenize(options: argparse.Namespace) -> int:
    from qwenjax.data.sources import Report
    from qwenjax.data.tokenize import tokenize
    from qwenjax.text import load_tokenizer

    shards = tokenize(
        options.text,
        options.out,
        load_tokenizer(options.tokenizer),
        seed=options.seed,
        workers=options.workers,
        validation=options.validation,
        strict=options.strict,
    )
    for line in Report(shards.index["skipped"]).lines():
        print(line)
    for split, held in shards.index["splits"].items():
        files = f"{len(held['files'])} file" + "s" * (len(held["files"]) != 1)
        print(f"{split}: {held['tokens']:,} tokens, {held['documents']:,} documents, {held['bytes']:,} bytes, {files}")
    print(f"{shards.directory} is complete")
    return DONE


def _show(options: argparse.Namespace) -> int:
    from qwenjax import lookup

    try:
        exp = lookup.experiment(options.exp, lookup.settings(options.set))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
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


if __name__ == "__main__":
    sys.exit(main())
