"""Chat, preference and prompt data of any known format into our schema (docs/data.md), one JSON object a line.

The format of each row is recognised by its fields. A row that cannot be used is left out, counted by reason, and
reported with the file and line of the first. The result has rows of one kind: conversations for SFT, preferences for
reward models and DPO, prompts for PPO.
"""

import argparse

from qwenjax.common.command_line import DONE, Usage

EXAMPLES = """
examples:
  python -m qwenjax.data convert sharegpt.json alpaca.jsonl.gz --out=chat.jsonl
  python -m qwenjax.data convert hh-rlhf/*.jsonl.gz --out=pairs.jsonl.gz
  python -m qwenjax.data convert python-stdlib --to=preference --out=pairs.jsonl
  python -m qwenjax.data convert gsm8k.jsonl --to=conversation --out=worked.jsonl
  python -m qwenjax.data convert pairs.jsonl --to=prompt --out=prompts.jsonl
  python -m qwenjax.data convert identity.jsonl --fill name=Qwen --fill "author=Alibaba Cloud" --out=identity.jsonl

Known formats, and what their rows become without --to:
  sharegpt, openai, alpaca, seeds, completion, glaive, kto (desirable rows)    conversation
  hh, pairs, ranked                                                            preference
  question (GSM8K, BELLE), mt_bench, prompt                                    prompt
--to=conversation takes the best response, --to=prompt none, but keeps the reference answer.
python-stdlib needs no file: it asks about functions of this Python's library, and their docstrings are the answers.
Look at the result with `show`.
"""


def arguments(add) -> None:
    """Declares the options."""
    add(
        "file",
        nargs="+",
        metavar="FILE",
        help=".jsonl (also .gz, .zst), a .json list, .parquet, or python-stdlib",
    )
    add("--out", required=True, metavar="OUT", help=".jsonl or .jsonl.gz; appears when it is complete")
    add(
        "--format", default="auto", metavar="NAME", help="take every row for this format (default: auto, by its fields)"
    )
    add("--to", choices=("conversation", "preference", "prompt"), help="kind of the rows (default: by format)")
    add("--strict", action="store_true", help="fail at the first row that cannot be used")
    add("--fill", action="append", default=[], metavar="NAME=TEXT", help="text for {{NAME}}; may be repeated")


def run(options: argparse.Namespace) -> int:
    """Converts, then prints what came from where, what was changed and what was left out."""
    fill = dict(pair.split("=", 1) for pair in options.fill if "=" in pair)
    if len(fill) < len(options.fill):
        raise Usage("wanted --fill NAME=TEXT, each name once")
    from qwenjax.data.conversations.convert import convert
    from qwenjax.data.conversations.formats import FORMATS

    if options.format not in ("auto", *FORMATS):
        raise Usage(f"--format={options.format} is unknown; known: auto, {', '.join(FORMATS)}")
    report = convert(options.file, options.out, options.format, options.to, options.strict, fill)
    print(*report.lines(), *report.skipped.lines(), sep="\n")
    print(f"{options.out}: {report.rows:,} rows from {report.read:,}")
    return DONE
