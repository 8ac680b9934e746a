"""Data commands: text to token shards, chat data to one schema, and a look at either.

examples:
  python -m qwenjax.data tokenize books/ web.jsonl.gz --out=shards --tokenizer=qwen
  python -m qwenjax.data stats shards
  python -m qwenjax.data convert sharegpt.json --out=chat.jsonl
  python -m qwenjax.data show chat.jsonl
  python -m qwenjax.data show --exp=quickstart --step=100
"""

import argparse
import json
import os
import sys
from itertools import islice
from pathlib import Path

from qwenjax.common import command_line
from qwenjax.common.command_line import DONE, Usage, natural, positive
from qwenjax.config.lookup import experiment_arguments, experiment_from
from qwenjax.sources.arguments import reading_arguments, sources

TOKENIZER = "qwen, a .tiktoken or .model file, or a folder"
MIN_DRAWN = 1000  # rows of a run that `show --png` draws, at least


class Tokenize:
    """Text to shuffled token shards, in parallel. After an interruption the same command resumes.

    TEXT is one of
      a file         .jsonl .ndjson .json (a list of objects) .parquet: each row is a document; or text, cut into 16 KB
                     at line ends. All but .parquet also as .gz or .zst
      a folder       of such files and of source code; each file of text is one document
      python-stdlib  the library and reference that come with every Python
      tfds:NAME[/CONFIG][:VERSION][@SPLIT]   a TensorFlow Datasets data set, prepared as array_record; or tfds:FOLDER
      hf:OWNER/NAME[#CONFIG][@SPLIT]         a data set or folder that Hugging Face `datasets` loads (qwenjax[hf])
    """

    EXAMPLES = """
examples:
  python -m qwenjax.data tokenize python-stdlib --out=shards/stdlib --tokenizer=qwen
  python -m qwenjax.data tokenize web-*.jsonl.gz books/ --out=shards/web --validation=0.001
  python -m qwenjax.data tokenize src/ --include '*.py' --include '*.md' --exclude 'tests/*' --out=shards/code
  python -m qwenjax.data tokenize news.parquet --column title,body --limit=500MB --out=shards/news
  python -m qwenjax.data tokenize tfds:imdb_reviews@unsupervised --out=shards/reviews

The options of reading hold for every TEXT. All workers share a plain .jsonl, a .parquet or a data set; one worker reads
any other file. Text that cannot be read is left out, counted by reason and reported; with --strict it is an error. A
training run reads the result with --set data.sources.0.shards=shards/web
"""

    def arguments(self, add) -> None:
        add("text", nargs="+", metavar="TEXT", help="what to read, see above")
        add("--out", required=True, metavar="DIR", help="folder for the shards")
        add("--tokenizer", default="qwen", metavar="NAME", help=TOKENIZER)
        add("--workers", type=positive, metavar="N", help="processes (default: one per core, fewer for little text)")
        add("--validation", type=float, default=0.01, metavar="SHARE", help="of documents held out (default: 0.01)")
        add("--seed", type=int, default=0, help="of the shuffle and of the held-out documents (default: 0)")
        add("--strict", action="store_true", help="fail if any text cannot be read")
        reading_arguments(add)

    def run(self, options: argparse.Namespace) -> int:
        from qwenjax.data.shards.write import tokenize
        from qwenjax.sources.documents import Report
        from qwenjax.tokenizer import load_tokenizer

        settings = {name: getattr(options, name) for name in ("seed", "workers", "validation", "strict")}
        shards = tokenize(sources(options), options.out, load_tokenizer(options.tokenizer), **settings)
        print(*Report(shards.index["skipped"]).lines(), sep="\n", end="\n" * bool(shards.index["skipped"]))
        for split, entry in shards.index["splits"].items():
            size = f"{entry['tokens']:,} tokens, {entry['documents']:,} documents, {entry['bytes']:,} bytes"
            print(f"{split}: {size} in {len(entry['files'])} files")
        print(f"{shards.directory} is complete")
        return DONE


