"""Ratings of short texts by people, as what every stage of alignment reads: the data of the sentiment experiments.

A text has a source (reviews of films and of products, tweets, sentences of a newspaper) and the mean of about twenty
people's ratings, from -4 to 4. The user asks for a kind of text and the word it begins with, the assistant's turn is
the text; two texts that answer the same request are a pair if their ratings are apart. Texts go to parts by a hash of
what they say, so the two reward models share none, and neither has seen what they are tested on.
"""

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from qwenjax.common import jsonl, storage
from qwenjax.common.hashing import keyed_hash

KINDS = {
    "movieReviewSnippets": "movie review",
    "amazonReviewSnippets": "product review",
    "tweets": "tweet",
    "nytEditorialSnippets": "newspaper sentence",
}
PARTS = {"proxy": 0.6, "gold": 0.3, "test": 0.1}  # shares of the texts
CHARACTERS = 80  # of a text, cut between words: some 23 tokens of a vocabulary of 2000, and hardly one of more than 36
COMMON = 6  # texts of a source that begin with a word, for it to be asked for
GAP = 0.5  # between the ratings of a pair, at least
PARTNERS = 3  # pairs that a text is put in, at most, as their first
DIRECTIONS = ("positive", "negative")

Turns = list[dict[str, str]]


class Text(NamedTuple):
    """A rated text."""

    kind: str  # a value of `KINDS`
    text: str  # cut
    rating: float
    word: str  # what it begins with, if many of its kind do, else ''
    part: str  # a key of `PARTS`
    whole: str  # uncut


class RatedPair(NamedTuple):
    """Two texts that answer the same request."""

    better: Text
    worse: Text
    direction: str = ""  # of `DIRECTIONS`; '': that of the ratings

    @property
    def gap(self) -> float:
        return abs(self.better.rating - self.worse.rating)


def read(path: Path | str) -> list[Text]:
    """The texts of ratings.jsonl, plain or .gz, each once, in the order of the file.

    Raises:
      ValueError: no such file, or not rows of {"source", "rating", "text"} with the four sources.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"no file {path}; wanted ratings.jsonl of {{source, rating, text}}: the human ratings in the sdist of the "
            "PyPI package vaderSentiment 3.3.2, hutto_ICWSM_2014/"
        )
    opener = gzip.open if path.suffix == ".gz" else open
    found: dict[str, tuple[str, float, str]] = {}
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                kind, rating, text = KINDS[row["source"]], float(row["rating"]), " ".join(row["text"].split())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path}:{number} is no rating: {error!r}; wanted {{source, rating, text}} with source one of "
                    + ", ".join(KINDS)
                ) from None
            if text:
                found.setdefault(text, (kind, rating, cut(text)))
    kept = {short: (kind, rating, whole) for whole, (kind, rating, short) in reversed(found.items())}
    begun = Counter((kind, short.split()[0]) for short, (kind, _, _) in kept.items())
    texts = []
    for short, (kind, rating, whole) in reversed(kept.items()):
        word = short.split()[0]
        asked = word if begun[kind, word] >= COMMON and '"' not in word else ""
        texts.append(Text(kind, short, rating, asked, part(short), whole))
    return texts


def cut(text: str) -> str:
    """The words of a text that fit, one at least."""
    if len(text) <= CHARACTERS:
        return text
    return text[: CHARACTERS + 1].rpartition(" ")[0] or text[:CHARACTERS]


def part(text: str) -> str:
    """Which part a text is in: by what it says alone."""
    place = keyed_hash("part", 0, text) / 2**64
    for name, share in PARTS.items():
        if place < share:
            return name
        place -= share
    return "test"  # where rounding left a sliver of the last share


def request(kind: str, word: str = "", direction: str = "") -> Turns:
    """What the user asks for. The system turn is empty: the default one would be a third of all tokens."""
    adjective = f"{direction} " if direction else ""
    article = "an" if (adjective + kind)[0] in "aeiou" else "a"
    begins = f' that begins with "{word}"' if word else ""
    return [
        {"role": "system", "content": ""},
        {"role": "user", "content": f"Write {article} {adjective}{kind}{begins}."},
    ]


def answer(text: str) -> dict[str, str]:
    """The assistant's turn."""
    return {"role": "assistant", "content": text}


def pairs(texts: Iterable[Text], partners: int = PARTNERS) -> list[RatedPair]:
    """Pairs of texts of one request whose ratings are `GAP` apart: each text with up to `partners` of those behind it.

    Which ones, and the order of the pairs, is decided by hashes of what they say.
    """
    groups = defaultdict(list)
    for text in sorted(texts, key=lambda t: keyed_hash("order", 0, t.text)):
        groups[text.kind, text.word].append(text)
    found = []
    for group in groups.values():
        for i, one in enumerate(group):
            apart = [other for other in group[i + 1 :] if abs(other.rating - one.rating) >= GAP]
            for other in apart[:partners]:
                found.append(RatedPair(one, other) if one.rating > other.rating else RatedPair(other, one))
    return sorted(found, key=lambda p: keyed_hash("pair", 0, p.better.text + "\n" + p.worse.text))


def both_directions(some: Sequence[RatedPair], plain: bool = False) -> list[RatedPair]:
    """Every pair twice: asked for a positive text, and for a negative one, where the other is the better answer.

    Args:
      plain: a third time, asked for no direction, where the one with the higher rating is better.
    """
    found = []
    for one in some:
        found += [one] * plain + [RatedPair(*one[:2], "positive"), RatedPair(one.worse, one.better, "negative")]
    return found


def relabelled(texts: Sequence[Text]) -> list[Text]:
    """The texts with each other's ratings, at random: a control from which nothing can be learnt."""
    order = sorted(range(len(texts)), key=lambda i: keyed_hash("relabel", 0, texts[i].text))
    return [text._replace(rating=texts[i].rating) for text, i in zip(texts, order)]


def preference(pair: RatedPair) -> dict:
    """A row of the preference schema."""
    scores = [pair.gap / 2, -pair.gap / 2]
    return {
        "prompt": request(pair.better.kind, pair.better.word, pair.direction),
        "responses": [answer(pair.better.text), answer(pair.worse.text)],
        "scores": scores,
    }


def conversation(text: Text, direction: str = "") -> dict:
    """A row of the conversation schema."""
    return {"messages": [*request(text.kind, text.word, direction), answer(text.text)]}


def prompt(text: Text, direction: str = "") -> dict:
    """A row of the prompt schema."""
    return {"prompt": request(text.kind, text.word, direction)}


def leaning(text: Text) -> str:
    """The direction of a rating; '' near the middle, where people do not agree on its sign."""
    return "" if abs(text.rating) < GAP else DIRECTIONS[text.rating < 0]


def write(path: Path, rows: Iterable[dict]) -> Path:
    """Writes rows as JSON lines, whole or not at all, unless they are there.

    Raises:
      ValueError: others are there, from which runs beside them have learnt.
    """
    text = b"".join(map(jsonl.encode, rows))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_atomically(path, text)
    elif path.read_bytes() != text:
        raise ValueError(f"{path} was made from other ratings, or by another version: use another --workdir")
    return path
