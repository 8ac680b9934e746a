"""Passkey retrieval: a number hidden at some depth of a long text, asked for at its end (arXiv 2305.16300, §4.1).

The text is the same few sentences over and over; where the number stands and what it is follow from the seed. It is a
plain text, without chat format, so that base models can answer, too. The number is found if each of its tokens is the
most likely one after the text and the tokens before it: exactly then greedy decoding writes it, and reading the whole
once is cheaper than writing.
"""

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

from qwenjax.common import figures
from qwenjax.common.progress import meter
from qwenjax.eval.partial_results import Parts
from qwenjax.eval.task import Settings

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
    """Ids of a text with the key at `depth` (0: its beginning, 1: right before the question), and the answer behind it.

    Returns: the ids, at most `length`, and fewer by less than the filler's; and how many of them are the answer.
    Raises:
      ValueError: so short a text has no room for the key and the question.
    """
    opening = [*tokenizer.prefix, *tokenizer.encode_ordinary(OPENING)]
    filler, needle, question, whole = map(
        tokenizer.encode_ordinary, (FILLER, NEEDLE.format(key=key), QUESTION, f"{QUESTION} {key}")
    )
    answer = whole[len(question) :]
    room = length - len(opening) - len(needle) - len(whole)
    if room < 0 or whole[: len(question)] != question:
        raise ValueError(f"a passkey text takes {length - room} tokens of {tokenizer.name}, more than {length}")
    copies = room // len(filler)
    before = round(depth * copies)
    return [*opening, *filler * before, *needle, *filler * (copies - before), *whole], len(answer)


def write(path: str | Path, count: int, fillers: int, seed: int) -> None:
    """Writes texts of this kind with their answers, {"text"} a line, for a small model to learn what is asked for.

    Args:
      fillers: copies of the filler in a text, at most; keys, copies and depths follow from the seed.
    """
    draw = random.Random(seed)
    with Path(path).open("w", encoding="utf-8") as file:
        for _ in range(count):
            key = _key(draw)
            before, behind = draw.randint(0, fillers), draw.randint(0, fillers)
            parts = (OPENING, FILLER * before, NEEDLE.format(key=key), FILLER * min(behind, fillers - before), QUESTION)
            file.write(json.dumps({"text": f"{''.join(parts)} {key}"}) + "\n")


def _key(draw: random.Random) -> str:
    return "".join(draw.choice("123456789") for _ in range(DIGITS))


def measure(model: "Model", settings: Settings, parts: Parts) -> dict:
    """How often the key is found, by length and depth; see `table`."""
    lengths = sorted(set(settings.lengths))
    depths = [i / max(settings.depths - 1, 1) for i in range(settings.depths)]
    cells = [
        {"task": "passkey", "length": n, "depth": d, "trials": settings.trials, "seed": settings.seed}
        for n in lengths
        for d in depths
    ]
    left = sum(of["length"] for of in cells if parts.get(of) is None) * settings.trials
    with meter("passkey", left, "token") as step:
        for of in cells:
            if parts.get(of) is None:
                parts.add(of, _found(model, of, step))
    return {
        "task": "passkey",
        "context": model.config.context,
        "lengths": lengths,
        "depths": depths,
        "trials": settings.trials,
        "found": [[parts.get(of) for of in cells if of["length"] == n] for n in lengths],
    }


def _found(model, of: dict, step) -> int:
    """Of the trials at one length and depth, how many give the key."""
    samples = []
    for trial in range(of["trials"]):
        draw = random.Random(f"{of['seed']} {of['length']} {of['depth']} {trial}")
        key = _key(draw)
        samples.append(sample(model.vocabulary, of["length"], of["depth"], key))
    read = model.likelihoods([ids for ids, _ in samples], step)
    return sum(bool(one.greedy[-answer:].all()) for one, (_, answer) in zip(read, samples))


def table(result: dict) -> str:
    """The result for people: a row for each depth, a column for each length."""
    trials = result["trials"]
    lines = [
        f"passkey retrieval, {result['model']} (T={result['context']}): found, of {trials} "
        f"text{'s' * (trials > 1)} at each depth and length",
        "",
        f"{'depth':<10}" + "".join(f"{n:>10}" for n in result["lengths"]),
    ]
    for i, depth in enumerate(result["depths"]):
        lines.append(f"{depth:<10.0%}" + "".join(f"{row[i]:>10}" for row in result["found"]))
    means = (sum(row) / (trials * len(row)) for row in result["found"])
    return "\n".join([*lines, "", f"{'all':<10}" + "".join(f"{mean:>10.0%}" for mean in means)])


def draw(result: dict, path: Path) -> None:
    """Writes a PNG: depth over length, a cell for each, dark where the key is found."""
    lengths, depths, trials = result["lengths"], result["depths"], result["trials"]
    figure, (axes,) = figures.canvas(max(4.5, 1.0 + 0.9 * len(lengths)), 1.6 + 0.45 * len(depths))
    rates = [[row[i] / trials for row in result["found"]] for i in range(len(depths))]
    axes.imshow(rates, cmap="BuGn", vmin=0, vmax=2, aspect="auto")  # its darker half would hide the numbers
    for i, row in enumerate(rates):
        for j, rate in enumerate(row):
            axes.text(j, i, f"{rate:.0%}", ha="center", va="center", color="black", fontsize=9)
    axes.set_xticks(range(len(lengths)), [figures.tokens(n) for n in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set_xlabel(f"tokens in the text (trained on {figures.tokens(result['context'])})")
    axes.set_ylabel("depth of the key")
    axes.set_title(f"{result['model']}: pass keys found", fontsize=10)
    axes.vlines([j - 0.5 for j in range(1, len(lengths))], -0.5, len(depths) - 0.5, color=figures.CARD)
    axes.hlines([i - 0.5 for i in range(1, len(depths))], -0.5, len(lengths) - 0.5, color=figures.CARD)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figures.save(figure, path)
