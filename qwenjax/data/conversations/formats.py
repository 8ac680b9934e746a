"""Rows of other people's chat data, format by format, as one `Exchange`: a prompt and what was answered to it.

`FORMATS` is the list of what is known, in the order of recognition: a row is of the first format whose fields it has.
Texts keep their inside and lose blank lines before and blanks after, as the released code does to what is sent to a
chat model (spec §6.1). Whatever a converter changes is told to `changed`, and whatever it cannot use is a `RowError`.
Fields it does not read go into `meta`.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import takewhile

from qwenjax.data.conversations.schema import RowError, Turn
from qwenjax.data.conversations.turns import (
    ROLES,
    Changed,
    calls_of,
    join_speakers,
    results_apart,
    text_of,
    tools_of,
    turn_of,
    turns_of,
)

TURNS = ("messages", "conversations", "conversation")  # fields that hold turns
ANSWERS = ("output", "answer", "std_answer", "response", "completion")  # fields that hold an answer as text


@dataclass
class Exchange:
    """A prompt and its responses, best first; what rows of every kind are made from."""

    prompt: list[Turn]
    responses: list[Turn] = field(default_factory=list)
    scores: list[float] | None = None
    answer: str | None = None
    tools: list[dict] = field(default_factory=list)
    meta: dict = field(default_factory=dict)
    id: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Format:
    """How to know a format and what its rows are by nature."""

    kind: str
    matches: Callable[[dict], bool]
    read: Callable[[dict, Changed], Iterable[Exchange]]
    says: str  # one line for people


def _user(text: str) -> list[Turn]:
    return [{"role": "user", "content": text}]


def _assistant(text: str) -> Turn:
    return {"role": "assistant", "content": text}


def _with_system(row: dict, turns: list[Turn]) -> list[Turn]:
    """The turns after the row's system text, if it has one that they lack."""
    system = text_of(row.get("system"), "system")
    if not system or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": system}, *turns]


def _exchange(row: dict, turns: list[Turn], used: Iterable[str], **given) -> Exchange:
    """The exchange of turns: if they end with the assistant's, that is the response."""
    if "responses" not in given and turns and turns[-1]["role"] == "assistant":
        turns, given["responses"] = turns[:-1], [turns[-1]]
    number = next((row[name] for name in ("id", "question_id", "task_id") if row.get(name) not in (None, "")), None)
    rest = row.keys() - {*used, "id", "question_id", "task_id", "source", "tools", "functions", "system", "meta"}
    meta = dict(row["meta"]) if isinstance(row.get("meta"), dict) else {}
    meta |= {name: row[name] for name in row if name in rest and row[name] not in (None, "", [], {})}
    source = row.get("source") if isinstance(row.get("source"), str) else None
    return Exchange(
        turns, tools=tools_of(row), meta=meta, id=None if number is None else str(number), source=source, **given
    )


# ---- formats ----


def _has(*names: str) -> Callable[[dict], bool]:
    return lambda row: all(name in row for name in names)


