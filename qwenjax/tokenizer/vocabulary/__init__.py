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
from qwenjax.tokenizer import Tokenizer, load_tokenizer, sentencepiece
from qwenjax.tokenizer.bpe import SPECIAL, QwenBPE, byte_order, write_ranks
from qwenjax.tokenizer.vocabulary import merges

MIN_FREQUENCY = 2  # a pair of tokens that occurs less often is not worth an id


def train(
    sources: Iterable[str | Source], out: str, size: int, kind: str, base: str | None, report: Report
) -> tuple[Tokenizer, list[str]]:
    """Trains a vocabulary and writes it; the same text gives the same file.

    Args:
      sources: as `sources.documents.documents` takes them; `report` receives what could not be read.
      out: the file to write, .model, or .tiktoken for kind 'bytes'.
      size: number of ids, control tokens included.
      kind: 'bpe', 'unigram' or 'bytes'.
      base: for 'bytes', the vocabulary to continue; its extra tokens become ordinary ones.
    Returns: the tokenizer, and lines for people that say how it was made.
    Raises:
      Usage: options that do not fit together, or a file that exists.
      ValueError: no text, or a size that the text is too small for.
    """
    path = _new_file(out, ".tiktoken" if kind == "bytes" else ".model", f" for --kind={kind}")
    if base and kind != "bytes":
        raise Usage(f"--continue-from={base} needs --kind=bytes")
    texts = _texts(sources, report)
    if kind == "bytes":
        return _bytes(texts, path, size, base)
    return sentencepiece.train(texts, size, path, kind=kind), []


def _new_file(out: str, suffix: str, reason: str = "") -> Path:
    """The path, if a file with this suffix can be written there."""
    path = Path(out)
    if path.suffix != suffix:
        raise Usage(f"--out={out}: wanted a file that ends in {suffix}{reason}")
    if path.exists():
        raise Usage(f"{out} exists; remove it or give another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _texts(sources: Iterable[str | Source], report: Report) -> Iterator[str]:
    """The text of the sources, with a meter."""
    with meter("reading", unit="B") as step:
        for source in sources:
            for document in documents(source, report):
                step(len(document.text.encode()))
                yield document.text


def _bytes(texts: Iterable[str], out: Path, size: int, base: str | None) -> tuple[Tokenizer, list[str]]:
    """`train` of kind 'bytes'."""
    lines, initial = [], byte_order()
    if base:
        start = _byte_level(f"--continue-from={base}", base)
        initial = merges.without_numbers(start.ranks)
        if numbers := len(start.ranks) - len(initial):
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


def _byte_level(option: str, vocabulary: str) -> QwenBPE:
    """The tokenizer that an option names."""
    tokenizer = load_tokenizer(vocabulary)
    if not isinstance(tokenizer, QwenBPE):
        raise Usage(f"{option}: only byte-level vocabularies, qwen or of a .tiktoken file, can be continued")
    return tokenizer


def extend(vocab: str, words: str, out: str) -> list[str]:
    """Writes a file of extra tokens with which each word is one token.

    The extra tokens of an extended vocabulary are copied, so the new file replaces the old one.

    Returns: lines for people that say what was skipped and which tokens are new.
    Raises:
      Usage: a vocabulary that cannot be extended, a path that does not end in .tiktoken, or a file that exists.
      ValueError: a line that is not a word and a frequency, or no word to add.
    """
    path = _new_file(out, ".tiktoken")
    tokenizer = _byte_level(f"--vocab={vocab}", vocab)
    report = Report()
    chosen = read_words(words, set(tokenizer.ranks), report)
    if not chosen:
        raise ValueError("; ".join([f"{words} has no word to add", *report.lines()]))
    with meter("learning", unit="merge") as step:
        learned = merges.learn(chosen, list(tokenizer.ranks), watch=lambda n: step(1))
    new = {token: index for index, token in enumerate(learned, start=tokenizer.size)}
    path.write_bytes(write_ranks(getattr(tokenizer, "extra", {}) | new))
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
