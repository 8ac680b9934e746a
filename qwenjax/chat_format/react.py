"""Tools in ReAct form (docs/report.md, ReAct): tool turns written as ChatML text, and calls read from an answer.

Descriptions of the tools go into a user turn, and one assistant turn holds all thoughts, calls and results:
`react_messages` writes it. Generation stops at `STOP`, before a result, and `parse_react` reads the call. With the
result as one more tool turn, the conversation goes on in the same assistant turn.
"""

import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

from qwenjax.chat_format.chatml import Message

STOP = ("Observation:", "Observation:\n")  # both: the colon and the line end are one token
_TOOL = (
    "{model}: Call this tool to interact with the {human} API. What is the {human} API useful for? {description}"
    " Parameters: {parameters}{suffix}"
)
_SUFFIX = {
    "json": " Format the arguments as a JSON object.",
    "code": " Enclose the code within triple backticks (`) at the beginning and end of the code.",
    None: "",
}
_INSTRUCTION = """Answer the following questions as best you can. You have access to the following {noun}:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!"""


class ReActStep(NamedTuple):
    """What the model wrote: a thought (`content`) and a call, or an answer (`content`, without a name).

    `arguments` is the call's JSON object, or its text where the model did not write a JSON object.
    """

    content: str
    name: str | None = None
    arguments: dict | str | None = None


def instruction(
    tools: Sequence[dict], arguments: Literal["json", "code"] | None = None, variant: Literal["APIs", "tools"] = "APIs"
) -> str:
    """The text that explains the format and lists the tools; '\\n\\nQuestion: …' follows it.

    Args:
      tools: descriptions with 'name', 'description' and 'parameters' (any JSON), or Qwen's own keys name_for_model, ….
      arguments: adds to each tool in which form its arguments are written.
      variant: 'APIs' with names separated by ', ' as in openai_api.py, or 'tools' with ',' as in the first prompts.
    """
    lines, names = [], []
    for tool in tools:
        names.append(tool.get("name_for_model", tool["name"]))
        line = _TOOL.format(
            model=names[-1],
            human=tool.get("name_for_human", tool["name"]),
            description=tool.get("description_for_model", tool.get("description", "")),
            parameters=json.dumps(tool.get("parameters", []), ensure_ascii=False),
            suffix=_SUFFIX[arguments],
        )
        lines.append(line)
    separator = ", " if variant == "APIs" else ","
    return _INSTRUCTION.format(noun=variant, tools="\n\n".join(lines), names=separator.join(names))


def react_messages(
    messages: Sequence[dict], tools: Sequence[dict] = (), where: Literal["last", "first"] = "last"
) -> list[Message]:
    """Turns of the chat schema as ChatML messages: tool turns become part of the assistant's text.

    Args:
      messages: turns of the chat schema (`qwenjax.data.conversations.schema`), in its order.
      tools: descriptions, see `instruction`. Without tools, turns must have no calls and only lose their reasoning.
      where: the user turn that gets the instruction: 'last' as in the released server, 'first' as in the released
        training examples.
    Returns:
      Messages, with the spans of results in 'tool_results'. If the last turn is a result, the last message ends with
      '\\nThought:' and the model continues it.
    Raises:
      ValueError: calls without tools, several calls of a turn without a result each, or no user turn.
    """
    out: list[Message] = []
    waiting: list[str] = []  # text of the turn's further calls, each written after the result of the one before it
    for i, turn in enumerate(messages):
        role, content = turn["role"], _stripped(turn["content"])
        calls = turn.get("tool_calls") or []
        if not tools and (calls or role == "tool"):
            raise ValueError(f"messages[{i}] is part of a call, but no tools are described")
        if role == "tool":
            if not out or out[-1]["role"] != "assistant":
                raise ValueError(f"messages[{i}] is a tool turn without a call before it")
            _append(out[-1], "\nObservation:", f" {content}")
            if waiting:
                _append(out[-1], "\n" + waiting.pop(0))
            elif i == len(messages) - 1:
                _append(out[-1], "\nThought:")
            continue
        if waiting:
            raise ValueError(f"messages[{i}] comes before the results of all calls of the previous turn")
        if role != "assistant":
            out.append({"role": role, "content": content})
            continue
        text, *waiting = _assistant(turn, content) if tools else [content]
        if out and out[-1]["role"] == "assistant":
            _append(out[-1], "\n" + text)
        else:
            out.append({"role": role, "content": _stripped(text)})
    if waiting:
        raise ValueError(f"the last turn makes {len(waiting) + 1} calls at once, which ReAct text cannot express")
    if tools:
        users = [i for i, message in enumerate(out) if message["role"] == "user"]
        if not users:
            raise ValueError("tools are described in a user turn, but there is no user turn")
        question = out[users[-1 if where == "last" else 0]]
        question["content"] = f"{instruction(tools)}\n\nQuestion: {question['content']}"
    return out


def _assistant(turn: dict, content: str) -> list[str]:
    """The assistant's turn as text, one piece per call; results go between the pieces."""
    reasoning = _stripped(turn.get("reasoning") or "")
    calls = turn.get("tool_calls") or []
    if not calls:
        return [f"Thought: {reasoning or 'I now know the final answer.'}\nFinal Answer: {content}"]
    thought = "\n".join(filter(None, (reasoning, content)))
    first = thought if thought.startswith("Thought:") else f"Thought: {thought}"
    return [
        f"{'Thought: ' if j else first}\nAction: {call['name']}\n"
        f"Action Input: {json.dumps(call['arguments'], ensure_ascii=False)}"
        for j, call in enumerate(calls)
    ]


def _append(message: Message, text: str, result: str = "") -> None:
    """Adds text to a message, then the result of a tool."""
    start = len(message["content"]) + len(text)
    message["content"] += text + result
    if result:
        message.setdefault("tool_results", []).append((start, start + len(result)))


def _stripped(text: str) -> str:
    return text.lstrip("\n").rstrip()


def parse_react(text: str) -> ReActStep:
    """The call in the model's text, or its answer.

    The last '\\nAction:', '\\nAction Input:' and '\\nObservation:' (may be missing) count, as in the released
    react_demo.py. An answer is what follows the last '\\nFinal Answer: ', or the whole text.
    """
    i, j, k = (text.rfind(word) for word in ("\nAction:", "\nAction Input:", "\nObservation:"))
    if 0 <= i < j and (name := text[i + len("\nAction:") : j].strip()):
        arguments = text[j + len("\nAction Input:") : k if k > j else None].strip()
        thought = text[:i].split("Thought: ", 1)[-1].strip()
        return ReActStep(thought, name, _object(arguments))
    z = text.rfind("\nFinal Answer: ")
    return ReActStep(text[z + len("\nFinal Answer: ") :] if z >= 0 else text)


def _object(text: str) -> dict | str:
    """The JSON object that the text is, or else the text."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
