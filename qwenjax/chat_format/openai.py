"""Turns of the chat schema in OpenAI's form, which chat templates and servers read."""

from collections.abc import Sequence
from typing import Any


def openai_messages(
    messages: Sequence[dict], tools: Sequence[dict] = ()
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Turns and tools of the chat schema (`qwenjax.data.conversations.schema`) as messages and tools of OpenAI's API.

    `reasoning` becomes `reasoning_content`, a call {"name", "arguments"} becomes a `function`. None: no tools.
    """
    out = []
    for turn in messages:
        message = {key: value for key, value in turn.items() if key not in ("reasoning", "tool_calls")}
        if turn.get("reasoning"):
            message["reasoning_content"] = turn["reasoning"]
        if turn.get("tool_calls"):
            message["tool_calls"] = [{"type": "function", "function": dict(call)} for call in turn["tool_calls"]]
        out.append(message)
    schemas = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return out, schemas or None
