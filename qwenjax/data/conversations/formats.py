"""Rows of known chat data formats, each read as one `Exchange`: a prompt and the responses to it.

A row is of the first of `FORMATS` whose fields it has. Every change is reported to `note_change`. What cannot be used
raises `RowError`. Fields that are not read go into `meta`.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from qwenjax.data.conversations.schema import RowError, Turn
from qwenjax.data.conversations.turns import (
    ROLES,
    NoteChange,
    merge_speakers,
    parse_calls,
    parse_text,
    parse_tools,
    parse_turn,
    parse_turns,
    split_results,
)

TURNS = ("messages", "conversations", "conversation")  # fields that hold turns
IDS = ("id", "question_id", "task_id")
ANSWERS = ("output", "answer", "std_answer", "response", "completion")  # fields that hold an answer as text
_TEXTS = ("completion", "response")
_PROMPT_USES = ("input", "context", "history", "system")
_PROMPTS = ("prompt", *TURNS, "instruction", "question")  # fields that hold the prompt of a pair


@dataclass
class Exchange:
    """A prompt and its responses, best first. Rows of every kind are made from it."""

    prompt: list[Turn]
    responses: list[Turn] = field(default_factory=list)
    scores: list[float] | None = None
    answer: str | None = None
    tools: list[dict] = field(default_factory=list)
    meta: dict = field(default_factory=dict)
    id: str | None = None
    source: str | None = None


class Format(NamedTuple):
    """How rows of a format are recognised and read."""

    kind: str  # what its rows become if the caller asks for no kind
    matches: Callable[[dict], bool]
    read: Callable[[dict, NoteChange], Iterable[Exchange]]
    description: str


def _user(text: str) -> list[Turn]:
    return [{"role": "user", "content": text}]


def _assistant(text: str) -> Turn:
    return {"role": "assistant", "content": text}


def _with_system(row: dict, turns: list[Turn]) -> list[Turn]:
    """The turns, after the row's system text if it has one and they have none."""
    system = parse_text(row.get("system"), "system")
    if not system or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": system}, *turns]


def _exchange(row: dict, turns: list[Turn], used: Iterable[str], **fields) -> Exchange:
    """The exchange that a row's turns are; if they end with an assistant turn, that is the response.

    Fields of the row that are not `used` go into `meta`.
    """
    if "responses" not in fields and turns and turns[-1]["role"] == "assistant":
        turns, fields["responses"] = turns[:-1], [turns[-1]]
    row_id = next((str(row[name]) for name in IDS if row.get(name) not in (None, "")), None)
    read = {*used, *IDS, "source", "tools", "functions", "system", "meta"}
    meta = dict(row["meta"]) if isinstance(row.get("meta"), dict) else {}
    meta |= {name: value for name, value in row.items() if name not in read and value not in (None, "", [], {})}
    source = row.get("source") if isinstance(row.get("source"), str) else None
    return Exchange(turns, tools=parse_tools(row), meta=meta, id=row_id, source=source, **fields)


# ---- formats ----


def _has(*wanted: str | tuple[str, ...]) -> Callable[[dict], bool]:
    """Whether a row has all of these fields; of a tuple of fields, one."""
    return lambda row: all(_first(row, (names,) if isinstance(names, str) else names) for names in wanted)