def _first(row: dict, names: Iterable[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _dialogue(row: dict, changed: Changed) -> list[Exchange]:
    name = _first(row, TURNS)
    return [_exchange(row, _with_system(row, results_apart(turns_of(row[name], changed, name), changed)), TURNS)]


def _labelled(row: dict, changed: Changed) -> list[Exchange]:
    label = row["label"]
    if label is not True:
        raise RowError("labelled undesirable", f"label is {label!r}: the answer is not to be learnt, and has no better")
    if _first(row, TURNS):
        return _dialogue({name: row[name] for name in row if name != "label"}, changed)
    turns = [*_prompt(row, changed, "prompt"), _assistant(text_of(row.get("completion"), "completion"))]
    return [_exchange(row, turns, ("prompt", "completion", "label"))]


def _prompt(row: dict, changed: Changed, name: str) -> list[Turn]:
    """The prompt in a field: a text or turns, after the row's system text and history."""
    value = row[name]
    if isinstance(value, list):
        return _with_system(row, results_apart(turns_of(value, changed, name), changed))
    text = text_of(value, name)
    more = text_of(row.get("input", row.get("context")), "input") if name == "instruction" else ""
    if re.fullmatch(r"<?\s*no\s*input\s*>?", more, re.IGNORECASE):
        changed("input that says there is none left out")
        more = ""
    before, pairs = [], row.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise RowError("malformed history", "history holds no pairs of question and answer")
    for asked, answered in pairs:
        before += [*_user(text_of(asked, "history")), _assistant(text_of(answered, "history"))]
    return _with_system(row, before + _user("\n\n".join(filter(None, (text, more)))))


_PROMPT_USES = ("input", "context", "history", "system")


def _instruction(row: dict, changed: Changed) -> list[Exchange]:
    name = _first(row, ANSWERS)
    turns = [*_prompt(row, changed, "instruction"), _assistant(text_of(row[name], name))]
    return [_exchange(row, turns, ("instruction", name, *_PROMPT_USES))]


def _seeds(row: dict, changed: Changed) -> list[Exchange]:
    if not isinstance(row["instances"], list) or not row["instances"]:
        raise RowError("no turns", "instances holds no list of inputs and outputs")
    out = []
    for one in row["instances"]:
        if not isinstance(one, dict):
            raise RowError("malformed turn", "instances holds something that is no object")
        filled = {**row, "input": one.get("input")}
        turns = [*_prompt(filled, changed, "instruction"), _assistant(text_of(one.get("output"), "output"))]
        out.append(_exchange(row, turns, ("instruction", "instances", *_PROMPT_USES)))
    return out


def _question(row: dict, changed: Changed) -> list[Exchange]:
    name = _first(row, ANSWERS)
    said = _answer(row[name], name)
    # GSM8K ends its worked answers with '#### NUMBER'; thousands are separated by commas
    final = re.search(r"\n#### *(.+)\Z", said)
    answer = final[1].replace(",", "").strip() if final else said
    given = {"responses": [_assistant(said)] if said else [], "answer": answer or None}
    return [_exchange(row, _prompt(row, changed, "question"), ("question", name, "system"), **given)]


def _answer(value: object, here: str) -> str:
    """A reference as text; it may be written as a number."""
    return str(value) if type(value) in (int, float) else text_of(value, here)


def _mt_bench(row: dict, changed: Changed) -> list[Exchange]:
    turns = row["turns"]
    if not isinstance(turns, list) or not turns:
        raise RowError("no turns", "turns holds no list of questions")
    if len(turns) > 1:
        changed("follow-up questions kept in meta.turns")
    reference = row.get("reference")
    answer = text_of(reference[0], "reference") if isinstance(reference, list) and reference else None
    used = ("reference",) if len(turns) > 1 else ("turns", "reference")
    return [_exchange(row, _user(text_of(turns[0], "turns[0]")), used, answer=answer)]


def _ranked(row: dict, changed: Changed) -> list[Exchange]:
    if "responses" in row:
        name, items = "prompt", row["responses"]
    else:
        name, items = "instruction", row["output"]
    if not isinstance(items, list):
        raise RowError("fewer than two responses", "the responses are no list")
    responses = [
        _assistant(text_of(item, "a response")) if isinstance(item, str) else turn_of(item, f"responses[{i}]")
        for i, item in enumerate(items)
    ]
    kept = [turn for i, turn in enumerate(responses) if turn not in responses[:i]]
    if len(kept) < len(responses) and len(kept) > 1 and not row.get("scores"):
        changed("response equal to a better one left out")
        responses = kept
    used = ("prompt", "instruction", "responses", "output", "scores", *_PROMPT_USES)
    return [_exchange(row, _prompt(row, changed, name), used, responses=responses, scores=row.get("scores"))]


def _pairs(row: dict, changed: Changed) -> list[Exchange]:
    name = _first(row, ("prompt", *TURNS, "instruction", "question"))
    prompt = _prompt(row, changed, name) if name else []
    sides = []
    for which in ("chosen", "rejected"):
        value = row[which]
        if isinstance(value, str):
            turns = [*prompt, _assistant(text_of(value, which))]
        else:
            turns = turns_of(value if isinstance(value, list) else [value], changed, which)
            turns = turns if turns[: len(prompt)] == prompt else prompt + turns
        sides.append(_with_system(row, turns))
    margin = row.get("margin")
    if margin is None and {"score_chosen", "score_rejected"} <= row.keys():
        scores = [row["score_chosen"], row["score_rejected"]]
    else:
        scores = None if margin is None else [margin, 0]
    used = (
        "prompt",
        *TURNS,
        "instruction",
        "question",
        "chosen",
        "rejected",
        "margin",
        "score_chosen",
        "score_rejected",
    )
    return [_pair(row, *sides, (*used, *_PROMPT_USES), scores)]


def _pair(row: dict, chosen: list[Turn], rejected: list[Turn], used: Iterable[str], scores=None) -> Exchange:
    """Two dialogues that differ in their last turn."""
    prompt = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected))]
    if len(prompt) == len(chosen) == len(rejected):
        raise RowError("equal responses", "chosen and rejected are the same")
    if not len(prompt) == len(chosen) - 1 == len(rejected) - 1:
        raise RowError(
            "chosen and rejected differ before their last turn",
            f"{len(chosen)} and {len(rejected)} turns have {len(prompt)} in common; wanted all but the last",
        )
    return _exchange(row, prompt, used, responses=[chosen[-1], rejected[-1]], scores=scores)


def _hh(row: dict, changed: Changed) -> list[Exchange]:
    sides = []
    for which in ("chosen", "rejected"):
        before, *parts = re.split(r"\n\n(Human|Assistant):", row[which])
        if before.strip() or not parts:
            raise RowError("no known format", f"{which} does not begin with '\\n\\nHuman:'")
        said = [{"role": ROLES[who.lower()], "content": text.strip()} for who, text in zip(parts[::2], parts[1::2])]
        sides.append(join_speakers(said, changed))
    return [_pair(row, *sides, ("chosen", "rejected"))]


_GLAIVE_CALL = re.compile(r"<functioncall>\s*(\{.*)", re.DOTALL)
_GLAIVE_QUOTED = re.compile(r'"name":\s*"([^"]+)",\s*"arguments":\s*\'(.*)\'', re.DOTALL)


