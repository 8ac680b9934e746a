"""Table 4 of the report: how often a reward model puts two responses to a prompt in the right order, set by set.

A set is a file that `qwenjax.data convert` reads. A row becomes all its pairs of responses. They are encoded as in
training and scored at the end token. A tie counts half. The accuracy of preferring the longer response is the baseline:
a reward model that does no better may know nothing else.
"""

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from qwenjax.common import figures
from qwenjax.common.progress import meter
from qwenjax.data.conversations.convert import ConversionReport, convert_rows
from qwenjax.data.conversations.encode import Encoding, encode
from qwenjax.data.conversations.schema import RowError
from qwenjax.eval import accuracy
from qwenjax.eval.task import ResultCache, Settings, short_hash
from qwenjax.sources.slices import Report

if TYPE_CHECKING:
    from qwenjax.api.reward_model import RewardModel
    from qwenjax.tokenizer import Tokenizer

MODEL = "reward"
CHUNK = 256  # prompts that are scored and cached together

# Table 4: accuracy in percent of the preference model after pretraining (PMP) and of the reward model (RM). The report
# does not state the size of the model.
TABLE_4 = {
    "Qwen Helpful-base": (62.68, 74.78),
    "Qwen Helpful-online": (61.62, 69.71),
    "Anthropic Helpful-base": (76.52, 73.98),
    "Anthropic Helpful-online": (65.43, 64.57),
    "OpenAI Summ.": (69.60, 69.99),
    "Stanford SHP": (60.05, 60.10),
    "OpenAI PRM800K": (70.59, 70.52),
}
# patterns of the file names of the public sets; Qwen's own sets are not public
FILES = {
    "Anthropic Helpful-base": "helpful[-_. /]?base",
    "Anthropic Helpful-online": "helpful[-_. /]?online",
    "OpenAI Summ.": "summ",
    "Stanford SHP": r"\bshp",
    "OpenAI PRM800K": "prm[-_]?800k",
}


class EncodedResponses(NamedTuple):
    """Responses to one prompt as ids, best first, and their ratings."""

    texts: list[list[int]]
    ratings: list[float]


class PreferenceSet(NamedTuple):
    """The preferences of a file, and what was left out or shortened."""

    prompts: list[EncodedResponses]
    scored: bool  # whether ratings are scores rather than ranks
    left_out: Report
    shortened: Report


def measure(model: "RewardModel", settings: Settings, cache: ResultCache) -> dict:
    """Pairs in the right order for each of `settings.data`; see `table`."""
    if not settings.data:
        raise ValueError("table 4 needs preferences: --data FILE…, as `qwenjax.data convert` reads them")
    sets = {path: read_set(path, model.tokenizer, model.config.context) for path in settings.data}
    count = sum(len(responses.texts) for one in sets.values() for responses in one.prompts)
    with meter("scoring", count, "text") as step:
        results = [_result(path, one, _scores(model, one.prompts, cache, step)) for path, one in sets.items()]
    return {"table": 4, "context": model.config.context, "sets": results, "published": TABLE_4}


def read_set(path: str, tokenizer: "Tokenizer", length: int) -> PreferenceSet:
    """The preferences of a file; those longer than `length` tokens lose their oldest turns. ValueError for none."""
    account, encoding = ConversionReport(), Encoding(length=length, truncate="turns", kind="preference")
    prompts, shortened, scored = [], Report(), False
    for place, _, row in convert_rows(path, account, to="preference"):
        try:
            dialogues, change, _ = encode(row, tokenizer, encoding)
        except RowError as error:
            account.skipped.note(error.reason, place)
            continue
        if change:
            shortened.note(change, place)
        scored |= row.scores is not None
        prompts.append(EncodedResponses([one.ids for one in dialogues], [one.rating for one in dialogues]))
    if not prompts:
        reasons = "; ".join(account.skipped.lines()) or "it is empty"
        raise ValueError(f"no pair of responses in {path}: {reasons}")
    prompts.sort(key=lambda responses: max(map(len, responses.texts)))
    return PreferenceSet(prompts, scored, account.skipped, shortened)


def _scores(model: "RewardModel", prompts: Sequence[EncodedResponses], cache: ResultCache, step) -> list[list[float]]:
    """The score of every response. Prompts come sorted by length, so that a chunk has little padding."""
    found: list[list[float]] = []
    for first in range(0, len(prompts), CHUNK):
        chunk = prompts[first : first + CHUNK]
        texts = [ids for responses in chunk for ids in responses.texts]
        ids = np.concatenate([[len(text), *text] for text in texts])
        key = {"table": 4, "texts": short_hash(ids.astype("<i8").tobytes())}
        scores = iter(cache.get(key, lambda texts: [float(score) for score in model.score_ids(texts)], texts))
        step(len(texts))
        found += [[next(scores) for _ in responses.texts] for responses in chunk]
    return found