def _first(row: dict, names: Iterable[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _dialogue(row: dict, note_change: NoteChange) -> list[Exchange]:
    return [_exchange(row, _turns(row, _first(row, TURNS), note_change), TURNS)]


def _turns(row: dict, name: str, note_change: NoteChange) -> list[Turn]:
    """The turns in a field, after the row's system text."""
    return _with_system(row, split_results(parse_turns(row[name], note_change, name), note_change))


def _labelled(row: dict, note_change: NoteChange) -> list[Exchange]:
    label = row["label"]
    if label is not True:
        raise RowError("labelled undesirable", f"label is {label!r}, and there is no better answer to pair it with")
    read = _dialogue if _first(row, TURNS) else _plain
    return read({name: row[name] for name in row if name != "label"}, note_change)


def _prompt(row: dict, note_change: NoteChange, name: str) -> list[Turn]:
    """The prompt in a field: a text or turns, after the row's system text and history."""
    if isinstance(row[name], list):
        return _turns(row, name, note_change)
    text = parse_text(row[name], name)
    more = parse_text(row.get("input", row.get("context")), "input") if name == "instruction" else ""
    if re.fullmatch(r"<?\s*no\s*input\s*>?", more, re.IGNORECASE):
        note_change('removed placeholder inputs ("no input")')
        more = ""
    before, pairs = [], row.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise RowError("malformed history", "history is not a list of pairs of question and answer")
    for question, answer in pairs:
        before += [*_user(parse_text(question, "history")), _assistant(parse_text(answer, "history"))]
    return _with_system(row, before + _user("\n\n".join(filter(None, (text, more)))))


def _instruction(row: dict, note_change: NoteChange) -> list[Exchange]:
    name = _first(row, ANSWERS)
    turns = [*_prompt(row, note_change, "instruction"), _assistant(parse_text(row[name], name))]
    return [_exchange(row, turns, ("instruction", name, *_PROMPT_USES))]


def _seeds(row: dict, note_change: NoteChange) -> list[Exchange]:
    if not isinstance(row["instances"], list) or not row["instances"]:
        raise RowError("no turns", "instances is not a list of inputs and outputs")
    exchanges = []
    for one in row["instances"]:
        if not isinstance(one, dict):
            raise RowError("malformed turn", "an entry of instances is not an object")
        single = row | {"instances": None, "input": one.get("input"), "output": one.get("output")}
        exchanges += _instruction(single, note_change)
    return exchanges


def _question(row: dict, note_change: NoteChange) -> list[Exchange]:
    name = _first(row, ANSWERS)
    response = _answer(row[name], name)
    # GSM8K ends its worked answers with '#### NUMBER'; thousands are separated by commas
    final = re.search(r"\n#### *(.+)\Z", response)
    answer = final[1].replace(",", "").strip() if final else response
    fields = {"responses": [_assistant(response)] if response else [], "answer": answer or None}
    return [_exchange(row, _prompt(row, note_change, "question"), ("question", name, "system"), **fields)]


def _answer(value: object, here: str) -> str:
    """A reference answer as text; the row may hold it as a number."""
    return str(value) if type(value) in (int, float) else parse_text(value, here)


def _mt_bench(row: dict, note_change: NoteChange) -> list[Exchange]:
    turns = row["turns"]
    if not isinstance(turns, list) or not turns:
        raise RowError("no turns", "turns is not a list of questions")
    if len(turns) > 1:
        note_change("follow-up questions kept in meta.turns")
    reference = row.get("reference")
    answer = parse_text(reference[0], "reference") if isinstance(reference, list) and reference else None
    used = ("reference",) if len(turns) > 1 else ("turns", "reference")
    return [_exchange(row, _user(parse_text(turns[0], "turns[0]")), used, answer=answer)]


def _ranked(row: dict, note_change: NoteChange) -> list[Exchange]:
    name, items = ("prompt", row["responses"]) if "responses" in row else ("instruction", row["output"])
    if not isinstance(items, list):
        raise RowError("fewer than two responses", "the responses are not a list")
    responses = [
        _assistant(parse_text(item, "a response")) if isinstance(item, str) else parse_turn(item, f"responses[{i}]")
        for i, item in enumerate(items)
    ]
    kept = [turn for i, turn in enumerate(responses) if turn not in responses[:i]]
    if len(kept) < len(responses) and len(kept) > 1 and not row.get("scores"):
        note_change("removed response equal to a better one")
        responses = kept
    used = ("prompt", "instruction", "responses", "output", "scores", *_PROMPT_USES)
    return [_exchange(row, _prompt(row, note_change, name), used, responses=responses, scores=row.get("scores"))]


def _pairs(row: dict, note_change: NoteChange) -> list[Exchange]:
    name = _first(row, _PROMPTS)
    prompt = _prompt(row, note_change, name) if name else []
    sides = []
    for which in ("chosen", "rejected"):
        value = row[which]
        if isinstance(value, str):
            turns = [_assistant(parse_text(value, which))]
        else:
            turns = parse_turns(value if isinstance(value, list) else [value], note_change, which)
        turns = turns if turns[: len(prompt)] == prompt else prompt + turns
        sides.append(_with_system(row, turns))
    scores = None
    if row.get("margin") is not None:
        scores = [row["margin"], 0]
    elif {"score_chosen", "score_rejected"} <= row.keys():
        scores = [row["score_chosen"], row["score_rejected"]]
    used = (*_PROMPTS, "chosen", "rejected", "margin", "score_chosen", "score_rejected", *_PROMPT_USES)
    return [_pair(row, *sides, used, scores)]


def _pair(row: dict, chosen: list[Turn], rejected: list[Turn], used: Iterable[str], scores=None) -> Exchange:
    """Two dialogues that differ in their last turn."""
    prompt = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected))]
    if len(prompt) == len(chosen) == len(rejected):
        raise RowError("equal responses", "chosen and rejected are the same")
    if not len(prompt) == len(chosen) - 1 == len(rejected) - 1:
        common = f"{len(chosen)} and {len(rejected)} turns have {len(prompt)} in common; wanted all but the last"
        raise RowError("chosen and rejected differ before their last turn", common)
    return _exchange(row, prompt, used, responses=[chosen[-1], rejected[-1]], scores=scores)


def _hh(row: dict, note_change: NoteChange) -> list[Exchange]:
    names = ("chosen", "rejected")
    sides = [merge_speakers(_spoken(row[name], r"\n\n(Human|Assistant):", name), note_change) for name in names]
    return [_pair(row, *sides, names)]


def _spoken(text: str, speakers: str, here: str) -> list[Turn]:
    """The turns of a text in which each begins with its speaker, as the pattern matches it."""
    before, *parts = re.split(speakers, text)
    if before.strip() or not parts:
        raise RowError("no known format", f"{here} does not begin with a speaker: {speakers}")
    roles = (ROLES[who.lower().replace(" ", "_")] for who in parts[::2])
    return [{"role": role, "content": content.strip()} for role, content in zip(roles, parts[1::2])]


