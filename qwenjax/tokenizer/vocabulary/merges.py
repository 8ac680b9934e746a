"""Learning merges: byte-level BPE that continues a given table of ranks (report §2.2; spec §2.4).

A vocabulary is a list of tokens in order of rank; the two neighbours whose joined bytes have the lowest rank merge
first. Learning takes the most frequent pair of neighbours in a corpus, gives its bytes the next rank, merges it
everywhere, and counts again. Frequencies are those of words, the pieces that the split pattern cuts text into, so a
corpus is read once and then forgotten.
"""

import base64
import functools
import heapq
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from qwenjax.tokenizer.bpe import LONG, PATTERN

WORDS = 2_000_000  # different words kept while counting; learning from them takes about 3 GB
BITS = 32  # a pair of token numbers is one integer: first << BITS | second
MASK = (1 << BITS) - 1


def byte_order() -> list[bytes]:
    """The 256 bytes as Qwen's (and GPT-2's) vocabulary orders them: printable ones first (spec §2.1)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [bytes([byte]) for byte in (*shown, *sorted(set(range(256)) - set(shown)))]


@functools.cache
def spelling() -> dict[int, str]:
    """Byte -> the character by which GPT-2 shows it: printable ones are themselves, the others come from U+0100 on."""
    return {byte[0]: chr(byte[0]) if i < 188 else chr(256 + i - 188) for i, byte in enumerate(byte_order())}


def without_numbers(tokens: Iterable[bytes]) -> list[bytes]:
    """The tokens but those of several digits, which the pattern's single digits can never form (spec §2.1).

    Of cl100k_base these are 1,100: all numbers of two and three digits.
    """
    return [token for token in tokens if len(token) == 1 or not any(0x30 <= byte <= 0x39 for byte in token)]


def count_words(texts: Iterable[str], most: int = WORDS) -> Counter[str]:
    """How often each word occurs in the texts, after NFC and cutting by Qwen's split pattern.

    Memory is bounded: beyond `most` different words the rarest are forgotten, as often as needed, so that counts of
    rare words are lower bounds in a very large corpus.
    """
    import regex

    cut = regex.compile(PATTERN).findall
    counts: Counter[str] = Counter()
    floor = 0
    for text in texts:
        counts.update(cut(unicodedata.normalize("NFC", text)))
        while len(counts) > most:
            floor += 1
            counts = Counter({word: count for word, count in counts.items() if count > floor})
    return counts


def split(word: str) -> list[str]:
    """The words that Qwen's split pattern cuts a text into."""
    import regex

    return regex.findall(PATTERN, word)


def learn(
    words: Mapping[str, int],
    tokens: list[bytes],
    most: int | None = None,
    least: int = 1,
    watch: Callable[[int], None] = lambda learned: None,
) -> list[bytes]:
    """New tokens, in order of rank, that continue a vocabulary.

    The next token is the most frequent pair of neighbours; of equally frequent ones that of fewer characters, then
    fewer bytes, then the first by its text (broken characters read as U+FFFD), then by its bytes. Every token is the
    sum of two earlier ones, and encoding the words with the longer vocabulary cuts them as learning left them.

    Args:
      words: word -> frequency; what encoding treats as one piece.
      tokens: the vocabulary to continue, by rank, with all 256 bytes in it.
      most: tokens to learn; None learns until every word is one token.
      least: frequency below which a pair is not worth a token.
      watch: told after each token how many there are.
    """
    corpus = _Corpus(words, tokens, least)
    learned: list[bytes] = []
    while most is None or len(learned) < most:
        pair = corpus.best()
        if pair is None:
            break
        learned.append(corpus.merge(pair))
        watch(len(learned))
    return learned


