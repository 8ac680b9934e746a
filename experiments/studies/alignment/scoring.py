"""What a policy writes, scored by two reward models that saw other texts, and by a lexicon that saw none."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qwenjax.common import jsonl
from qwenjax.config import RL

from .data import RatedPair, Turns, answer, request
from .stages import say

ROWS = 128  # responses written together
EDGES = (0.5, 1.0, 2.0)  # accuracy is of pairs whose ratings are so far apart, or farther


class Answer(NamedTuple):
    """A response: its text, whether it ended by itself, its tokens."""

    text: str
    ended: bool
    tokens: int


def answerable(run: Path, asked: Sequence[Turns], rl: RL) -> list[Turns]:
    """The conversations that leave room for an answer and its end token in the context of a run."""
    from qwenjax.api.checkpoint_path import detect

    source = detect(run)
    encode, room = source.tokenizer().encode_chat, source.config.context - rl.max_new_tokens - 1
    return [turns for turns in asked if len(encode(turns)) <= room]


def answers(run: Path, asked: Sequence[Turns], *, top_p: float, new: int, seed: int = 0) -> list[Answer]:
    """What the model of a run answers, one response to each conversation, sampled at temperature 1."""
    from qwenjax import api
    from qwenjax.chat_format import chatml
    from qwenjax.generate.sampling import Sample

    model, found = api.load(run), []
    prompts = [model.encode_chat(turns) for turns in asked]
    stops = chatml.stop_sequences(model.vocabulary)
    for at in range(0, len(prompts), ROWS):
        made = model.complete(prompts[at : at + ROWS], Sample(top_p=top_p), new, stops, seed + at)
        found += [Answer(one.text, one.stop == (model.vocabulary.im_end,), len(one.ids)) for one in made]
    return found


def scores(reward: Path, asked: Sequence[Turns], texts: Sequence[str]) -> np.ndarray:
    """Calibrated scores [n] of a reward model's run."""
    from qwenjax.api.reward_model import load_reward

    return load_reward(reward).score([[*turns, answer(text)] for turns, text in zip(asked, texts)])


def lexicon(texts: Sequence[str]) -> np.ndarray:
    """VADER's compound sentiment [n], -1 to 1.

    Raises:
      ValueError: the package is not installed.
    """
    if importlib.util.find_spec("vaderSentiment") is None:
        raise ValueError("the lexicon needs vaderSentiment: pip install 'qwenjax[test]'")
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()
    return np.array([analyser.polarity_scores(text)["compound"] for text in texts])


def accuracy(margins: np.ndarray, pairs: Sequence[RatedPair]) -> dict[str, float]:
    """Share of the pairs whose better text scores higher, by `EDGES`; a tie is half right."""
    gaps, right = np.array([pair.gap for pair in pairs]), (np.sign(margins) + 1) / 2
    return {f"{edge:g}": float(right[gaps >= edge].mean()) for edge in EDGES if (gaps >= edge).any()}


def margins(reward: Path, pairs: Sequence[RatedPair]) -> tuple[np.ndarray, list[RatedPair]]:
    """By how much a reward model scores the better texts higher [n], and the pairs, without those too long for it.

    Every text is read once for each request.
    """
    from qwenjax.api.reward_model import load_reward

    model = load_reward(reward)
    rows = dict.fromkeys((p.direction, text) for p in pairs for text in p[:2])
    turns = [[*request(text.kind, text.word, direction), answer(text.text)] for direction, text in rows]
    ids = [model.tokenizer.encode_chat(one, add_generation_prompt=False) for one in turns]
    fits = [i for i, row in enumerate(ids) if len(row) <= model.config.context]
    found = dict(zip((list(rows)[i] for i in fits), model.score_ids([ids[i] for i in fits])))
    ends = [((p.direction, p.better), (p.direction, p.worse)) for p in pairs]
    kept = [i for i, both in enumerate(ends) if all(end in found for end in both)]
    return np.array([found[ends[i][0]] - found[ends[i][1]] for i in kept]), [pairs[i] for i in kept]


def scored_answers(run: Path, reward_models: dict[str, Path], asked: Sequence[Turns], file: Path, rl: RL) -> list[dict]:
    """A row for each answer of a run, sampled as `rl` samples: text, whether it ended, tokens, what was asked, VADER's
    compound and the score of each reward model. They are kept in `file`, and read from there until a run changes.
    """
    if not fresh(file, [run, *reward_models.values()]):
        say(f"\nscoring {len(asked):,} answers of {run}")
        made = answers(run, asked, top_p=rl.top_p, new=rl.max_new_tokens)
        texts = [one.text for one in made]
        columns = {"text": texts, "ended": [one.ended for one in made], "tokens": [one.tokens for one in made]}
        columns |= {"asked": [turns[-1]["content"] for turns in asked], "vader": lexicon(texts).tolist()}
        columns |= {name: scores(path, asked, texts).tolist() for name, path in reward_models.items()}
        rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
        jsonl.write_rows(file, rows)
    return [json.loads(line) for line in file.read_text().splitlines()]


def fresh(file: Path, runs: Sequence[Path]) -> bool:
    """Whether a file is there and was written after these runs ended: one that was run again is scored again."""
    return file.is_file() and all((run / "report.md").stat().st_mtime_ns < file.stat().st_mtime_ns for run in runs)


def gains(before: Sequence[dict], after: Sequence[dict], reward_models: Sequence[str]) -> dict[str, float]:
    """What changed between two runs of `scored_answers`: gains of the scores in deviations of the answers before."""
    found = {}
    for name in reward_models:
        old, new = (np.array([row[name] for row in rows]) for rows in (before, after))
        found[f"{name}_z"] = float((new.mean() - old.mean()) / old.std(ddof=1))
    old, new = (np.array([row["vader"] for row in rows]) for rows in (before, after))
    found["vader_before"], found["vader_after"] = float(old.mean()), float(new.mean())
    found["vader_rise"] = float(new.mean() - old.mean())
    found["vader_error"] = float(np.sqrt(old.var(ddof=1) / len(old) + new.var(ddof=1) / len(new)))
    for name in ("ended", "tokens"):
        found[f"{name}_before"] = float(np.mean([row[name] for row in before]))
        found[name] = float(np.mean([row[name] for row in after]))
    found["unique_before"], found["unique"] = unique(before), unique(after)
    return found


def unique(rows: Sequence[dict]) -> float:
    """Share of distinct texts."""
    return len({row["text"] for row in rows}) / len(rows)
