"""Completions of a whole JSONL file into another one, in batches; a killed run continues where it was."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from qwenjax.api.best_of import BestOf, conversation
from qwenjax.api.model import Model
from qwenjax.chat_format import chatml
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
    requests = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error}") from None
        row = row if isinstance(row, dict) else {}
        if isinstance(row.get("prompt"), list) and "messages" not in row:
            row["messages"] = row.pop("prompt")
        kinds = {"prompt", "messages"} & row.keys()
        if len(kinds) != 1 or not isinstance(row.get("prompt", ""), str):
            raise ValueError(f'{path}, line {number}: wanted an object with "prompt" (a text) or "messages"')
        if requests and kinds.isdisjoint(requests[0]):
            raise ValueError(f'{path}, line {number}: all rows must have the same one of "prompt" and "messages"')
        requests.append(row)
    if not requests:
        raise ValueError(f"{path} holds no rows")
    return requests


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
    the scores of all answers. The seed of a request is its own 'seed', or the job's plus its number, in any batch.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    tokens, size = 0, max(1, job.batch // best_of.n) if best_of else job.batch
    for first in range(done, len(requests), size):
        batch = requests[first : first + size]
        seeds = [row.get("seed", job.seed + first + i) for i, row in enumerate(batch)]
        if best_of:
            conversations = [conversation(model, row) for row in batch]
            chosen = best_of.answers(model, conversations, job.sampling, job.max_new_tokens, job.stop, seeds)
            completions = [one.completion for one in chosen]
            rounded = [[round(score, 4) for score in one.scores] for one in chosen]
            scores = [{"score": every[one.index], "scores": every} for one, every in zip(chosen, rounded)]
            tokens += sum(one.tokens for one in chosen)
        else:
            chat = "messages" in batch[0]
            prompts = [model.encode_chat(row["messages"]) if chat else row["prompt"] for row in batch]
            stop = [*(chatml.stop_sequences(model.tokenizer) if chat else ()), *job.stop]
            completions = model.complete(prompts, job.sampling, job.max_new_tokens, stop, seeds)
            scores = [{}] * len(batch)
            tokens += sum(len(one.ids) for one in completions)
        with out.open("ab") as file:
            for row, one, score in zip(batch, completions, scores):
                answer = {"completion": one.text, "reason": one.reason, "tokens": len(one.ids)}
                answer["logprob"] = round(one.logprob, 4)
                file.write(jsonl.encode(row | answer | score | {"settings": digest}))
        progress(len(batch))
    return tokens
