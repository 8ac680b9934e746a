"""Completions of a whole JSONL file into another one, in batches; a killed run continues where it was."""

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from qwenjax.api.best_of import BestOf, conversation
from qwenjax.api.model import Model
from qwenjax.common import jsonl
from qwenjax.generate.sampling import Greedy, Sample
from qwenjax.generate.stops import Stop


class CompletionJob(NamedTuple):
    """How all requests are completed."""

    sampling: Greedy | Sample
    max_new_tokens: int
    stop: tuple[Stop, ...]
    seed: int
    batch: int

    def digest(self, model: str) -> str:
        """Marks the output, so that different settings are not mixed. The batch size changes no completion."""
        return hashlib.sha256(repr((model, self._replace(batch=0))).encode()).hexdigest()[:8]


def read_requests(path: str | Path) -> list[dict[str, Any]]:
    """Requests of a JSONL file: each has 'prompt' (text) or 'messages' (a conversation), all of them the same one.

    A prompt of the chat schema, which is a list of turns, becomes 'messages'. Raises ValueError, with the number of the
    line, for anything else.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    requests: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _request(json.loads(line), requests[0].keys() if requests else ("prompt", "messages"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error}") from None
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        requests.append(row)
    if not requests:
        raise ValueError(f"{path} holds no rows")
    return requests


def _request(row: Any, like: Collection[str]) -> dict[str, Any]:
    """A row, checked: a prompt of turns is a conversation, a seed that is null is none; of the same kind as `like`."""
    row = dict(row) if isinstance(row, dict) else {}
    if isinstance(row.get("prompt"), list) and "messages" not in row:
        row["messages"] = row.pop("prompt")
    if row.get("seed", 0) is None:
        del row["seed"]
    if len({"prompt", "messages"} & row.keys()) != 1 or not isinstance(row.get("prompt", ""), str):
        raise ValueError('wanted an object with "prompt" (a text) or "messages"')
    if {"prompt", "messages"}.isdisjoint(row.keys() & set(like)):
        raise ValueError('all rows must have the same one of "prompt" and "messages"')
    seed, messages = row.get("seed", 0), row.get("messages", [{"role": "user"}])
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 32:
        raise ValueError(f"seed={seed!r}: wanted a whole number from 0 to 4294967295")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise ValueError(f'messages={messages!r:.60}: wanted a list of {{"role": …, "content": …}}')
    return row


def resume(out: Path, requests: list[dict[str, Any]], digest: str) -> int:
    """How many requests are completed. A line that a kill cut short is removed from the file.

    Raises ValueError for a file that answers other requests, or was written with other settings.
    """
    rows = jsonl.read_rows(out)
    for i, row in enumerate(rows):
        if i >= len(requests) or {key: row.get(key) for key in requests[i]} != requests[i]:
            raise ValueError(f"{out}, line {i + 1} answers another input: give another --out, or delete it")
        if row.get("settings") != digest:
            raise ValueError(f"{out} was made with another model or options: give another --out, or the same options")
    jsonl.Log(out, keep=lambda row: True)  # cuts off the line
    return len(rows)


def run(
    model: Model,
    requests: list[dict[str, Any]],
    done: int,
    job: CompletionJob,
    digest: str,
    out: Path,
    progress: Callable[[int], None] = lambda requests: None,
    best_of: BestOf | None = None,
) -> int:
    """Completes the requests from `done` on, appending each batch to `out`. Returns the number of generated tokens.

    An output row is the request with completion, reason, tokens, logprob and settings; with `best_of` also score and
    the scores of all answers. A request that the model cannot answer gets `error` instead, which says why. The seed of
    a request is its own 'seed', or the job's plus its number, in any batch.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    tokens, size = 0, max(1, job.batch // best_of.n) if best_of else job.batch
    for first in range(done, len(requests), size):
        batch = requests[first : first + size]
        seeds = [row.get("seed", job.seed + first + i) for i, row in enumerate(batch)]
        prompts = [_prompt(model, row, as_chat=best_of is not None) for row in batch]
        good = [i for i, prompt in enumerate(prompts) if not isinstance(prompt, ValueError)]
        answers = [{"error": str(prompt)} for prompt in prompts]
        asked = [(batch[i], prompts[i], seeds[i]) for i in good]
        for i, (answer, written) in zip(good, _answers(model, asked, job, best_of) if good else ()):
            answers[i], tokens = answer, tokens + written
        with out.open("ab") as file:
            for row, answer in zip(batch, answers):
                file.write(jsonl.encode(row | answer | {"settings": digest}))
        progress(len(batch))
    return tokens


def _prompt(model: Model, row: dict[str, Any], as_chat: bool) -> list[int] | ValueError:
    """Ids of a request, or why the model cannot answer it."""
    try:
        if as_chat or "messages" in row:
            ids = model.encode_chat(conversation(model, row))
        else:
            ids = model.encode(row["prompt"])
        model.room(ids)
    except ValueError as error:
        return error
    return ids


def _answers(
    model: Model, asked: list[tuple[dict[str, Any], list[int], int]], job: CompletionJob, best_of: BestOf | None
) -> list[tuple[dict[str, Any], int]]:
    """What the output says of each request (row, ids, seed), and how many tokens were written for it."""
    rows, ids, seeds = zip(*asked)
    if best_of:
        conversations = [conversation(model, row) for row in rows]
        chosen = best_of.answers(model, conversations, job.sampling, job.max_new_tokens, job.stop, seeds)
        rounded = [[round(score, 4) for score in one.scores] for one in chosen]
        scores = [{"score": every[one.index], "scores": every} for one, every in zip(chosen, rounded)]
        done, written = [one.completion for one in chosen], [one.tokens for one in chosen]
    else:
        stop = [*(model.vocabulary.turn_stops() if "messages" in rows[0] else ()), *job.stop]
        done = model.complete(ids, job.sampling, job.max_new_tokens, stop, seeds)
        scores, written = [{}] * len(done), [len(one.ids) for one in done]
    facts = [{"completion": one.text, "reason": one.reason, "tokens": len(one.ids)} for one in done]
    rounded_logprobs = [{"logprob": round(one.logprob, 4)} for one in done]
    return [(fact | logprob | score, n) for fact, logprob, score, n in zip(facts, rounded_logprobs, scores, written)]
