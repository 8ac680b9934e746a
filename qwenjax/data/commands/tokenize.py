"""Text to shuffled token shards, in parallel. After an interruption the same command resumes.

TEXT is one of
  a file         .jsonl .ndjson .json (a list of objects) .parquet: each row is a document; or text, cut into 16 KB at
                 line ends. All but .parquet also as .gz or .zst
  a folder       of such files and of source code; each file of text is one document
  python-stdlib  the library and reference that come with every Python
  tfds:NAME[/CONFIG][:VERSION][@SPLIT]   a TensorFlow Datasets data set, prepared as array_record; or tfds:FOLDER
  hf:OWNER/NAME[#CONFIG][@SPLIT]         a data set or folder that Hugging Face `datasets` loads (qwenjax[hf])
"""

import argparse

from qwenjax.common.command_line import DONE, positive
from qwenjax.sources.arguments import reading_arguments, sources

EXAMPLES = """
examples:
  python -m qwenjax.data tokenize python-stdlib --out=shards/stdlib --tokenizer=qwen
  python -m qwenjax.data tokenize web-*.jsonl.gz books/ --out=shards/web --validation=0.001
  python -m qwenjax.data tokenize notes/ --out=shards/notes --tokenizer=data/tokenizer-1a2b3c4d/tokenizer.model
  python -m qwenjax.data tokenize src/ --include '*.py' --include '*.md' --exclude 'tests/*' --out=shards/code
  python -m qwenjax.data tokenize news.parquet --column title,body --limit=500MB --out=shards/news
  python -m qwenjax.data tokenize tfds:imdb_reviews@unsupervised --out=shards/reviews

The options of reading hold for every TEXT. All workers share a plain .jsonl, a .parquet or a data set; one worker reads
any other file. Text that cannot be read is left out, counted by reason and reported; with --strict it is an error. A
training run reads the result with --set data.sources.0.shards=shards/web
"""


def arguments(add) -> None:
    """Declares the options."""
    add("text", nargs="+", metavar="TEXT", help="what to read, see above")
    add("--out", required=True, metavar="DIR", help="folder for the shards")
    add("--tokenizer", default="qwen", metavar="NAME", help="qwen, a .tiktoken or .model file, or a folder")
    add("--workers", type=positive, metavar="N", help="processes (default: one per core, fewer for little text)")
    add("--validation", type=float, default=0.01, metavar="SHARE", help="share of documents held out (default: 0.01)")
    add("--seed", type=int, default=0, help="of the shuffle and of the held-out documents (default: 0)")
    add("--strict", action="store_true", help="fail if any text cannot be read")
    reading_arguments(add)


def run(options: argparse.Namespace) -> int:
    """Tokenises, then prints what was skipped and what there is."""
    from qwenjax.data.shards.write import tokenize
    from qwenjax.sources.documents import Report
    from qwenjax.tokenizer import load_tokenizer

    shards = tokenize(
        sources(options),
        options.out,
        load_tokenizer(options.tokenizer),
        seed=options.seed,
        workers=options.workers,
        validation=options.validation,
        strict=options.strict,
    )
    for line in Report(shards.index["skipped"]).lines():
        print(line)
    for split, entry in shards.index["splits"].items():
        files = f"{len(entry['files'])} file" + "s" * (len(entry["files"]) != 1)
        print(
            f"{split}: {entry['tokens']:,} tokens, {entry['documents']:,} documents, {entry['bytes']:,} bytes, {files}"
        )
    print(f"{shards.directory} is complete")
    return DONE
