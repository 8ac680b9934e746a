"""Turns and tools in other people's spelling, as turns of our schema. What is changed is told to `changed`."""

import json
from collections.abc import Callable, Iterable
from itertools import groupby

from qwenjax.data.conversations.schema import RowError, Turn

Changed = Callable[[str], None]

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "function_response": "tool",
    "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip


def text_of(value: object, here: str) -> str:
    """A text without blank lines before and blanks after; None is the empty one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError("content that is no text", f"{here} is of type {type(value).__name__}; wanted a text")
    return value.lstrip("\r\n").rstrip()


def turns_of(items: object, changed: Changed, here: str = "messages") -> list[Turn]:
    """Turns of any spelling: role/content or from/value, content parts, calls in three styles.

    What one speaker says in several turns becomes one turn.
    """
    if not isinstance(items, list) or not items:
        raise RowError("no turns", f"{here} holds no list of turns")
    return join_speakers((turn_of(item, f"{here}[{i}]") for i, item in enumerate(_by_call(items))), changed)


def _by_call(items: list) -> list:
    """Messages in which results stand in the order of their calls, which OpenAI's ids tell."""
    place = {}  # id of a call -> its place among the calls
    for item in items:
        if isinstance(item, dict) and isinstance(item.get("tool_calls"), list):
            place |= {call["id"]: len(place) + i for i, call in enumerate(item["tool_calls"]) if _text_id(call, "id")}
    out: list = []
    for known, group in groupby(items, lambda item: _text_id(item, "tool_call_id") in place):
        run = list(group)
        out += sorted(run, key=lambda item: place[item["tool_call_id"]]) if known else run
    return out


def _text_id(value: object, name: str) -> str | None:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def join_speakers(turns: Iterable[Turn], changed: Changed) -> list[Turn]:
    """Turns in which no user or assistant speaks twice in a row; texts are joined by a blank line."""
    joined: list[Turn] = []
    for turn in turns:
        last = joined[-1] if joined else None
        if last is None or turn["role"] != last["role"] or turn["role"] == "tool" or last.get("tool_calls"):
            joined.append(turn)
            continue
        content = "\n\n".join(text for text in (last["content"], turn["content"]) if text)
        joined[-1] = {**last, **turn, "content": content}
        changed(f"several {turn['role']} turns in a row made one")
    return joined


def turn_of(item: object, here: str) -> Turn:
    """One message as a turn."""
    if not isinstance(item, dict):
        raise RowError("malformed turn", f"{here} is of type {type(item).__name__}; wanted an object")
    said = str(item.get("role", item.get("from"))).strip().lower()
    role = ROLES.get(said)
    if role is None:
        raise RowError("unknown role", f"{here} has role {said!r}; known: {', '.join(ROLES)}")
    content = item.get("content", item.get("value"))
    if said in ("function_call", "tool_call"):
        return {"role": role, "content": "", "tool_calls": calls_of(content, here)}
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    found: dict[str, list] = {"text": [], "reasoning": [], "tool_call": []}
    for part in parts:
        kind = str(part.get("type")) if isinstance(part, dict) else "none"
        if kind not in found:
            raise RowError("content that is no text", f"{here} has a part of type {kind!r}; known: {', '.join(found)}")
        found[kind].append(part.get("text", part.get("value")))
    turn: Turn = {"role": role, "content": "\n\n".join(filter(None, (text_of(text, here) for text in found["text"])))}
    if role != "assistant":
        return turn
    reasoning = [*found["reasoning"], item.get("reasoning", item.get("reasoning_content"))]
    if reasoning := "\n\n".join(filter(None, (text_of(text, here) for text in reasoning))):
        turn["reasoning"] = reasoning
    calls = [call for text in found["tool_call"] for call in calls_of(text, here)]
    for call in (item.get("tool_calls"), item.get("function_call")):
        calls += calls_of(call, here) if call else []
    if calls:
        turn["tool_calls"] = calls
    return turn


def calls_of(value: object, here: str) -> list[dict]:
    """Calls written as {"name", "arguments"}, in OpenAI's envelope, as JSON text of either, or as a list of them."""
    if isinstance(value, str):
        value = _json(value, "call", here)
    if isinstance(value, list):
        return [call for one in value for call in calls_of(one, here)]
    inner = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RowError("malformed call", f"{here}: a call is no {{'name': …, 'arguments': …}}")
    arguments = inner.get("arguments", inner.get("parameters")) or {}
    if isinstance(arguments, str):
        arguments = _json(arguments, "call", here)
    if not isinstance(arguments, dict):
        raise RowError("malformed call", f"{here}: the arguments of {inner['name']!r} are no object")
    return [{"name": inner["name"], "arguments": arguments}]


def _json(text: str, what: str, here: str) -> object:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise RowError(f"malformed {what}", f"{here}: a {what} is no JSON ({error})") from None


def tools_of(row: dict) -> list[dict]:
    """The function descriptions of a row: a list or its JSON text; OpenAI's and Qwen's envelopes are taken off."""
    tools = row.get("tools") or row.get("functions") or []
    if isinstance(tools, str):
        tools = _json(tools, "tools", "tools") if tools.strip() else []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("malformed tools", "tools hold no list of function descriptions")
    plain = [tool["function"] if isinstance(tool.get("function"), dict) else tool for tool in tools]
    return [{"name": tool["name_for_model"], **tool} if "name_for_model" in tool else tool for tool in plain]


def results_apart(turns: list[Turn], changed: Changed) -> list[Turn]:
    """Turns with a result for each call: one tool turn that holds a JSON list answers as many calls."""
    out: list[Turn] = []
    for i, turn in enumerate(turns):
        calls = len(out[-1].get("tool_calls") or ()) if out else 0
        alone = turn["role"] == "tool" and not (i + 1 < len(turns) and turns[i + 1]["role"] == "tool")
        if alone and calls > 1:
            try:
                results = json.loads(turn["content"])
            except ValueError:
                results = None
            if isinstance(results, list) and len(results) == calls:
                changed("results of several calls in one turn taken apart")
                for result in results:
                    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
                    out.append({"role": "tool", "content": text})
                continue
        out.append(turn)
    return out