def _glaive(row: dict, changed: Changed) -> list[Exchange]:
    """The text form: 'SYSTEM: … {function}…' and 'USER: … ASSISTANT: … <functioncall> {…} FUNCTION RESPONSE: …'."""
    system, tools = text_of(row.get("system"), "system").removeprefix("SYSTEM:").strip(), []
    if (at := system.find("{")) >= 0:
        decoder, rest = json.JSONDecoder(strict=False), system[at:]
        while rest.startswith("{"):
            try:
                tool, end = decoder.raw_decode(rest)
            except ValueError as error:
                raise RowError("malformed tools", f"system: a function is no JSON ({error})") from None
            tools.append(tool)
            rest = rest[end:].lstrip(" \r\n,-")
        system = ""  # it said that there are functions, which `tools` says
    chat = text_of(row["chat"], "chat").replace("<|endoftext|>", "")
    before, *parts = re.split(r"(?:\A|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):", chat)
    if before.strip() or not parts:
        raise RowError("no known format", "chat does not begin with 'USER:'")
    turns: list[Turn] = []
    for who, text in zip(parts[::2], parts[1::2]):
        text = text.strip()
        role = {"USER": "user", "ASSISTANT": "assistant"}.get(who, "tool")
        turn: Turn = {"role": role, "content": text}
        if role == "assistant" and (found := _GLAIVE_CALL.search(text)):
            quoted = _GLAIVE_QUOTED.search(found[1])  # their JSON has its arguments between single quotes
            call = {"name": quoted[1], "arguments": quoted[2].replace("\\'", "'")} if quoted else found[1]
            turn = {"role": role, "content": text[: found.start()].strip(), "tool_calls": calls_of(call, "chat")}
        turns.append(turn)
    turns = _with_system({"system": system}, join_speakers(turns, changed))
    return [_exchange({**row, "tools": tools}, turns, ("system", "chat"))]


def _plain(row: dict, changed: Changed) -> list[Exchange]:
    name = _first(row, ("completion", "response"))
    turns = _prompt(row, changed, "prompt")
    if name:
        turns.append(_assistant(text_of(row[name], name)))
    answer = _answer(row.get("answer", row.get("reference")), "answer") or None
    return [_exchange(row, turns, ("prompt", "completion", "response", "answer", "reference"), answer=answer)]


def _is_hh(row: dict) -> bool:
    bare = not _first(row, ("prompt", *TURNS, "instruction", "question"))
    return bare and all(isinstance(row.get(which), str) for which in ("chosen", "rejected"))


FORMATS: dict[str, Format] = {
    "glaive": Format("conversation", _has("system", "chat"), _glaive, "system and chat: function calling as text"),
    "kto": Format(
        "conversation",
        lambda row: "label" in row and (bool(_first(row, TURNS)) or {"prompt", "completion"} <= row.keys()),
        _labelled,
        "messages or prompt/completion with a label; desirable ones only",
    ),
    "hh": Format("preference", _is_hh, _hh, "chosen, rejected: texts with Human: and Assistant:"),
    "pairs": Format("preference", _has("chosen", "rejected"), _pairs, "chosen, rejected after a prompt of any form"),
    "ranked": Format(
        "preference",
        lambda row: (
            {"prompt", "responses"} <= row.keys() or ("instruction" in row and isinstance(row.get("output"), list))
        ),
        _ranked,
        "instruction and a list of outputs, or prompt and responses; best first",
    ),
    "sharegpt": Format(
        "conversation",
        lambda row: bool(_first(row, TURNS[1:])),
        _dialogue,
        "conversations: from, value (Qwen's finetune.py)",
    ),
    "openai": Format("conversation", _has("messages"), _dialogue, "messages: role, content, tool_calls"),
    "seeds": Format(
        "conversation", _has("instruction", "instances"), _seeds, "instruction with instances (self-instruct)"
    ),
    "alpaca": Format(
        "conversation",
        lambda row: "instruction" in row and bool(_first(row, ANSWERS)),
        _instruction,
        "instruction, input, output, history",
    ),
    "question": Format(
        "prompt",
        lambda row: "question" in row and bool(_first(row, ANSWERS)),
        _question,
        "question, answer (GSM8K, BELLE)",
    ),
    "mt_bench": Format("prompt", _has("turns"), _mt_bench, "turns: the first question is the prompt"),
    "completion": Format(
        "conversation",
        lambda row: "prompt" in row and bool(_first(row, ("completion", "response"))),
        _plain,
        "prompt, completion",
    ),
    "prompt": Format("prompt", _has("prompt"), _plain, "prompt, answer"),
}


def recognise(row: object) -> str:
    """The name of the row's format.

    Raises:
      RowError: it is of none.
    """
    if isinstance(row, dict):
        for name, format in FORMATS.items():
            if format.matches(row):
                return name
    fields = ", ".join(row) if isinstance(row, dict) else f"a {type(row).__name__}"
    raise RowError("no known format", f"fields {fields}: no known format has these")