class _Corpus:
    """The words as chains of tokens, and where each pair of neighbours is.

    Tokens lie in flat arrays, each linked to its neighbours in the word, so that a merge costs as much as the pair
    has occurrences, however long the words. Pairs wait in levels by frequency. A frequency only falls after the
    merge that made the pair, so a pair is looked at again when its level is reached, and moved down if need be.
    """

    def __init__(self, words: Mapping[str, int], tokens: list[bytes], least: int):
        self.tokens = list(tokens)
        self.known = {token: number for number, token in enumerate(tokens)}
        self.ids, self.left, self.right = array("i"), array("i"), array("i")  # -1: merged away; no neighbour
        self.weight = array("q")  # frequency of the word, at each of its tokens
        self.counts: dict[int, int] = {}
        self.places: dict[int, array] = {}  # where a pair begins, ascending; stale ones are passed over
        self.levels: dict[int, list[int]] = {}  # frequency -> pairs
        self.queue: list[int] = []  # the frequencies, negative, as a heap
        self.tied: list[tuple] = []  # the pairs of the highest level, as a heap by the rule for ties
        self.level = 0
        self.least = least
        self._lay(words)
        for pair in self.counts:
            self._file(pair)

    def _lay(self, words: Mapping[str, int]) -> None:
        """Fills the arrays: the words one after another, and their pairs counted by sorting."""
        import numpy as np
        import tiktoken

        # a pattern that takes any text whole: the words are cut already
        engine = tiktoken.Encoding("words", pat_str=r"[\s\S]+", mergeable_ranks=self.known, special_tokens={})
        for word, count in words.items():
            ids = engine.encode_ordinary(word) if len(word) < LONG else ()  # a longer one stops the engine: no loss
            if len(ids) > 1:
                start, last = len(self.ids), len(ids) - 1
                self.ids.extend(ids)
                self.left.extend((-1, *range(start, start + last)))
                self.right.extend((*range(start + 1, start + last + 1), -1))
                self.weight.extend([count] * len(ids))
        if not self.ids:
            return
        ids, right, weight = (np.frombuffer(a, a.typecode) for a in (self.ids, self.right, self.weight))
        places = np.flatnonzero(right >= 0).astype(right.dtype)
        pairs = ids[places].astype(np.int64) << BITS | ids[right[places]]
        order = np.argsort(pairs, kind="stable")  # places of a pair stay ascending
        pairs, places = pairs[order], places[order]
        edges = np.flatnonzero(np.diff(pairs, prepend=-1))
        sums = np.add.reduceat(weight[places], edges)
        self.counts = dict(zip(pairs[edges].tolist(), sums.tolist()))
        self.places = {pair: array("i", part.tobytes()) for pair, part in zip(self.counts, np.split(places, edges[1:]))}

    def _count(self, pair: int, count: int, place: int) -> None:
        if pair in self.counts:
            self.counts[pair] += count
            self.places[pair].append(place)
        else:
            self.counts[pair] = count
            self.places[pair] = array("i", (place,))

    def _file(self, pair: int) -> None:
        """Puts a pair into the level of its frequency."""
        count = self.counts.get(pair, 0)
        if count < self.least:
            return
        if count == self.level:
            joined = self._joined(pair)
            text = joined.decode("utf-8", "replace")
            heapq.heappush(self.tied, (len(text), len(joined), text, joined, pair))
        elif count in self.levels:
            self.levels[count].append(pair)
        else:
            self.levels[count] = [pair]
            heapq.heappush(self.queue, -count)

    def _joined(self, pair: int) -> bytes:
        return self.tokens[pair >> BITS] + self.tokens[pair & MASK]

    def best(self) -> int | None:
        """The pair to merge next."""
        while True:
            while self.tied:
                pair = heapq.heappop(self.tied)[-1]
                if self.counts.get(pair) == self.level:
                    return pair
                self._file(pair)
            if not self.queue:
                return None
            self.level = -heapq.heappop(self.queue)
            for pair in self.levels.pop(self.level):
                self._file(pair)

    def merge(self, pair: int) -> bytes:
        """Joins a pair wherever it is, from left to right; the new token."""
        first, second, new = pair >> BITS, pair & MASK, len(self.tokens)
        ids, left, right, weight, counts = self.ids, self.left, self.right, self.weight, self.counts
        token = self._joined(pair)
        self.tokens.append(token)
        self.known[token] = new
        made: set[int] = set()
        for i in self.places.pop(pair):
            j = right[i]
            if ids[i] != first or j < 0 or ids[j] != second:
                continue
            before, after, count = left[i], right[j], weight[i]
            if before >= 0:
                counts[ids[before] << BITS | first] -= count
                fresh = ids[before] << BITS | new
                self._count(fresh, count, before)
                made.add(fresh)
            if after >= 0:
                counts[second << BITS | ids[after]] -= count
                fresh = new << BITS | ids[after]
                self._count(fresh, count, i)
                made.add(fresh)
                left[after] = i
            ids[i], ids[j], right[i] = new, -1, after
        del counts[pair]
        for fresh in sorted(made):
            # A sum that is a token already cannot be learned. It shows up only if that token is no sum of two earlier
            # ones or cannot be reached from its own bytes, which no published vocabulary has.
            if self._joined(fresh) not in self.known:
                self._file(fresh)
        return token


def read_extra(data: bytes, source: str = "the extra vocabulary") -> list[tuple[bytes, int]]:
    """(token, id) of a .tiktoken file whose ids may begin anywhere and have gaps (spec §2.4), in order of id.

    Raises:
      ValueError: naming the line that is not a base64 token, a blank and a number.
    """
    pairs = []
    for number, line in enumerate(data.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            pairs.append((base64.b64decode(fields[0], validate=True), int(fields[1])))
            bad = len(fields) != 2 or not pairs[-1][0] or pairs[-1][1] < 0
        except (ValueError, IndexError):
            bad = True
        if bad:
            raise ValueError(f"{source}, line {number}: wanted a base64 token and its id, got {line[:60]!r}")
    return sorted(pairs, key=lambda pair: pair[1])
