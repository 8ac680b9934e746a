"""Chat, preference and prompt data: the schema of our JSON lines, and its validation.

One object a line, of one of three kinds, told apart by their fields (docs/data.md describes them for users):

    conversation  {"messages": [turn, …]}                         what SFT trains on; ends with the assistant
    preference    {"prompt": [turn, …], "responses": [turn, …]}   answers to one prompt, best first; two are a pair
    prompt        {"prompt": [turn, …]}                           what a policy is to answer; "answer": the reference

A turn is {"role": "system" | "user" | "assistant" | "tool", "content": text}; an assistant turn may add "tool_calls"
([{"name", "arguments": object}]) and "reasoning" (what it thought first). A system turn comes first or not at all; then
user and assistant take turns. Calls are answered by as many tool turns, in the order of the calls, and then it is the
assistant's turn again. Every row may have "tools" ([{"name", "description", "parameters"}]), "id", "source" and "meta"
(an object with anything else). Preferences have one list of responses instead of chosen and rejected, so that pairs and
rankings are read by the same code; "scores" (one each, falling) say by how much, and a pair's margin is their
difference.

Validation never repairs: what `qwenjax.data.convert` may merge or drop, and counts, is an error here.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import NotRequired, TypedDict

KINDS = ("conversation", "preference", "prompt")


class ToolCall(TypedDict):
    """A function that the assistant wants called."""

    name: str
    arguments: dict


class Turn(TypedDict):
    """One message of the schema."""

    role: str
    content: str
    tool_calls: NotRequired[list[ToolCall]]
    reasoning: NotRequired[str]


@dataclass(frozen=True, kw_only=True)
class ChatRow:
    """What rows of every kind may have."""

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
    """Two or more different answers to a prompt, best first; `scores` fall, by the margin between neighbours."""

    prompt: list[Turn]
    responses: list[Turn]
    scores: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class PromptRow(ChatRow):
    """Turns that the assistant is to answer; `answer` is what a reward may compare with."""

    prompt: list[Turn]
    answer: str | None = None


CLASSES = dict(zip(KINDS, (ConversationRow, PreferenceRow, PromptRow)))


class RowError(ValueError):
    """A row that cannot be used: `reason` is one of few, for counting; the message says where in the row, and what."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(detail or reason)
        self.reason = reason


def kind_of(row: ChatRow) -> str:
    """The name of the row's kind."""
    return next(kind for kind, cls in CLASSES.items() if isinstance(row, cls))


def to_json(row: ChatRow) -> dict:
    """The row as its line holds it, without what is empty."""
    kept = {f.name: getattr(row, f.name) for f in fields(row)}
    order = sorted(kept, key=lambda name: name in ("tools", "id", "source", "meta"))  # what the row is about, first
    return {name: kept[name] for name in order if kept[name] not in (None, [], {})}


def validate(row: object) -> ConversationRow | PreferenceRow | PromptRow:
    """A parsed line as a row of its kind.

    Raises:
      RowError: it has no kind, unknown fields, a wrong type or turns out of order; see the module's docstring.
    """
    if not isinstance(row, dict):
        raise RowError("not an object", f"a row is {_named(row)}; wanted an object")
    if ("messages" in row) == ("prompt" in row):
        raise RowError(
            "no row of the schema",
            f"fields {', '.join(row) or 'none'}: wanted either 'messages' or 'prompt'; "
            "`python -m qwenjax.data convert` turns other formats into this one",
        )
    kind = "conversation" if "messages" in row else "preference" if "responses" in row else "prompt"
    cls = CLASSES[kind]
    known = [f.name for f in fields(cls)]
    for name in sorted(row.keys() - set(known)):
        near = get_close_matches(name, known, 1)
        advice = f"did you mean {near[0]!r}?" if near else "put what is your own into 'meta'"
        raise RowError("unknown field", f"a {kind} has no field {name!r}; {advice}")
    _common(row)
    given = {name: value for name, value in row.items() if value is not None}
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
    return cls(**given)


def check_turns(turns: object, tools: Sequence[str], where: str, last: str) -> None:
    """Types, fields and order of turns.

    Args:
      tools: names that may be called; if there are none, nothing may be.
      where: how to name the list in errors.
      last: 'assistant': its turn ends them. 'user': the assistant is to speak next.
    Raises:
      RowError
    """
    if not isinstance(turns, list) or not turns:
        raise RowError(f"no {where}", f"{where} is {_named(turns)}; wanted a list of turns")
    before, waiting = None, 0  # role of the turn before; calls without a result so far
    for i, turn in enumerate(turns):
        here = f"{where}[{i}]"
        _check_turn(turn, tools, here)
        role = turn["role"]
        if role == "system":
            if i:
                raise RowError("system turn not first", f"{here} is a system turn; only the first may be one")
        elif waiting and role != "tool":
            raise RowError("call without result", f"{here} is {_a(role)} turn, but a call still waits for its result")
        elif role == "tool":
            if not waiting:
                raise RowError("result without call", f"{here} is a tool turn, but no call waits for a result")
            waiting -= 1
        elif role == "assistant":
            if before not in ("user", "tool"):
                after = f"after {_a(before)} turn" if before else "as the first"
                raise RowError(_order(role, before), f"{here} is an assistant turn {after}; wanted a user turn")
            waiting = len(turn.get("tool_calls") or ())
        elif before not in (None, "system", "assistant"):
            raise RowError(
                _order(role, before), f"{here} is a user turn after {_a(before)} turn; wanted an assistant turn"
            )
        before = role
    if last == "assistant" and before != "assistant":
        raise RowError(f"ends with {_a(before)} turn", f"{where} end with {_a(before)} turn; wanted an assistant turn")
    if last == "user" and (before not in ("user", "tool") or waiting):
        state = "a call without result" if waiting else f"{_a(before)} turn"
        raise RowError(f"{where} ends with {state}", f"{where} ends with {state}; wanted a user turn or tool results")


