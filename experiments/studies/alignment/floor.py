"""What a reward model must beat: the longer text wins, and a linear model of words and pairs of words (numpy only)."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .data import RatedPair

WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")
OCCURS = 3  # texts that a feature is in, at least
EPOCHS, RATE, DECAY = 5, 0.1, 1e-5


def length_margins(some: Sequence[RatedPair]) -> np.ndarray:
    """By how many characters the better text of each pair is longer."""
    return np.array([len(p.better.text) - len(p.worse.text) for p in some], float)


def linear_margins(train: Sequence[RatedPair], test: Sequence[RatedPair]) -> np.ndarray:
    """Margins of the test pairs under logistic regression on which words and pairs of words each text has.

    With features of a direction of their own, so that it can tell what was asked for.
    """
    seen = Counter(name for text in {(p.direction, t.text) for p in train for t in p[:2]} for name in features(*text))
    place = {name: i for i, name in enumerate(name for name, n in seen.items() if n >= OCCURS)}
    weights, squares = np.zeros(len(place)), np.full(len(place), 1e-6)
    differences = [_difference(p, place) for p in train]
    draw = np.random.default_rng(0)
    for _ in range(EPOCHS):
        for i in draw.permutation(len(differences)):
            at, sign = differences[i]
            slope = -sign / (1 + np.exp(min(weights[at] @ sign, 50.0))) + DECAY * weights[at]
            squares[at] += slope**2  # AdaGrad: rare words move far, common ones settle
            weights[at] -= RATE * slope / np.sqrt(squares[at])
    return np.array([weights[at] @ sign for at, sign in (_difference(p, place) for p in test)])


def features(direction: str, text: str) -> set[str]:
    """Words and pairs of neighbours in a text, each once."""
    words = ["<", *WORD.findall(text.lower()), ">"]
    return {f"{direction} {name}" for name in (*words, *map(" ".join, pairwise(words)))}


def _difference(pair: RatedPair, place: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Features that only one of the two texts has: their places, and 1 for the better one's, -1 for the other's."""
    better, worse = (features(pair.direction, t.text) for t in pair[:2])
    signed = [(place[name], 1.0) for name in better - worse if name in place]
    signed += [(place[name], -1.0) for name in worse - better if name in place]
    at, sign = zip(*signed) if signed else ((), ())
    return np.array(at, np.int64), np.array(sign)
