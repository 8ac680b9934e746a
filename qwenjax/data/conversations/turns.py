"""Turns and tools of other formats, parsed into turns of our schema. Every change is reported to `note_change`."""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import groupby, zip_longest

from qwenjax.data.conversations.schema import RowError, Turn

NoteChange = Callable[[str], None]  # is called with what was changed, in words

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "function_response": "tool",
    "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip


def parse_text(value: object, here: str) -> str:
    """A text without leading empty lines and trailing whitespace; None gives ''."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError("content that is not text", f"{here} is of type {type(value).__name__}; wanted a text")
    return value.lstrip("\r\n").rstrip()


def parse_turns(items: object, note_change: NoteChange, here: str = "messages") -> list[Turn]:
    """Turns of any known spelling: role/content or from/value; consecutive ones of a speaker are merged."""
    if not isinstance(items, list) or not items:
        raise RowError("no turns", f"{here} is not a list of turns")
    turns = (parse_turn(item, f"{here}[{i}]") for i, item in enumerate(_order_results(items)))
    return merge_speakers(turns, note_change)


def _order_results(items: list) -> list:
    """The messages, with results in the order of their calls, by OpenAI's ids."""
    calls = (item.get("tool_calls") for item in items if isinstance(item, dict))
    ids = [_text_field(call, "id") for some in calls if isinstance(some, list) for call in some]
    order = {call_id: i for i, call_id in enumerate(ids) if call_id}  # id of a call -> its position among all calls
    ordered: list = []
    for is_result, group in groupby(items, lambda item: _text_field(item, "tool_call_id") in order):
        run = list(group)
        ordered += sorted(run, key=lambda item: order[item["tool_call_id"]]) if is_result else run
    return ordered


def _text_field(value: object, name: str) -> str | None:
    text = value.get(name) if isinstance(value, dict) else None
    return text if isinstance(text, str) else None


def merge_speakers(turns: Iterable[Turn], note_change: NoteChange) -> list[Turn]:
    """Turns with consecutive turns of a user or an assistant merged; a blank line joins their texts."""
    joined: list[Turn] = []
    for turn in turns:
        last = joined[-1] if joined else None
        if last is None or turn["role"] != last["role"] or turn["role"] == "tool" or last.get("tool_calls"):
            joined.append(turn)
            continue
        content = "\n\n".join(text for text in (last["content"], turn["content"]) if text)
        joined[-1] = {**last, **turn, "content": content}
        note_change(f"consecutive {turn['role']} turns merged")
    return joined


def parse_turn(item: object, here: str) -> Turn:
    """One message as a turn."""
    if not isinstance(item, dict):
        raise RowError("malformed turn", f"{here} is of type {type(item).__name__}; wanted an object")
    name = str(item.get("role", item.get("from"))).strip().lower()
    role = ROLES.get(name)
    if role is None:
        raise RowError("unknown role", f"{here} has role {name!r}; known: {', '.join(ROLES)}")
    content = item.get("content", item.get("value"))
    if name in ("function_call", "tool_call"):
        return {"role": role, "content": "", "tool_calls": parse_calls(content, here)}
    parts: dict[str, list] = {"text": [], "reasoning": [], "tool_call": []}
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
        kind = str(part.get("type")) if isinstance(part, dict) else "none"
        if kind not in parts:
            raise RowError("content that is not text", f"{here} has a part of type {kind!r}; known: {', '.join(parts)}")
        parts[kind].append(part.get("text", part.get("value")))
    turn: Turn = {"role": role, "content": _joined(parts["text"], here)}
    if role != "assistant":
        return turn
    if reasoning := _joined([*parts["reasoning"], item.get("reasoning", item.get("reasoning_content"))], here):
        turn["reasoning"] = reasoning
    calls = [call for text in parts["tool_call"] for call in parse_calls(text, here)]
    for call in (item.get("tool_calls"), item.get("function_call")):
        calls += parse_calls(call, here) if call else []
    if calls:
        turn["tool_calls"] = calls
    return turn


def _joined(texts: list, here: str) -> str:
    """The texts that are not empty, joined by a blank line."""
    return "\n\n".join(filter(None, (parse_text(text, here) for text in texts)))


def parse_calls(value: object, here: str) -> list[dict]:
    """Calls written as {"name", "arguments"}, in OpenAI's {"function": …}, as JSON text of either, or in a list."""
    if isinstance(value, str):
        value = _json(value, "call", here)
    if isinstance(value, list):
        return [call for one in value for call in parse_calls(one, here)]
    inner = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RowError("malformed call", f"{here}: a call is not {{'name': …, 'arguments': …}}")
    arguments = inner.get("arguments", inner.get("parameters")) or {}
    if isinstance(arguments, str):
        arguments = _json(arguments, "call", here)
    if not isinstance(arguments, dict):
        raise RowError("malformed call", f"{here}: the arguments of {inner['name']!r} are not an object")
    return [{"name": inner["name"], "arguments": arguments}]


def _json(text: str, what: str, here: str) -> object:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise RowError(f"malformed {what}", f"{here}: a {what} is not JSON ({error})") from None


def parse_tools(row: dict) -> list[dict]:
    """The function descriptions of a row: a list or its JSON text, plain or in OpenAI's or Qwen's form."""
    tools = row.get("tools") or row.get("functions") or []
    if isinstance(tools, str):
        tools = _json(tools, "tools", "tools") if tools.strip() else []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("malformed tools", "tools is not a list of function descriptions")
    plain = [tool["function"] if isinstance(tool.get("function"), dict) else tool for tool in tools]
    return [{"name": tool["name_for_model"], **tool} if "name_for_model" in tool else tool for tool in plain]


def split_results(turns: list[Turn], note_change: NoteChange) -> list[Turn]:
    """Turns with one result for each call: a single tool turn that holds a JSON list may answer several calls."""
    out: list[Turn] = []
    for turn, after in zip_longest(turns, turns[1:], fillvalue={"role": ""}):
        calls = len(out[-1].get("tool_calls") or ()) if out else 0
        results = None
        if calls > 1 and turn["role"] == "tool" != after["role"]:
            with suppress(ValueError):
                results = json.loads(turn["content"])
        if isinstance(results, list) and len(results) == calls:
            note_change("results of several calls in one turn split")
            texts = (one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in results)
            out += [{"role": "tool", "content": text} for text in texts]
        else:
            out.append(turn)
    return out