_GLAIVE_CALL = re.compile(r"<functioncall>\s*(\{.*)", re.DOTALL)
_GLAIVE_QUOTED = re.compile(r'"name":\s*"([^"]+)",\s*"arguments":\s*\'(.*)\'', re.DOTALL)


def _glaive(row: dict, note_change: NoteChange) -> list[Exchange]:
    """The text form: 'SYSTEM: … {function}…' and 'USER: … ASSISTANT: … <functioncall> {…} FUNCTION RESPONSE: …'."""
    system = parse_text(row.get("system"), "system").removeprefix("SYSTEM:").strip()
    tools = _glaive_tools(system)
    system = "" if tools else system  # it only says that there are functions, which `tools` lists
    chat = parse_text(row["chat"], "chat").replace("<|endoftext|>", "")
    turns = _spoken(chat, r"(?:\A|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):", "chat")
    for turn in turns:
        if turn["role"] == "assistant" and (match := _GLAIVE_CALL.search(turn["content"])):
            quoted = _GLAIVE_QUOTED.search(match[1])  # their JSON has its arguments between single quotes
            call = {"name": quoted[1], "arguments": quoted[2].replace("\\'", "'")} if quoted else match[1]
            turn["content"] = turn["content"][: match.start()].strip()
            turn["tool_calls"] = parse_calls(call, "chat")
    turns = _with_system({"system": system}, merge_speakers(turns, note_change))
    return [_exchange({**row, "tools": tools}, turns, ("system", "chat"))]


def _glaive_tools(system: str) -> list[dict]:
    """The functions that a system text lists as JSON objects, one after another."""
    tools: list[dict] = []
    text = system[system.find("{") :] if "{" in system else ""
    while text.startswith("{"):
        try:
            tool, end = json.JSONDecoder(strict=False).raw_decode(text)
        except ValueError as error:
            raise RowError("malformed tools", f"system: a function is not JSON ({error})") from None
        tools.append(tool)
        text = text[end:].lstrip(" \r\n,-")
    return tools


def _plain(row: dict, note_change: NoteChange) -> list[Exchange]:
    name = _first(row, _TEXTS)
    turns = _prompt(row, note_change, "prompt")
    if name:
        turns.append(_assistant(parse_text(row[name], name)))
    answer = _answer(row.get("answer", row.get("reference")), "answer") or None
    return [_exchange(row, turns, ("prompt", "completion", "response", "answer", "reference"), answer=answer)]


def _is_hh(row: dict) -> bool:
    bare = not _first(row, _PROMPTS)
    return bare and all(isinstance(row.get(which), str) for which in ("chosen", "rejected"))


def _is_kto(row: dict) -> bool:
    return "label" in row and (bool(_first(row, TURNS)) or {"prompt", "completion"} <= row.keys())


def _is_ranked(row: dict) -> bool:
    return {"prompt", "responses"} <= row.keys() or ("instruction" in row and isinstance(row.get("output"), list))


FORMATS: dict[str, Format] = {
    "glaive": Format("conversation", _has("system", "chat"), _glaive, "system and chat: function calling as text"),
    "kto": Format("conversation", _is_kto, _labelled, "messages or prompt/completion, label: desirable ones"),
    "hh": Format("preference", _is_hh, _hh, "chosen, rejected: texts with Human: and Assistant:"),
    "pairs": Format("preference", _has("chosen", "rejected"), _pairs, "chosen, rejected after a prompt of any form"),
    "ranked": Format("preference", _is_ranked, _ranked, "instruction and outputs, or prompt and responses; best first"),
    "sharegpt": Format("conversation", _has(TURNS[1:]), _dialogue, "conversations: from, value"),
    "openai": Format("conversation", _has("messages"), _dialogue, "messages: role, content, tool_calls"),
    "seeds": Format("conversation", _has("instruction", "instances"), _seeds, "instruction with instances"),
    "alpaca": Format("conversation", _has("instruction", ANSWERS), _instruction, "instruction, input, output"),
    "question": Format("prompt", _has("question", ANSWERS), _question, "question, answer (GSM8K, BELLE)"),
    "mt_bench": Format("prompt", _has("turns"), _mt_bench, "turns: the first question is the prompt"),
    "completion": Format("conversation", _has("prompt", _TEXTS), _plain, "prompt, completion"),
    "prompt": Format("prompt", _has("prompt"), _plain, "prompt, answer"),
}


def recognise(row: object, name: str = "auto") -> str:
    """The first of `FORMATS` that has the row's fields, or `name`, if that has them; else RowError."""
    for candidate in FORMATS if name == "auto" else (name,):
        if isinstance(row, dict) and FORMATS[candidate].matches(row):
            return candidate
    fields = ", ".join(row) if isinstance(row, dict) else f"a {type(row).__name__}"
    if name == "auto":
        raise RowError("no known format", f"fields {fields}: no known format has these")
    raise RowError(f"not of the format {name}", f"fields {fields}: wanted {FORMATS[name].description}")
