"""Learning merges: byte-level BPE that continues a given table of ranks (report §2.2; released add_merges.py).

A vocabulary is a list of tokens in order of rank; the two neighbours whose joined bytes have the lowest rank merge
first. Learning takes the most frequent pair of neighbours in a corpus, gives its bytes the next rank, merges it
everywhere, and counts again. It works on frequencies of words, the pieces into which the split pattern cuts text, so a
corpus is read only once.
"""

import heapq
import unicodedata
from array import array
from collections import Counter, defaultdict
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
    counts: Counter[str] = Counter()
    floor = 0
    for text in texts:
        counts.update(split(unicodedata.normalize("NFC", text)))
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
    while (most is None or len(learned) < most) and (pair := corpus.best()) is not None:
        learned.append(corpus.merge(pair))
        watch(len(learned))
    return learned


class _Corpus:
    """The words as chains of tokens, and the positions of each pair of neighbours.

    Tokens lie in flat arrays, each linked to its neighbours in the word, so the cost of a merge is the number of the
    pair's occurrences, however long the words. After the merge that created a pair its frequency only falls, so a pair
    is checked when it comes up in the queue, and put back if necessary.
    """

    def __init__(self, words: Mapping[str, int], tokens: list[bytes], least: int):
        import tiktoken

        self.tokens = list(tokens)
        self.known = {token: number for number, token in enumerate(tokens)}
        self.least = least
        self.ids = array("i")  # -1: merged into its neighbour
        self.left, self.right = array("i"), array("i")  # positions of the neighbours; -1: none
        self.weight = array("q")  # frequency of the word, at each of its tokens
        self.counts: Counter[int] = Counter()  # frequency of each pair
        self.positions: defaultdict[int, array] = defaultdict(
            lambda: array("i")
        )  # where it begins; outdated are skipped
        self.queue: list[tuple] = []  # pairs as a heap by the rule of `learn`
        # This pattern matches any text as one piece: the words are already split
        engine = tiktoken.Encoding("words", pat_str=r"[\s\S]+", mergeable_ranks=self.known, special_tokens={})
        for word, count in words.items():
            ids = engine.encode_ordinary(word) if len(word) < LONG else ()  # the engine cannot take a longer one
            for i, token in enumerate(ids):
                position = len(self.ids)
                self.ids.append(token)
                self.left.append(position - 1 if i else -1)
                self.right.append(position + 1 if i + 1 < len(ids) else -1)
                self.weight.append(count)
                if i:
                    self._count(ids[i - 1] << BITS | token, count, position - 1)
        for pair in self.counts:
            self._push(pair)

    def _count(self, pair: int, count: int, position: int) -> None:
        self.counts[pair] += count
        self.positions[pair].append(position)

    def _push(self, pair: int) -> None:
        """Puts a pair into the queue, unless it is too rare."""
        if self.counts[pair] >= self.least:
            joined = self._joined(pair)
            text = joined.decode("utf-8", "replace")
            heapq.heappush(self.queue, (-self.counts[pair], len(text), len(joined), text, joined, pair))

    def _joined(self, pair: int) -> bytes:
        return self.tokens[pair >> BITS] + self.tokens[pair & MASK]

    def best(self) -> int | None:
        """The pair to merge next."""
        while self.queue:
            negative, *_, pair = heapq.heappop(self.queue)
            if -negative == self.counts[pair]:
                return pair
            self._push(pair)
        return None

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
        for fresh in created:
            # A join that is already a token cannot be learned. This happens only if that token does not join two
            # earlier ones or cannot be reached from its own bytes, as in no published vocabulary.
            if self._joined(fresh) not in self.known:
                self._push(fresh)
        return token
