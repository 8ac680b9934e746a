"""Learning merges: byte-level BPE that continues a given table of ranks (report §2.2; released add_merges.py).

A vocabulary is a list of tokens in order of rank; the two neighbours whose joined bytes have the lowest rank merge
first. Learning takes the most frequent pair of neighbours in a corpus, gives its bytes the next rank, merges it
everywhere, and counts again. It works on frequencies of words, the pieces into which the split pattern cuts text, so a
corpus is read only once.
"""

import heapq
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from qwenjax.tokenizer.bpe import LONG, PATTERN

WORDS = 2_000_000  # different words kept while counting; learning from these takes about 3 GB
BITS = 32  # a pair of token numbers is one integer: first << BITS | second
MASK = (1 << BITS) - 1


def without_numbers(tokens: Iterable[bytes]) -> list[bytes]:
    """The tokens without those of several digits, which the pattern's single digits can never form.

    Of cl100k_base these are 1,100: all numbers of two and three digits.
    """
    return [token for token in tokens if len(token) == 1 or not any(0x30 <= byte <= 0x39 for byte in token)]


def count_words(texts: Iterable[str], most: int = WORDS) -> Counter[str]:
    """How often each word occurs in the texts, after NFC and cutting by Qwen's split pattern.

    Memory is bounded: beyond `most` different words the rarest are dropped, as often as needed, so counts of rare words
    are lower bounds in a very large corpus.
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

    The next token is the most frequent pair of neighbours; among equally frequent ones that of fewer characters, then
    fewer bytes, then the first by its text (broken characters read as U+FFFD), then by its bytes. Every token joins two
    earlier ones, and encoding the words with the longer vocabulary cuts them as they are at the end of learning.

    Args:
      words: word -> frequency; what encoding treats as one piece.
      tokens: the vocabulary to continue, by rank, with all 256 bytes in it.
      most: number of tokens to learn; None learns until every word is one token.
      least: a pair below this frequency gets no token.
      watch: is called after each token with their number.
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
    """The words as chains of tokens, and the positions of each pair of neighbours.

    Tokens lie in flat arrays, each linked to its neighbours in the word, so the cost of a merge is the number of the
    pair's occurrences, however long the words. Pairs are kept in levels by frequency. After the merge that created a
    pair its frequency only falls, so a pair is checked when its level is reached, and moved down if necessary.
    """

    def __init__(self, words: Mapping[str, int], tokens: list[bytes], least: int):
        self.tokens = list(tokens)
        self.known = {token: number for number, token in enumerate(tokens)}
        self.ids, self.left, self.right = (
            array("i"),
            array("i"),
            array("i"),
        )  # -1: merged into its neighbour; no neighbour
        self.weight = array("q")  # frequency of the word, at each of its tokens
        self.counts: dict[int, int] = {}
        self.positions: dict[int, array] = {}  # where a pair begins, ascending; outdated ones are skipped
        self.levels: dict[int, list[int]] = {}  # frequency -> pairs
        self.queue: list[int] = []  # the frequencies, negative, as a heap
        self.tied: list[tuple] = []  # the pairs of the highest level, as a heap by the rule for ties
        self.level = 0
        self.least = least
        self._fill(words)
        for pair in self.counts:
            self._file(pair)

    def _fill(self, words: Mapping[str, int]) -> None:
        """Fills the arrays: the words one after another, and their pairs counted by sorting."""
        import numpy as np
        import tiktoken

        # This pattern matches any text as one piece: the words are already split
        engine = tiktoken.Encoding("words", pat_str=r"[\s\S]+", mergeable_ranks=self.known, special_tokens={})
        for word, count in words.items():
            ids = engine.encode_ordinary(word) if len(word) < LONG else ()  # the engine cannot take a longer one
            if len(ids) > 1:
                start, last = len(self.ids), len(ids) - 1
                self.ids.extend(ids)
                self.left.extend((-1, *range(start, start + last)))
                self.right.extend((*range(start + 1, start + last + 1), -1))
                self.weight.extend([count] * len(ids))
        if not self.ids:
            return
        ids, right, weight = (np.frombuffer(a, a.typecode) for a in (self.ids, self.right, self.weight))
        positions = np.flatnonzero(right >= 0).astype(right.dtype)
        pairs = ids[positions].astype(np.int64) << BITS | ids[right[positions]]
        order = np.argsort(pairs, kind="stable")  # positions of a pair stay ascending
        pairs, positions = pairs[order], positions[order]
        edges = np.flatnonzero(np.diff(pairs, prepend=-1))
        sums = np.add.reduceat(weight[positions], edges)
        self.counts = dict(zip(pairs[edges].tolist(), sums.tolist()))
        self.positions = {
            pair: array("i", part.tobytes()) for pair, part in zip(self.counts, np.split(positions, edges[1:]))
        }

    def _count(self, pair: int, count: int, position: int) -> None:
        if pair in self.counts:
            self.counts[pair] += count
            self.positions[pair].append(position)
        else:
            self.counts[pair] = count
            self.positions[pair] = array("i", (position,))

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
        """Joins a pair at all its positions, from left to right; returns the new token."""
        first, second, new = pair >> BITS, pair & MASK, len(self.tokens)
        ids, left, right, weight, counts = self.ids, self.left, self.right, self.weight, self.counts
        token = self._joined(pair)
        self.tokens.append(token)
        self.known[token] = new
        created: set[int] = set()
        for i in self.positions.pop(pair):
            j = right[i]
            if ids[i] != first or j < 0 or ids[j] != second:
                continue
            before, after, count = left[i], right[j], weight[i]
            if before >= 0:
                counts[ids[before] << BITS | first] -= count
                fresh = ids[before] << BITS | new
                self._count(fresh, count, before)
                created.add(fresh)
            if after >= 0:
                counts[second << BITS | ids[after]] -= count
                fresh = new << BITS | ids[after]
                self._count(fresh, count, i)
                created.add(fresh)
                left[after] = i
            ids[i], ids[j], right[i] = new, -1, after
        del counts[pair]
        for fresh in sorted(created):
            # A join that is already a token cannot be learned. This happens only if that token does not join two
            # earlier ones or cannot be reached from its own bytes, as in no published vocabulary.
            if self._joined(fresh) not in self.known:
                self._file(fresh)
        return token
