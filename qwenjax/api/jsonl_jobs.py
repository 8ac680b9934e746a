"""Completions of a whole file: JSON lines in, JSON lines out, in batches, going on where a killed run was."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from qwenjax.api.best_of import BestOf, Chosen, conversation
from qwenjax.api.model import Model
from qwenjax.chat_format import chatml
from qwenjax.common import jsonl
from qwenjax.generate.sampling import Greedy, Sample
from qwenjax.generate.stops import Stop


class CompletionJob(NamedTuple):
    """What is wanted of every row."""

    sampling: Greedy | Sample
    max_new_tokens: int
    stop: tuple[Stop, ...]
    seed: int
    batch: int

    def digest(self, path: str) -> str:
        """What rows are marked with, so that two runs with other settings are not mixed. Batches change nothing."""
        return hashlib.sha256(repr((path, self._replace(batch=0))).encode()).hexdigest()[:8]


def read_requests(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file, each with 'prompt' (text) or 'messages' (a conversation), all of one kind.

    Prompts of the chat schema, which are turns, become 'messages'.

    Raises:
      ValueError: a line that is neither; its number is named.
    """
    rows = []
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from None
            if isinstance(row, dict) and isinstance(row.get("prompt"), list) and "messages" not in row:
                row["messages"] = row.pop("prompt")
            kinds = {"prompt", "messages"} & row.keys() if isinstance(row, dict) else set()
            if len(kinds) != 1 or (kinds == {"prompt"} and not isinstance(row["prompt"], str)):
                raise ValueError(f'{path}, line {number}: wanted an object with "prompt" (a text) or "messages"')
            if rows and kinds.isdisjoint(rows[0]):
                raise ValueError(f"{path}, line {number}: all rows have prompts or all have messages, not some of each")
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


def resume(out: Path, rows: list[dict[str, Any]], digest: str) -> int:
    """How many of the rows are done. A line that a kill cut short is removed from the file.

    Raises:
      ValueError: what is there answers other rows, or was made with other settings.
    """
    if not out.exists():
        return 0
    done, whole = 0, 0
    with out.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if row is None:
                break
            if done == len(rows) or {key: row.get(key) for key in rows[done]} != rows[done]:
                raise ValueError(f"{out}, line {done + 1} answers another input: give another --out, or delete it")
            if row.get("settings") != digest:
                raise ValueError(
                    f"{out} was made with another model or other options: give another --out, or the same options"
                )
            done, whole = done + 1, whole + len(line)
    with out.open("r+b") as file:
        file.truncate(whole)
    return done


def run(
    model: Model,
    rows: list[dict[str, Any]],
    done: int,
    job: CompletionJob,
    digest: str,
    out: Path,
    progress: Callable[[int], None] = lambda rows: None,
    best_of: BestOf | None = None,
) -> int:
    """Completes the rows from `done` on, appending each batch to `out`. Returns the number of tokens made.

    A row's output is the row with completion, reason, tokens, logprob and settings; of the best of several also its
    score, and scores, those of all. Its seed is its own 'seed', or the job's plus its number, whatever batch it is in.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    tokens = 0
    for first, batch in _batches(rows, done, max(1, job.batch // best_of.n) if best_of else job.batch):
        seeds = [row.get("seed", job.seed + first + i) for i, row in enumerate(batch)]
        if best_of:
            asked = [conversation(model, row) for row in batch]
            chosen = best_of.answers(model, asked, job.sampling, job.max_new_tokens, job.stop, seeds)
            found, more = [one.completion for one in chosen], [_scored(one) for one in chosen]
            tokens += sum(one.tokens for one in chosen)
        else:
            chat = "messages" in batch[0]
            prompts = [model.encode_chat(row["messages"]) if chat else row["prompt"] for row in batch]
            stop = [*(chatml.stop_sequences(model.tokenizer) if chat else ()), *job.stop]
            found = model.complete(prompts, job.sampling, job.max_new_tokens, stop, seeds)
            more = [{}] * len(batch)
            tokens += sum(len(made.ids) for made in found)
        with out.open("ab") as file:
            for row, made, scores in zip(batch, found, more):
                answer = {"completion": made.text, "reason": made.reason, "tokens": len(made.ids)}
                whole = row | answer | {"logprob": round(made.logprob, 4)} | scores | {"settings": digest}
                file.write(jsonl.encode(whole))
        progress(len(batch))
    return tokens


def _scored(one: Chosen) -> dict[str, Any]:
    scores = [round(score, 4) for score in one.scores]
    return {"score": scores[one.index], "scores": scores}


def _batches(rows: list, done: int, size: int) -> Iterator[tuple[int, list]]:
    for first in range(done, len(rows), size):
        yield first, rows[first : first + size]
