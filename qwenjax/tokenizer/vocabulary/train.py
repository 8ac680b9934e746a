"""Documents to a vocabulary file."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from qwenjax.common.command_line import Usage
from qwenjax.common.progress import meter
from qwenjax.config import Source
from qwenjax.sources.documents import Report, documents
from qwenjax.tokenizer.load import Tokenizer, load_tokenizer

RARE = 2  # a pair of tokens that occurs less often is not worth an id


def train(
    sources: Iterable[str | Source],
    out: str | Path,
    size: int,
    kind: str = "bpe",
    base: str | None = None,
    report: Report | None = None,
) -> tuple[Tokenizer, list[str]]:
    """(the tokenizer, lines that say how it came about); the same text gives the same file.

    Args:
      sources: as `data.sources.documents` takes them.
      out: the file to write, .model, or .tiktoken for kind 'bytes'.
      size: ids in all, control tokens included.
      kind: 'bpe', 'unigram' or 'bytes'.
      base: for 'bytes', the vocabulary to continue: 'qwen' or a .tiktoken file.
      report: gets what could not be read.
    Raises:
      Usage: options that do not fit together, or a file that exists.
      ValueError: no text, or a size that the text does not give.
    """
    out, suffix = Path(out), ".tiktoken" if kind == "bytes" else ".model"
    if out.suffix != suffix:
        raise Usage(f"--out={out}: kind {kind} is written to a file that ends in {suffix}")
    if base and kind != "bytes":
        raise Usage(f"only kind bytes continues a vocabulary; drop --continue-from={base}, or use --kind=bytes")
    if out.exists():
        raise Usage(f"{out} exists; remove it or give another --out")
    texts = _texts(sources, Report() if report is None else report)
    if kind == "bytes":
        return _bytes(texts, out, size, base)
    from qwenjax.tokenizer import sentencepiece

    return sentencepiece.train(texts, size, out, kind=kind), []


def _texts(sources: Iterable[str | Source], report: Report) -> Iterator[str]:
    """The text of the sources, with a meter."""
    with meter("reading", unit="B") as step:
        for source in sources:
            for document in documents(source, report):
                step(len(document.text.encode()))
                yield document.text


def _bytes(texts: Iterable[str], out: Path, size: int, base: str | None) -> tuple[Tokenizer, list[str]]:
    from qwenjax.tokenizer.bpe import SPECIAL, QwenBPE, write_ranks
    from qwenjax.tokenizer.vocabulary import merges

    said, before = [], merges.byte_order()
    if base:
        start = load_tokenizer(base)
        if not isinstance(start, QwenBPE):
            raise Usage(f"--continue-from={base}: wanted qwen or a .tiktoken file")
        ranks = [start.decode_bytes([i]) for i in range(start.eot)]
        before = merges.without_numbers(ranks)
        if len(before) < len(ranks):
            said.append(f"{base}: {len(ranks) - len(before):,} tokens of several digits left out, the order kept")
        if start.size > start.eot + len(SPECIAL):
            said.append(f"{base}: extra tokens behind its control tokens left out")
    wanted = size - len(SPECIAL) - len(before)
    if wanted < 1:
        least = size - wanted + 1
        raise Usage(
            f"--size={size}: {len(before):,} tokens to begin with and {len(SPECIAL)} control tokens; at least {least:,}"
        )
    words = merges.count_words(texts)
    if not words:
        raise ValueError("there is no text to train a vocabulary on")
    said.append(f"{words.total():,} words, {len(words):,} different ones")
    # Frequencies fall like 1/n, and with them the work: time grows with the logarithm of the merges done.
    with meter("learning", math.log(wanted + 1)) as step:
        learned = merges.learn(words, before, wanted, RARE, lambda n: step(math.log((n + 1) / n)))
    if len(learned) < wanted:
        most = size - wanted + len(learned)
        raise ValueError(f"no vocabulary of {size:,} ids from this text: after {most:,} no pair occurs {RARE} times")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(write_ranks({token: rank for rank, token in enumerate(before + learned)}))
    said.append(f"{len(before):,} tokens to begin with, {wanted:,} learned, {len(SPECIAL)} control tokens")
    return load_tokenizer(out), said
