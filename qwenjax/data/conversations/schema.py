"""The schema of chat, preference and prompt data, one JSON object a line, and its validation.

    conversation  {"messages": [turn, …]}                         for SFT; ends with the assistant
    preference    {"prompt": [turn, …], "responses": [turn, …]}   answers to one prompt, best first; two are a pair
    prompt        {"prompt": [turn, …]}                           to be answered; "answer" is a reference

docs/data.md has the other fields and the order of turns. Validation never repairs: what `convert` merges is an error.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import NotRequired, TypedDict

KINDS = ("conversation", "preference", "prompt")
BEFORE = {  # role -> roles of the turn before it; None: it is the first
    "system": (None,),
    "user": (None, "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


class Turn(TypedDict):
    """One message of the schema."""

    role: str
    content: str
    tool_calls: NotRequired[list[dict]]  # {"name": text, "arguments": object}
    reasoning: NotRequired[str]


@dataclass(frozen=True, kw_only=True)
class ChatRow:
    """Fields that rows of every kind may have."""

    tools: list[dict] = field(default_factory=list)
    id: str | None = None
    source: str | None = None
    meta: dict = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ConversationRow(ChatRow):
    """Turns that end with the assistant's."""

    messages: list[Turn]


@dataclass(frozen=True, kw_only=True)
class PreferenceRow(ChatRow):
    """Two or more different answers to a prompt, best first; neighbouring `scores` differ by the margin."""

    prompt: list[Turn]
    responses: list[Turn]
    scores: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class PromptRow(ChatRow):
    """Turns for the assistant to answer; `answer` is a reference that a reward may compare with."""

    prompt: list[Turn]
    answer: str | None = None


Row = ConversationRow | PreferenceRow | PromptRow
CLASSES = dict(zip(KINDS, (ConversationRow, PreferenceRow, PromptRow)))


class RowError(ValueError):
    """A row that cannot be used. `reason` is one of a small set, for counting; the message has the details."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(detail or reason)
        self.reason = reason

    def at(self, origin: str) -> str:
        """The origin with the message, unless that only repeats the reason."""
        return origin if str(self) == self.reason else f"{origin}: {self}"


def kind_of(row: ChatRow) -> str:
    """The name of the row's kind."""
    return next(kind for kind, cls in CLASSES.items() if isinstance(row, cls))


def to_json(row: ChatRow) -> dict:
    """The row as a JSON object, without empty fields."""
    values = {f.name: getattr(row, f.name) for f in fields(row)}
    order = sorted(values, key=lambda name: name in ("tools", "id", "source", "meta"))  # the kind's own fields first
    return {name: values[name] for name in order if values[name] not in (None, [], {})}


def validate(row: object) -> Row:
    """A parsed line as a row of its kind; RowError for an unknown field, a wrong type, or turns out of order."""
    if not isinstance(row, dict):
        raise RowError("not an object", f"a row is {_short(row)}; wanted an object")
    if ("messages" in row) == ("prompt" in row):
        wanted = "wanted either 'messages' or 'prompt'; `python -m qwenjax.data convert` converts other formats"
        raise RowError("not a row of the schema", f"fields {', '.join(row) or 'none'}: {wanted}")
    kind = "conversation" if "messages" in row else "preference" if "responses" in row else "prompt"
    known = [f.name for f in fields(CLASSES[kind])]
    for name in sorted(row.keys() - set(known)):
        near = get_close_matches(name, known, 1)
        advice = f"did you mean {near[0]!r}?" if near else "put your own fields into 'meta'"
        raise RowError("unknown field", f"a {kind} has no field {name!r}; {advice}")
    _check_common(row)
    tools = [tool["name"] for tool in row.get("tools") or ()]
    if kind == "conversation":
        check_turns(row["messages"], tools, "messages", "assistant")
    else:
        check_turns(row["prompt"], tools, "prompt", "user")
        if kind == "preference":
            _check_responses(row, tools)
        elif row.get("answer") is not None:
            _check_text(row["answer"], "answer")
    _check_writable(row)
    return CLASSES[kind](**{name: value for name, value in row.items() if value is not None})


def check_turns(turns: object, tools: Sequence[str], where: str, last: str) -> None:
    """Checks turns of which `last` has the last or, as 'user', the assistant speaks next; `where` names them."""
    if not isinstance(turns, list) or not turns:
        raise RowError(f"no {where}", f"{where} is {_short(turns)}; wanted a list of turns")
    before, waiting = None, 0  # role of the previous turn; calls that have no result yet
    for i, turn in enumerate(turns):
        here = f"{where}[{i}]"
        _check_turn(turn, tools, here)
        role = turn["role"]
        if role == "system" and i:
            raise RowError("system turn not first", f"{here} is a system turn; only the first may be one")
        if waiting and role != "tool":
            raise RowError("call without result", f"{here} is {_a(role)} turn, but a call still waits for its result")
        if role == "tool" and not waiting:
            raise RowError("result without call", f"{here} is a tool turn, but no call waits for a result")
        if before not in BEFORE[role]:
            after = f"after {_a(before)} turn" if before else "first"
            raise RowError(f"{role} turn {after}", f"{here} is {_a(role)} turn {after}; user and assistant alternate")
        waiting = waiting - 1 if role == "tool" else len(turn.get("tool_calls", ()))
        before = role
    if last == "assistant" and before != "assistant":
        raise RowError(f"ends with {_a(before)} turn", f"{where} end with {_a(before)} turn; wanted an assistant turn")
    if last == "user" and (before not in ("user", "tool") or waiting):
        state = "a call without result" if waiting else f"{_a(before)} turn"
        raise RowError(f"{where} ends with {state}", f"{where} ends with {state}; wanted a user turn or tool results")