class Stats:
    """What a corpus is made of: documents, tokens, lengths, languages, repeated lines.

    TEXT is as in `tokenize`, or a folder of shards, whose text is decoded. Several are shown side by side.
    """

    EXAMPLES = """
examples:
  python -m qwenjax.data stats python-stdlib --tokenizer=qwen
  python -m qwenjax.data stats shards/web shards/books --png=corpora.png
  python -m qwenjax.data stats web.parquet --column=content --limit=1GB --lines=50 --json > web.json

It reads about 5 MB/s; --limit takes a sample of a large corpus. Languages are those of 2,000 sampled documents (pip
install 'qwenjax[data]').
"""

    def arguments(self, add) -> None:
        add("text", nargs="+", metavar="TEXT", help="what to read, or folders of shards")
        add("--tokenizer", default="qwen", metavar="NAME", help=f"for text: {TOKENIZER}")
        add("--lines", type=natural, default=10, metavar="N", help="repeated lines to list (default: 10)")
        add("--png", metavar="FILE", help="draw lengths and languages into this file")
        add("--verify", action="store_true", help="first compare every file of shards with its checksum")
        add("--json", action="store_true", help="print JSON")
        reading_arguments(add)

    def run(self, options: argparse.Namespace) -> int:
        from qwenjax.data.inspect.stats import figure, read, table
        from qwenjax.sources.documents import Report

        report = Report()
        stats = {s.text: read(s, options.tokenizer, report, options.verify) for s in sources(options)}
        print(*report.lines(), sep="\n", end="\n" * bool(report), file=sys.stderr)
        if options.json:
            value = {name: s.to_dict(options.lines) for name, s in stats.items()} | {"skipped": report}
            print(json.dumps(value, indent=1, ensure_ascii=False))
        else:
            print(table(stats, options.lines))
        if options.png:
            figure(stats, options.png)
            print(f"drawn into {options.png}", file=sys.stderr)
        return DONE


class Convert:
    """Chat, preference and prompt data of any known format into our schema (docs/data.md), one JSON object a line.

    The format of each row is recognised by its fields. A row that cannot be used is left out, counted by reason, and
    reported with the file and line of the first. The result has rows of one kind: conversations for SFT, preferences
    for reward models and DPO, prompts for PPO.
    """

    EXAMPLES = """
examples:
  python -m qwenjax.data convert sharegpt.json alpaca.jsonl.gz --out=chat.jsonl
  python -m qwenjax.data convert hh-rlhf/*.jsonl.gz --out=pairs.jsonl.gz
  python -m qwenjax.data convert python-stdlib --to=preference --out=pairs.jsonl
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

    def arguments(self, add) -> None:
        add("file", nargs="+", metavar="FILE", help=".jsonl (also .gz, .zst), a .json list, .parquet, or python-stdlib")
        add("--out", required=True, metavar="OUT", help=".jsonl or .jsonl.gz; appears when it is complete")
        add("--format", default="auto", metavar="NAME", help="of every row (default: auto, by its fields)")
        add("--to", choices=("conversation", "preference", "prompt"), help="kind of the rows (default: by format)")
        add("--strict", action="store_true", help="fail at the first row that cannot be used")
        add("--fill", action="append", default=[], metavar="NAME=TEXT", help="text for {{NAME}}; may be repeated")

    def run(self, options: argparse.Namespace) -> int:
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


class Show:
    """What a model is trained on, row by row: chat data with its loss mask, or the documents of a pretraining step.

    FILE is chat, preference or prompt data in any format that `convert` knows. A conversation is shown as ChatML, with
    tool turns as ReAct text; what carries loss is green, or between ⟪ and ⟫ where there is no colour. A preference is
    shown as its prompt and its responses. With --exp it shows rows of pretraining, and the documents that they were cut
    from.
    """

    EXAMPLES = """
examples:
  python -m qwenjax.data show chat.jsonl --rows=3 --loss-mask=finetune_py
  python -m qwenjax.data show pairs.jsonl.gz --row=100 --html=pairs.html
  python -m qwenjax.data show --exp=quickstart --step=0
  python -m qwenjax.data show --exp=runs/a/config.json --step=1200 --rows=8 --html=step.html

