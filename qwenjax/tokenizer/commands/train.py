"""A vocabulary from text: sentencepiece, or byte-level BPE that can continue another vocabulary.

TEXT is whatever `qwenjax.data tokenize` reads: files, folders of text and code, tfds:… and hf:…, or python-stdlib.

  bpe      sentencepiece with merges; keeps any text unchanged, unknown characters as bytes. For small vocabularies
  unigram  sentencepiece, pruned by likelihood; also lossless, but thirty times slower to train
  bytes    merges of bytes within the words of Qwen's split pattern, written as .tiktoken ranks with the 208 control
           tokens after them. --continue-from keeps the order of that vocabulary, as Qwen did with cl100k, but leaves
           out tokens of several digits, because the pattern splits numbers into digits
"""

import argparse

from qwenjax.common.command_line import DONE, positive
from qwenjax.sources.arguments import reading_arguments, sources

EXAMPLES = """
examples:
  python -m qwenjax.tokenizer train python-stdlib --out=stdlib.model --size=8192
  python -m qwenjax.tokenizer train books/ --out=books.model --size=16000 --kind=unigram
  python -m qwenjax.tokenizer train web-*.jsonl.gz --out=mine.tiktoken --size=32000 --kind=bytes
  python -m qwenjax.tokenizer train zh/ --out=zh.tiktoken --size=151851 --kind=bytes --continue-from=cl100k.tiktoken
      as in the report: cl100k_base without its numbers, and 52,487 merges learned after it

Use the result as --tokenizer=mine.tiktoken, or as qwenjax.load_tokenizer("mine.tiktoken").
"""


def arguments(add) -> None:
    """Declares the options."""
    add("text", nargs="+", metavar="TEXT", help="texts to read")
    add("--out", required=True, metavar="FILE", help="the vocabulary to write: .model, or .tiktoken for --kind=bytes")
    add("--size", required=True, type=positive, metavar="N", help="number of ids, control tokens included")
    add("--kind", choices=["bpe", "unigram", "bytes"], default="bpe", help="see above (default: bpe)")
    add("--continue-from", metavar="VOCAB", help="for --kind=bytes: qwen or a .tiktoken file (default: the 256 bytes)")
    reading_arguments(add)


def run(options: argparse.Namespace) -> int:
    """Trains, then prints what was skipped and what was written."""
    from qwenjax.sources.documents import Report
    from qwenjax.tokenizer.vocabulary import train

    report = Report()
    tokenizer, lines = train(sources(options), options.out, options.size, options.kind, options.continue_from, report)
    for line in (*report.lines(), *lines):
        print(line)
    print(f"{options.out}: {tokenizer.name}, {tokenizer.size:,} ids, fingerprint {tokenizer.fingerprint[:12]}…")
    return DONE
