"""Passkey retrieval: a number hidden at some depth of a long text, asked for at its end (arXiv 2305.16300, §4.1).

The text repeats a few sentences; the seed gives the number and its position. It is plain text without chat format, so
that base models can answer too. The number counts as found if each of its tokens is the most likely one after the
tokens before it. That is exactly when greedy decoding writes it, and one forward pass is cheaper than decoding.
"""

import random
from pathlib import Path
from typing import TYPE_CHECKING

from qwenjax.common import figures, jsonl
from qwenjax.eval.task import ResultCache, Settings

if TYPE_CHECKING:
    from qwenjax.api.model import Model
    from qwenjax.tokenizer import Tokenizer

MODEL = "language"
DIGITS = 5
OPENING = (
    "Somewhere in this long and dull text there is a pass key. Find it and keep it in mind: you will be asked for it."
)
FILLER = " The river is wide. The hills are green. A road goes up, and a road comes down. Then it all begins again."
NEEDLE = "\nThe pass key is {key}. Remember it: {key} is the pass key.\n"
QUESTION = "\nWhat is the pass key? The pass key is"


def sample(tokenizer: "Tokenizer", length: int, depth: float, key: str) -> tuple[list[int], int]:
    """Ids of a text with the key at `depth` (0: the start, 1: right before the question) and of the answer, at most
    `length` together; and how many the answer has. ValueError if key and question do not fit."""
    opening = [*tokenizer.prefix, *tokenizer.encode_ordinary(OPENING)]
    filler, needle, question, question_and_answer = map(
        tokenizer.encode_ordinary, (FILLER, NEEDLE.format(key=key), QUESTION, f"{QUESTION} {key}")
    )
    answer = question_and_answer[len(question) :]
    left = length - len(opening) - len(needle) - len(question_and_answer)
    if left < 0 or question_and_answer[: len(question)] != question:
        raise ValueError(f"a passkey text takes {length - left} tokens of {tokenizer.name}, more than {length}")
    copies = left // len(filler)
    before = round(depth * copies)
    return [*opening, *filler * before, *needle, *filler * (copies - before), *question_and_answer], len(answer)


def write_training_texts(path: str | Path, count: int, fillers: int, seed: int) -> None:
    """Writes such texts, with up to `fillers` copies of the filler, as JSON lines {"text"}, to teach the task."""
    rng = random.Random(seed)
    with Path(path).open("wb") as file:
        for _ in range(count):
            key = _key(rng)
            before, after = rng.randint(0, fillers), rng.randint(0, fillers)
            parts = (OPENING, FILLER * before, NEEDLE.format(key=key), FILLER * min(after, fillers - before), QUESTION)
            file.write(jsonl.encode({"text": f"{''.join(parts)} {key}"}))


def _key(rng: random.Random) -> str:
    return "".join(rng.choice("123456789") for _ in range(DIGITS))


def measure(model: "Model", settings: Settings, cache: ResultCache) -> dict:
    """How often the key is found, by length and depth; see `table`."""
    lengths = sorted(set(settings.lengths))
    depths = [i / max(settings.depths - 1, 1) for i in range(settings.depths)]
    cells = [
        {"task": "passkey", "length": n, "depth": d, "trials": settings.trials, "seed": settings.seed}
        for n in lengths
        for d in depths
    ]
    tokens = lambda key: key["length"] * settings.trials  # noqa: E731
    found = cache.fill("passkey", cells, tokens, lambda key, step: _num_found(model, key, step))
    return {
        "task": "passkey",
        "context": model.config.context,
        "lengths": lengths,
        "depths": depths,
        "trials": settings.trials,
        "found": [found[i : i + len(depths)] for i in range(0, len(found), len(depths))],
    }


def _num_found(model, cell: dict, step) -> int:
    """The number of trials at one length and depth in which the key is found."""
    samples = []
    for trial in range(cell["trials"]):
        rng = random.Random(f"{cell['seed']} {cell['length']} {cell['depth']} {trial}")
        key = _key(rng)
        samples.append(sample(model.vocabulary, cell["length"], cell["depth"], key))
    read = model.likelihoods([ids for ids, _ in samples], step)
    return sum(bool(one.greedy[-answer:].all()) for one, (_, answer) in zip(read, samples))


def table(result: dict) -> str:
    """The result as text: a row for each depth, a column for each length."""
    trials = result["trials"]
    about = (
        f"passkey retrieval, {result['model']} (T={result['context']}): number of texts, of {trials}, in which the key "
        "is found, by depth and length"
    )
    cells = [["depth", *map(str, result["lengths"])]]
    cells += [[f"{depth:.0%}", *(str(row[i]) for row in result["found"])] for i, depth in enumerate(result["depths"])]
    cells += [["all", *(f"{sum(row) / (trials * len(row)):.0%}" for row in result["found"])]]
    return "\n".join([about, "", *figures.aligned(cells)])


def plot(result: dict, path: Path) -> None:
    """Writes a PNG: a heat map of depth over length, dark where the key is found."""
    lengths, depths, trials = result["lengths"], result["depths"], result["trials"]
    figure, (axes,) = figures.canvas(max(4.5, 1.0 + 0.9 * len(lengths)), 1.6 + 0.45 * len(depths))
    rates = [[row[i] / trials for row in result["found"]] for i in range(len(depths))]
    axes.imshow(rates, cmap="BuGn", vmin=0, vmax=2, aspect="auto")  # not darker: the numbers stay legible
    for i, row in enumerate(rates):
        for j, rate in enumerate(row):
            axes.text(j, i, f"{rate:.0%}", ha="center", va="center", color="black", fontsize=9)
    axes.set_xticks(range(len(lengths)), [figures.tokens(n) for n in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    trained = figures.tokens(result["context"])
    axes.set(title=f"{result['model']}: pass keys found", ylabel="depth of the key")
    axes.set_xlabel(f"tokens in the text (trained on {trained})")
    figures.save(figure, path)