Step N reads rows N*batch_size to (N+1)*batch_size - 1, unless the run skipped data; its metrics have next_row, for
--row. Documents end in ⟦end⟧; … marks where the row cuts one. Loss masks: assistant (the report: only what the
assistant says), finetune_py (the released code), all_but_user_content (the tech memo).
"""

    def arguments(self, add) -> None:
        add("file", nargs="?", metavar="FILE", help="chat data: .jsonl (also .gz, .zst), a .json list or .parquet")
        add("--loss-mask", default="assistant", help="of FILE: the tokens that carry loss (default: assistant)")
        add("--tokenizer", default="qwen", metavar="NAME", help=f"of FILE: {TOKENIZER}")
        experiment_arguments(add)
        add("--step", type=natural, metavar="N", help="of --exp: the pretraining step to show; the first is 0")
        add("--row", type=natural, metavar="R", help="first row to show; the first of a file or a run is 0")
        add("--rows", type=positive, default=4, metavar="K", help="how many rows (default: 4)")
        add("--html", metavar="OUT", help="write one self-contained page instead")
        add("--png", metavar="OUT", help="of --exp: draw the rows, and their positions in the corpus")
        add("--data-root", default="data", metavar="DIR", help="where data made from text is kept (default: data)")

    def run(self, options: argparse.Namespace) -> int:
        """Prints the rows, or writes a page of them; everything else goes to stderr."""
        if (options.file is None) == (options.exp is None):
            raise Usage("wanted a FILE of chat data or --exp=NAME, one of them")
        return self._chat(options) if options.file else self._pretraining(options)

    def _chat(self, options: argparse.Namespace) -> int:
        from qwenjax.chat_format.chatml import LOSS_MASKS
        from qwenjax.data.conversations.convert import ConversionReport, convert_rows
        from qwenjax.data.inspect.show import chat_row
        from qwenjax.tokenizer import load_tokenizer

        if options.loss_mask not in LOSS_MASKS:
            raise Usage(f"--loss-mask={options.loss_mask} is unknown; known: {', '.join(LOSS_MASKS)}")
        if options.step is not None:
            raise Usage("--step belongs to --exp; name rows of a FILE with --row=R")
        tokenizer, report = load_tokenizer(options.tokenizer), ConversionReport()
        first, shown = options.row or 0, []
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
        return self._write(options, os.path.basename(options.file), legend, shown)

    def _pretraining(self, options: argparse.Namespace) -> int:
        if (options.step is None) == (options.row is None):
            raise Usage("wanted --step=N or --row=R, one of them")
        exp = experiment_from(options)
        if not exp.data.sources:
            raise Usage(f"{exp.name}: --step and --row show pretraining rows. For chat data: data show FILE")
        from qwenjax.config import INIT_FROM
        from qwenjax.data.batches.text import TextMixture
        from qwenjax.data.inspect.show import draw_rows, text_row
        from qwenjax.data.shards.prepare import prepare
        from qwenjax.tokenizer import load_tokenizer

        own = load_tokenizer(exp.init_from) if exp.data.tokenizer == INIT_FROM else None
        tokenizer, shards, lines = prepare(exp.data, exp.seed, options.data_root, tokenizer=own)
        print(*lines, sep="\n", file=sys.stderr)
        mixture = TextMixture(shards, [source.weight for source in exp.data.sources], exp.data.seq_len, exp.seed)
        first, count = options.row, options.rows
        if first is None:
            first, count = options.step * exp.data.batch_size, min(count, exp.data.batch_size)
            if count < exp.data.batch_size:
                print(f"({exp.data.batch_size - count} more rows in this step; --rows shows them)", file=sys.stderr)
        if options.png:
            draw_rows(mixture, first, count, max(first + count, MIN_DRAWN), options.png)
            print(f"{options.png}: rows {first} to {first + count - 1}")
            return DONE
        shown = [text_row(mixture, row, tokenizer) for row in range(first, first + count)]
        return self._write(options, exp.name, "", shown)

    def _write(self, options: argparse.Namespace, heading: str, legend: str, shown: list) -> int:
        """Prints the rows, or writes a page of them; with a legend, colours say what carries loss."""
        from qwenjax.data.inspect.show import page, row_lines

        by_document = not legend
        if options.html:
            note = "a colour for each document" if by_document else f"green: {legend}"
            Path(options.html).write_text(page(heading, f"{note}; ids on hover", shown, by_document), encoding="utf-8")
            print(f"{options.html}: {len(shown)} rows")
            return DONE
        colour = not by_document and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        if legend:
            print(f"{'green' if colour else '⟪ ⟫'}: {legend}", file=sys.stderr)
        for row in shown:
            print(*row_lines(row, colour, by_document), sep="\n")
        return DONE


class Publish:
    """The documents of token shards as a TensorFlow Datasets data set (array_record).

    The text is decoded from the tokens. Splits are train and validation, features `text` and `origin`. A finished data
    set is kept. A killed run leaves nothing that looks finished, and the same command starts again.
    """

    EXAMPLES = """
examples:
  python -m qwenjax.data publish shards/web --out=published --name=web
  python -c "import tensorflow_datasets as tfds; print(tfds.data_source('web', data_dir='published', split='train')[0])"
  python -m qwenjax.data tokenize tfds:published/web/1.0.0@train --out=shards/again
"""

    def arguments(self, add) -> None:
        add("shards", metavar="SHARDS", help="folder written by `python -m qwenjax.data tokenize`")
        add("--out", required=True, metavar="DIR", help="the data_dir of TFDS: the result is DIR/NAME/1.0.0")
        add("--name", metavar="NAME", help="of the data set, in snake_case (default: the name of SHARDS)")

    def run(self, options: argparse.Namespace) -> int:
        from qwenjax.data.shards.format import Shards
        from qwenjax.data.shards.publish import publish
        from qwenjax.tokenizer import load_tokenizer

        shards = Shards(options.shards)
        tokenizer = load_tokenizer(str(shards.directory / "tokenizer"))
        name = options.name or shards.directory.resolve().name.lower().replace("-", "_")
        print(f"{publish(shards, tokenizer, options.out, name)} is complete")
        return DONE


def main(argv: list[str] | None = None) -> int:
    """Runs `python -m qwenjax.data COMMAND …`; returns its exit code."""
    commands = {command.__name__.lower(): command() for command in (Tokenize, Stats, Convert, Show, Publish)}
    return command_line.main("qwenjax.data", __doc__, commands, argv)


if __name__ == "__main__":
    sys.exit(main())
