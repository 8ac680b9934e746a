"""Ratings that the benchmark of alignment reads."""

import gzip
import json
import random
from itertools import product
from pathlib import Path

import pytest

from experiments.studies.alignment import data
from experiments.studies.alignment.data import KINDS

GOOD, BAD, NOUNS = ("lovely", "great", "fine"), ("awful", "dull", "bad"), ("film", "phone", "day", "law", "plot")


@pytest.fixture(scope="module")
def ratings(tmp_path_factory) -> Path:
    """720 texts whose rating is that of their adjective."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("ratings") / "ratings.jsonl.gz"
    rows = []
    for source, word, noun, number in product(KINDS, ("The", "A"), NOUNS, range(18)):
        adjective = draw.choice(GOOD + BAD)
        rating = (1 if adjective in GOOD else -1) * draw.uniform(1.8, 2.2)
        text = f"{word} {adjective} {noun}, of {number} {draw.choice(NOUNS)}s."
        rows.append({"source": source, "id": str(len(rows)), "rating": rating, "text": text})
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


@pytest.fixture(scope="module")
def texts(ratings):
    return data.read(ratings)
