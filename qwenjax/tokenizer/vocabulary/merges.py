"""Learning merges: byte-level BPE that continues a given table of ranks (report §2.2; released add_merges.py).

A vocabulary is a list of tokens in order of rank; the two neighbours whose joined bytes have the lowest rank merge
first. Learning takes the most frequent pair of neighbours in a corpus, gives its bytes the next rank, merges it
everywhere, and counts again: within words, the pieces into which the split pattern cuts text.
"""

import heapq
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise

from qwenjax.tokenizer.bpe import LONG, PATTERN

WORDS = 2_000_000  # different words kept while counting; learning from these takes about 3 GB


def without_numbers(tokens: Iterable[bytes]) -> list[bytes]:
    """The tokens without those of several digits (1,100 of cl100k_base), which single digits can never form."""
    return [token for token in tokens if len(token) == 1 or not any(0x30 <= byte <= 0x39 for byte in token)]


def count_words(texts: Iterable[str], most: int = WORDS) -> Counter[str]:
    """How often each word occurs in the texts, after NFC and cutting by Qwen's split pattern.

    Memory is bounded: beyond `most` different words the rarest are dropped, so counts of rare words are lower bounds.
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
    import tiktoken

    tokens, known, learned = list(tokens), set(tokens), []
    # This pattern matches any text as one piece: the words are already split
    ranks = {token: rank for rank, token in enumerate(tokens)}
    engine = tiktoken.Encoding("words", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={})
    cut = [(engine.encode_ordinary(word), count) for word, count in words.items() if len(word) < LONG]
    counts: Counter[tuple[int, int]] = Counter()  # frequency of each pair
    users: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # numbers of words that hold it, or did
    queue: list[tuple] = []  # pairs as a heap by the rule above

    def push(pair: tuple[int, int]) -> None:
        joined = tokens[pair[0]] + tokens[pair[1]]
        # A join that is a token cannot be learned. This happens only if that token does not join two earlier ones or
        # cannot be reached from its own bytes, as in no published vocabulary.
        if counts[pair] >= least and joined not in known:
            text = joined.decode("utf-8", "replace")
            heapq.heappush(queue, (-counts[pair], len(text), len(joined), text, joined, pair))

    for number, (ids, count) in enumerate(cut):
        for pair in pairwise(ids):
            counts[pair] += count
            users[pair].append(number)
    for pair in counts:
        push(pair)
    while queue and (most is None or len(learned) < most):
        negative, *_, joined, pair = heapq.heappop(queue)
        if -negative != counts[pair]:  # after the merge that created a pair its frequency only falls
            push(pair)
            continue
        created = set()
        for number in set(users.pop(pair)):
            ids, count = cut[number]
            for old, new in _merge(ids, pair, len(tokens)):
                counts[old] -= count
                counts[new] += count
                users[new].append(number)
                created.add(new)
        del counts[pair]
        tokens.append(joined)
        known.add(joined)
        learned.append(joined)
        for new in created:
            push(new)
        watch(len(learned))
    return learned


def _merge(ids: list[int], pair: tuple[int, int], new: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Joins a pair wherever it occurs in a word, from left to right; yields each pair of neighbours that changes."""
    first, second = pair
    i = 0
    while i + 1 < len(ids):
        if ids[i] == first and ids[i + 1] == second:
            ids[i : i + 2] = [new]
            if i:
                yield (ids[i - 1], first), (ids[i - 1], new)
            if i + 1 < len(ids):
                yield (second, ids[i + 1]), (new, ids[i + 1])
        i += 1
