"""Learns vocabularies from documents, and extra tokens from a list of words (docs/report.md, Vocabulary expansion)."""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from qwenjax.common.command_line import Usage
from qwenjax.common.progress import meter
from qwenjax.config import Source
from qwenjax.sources.documents import Report, documents
from qwenjax.tokenizer import Tokenizer, load_tokenizer
from qwenjax.tokenizer.bpe import SPECIAL, ExtendedBPE, QwenBPE, byte_order, write_ranks
from qwenjax.tokenizer.vocabulary import merges

MIN_FREQUENCY = 2  # a pair of tokens that occurs less often is not worth an id


def train(
    sources: Iterable[str | Source],
    out: str | Path,
    size: int,
    kind: str = "bpe",
    base: str | None = None,
    report: Report | None = None,
) -> tuple[Tokenizer, list[str]]:
    """Trains a vocabulary and writes it; the same text gives the same file.

    Args:
      sources: as `sources.documents.documents` takes them.
      out: the file to write, .model, or .tiktoken for kind 'bytes'.
      size: number of ids, control tokens included.
      kind: 'bpe', 'unigram' or 'bytes'.
      base: for 'bytes', the vocabulary to continue: 'qwen' or a .tiktoken file.
      report: receives what could not be read.
    Returns: the tokenizer, and lines for people that say how it was made.
    Raises:
      Usage: options that do not fit together, or a file that exists.
      ValueError: no text, or a size that the text is too small for.
    """
    out = _new_file(out, ".tiktoken" if kind == "bytes" else ".model", f" for --kind={kind}")
    if base and kind != "bytes":
        raise Usage(f"--continue-from={base} needs --kind=bytes")
    texts = _texts(sources, Report() if report is None else report)
    if kind == "bytes":
        return _bytes(texts, out, size, base)
    from qwenjax.tokenizer import sentencepiece

    return sentencepiece.train(texts, size, out, kind=kind), []


def _new_file(out: str | Path, suffix: str, reason: str = "") -> Path:
    """The path, if a file with this suffix can be written there."""
    out = Path(out)
    if out.suffix != suffix:
        raise Usage(f"--out={out}: wanted a file that ends in {suffix}{reason}")
    if out.exists():
        raise Usage(f"{out} exists; remove it or give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _texts(sources: Iterable[str | Source], report: Report) -> Iterator[str]:
    """The text of the sources, with a meter."""
    with meter("reading", unit="B") as step:
        for source in sources:
            for document in documents(source, report):
                step(len(document.text.encode()))
                yield document.text


def _bytes(texts: Iterable[str], out: Path, size: int, base: str | None) -> tuple[Tokenizer, list[str]]:
    lines, initial = [], byte_order()
    if base:
        start = load_tokenizer(base)
        if not isinstance(start, QwenBPE):
            raise Usage(f"--continue-from={base}: wanted qwen or a .tiktoken file")
        initial = merges.without_numbers(start.decode_bytes([i]) for i in range(start.eot))
        if numbers := start.eot - len(initial):
            lines.append(f"{base}: {numbers:,} tokens of several digits left out, the order kept")
    wanted = size - len(SPECIAL) - len(initial)
    if wanted < 1:
        raise Usage(
            f"--size={size}: {len(initial):,} initial tokens and {len(SPECIAL)} control tokens; "
            f"wanted at least {size - wanted + 1:,}"
        )
    words = merges.count_words(texts)
    lines.append(f"{words.total():,} words, {len(words):,} different ones")
    # Frequencies fall like 1/n, and with them the work, so time grows with the logarithm of the number of merges.
    with meter("learning", math.log(wanted + 1)) as step:
        learned = merges.learn(words, initial, wanted, MIN_FREQUENCY, lambda n: step(math.log((n + 1) / n)))
    if len(learned) < wanted:
        most = size - wanted + len(learned)
        raise ValueError(
            f"no vocabulary of {size:,} ids from this text: after {most:,} no pair occurs {MIN_FREQUENCY} times"
        )
    out.write_bytes(write_ranks({token: rank for rank, token in enumerate(initial + learned)}))
    lines.append(f"{len(initial):,} initial tokens, {wanted:,} learned, {len(SPECIAL)} control tokens")
    return load_tokenizer(out), lines


# ---- extra tokens ----


def extend(vocab: str, words: str | Path, out: str | Path) -> list[str]:
    """Writes a file of extra tokens with which each word is one token.

    The extra tokens of an extended vocabulary are copied, so the new file replaces the old one.

    Returns: lines for people that say what was skipped and which tokens are new.
    Raises:
      Usage: a vocabulary that cannot be extended, a path that does not end in .tiktoken, or a file that exists.
      ValueError: a line that is not a word and a frequency, or no word to add.
    """
    out = _new_file(out, ".tiktoken")
    tokenizer = load_tokenizer(vocab)
    if not isinstance(tokenizer, QwenBPE):
        raise Usage(f"--vocab={vocab}: only byte-level vocabularies (.tiktoken) can be extended")
    extra = dict(tokenizer.extra) if isinstance(tokenizer, ExtendedBPE) else {}
    tokens = [*(tokenizer.decode_bytes([i]) for i in range(tokenizer.eot)), *extra]
    report = Report()
    chosen = read_words(words, set(tokens), report)
    if not chosen:
        raise ValueError("; ".join([f"{words} has no word to add", *report.lines()]))
    with meter("learning", unit="merge") as step:
        learned = merges.learn(chosen, tokens, watch=lambda n: step(1))
    new = {token: tokenizer.size + i for i, token in enumerate(learned)}
    out.write_bytes(write_ranks(extra | new))
    total = tokenizer.size + len(new)
    return [
        *report.lines(),
        *(f"{index}  {token.decode('utf-8', 'replace')!r}" for token, index in new.items()),
        f"{out}: {len(new):,} new tokens for {len(chosen):,} words, ids {tokenizer.size} … {total - 1}; "
        f"with them the vocabulary has {total:,} ids",
    ]


def read_words(path: str | Path, tokens: set[bytes], report: Report) -> Counter[str]:
    """Word -> frequency of the words that can be added; notes the others. Frequencies of a repeated word add up.

    Raises:
      ValueError: naming the line that is not UTF-8, or not a word, a tab and a positive integer.
    """
    words: Counter[str] = Counter()
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            word, tab, frequency = line.decode("utf-8").removeprefix("\ufeff").rpartition("\t")
        except UnicodeDecodeError:
            raise ValueError(f"{where}: not UTF-8; save the file as UTF-8") from None
        if not line.strip():
            continue
        word = unicodedata.normalize("NFC", word)
        if not (word and tab and frequency.strip().isdecimal() and int(frequency)):
            raise ValueError(f"{where}: wanted a word, a tab and a frequency of at least 1, got {line[:60]!r}")
        if len(merges.split(word)) > 1:
            report.note("word that the split pattern cuts", f"line {number}: {' | '.join(merges.split(word))}")
        elif word.encode() in tokens:
            report.note("word that is a token already", f"line {number}: {word}")
        else:
            words[word] += int(frequency)
    return words