def _check_turn(turn: object, tools: Sequence[str], here: str) -> None:
    if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
        raise RowError("malformed turn", f"{here} is {_short(turn)}; wanted {{'role': …, 'content': …}}")
    role = turn["role"]
    if not isinstance(role, str) or role not in BEFORE:
        raise RowError("unknown role", f"{here} has role {_short(role)}; known: {', '.join(BEFORE)}")
    extra = turn.keys() - {"role", "content"} - ({"tool_calls", "reasoning"} if role == "assistant" else set())
    if extra:
        raise RowError("unknown field", f"{here}, {_a(role)} turn, has a field {min(extra)!r}")
    _check_text(turn["content"], f"{here}.content")
    _check_text(turn.get("reasoning", ""), f"{here}.reasoning")
    calls = turn.get("tool_calls", [])
    if not isinstance(calls, list):
        raise RowError("malformed call", f"{here}.tool_calls is {_short(calls)}; wanted a list")
    for j, call in enumerate(calls):
        types = {name: type(value) for name, value in call.items()} if isinstance(call, dict) else None
        if types != {"name": str, "arguments": dict}:
            wanted = "{'name': text, 'arguments': object}"
            raise RowError("malformed call", f"{here}.tool_calls[{j}] is {_short(call)}; wanted {wanted}")
        if call["name"] not in tools:
            known = ", ".join(tools) or "there are none"
            raise RowError("call of an unknown tool", f"{here} calls {call['name']!r}, not one of the tools ({known})")
    if role in ("user", "assistant") and not calls and not turn["content"].strip():
        raise RowError(f"empty {role} turn", f"{here}, {_a(role)} turn, is empty")


def _check_responses(row: dict, tools: Sequence[str]) -> None:
    responses, scores = row["responses"], row.get("scores")
    if not isinstance(responses, list) or len(responses) < 2:
        raise RowError("fewer than two responses", f"responses is {_short(responses)}; wanted two or more, best first")
    seen: dict[str, int] = {}
    for i, response in enumerate(responses):
        _check_turn(response, tools, f"responses[{i}]")
        if response["role"] != "assistant":
            raise RowError("response of another role", f"responses[{i}] has role {response['role']!r}, not 'assistant'")
        key = json.dumps([response["content"].strip(), response.get("tool_calls")], sort_keys=True)
        if key in seen:
            raise RowError("equal responses", f"responses[{i}] equals responses[{seen[key]}]; wanted different ones")
        seen[key] = i
    if scores is None:
        return
    if not isinstance(scores, list) or len(scores) != len(responses) or not all(map(_is_number, scores)):
        raise RowError("malformed scores", f"scores is {_short(scores)}; wanted one finite number for each response")
    if sorted(scores, reverse=True) != scores or len(set(scores)) < len(scores):
        raise RowError("scores against the ranking", f"scores are {scores}; wanted falling scores, best first")


def _check_common(row: dict) -> None:
    for name, cls in (("id", str), ("source", str), ("meta", dict)):
        if row.get(name) is not None and not isinstance(row[name], cls):
            wanted = "an object" if cls is dict else "a text"
            raise RowError(f"malformed {name}", f"{name} is {_short(row[name])}; wanted {wanted}")
    tools = row.get("tools")
    if not isinstance(tools, list | None):
        raise RowError("malformed tools", f"tools is {_short(tools)}; wanted a list of function descriptions")
    names = set()
    for i, tool in enumerate(tools or ()):
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str) or not tool["name"].strip():
            raise RowError("malformed tools", f"tools[{i}] is {_short(tool)}; wanted {{'name': …, …}}")
        if tool["name"] in names:
            raise RowError("malformed tools", f"tools[{i}] is a second {tool['name']!r}")
        names.add(tool["name"])


def _check_text(value: object, here: str) -> None:
    if not isinstance(value, str):
        raise RowError("content that is not text", f"{here} is {_short(value)}; wanted a text")


def _check_writable(row: dict) -> None:
    """Refuses what Python's JSON reader accepts, but other readers or UTF-8 do not."""
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise RowError("invalid UTF-8", "a text holds half a surrogate pair, which is not a character") from None
    except ValueError:
        raise RowError("NaN or infinity", "the row holds a NaN or an infinity, which JSON does not have") from None
    except RecursionError:
        raise RowError("nested too deeply") from None


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _short(value: object) -> str:
    """A value, shortened, for an error."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "…"


def _a(role: str) -> str:
    return f"an {role}" if role == "assistant" else f"a {role}"
