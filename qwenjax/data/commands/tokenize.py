"""Text to shuffled token shards, in parallel. Killed or interrupted, the same command goes on where it was.

TEXT is a .jsonl or .jsonl.gz (one object a line, the text in its field "text"), a text file (cut at line ends into
documents of 16 KB), a folder of such files and of source code (each file one document), or python-stdlib: the library
and reference that come with every Python.
"""

import argparse

from qwenjax.cli import DONE, positive

EXAMPLES = """
examples:
  python -m qwenjax.data tokenize python-stdlib --out=shards/stdlib --tokenizer=qwen
  python -m qwenjax.data tokenize web-*.jsonl.gz books/ --out=shards/web --validation=0.001
  python -m qwenjax.data tokenize notes/ --out=shards/notes --tokenizer=data/tokenizer-1a2b3c4d/tokenizer.model

A single .jsonl.gz is read by one worker; several files, or plain .jsonl, use all of them. Text that cannot be read is
left out, counted by reason and reported; --strict makes that a failure. A training run uses the result with
--set data.sources.0.shards=shards/web
"""


def arguments(add) -> None:
    """Declares the options."""
    add("text", nargs="+", metavar="TEXT", help="files and folders, or python-stdlib")
    add("--out", required=True, metavar="DIR", help="directory for the shards")
    add("--tokenizer", default="qwen", metavar="NAME", help="qwen, a .tiktoken or .model file, or a folder")
    add("--workers", type=positive, metavar="N", help="processes (default: one per core, fewer for little text)")
    add("--validation", type=float, default=0.01, metavar="SHARE", help="share of documents held out (default: 0.01)")
    add("--seed", type=int, default=0, help="of the shuffle and the held-out choice (default: 0)")
    add("--strict", action="store_true", help="fail if any text cannot be read")


def run(options: argparse.Namespace) -> int:
    """Tokenises, then prints what was skipped and what there is."""
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
