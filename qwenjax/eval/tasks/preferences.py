"""Table 4 of the report: how often a reward model puts two responses to a prompt in the right order, set by set.

A set is a file that `qwenjax.data convert` reads. Its rows become pairs of responses, ranked lists all of their pairs;
they are encoded as in training, and scored at the end token. A tie counts half. The accuracy of preferring the longer
response stands beside it: a reward model that does no better may know nothing else.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from qwenjax.common import figures
from qwenjax.common.progress import meter
from qwenjax.data.conversations.convert import Account, converted
from qwenjax.data.conversations.encode import Encoding, encode
from qwenjax.data.conversations.schema import RowError
from qwenjax.eval import accuracy
from qwenjax.eval.partial_results import Parts, hash_of
from qwenjax.eval.task import Settings
from qwenjax.sources.slices import Report

if TYPE_CHECKING:
    from qwenjax.api.reward_model import RewardModel
    from qwenjax.tokenizer import Tokenizer

MODEL = "reward"
CHUNK = 256  # rows that are scored, and kept, together

# Report, Table 4, in percent: (PMP, RM). Of the size of the model nothing is said.
PUBLISHED = {
    "Qwen Helpful-base": (62.68, 74.78),
    "Qwen Helpful-online": (61.62, 69.71),
    "Anthropic Helpful-base": (76.52, 73.98),
    "Anthropic Helpful-online": (65.43, 64.57),
    "OpenAI Summ.": (69.60, 69.99),
    "Stanford SHP": (60.05, 60.10),
    "OpenAI PRM800K": (70.59, 70.52),
}
# How the files of the public ones are called; Qwen's own are not public
FILES = {
    "Anthropic Helpful-base": "helpful[-_. /]?base",
    "Anthropic Helpful-online": "helpful[-_. /]?online",
    "OpenAI Summ.": "summ",
    "Stanford SHP": r"\bshp",
    "OpenAI PRM800K": "prm[-_]?800k",
}


class ScoredRow(NamedTuple):
    """Responses to one prompt as ids, best first, and what they were rated."""

    texts: list[list[int]]
    ratings: list[float]

    @property
    def longest(self) -> int:
        return max(map(len, self.texts))


class Set(NamedTuple):
    """A file of preferences, and what became of its rows."""

    rows: list[ScoredRow]
    scored: bool  # whether ratings are scores, and not places in a ranking
    left_out: Report
    shortened: Report


def measure(model: "RewardModel", settings: Settings, parts: Parts) -> dict:
    """Pairs in the right order for each of `settings.data`; see `table`.

    Raises:
      ValueError: no data, or a set without a single pair.
    """
    if not settings.data:
        raise ValueError("table 4 needs preferences: --data FILE…, as `qwenjax.data convert` reads them")
    sets = {path: read(path, model.tokenizer, model.config.context) for path in settings.data}
    with meter("scoring", sum(len(one.texts) for found in sets.values() for one in found.rows), "text") as step:
        results = [_result(path, found, _scores(model, found.rows, parts, step)) for path, found in sets.items()]
    return {"table": 4, "context": model.config.context, "sets": results, "published": PUBLISHED}


def read(path: str, tokenizer: "Tokenizer", length: int) -> Set:
    """The preferences of a file; of those longer than `length` tokens the oldest exchanges go, or they are left out.

    Raises:
      ValueError: there is no such file, or nothing in it that is a preference.
    """
    account, how = Account(), Encoding(length=length, truncate="turns", kind="preference")
    rows, shortened, scored = [], Report(), False
    for place, _, row in converted(path, account, to="preference"):
        try:
            dialogues, change, _ = encode(row, tokenizer, how)
        except RowError as error:
            account.skipped.note(error.reason, place)
            continue
        if change:
            shortened.note(change, place)
        scored |= row.scores is not None
        rows.append(ScoredRow([one.ids for one in dialogues], [one.rating for one in dialogues]))
    if not rows:
        reasons = "; ".join(account.skipped.lines()) or "it is empty"
        raise ValueError(f"no pair of responses in {path}: {reasons}")
    return Set(sorted(rows, key=lambda row: row.longest), scored, account.skipped, shortened)


def _scores(model: "RewardModel", rows: Sequence[ScoredRow], parts: Parts, step) -> list[list[float]]:
    """Of every response; rows come sorted by length, so that those of a chunk are padded little."""
    found: list[list[float]] = []
    for first in range(0, len(rows), CHUNK):
        some = rows[first : first + CHUNK]
        texts = [ids for row in some for ids in row.texts]
        ids = np.concatenate([[len(text), *text] for text in texts])
        of = {"table": 4, "texts": hash_of(ids.astype("<i8").tobytes())}
        flat = parts.get(of)
        if flat is None:
            flat = parts.add(of, [float(score) for score in model.score_ids(texts)])
        step(len(texts))
        scores = iter(flat)
        found += [[next(scores) for _ in row.texts] for row in some]
    return found


def _result(path: str, found: Set, scores: Sequence[Sequence[float]]) -> dict:
    """The numbers of one set."""
    lengths = [[float(len(ids)) for ids in row.texts] for row in found.rows]
    pairs, longer = _pairs(found.rows, scores), _pairs(found.rows, lengths)
    return {
        "name": name(path),
        "rows": len(found.rows),
        **_numbers(pairs),
        "longer": accuracy.right(longer) / len(longer),
        "gaps": [{"title": title, **_numbers(part)} for title, part in accuracy.by_gap(pairs) if found.scored],
        "published": next((title for title, file in FILES.items() if re.search(file, name(path).lower())), None),
        "left_out": found.left_out.lines(),
        "shortened": [f"{count:,} x {reason}" for reason, (count, _) in found.shortened.items()],
    }


def _pairs(rows: Sequence[ScoredRow], scores: Sequence[Sequence[float]]) -> list[accuracy.ScoredPair]:
    """Those of all rows, each a list of its own length."""
    pairs = []
    for row, values in zip(rows, scores):
        there, source = np.ones((1, len(values)), bool), np.zeros(1, int)
        pairs += accuracy.pairs(np.asarray([values]), np.asarray([row.ratings]), there, source)
    return pairs


def _numbers(pairs: Sequence[accuracy.ScoredPair]) -> dict:
    good = float(accuracy.right(pairs))
    share = good / len(pairs) if pairs else None
    return {"pairs": len(pairs), "accuracy": share, "interval": accuracy.interval(good, len(pairs))}


def name(path: str) -> str:
    """What a set is called: its file and the folder that this is in, as 'helpful-base/test.jsonl.gz'."""
    return "/".join(Path(path).parts[-2:])


def table(result: dict) -> str:
    """The result for people: a line for each set, then its parts by gap and what was left out, then the report's."""
    sets = result["sets"]
    width = max(28, *(len(one["name"]) + 2 for one in sets))

    def line(title: str, one: dict, rest: str = "") -> str:
        share = "-" if one["accuracy"] is None else f"{one['accuracy']:.1%}"
        low, high = one["interval"]
        return f"{title:<{width}}{one['pairs']:>9,}{share:>10}{f'{low:.1%} to {high:.1%}':>19}{rest}"

    lines = [
        f"{result['model']}: pairs of responses in the right order; a tie is half right",
        "",
        f"{'set':<{width}}{'pairs':>9}{'accuracy':>10}{'95 % interval':>19}{'the longer':>12}",
    ]
    for one in sets:
        lines.append(line(one["name"], one, f"{one['longer']:>12.1%}"))
        lines += [line(f"  {part['title']}", part) for part in one["gaps"] if part["pairs"]]
        if one["published"]:
            pmp, rm = PUBLISHED[one["published"]]
            lines.append(f"  published, {one['published']}: PMP {pmp:.2f}, RM {rm:.2f}")
        lines += [f"  {text}" for text in one["left_out"]]
        lines += [f"  shortened {text}" for text in one["shortened"]]
    lines += ["", "accuracy as published (report, Table 4), in %; the size of the model is not stated"]
    lines += [f"{'':<{width}}{'PMP':>9}{'RM':>10}"]
    lines += [f"{title:<{width}}{pmp:>9.2f}{rm:>10.2f}" for title, (pmp, rm) in PUBLISHED.items()]
    return "\n".join(lines)


def draw(result: dict, path: Path) -> None:
    """Writes a PNG: a bar with its interval for each set, and what preferring the longer response would reach."""
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
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel("pairs in the right order")
    axes.set_title(result["model"], fontsize=10)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.35 / (0.6 + 0.2 * len(sets))), ncols=2)
    figures.save(figure, path)
