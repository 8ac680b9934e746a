"""What a model is trained on, row by row: chat data with its loss mask, or the documents of a pretraining step.

FILE is chat, preference or prompt data in any format that `convert` knows. A conversation is shown as ChatML, with tool
turns as ReAct text; what carries loss is green, or between ⟪ and ⟫ where there is no colour. A preference is shown as
its prompt and its responses. With --exp it shows rows of pretraining, and the documents that they were cut from.
"""

import argparse
import os
import sys

from qwenjax.common.command_line import DONE, Usage, natural, positive
from qwenjax.config.lookup import experiment_arguments, experiment_from

EXAMPLES = """
examples:
  python -m qwenjax.data show chat.jsonl --rows=3 --loss-mask=finetune_py
  python -m qwenjax.data show pairs.jsonl.gz --row=100 --html=pairs.html
  python -m qwenjax.data show --exp=quickstart --step=0
  python -m qwenjax.data show --exp=runs/a/config.json --step=1200 --rows=8 --html=step.html
  python -m qwenjax.data show --exp=quickstart --row=81234 --set data.seq_len=256

Step N reads rows N*batch_size to (N+1)*batch_size - 1, unless the run skipped data; its metrics have next_row, for
--row. Documents end in ⟦end⟧; … marks where the row cuts one. Loss masks: assistant (the report: only what the
assistant says), finetune_py (the released code), all_but_user_content (the tech memo).
"""


MIN_DRAWN = 1000  # rows of a run that --png draws, at least


def arguments(add) -> None:
    """Declares the options."""
    add("file", nargs="?", metavar="FILE", help="chat data: .jsonl (also .gz, .zst), a .json list or .parquet")
    add("--loss-mask", default="assistant", help="of FILE: the tokens that carry loss (default: assistant)")
    add("--tokenizer", default="qwen", metavar="NAME", help="of FILE: qwen, a .tiktoken or .model file, or a folder")
    experiment_arguments(add)
    add("--step", type=natural, metavar="N", help="of --exp: the pretraining step to show; the first is 0")
    add("--row", type=natural, metavar="R", help="first row to show; the first of a file or a run is 0")
    add("--rows", type=positive, default=4, metavar="K", help="how many rows (default: 4)")
    add("--html", metavar="OUT", help="write one self-contained page instead")
    add("--png", metavar="OUT", help="of --exp: draw the rows, and their positions in the corpus")
    add("--data-root", default="data", metavar="DIR", help="where data made from text is kept (default: data)")


def run(options: argparse.Namespace) -> int:
    """Prints the rows, or writes a page of them; everything else goes to stderr."""
    if (options.file is None) == (options.exp is None):
        raise Usage("wanted a FILE of chat data or --exp=NAME, one of them")
    return _chat(options) if options.file else _pretraining(options)


def _chat(options: argparse.Namespace) -> int:
    from itertools import islice

    from qwenjax.chat_format.loss_mask import LOSS_MASKS
    from qwenjax.data.conversations.convert import ConversionReport, convert_rows
    from qwenjax.data.inspect.show import chat_row, chat_row_lines
    from qwenjax.tokenizer import load_tokenizer

    if options.loss_mask not in LOSS_MASKS:
        raise Usage(f"--loss-mask={options.loss_mask} is unknown; known: {', '.join(LOSS_MASKS)}")
    if options.step is not None:
        raise Usage("--step belongs to --exp; name rows of a FILE with --row=R")
    tokenizer, report = load_tokenizer(options.tokenizer), ConversionReport()
    first = options.row or 0
    shown = []
    for n, (origin, format, row) in enumerate(islice(convert_rows(options.file, report), first + options.rows)):
        if n >= first:
            try:
                shown.append(chat_row(row, tokenizer, options.loss_mask, f"row {n} ({origin}, {format})"))
            except ValueError as error:
                print(f"row {n} ({origin}) cannot be shown: {error}", file=sys.stderr)
    print(*report.skipped.lines(), sep="\n", end="\n" * bool(report.skipped), file=sys.stderr)
    if report.rows <= first:
        raise ValueError(f"{options.file} has {report.rows} rows that can be shown; wanted row {first}")
    legend = f"carries loss ({options.loss_mask}; of preferences the responses); tokenizer {tokenizer.name}"
    if options.html:
        return _page(options.html, os.path.basename(options.file), f"green: {legend}; ids on hover", shown)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(f"{'green' if colour else '⟪ ⟫'}: {legend}", file=sys.stderr)
    for row in shown:
        print(*chat_row_lines(row, colour), sep="\n")
    return DONE


def _pretraining(options: argparse.Namespace) -> int:
    if (options.step is None) == (options.row is None):
        raise Usage("wanted --step=N or --row=R, one of them")
    exp = experiment_from(options)
    if not exp.data.sources:
        raise Usage(f"{exp.name} reads no text; --step and --row show pretraining rows. For chat data: data show FILE")
    from qwenjax.config import INIT_FROM
    from qwenjax.data.batches.text import TextMixture
    from qwenjax.data.inspect.show import text_row, text_row_lines
    from qwenjax.data.shards.prepare import prepare
    from qwenjax.tokenizer import load_tokenizer

    own = load_tokenizer(exp.init_from) if exp.data.tokenizer == INIT_FROM else None
    tokenizer, shards, lines = prepare(exp.data, exp.seed, options.data_root, tokenizer=own)
    print(*lines, sep="\n", file=sys.stderr)
    mixture = TextMixture(shards, [source.weight for source in exp.data.sources], exp.data.seq_len, exp.seed)
    first, end = options.row, None
    if first is None:
        first, end = options.step * exp.data.batch_size, (options.step + 1) * exp.data.batch_size
    last = first + options.rows if end is None else min(first + options.rows, end)
    if end is not None and last < end:
        print(f"({end - last} more rows in this step; --rows shows them)", file=sys.stderr)
    if options.png:
        from qwenjax.data.inspect.show import draw_rows

        draw_rows(mixture, first, last - first, max(last, MIN_DRAWN), options.png)
        print(f"{options.png}: rows {first} to {last - 1}")
        return DONE
    if options.html:
        shown = [text_row(mixture, row, tokenizer) for row in range(first, last)]
        return _page(options.html, exp.name, "a colour for each document; ids on hover", shown, by_document=True)
    for row in range(first, last):
        print(*text_row_lines(mixture, row, tokenizer), sep="\n")
    return DONE


def _page(out: str, heading: str, legend: str, shown: list, by_document: bool = False) -> int:
    from pathlib import Path

    from qwenjax.data.inspect.html import page

    Path(out).write_text(page(heading, legend, shown, by_document), encoding="utf-8")
    print(f"{out}: {len(shown)} rows")
    return DONE