def _order(role: str, before: str | None) -> str:
    if role == before:
        return f"two {role} turns in a row"
    return f"{role} turn " + (f"after {_a(before)} turn" if before else "first")


def _check_turn(turn: object, tools: Sequence[str], here: str) -> None:
    if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
        raise RowError("malformed turn", f"{here} is {_named(turn)}; wanted {{'role': …, 'content': …}}")
    role = turn["role"]
    if role not in ("system", "user", "assistant", "tool"):
        raise RowError("unknown role", f"{here} has role {role!r}; known: system, user, assistant, tool")
    extra = turn.keys() - {"role", "content"} - ({"tool_calls", "reasoning"} if role == "assistant" else set())
    if extra:
        raise RowError("unknown field", f"{here}, {_a(role)} turn, has a field {min(extra)!r}")
    _check_text(turn["content"], f"{here}.content")
    _check_text(turn.get("reasoning", ""), f"{here}.reasoning")
    calls = turn.get("tool_calls", [])
    if not isinstance(calls, list):
        raise RowError("malformed call", f"{here}.tool_calls is {_named(calls)}; wanted a list")
    for j, call in enumerate(calls):
        types = {name: type(value) for name, value in call.items()} if isinstance(call, dict) else None
        if types != {"name": str, "arguments": dict}:
            wanted = "{'name': text, 'arguments': object}"
            raise RowError("malformed call", f"{here}.tool_calls[{j}] is {_named(call)}; wanted {wanted}")
        if call["name"] not in tools:
            known = ", ".join(tools) or "there are none"
            raise RowError("call of an unknown tool", f"{here} calls {call['name']!r}, not one of the tools ({known})")
    if role in ("user", "assistant") and not calls and not turn["content"].strip():
        raise RowError(f"empty {role} turn", f"{here}, {_a(role)} turn, is empty")


def _check_responses(row: dict, tools: Sequence[str]) -> None:
    responses, scores = row["responses"], row.get("scores")
    if not isinstance(responses, list) or len(responses) < 2:
        raise RowError(
            "fewer than two responses", f"responses is {_named(responses)}; wanted two turns or more, best first"
        )
    seen: dict[str, int] = {}
    for i, response in enumerate(responses):
        _check_turn(response, tools, f"responses[{i}]")
        if response["role"] != "assistant":
            raise RowError("response of another role", f"responses[{i}] has role {response['role']!r}, not 'assistant'")
        key = json.dumps([response["content"].strip(), response.get("tool_calls")], sort_keys=True)
        if key in seen:
            raise RowError(
                "equal responses", f"responses[{i}] equals responses[{seen[key]}]: there is nothing to prefer"
            )
        seen[key] = i
    if scores is None:
        return
    if not isinstance(scores, list) or len(scores) != len(responses) or not all(map(_is_number, scores)):
        raise RowError("malformed scores", f"scores is {_named(scores)}; wanted one finite number for each response")
    if sorted(scores, reverse=True) != scores or len(set(scores)) < len(scores):
        raise RowError(
            "scores against the ranking", f"scores are {scores}; wanted them to fall, as responses are best first"
        )


def _common(row: dict) -> None:
    for name, cls in (("id", str), ("source", str), ("meta", dict)):
        if row.get(name) is not None and not isinstance(row[name], cls):
            wanted = "an object" if cls is dict else "a text"
            raise RowError(f"malformed {name}", f"{name} is {_named(row[name])}; wanted {wanted}")
    tools = row.get("tools")
    if not isinstance(tools, list | None):
        raise RowError("malformed tools", f"tools is {_named(tools)}; wanted a list of function descriptions")
    names = set()
    for i, tool in enumerate(tools or ()):
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str) or not tool["name"].strip():
            raise RowError(
                "malformed tools", f"tools[{i}] is {_named(tool)}; wanted {{'name': …, 'description': …, …}}"
            )
        if tool["name"] in names:
            raise RowError("malformed tools", f"tools[{i}] is a second {tool['name']!r}")
        names.add(tool["name"])


def _check_text(value: object, here: str) -> None:
    if not isinstance(value, str):
        raise RowError("content that is no text", f"{here} is {_named(value)}; wanted a text")


def _check_writable(row: dict) -> None:
    """What Python reads as JSON, other readers and UTF-8 may not have."""
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise RowError("invalid UTF-8", "a text holds half a surrogate pair, which is no character") from None
    except ValueError:
        raise RowError("a number that JSON lacks", "there is a NaN or an infinity, which JSON lacks") from None
    except RecursionError:
        raise RowError("nested too deeply") from None


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def _named(value: object) -> str:
    """A value, short, for an error."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "…"


def _a(role: str) -> str:
    return f"an {role}" if role == "assistant" else f"a {role}"
