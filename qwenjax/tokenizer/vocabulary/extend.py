"""A list of words to extra tokens (spec §2.4)."""

import unicodedata
from collections import Counter
from pathlib import Path

from qwenjax.common.command_line import Usage
from qwenjax.common.progress import meter
from qwenjax.sources.documents import Report
from qwenjax.tokenizer.bpe import QwenBPE, write_ranks
from qwenjax.tokenizer.extended_bpe import ExtendedBPE
from qwenjax.tokenizer.load import load_tokenizer
from qwenjax.tokenizer.vocabulary.merges import learn, split


def extend(vocab: str, words: str | Path, out: str | Path) -> list[str]:
    """Writes the extra tokens that make one token of each word; lines that say what was left out and what is new.

    The extra tokens of an extended vocabulary are carried over, so that the new file replaces its old one.

    Raises:
      Usage: a vocabulary that cannot be extended, a path that is no .tiktoken, or a file that exists.
      ValueError: a line that is no word and frequency, or not one word to add.
    """
    out = Path(out)
    if out.suffix != ".tiktoken":
        raise Usage(f"--out={out}: wanted a file that ends in .tiktoken")
    if out.exists():
        raise Usage(f"{out} exists; remove it or give another --out")
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
        learned = learn(chosen, tokens, watch=lambda n: step(1))
    new = {token: tokenizer.size + i for i, token in enumerate(learned)}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(write_ranks(extra | new))
    last = tokenizer.size + len(new) - 1
    return [
        *report.lines(),
        *(f"{index}  {token.decode('utf-8', 'replace')!r}" for token, index in new.items()),
        f"{out}: {len(new):,} new tokens for {len(chosen):,} words, ids {tokenizer.size} … {last}; "
        f"with them the vocabulary has {last + 1:,} ids",
    ]


def read_words(path: str | Path, tokens: set[bytes], report: Report) -> Counter[str]:
    """Word -> frequency of the words that can be added; the others are noted. Frequencies of a repeated word add up.

    Raises:
      ValueError: naming the line that is no word, tab and positive whole number, or not UTF-8.
    """
    words: Counter[str] = Counter()
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            word, tab, frequency = line.decode("utf-8").removeprefix("\ufeff").rpartition("\t")
        except UnicodeDecodeError:
            raise ValueError(f"{where}: not UTF-8") from None
        if not line.strip():
            continue
        word = unicodedata.normalize("NFC", word)
        if not (word and tab and frequency.strip().isdecimal() and int(frequency)):
            raise ValueError(f"{where}: wanted a word, a tab and a frequency of at least 1, got {line[:60]!r}")
        if len(split(word)) > 1:
            report.note("word that the split pattern cuts", f"line {number}: {' | '.join(split(word))}")
        elif word.encode() in tokens:
            report.note("word that is a token already", f"line {number}: {word}")
        else:
            words[word] += int(frequency)
    return words