def _result(path: str, one: PreferenceSet, scores: Sequence[Sequence[float]]) -> dict:
    """The numbers of one set."""
    lengths = [[float(len(ids)) for ids in responses.texts] for responses in one.prompts]
    pairs, longer = _pairs(one.prompts, scores), _pairs(one.prompts, lengths)
    return {
        "name": set_name(path),
        "rows": len(one.prompts),
        **_accuracy(pairs),
        "longer": accuracy.num_correct(longer) / len(longer),
        "gaps": [{"title": title, **_accuracy(part)} for title, part in accuracy.by_gap(pairs) if one.scored],
        "published": next((title for title, file in FILES.items() if re.search(file, set_name(path).lower())), None),
        "left_out": one.left_out.lines(),
        "shortened": [f"{count:,} x {reason}" for reason, (count, _) in one.shortened.items()],
    }


def _pairs(prompts: Sequence[EncodedResponses], scores: Sequence[Sequence[float]]) -> list[accuracy.ScoredPair]:
    """Every two responses to a prompt; ratings fall."""
    return [
        accuracy.ScoredPair(better - worse, high - low, 0)
        for responses, values in zip(prompts, scores)
        for (better, high), (worse, low) in combinations(zip(responses.ratings, values), 2)
    ]


def _accuracy(pairs: Sequence[accuracy.ScoredPair]) -> dict:
    correct, n = float(accuracy.num_correct(pairs)), len(pairs)
    return {"pairs": n, "accuracy": correct / n, "interval": accuracy.wilson_interval(correct, n)}


def set_name(path: str) -> str:
    """The name of a set: its folder and file, such as 'helpful-base/test.jsonl.gz'."""
    return "/".join(Path(path).parts[-2:])


def table(result: dict) -> str:
    """The result as text: a line for each set with its groups by rating gap, then the report's rows."""
    rows, notes = [("set", "pairs", "accuracy", "95 % interval", "the longer")], {}
    for one in result["sets"]:
        rows.append((*_cells(one["name"], one), f"{one['longer']:.1%}"))
        rows += [(*_cells(f"  {part['title']}", part), "") for part in one["gaps"]]
        below = [*one["left_out"], *(f"shortened {text}" for text in one["shortened"])]
        if one["published"]:
            below.insert(0, "published, {}: PMP {:.2f}, RM {:.2f}".format(one["published"], *TABLE_4[one["published"]]))
        notes[len(rows) - 1] = [f"  {text}" for text in below]
    lines = [f"{result['model']}: pairs of responses in the right order; a tie counts half", ""]
    for i, line in enumerate(figures.aligned(rows)):
        lines += [line, *notes.get(i, [])]
    published = [("", "PMP", "RM"), *((title, f"{pmp:.2f}", f"{rm:.2f}") for title, (pmp, rm) in TABLE_4.items())]
    lines += ["", "accuracy as published (report, Table 4), in %; the size of the model is not stated"]
    return "\n".join([*lines, *figures.aligned(published)])


def _cells(title: str, one: dict) -> tuple[str, ...]:
    low, high = one["interval"]
    return title, f"{one['pairs']:,}", f"{one['accuracy']:.1%}", f"{low:.1%} to {high:.1%}"


def plot(result: dict, path: Path) -> None:
    """Writes a PNG: a bar with its interval for each set, and the baseline of preferring the longer response."""
    sets = result["sets"]
    figure, (axes,) = figures.canvas(6.5, 1.6 + 0.4 * len(sets))
    places = range(len(sets))
    shares = np.array([one["accuracy"] for one in sets])
    errors = np.abs(np.array([one["interval"] for one in sets]).T - shares)
    axes.barh(places, shares, xerr=errors, height=0.55, color=figures.COLORS[1], ecolor="#444444", capsize=3)
    axes.scatter([one["longer"] for one in sets], places, color=figures.COLORS[0], zorder=3, label="the longer one")
    axes.axvline(0.5, color="#888888", linewidth=1, linestyle="--", label="chance")
    axes.set_yticks(places, [one["name"] for one in sets])
    axes.invert_yaxis()
    axes.set(title=result["model"], xlim=(0, 1), xlabel="share of pairs in the right order")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figures.save(figure, path)
