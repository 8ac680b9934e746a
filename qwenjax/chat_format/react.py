"""Tool turns as plain ChatML text, in the ReAct form that Qwen was trained on, and the model's answer back to a call.

There is no tool role in Qwen's ChatML: descriptions of the tools go into a user turn, and one assistant turn holds the
whole transcript of thoughts, calls and results (spec §10.2, §10.3; released openai_api.py). `react_messages` writes it
from the turns of the chat schema (`qwenjax.data.conversations.schema`); generation stops before a result at `STOP`,
`parse_react` reads the call, and with the result as one more tool turn the conversation goes on, in the same assistant
turn.
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


class Step(NamedTuple):
    """What the model said: its thought and a call, or an answer.

    `arguments` is the object that the call's JSON holds, or, where the model wrote no JSON object, its text.
    """

    content: str
    name: str | None = None
    arguments: dict | str | None = None


def instruction(
    tools: Sequence[dict], arguments: Literal["json", "code"] | None = None, variant: Literal["APIs", "tools"] = "APIs"
) -> str:
    """The text that teaches the format and lists the tools; '\\n\\nQuestion: …' follows it.

    Args:
      tools: descriptions with 'name', 'description' and 'parameters' (any JSON); Qwen's name_for_model,
        name_for_human and description_for_model go before these.
      arguments: adds to each tool how its arguments are to be written.
      variant: the word for the tools: 'APIs' with names separated by ', ' as in openai_api.py and its training
        examples, or 'tools' with ',' as in the first prompts.
    """
    lines, names = [], []
    for tool in tools:
        model = tool.get("name_for_model", tool["name"])
        names.append(model)
        lines.append(
            _TOOL.format(
                model=model,
                human=tool.get("name_for_human", tool["name"]),
                description=tool.get("description_for_model", tool.get("description", "")),
                parameters=json.dumps(tool.get("parameters", []), ensure_ascii=False),
                suffix=_SUFFIX[arguments],
            )
        )
    between = ", " if variant == "APIs" else ","
    return _INSTRUCTION.format(noun=variant, tools="\n\n".join(lines), names=between.join(names))


def react_messages(
    messages: Sequence[dict], tools: Sequence[dict] = (), where: Literal["last", "first"] = "last"
) -> list[Message]:
    """Turns of the chat schema as ChatML messages: no tool turns, calls and results inside the assistant's text.

    Args:
      messages: turns of the chat schema, in its order.
      tools: descriptions, see `instruction`. Without any, the turns must have no calls and are only made plain.
      where: the user turn that gets the instruction. 'last': the newest, as the released server asks; 'first': as in
        the released training examples, so that every transcript of a conversation has it before it.
    Returns:
      Messages; those with results have the spans of these in 'given': the model did not write them. If the last turn
      is a result, the last message ends with '\\nThought:' and is to be continued, not closed.
    Raises:
      ValueError: calls without tools, several calls of a turn without a result each, or no user turn.
    """
    out: list[Message] = []
    waiting: list[str] = []  # calls of the turn whose results are still to come, as text
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
            raise ValueError(f"messages[{i}] comes before the results of all calls of the turn before it")
        if role != "assistant":
            out.append({"role": role, "content": content})
            continue
        text, *waiting = _assistant(turn, content) if tools else [content]
        if out and out[-1]["role"] == "assistant":
            _append(out[-1], "\n" + text)
        else:
            out.append({"role": role, "content": _stripped(text)})
    if waiting:
        raise ValueError(f"the last turn makes {len(waiting) + 1} calls at once, which ReAct text cannot say")
    if tools:
        users = [i for i, message in enumerate(out) if message["role"] == "user"]
        if not users:
            raise ValueError("the tools are described in a user turn, and there is none")
        asked = out[users[-1 if where == "last" else 0]]
        asked["content"] = f"{instruction(tools)}\n\nQuestion: {asked['content']}"
    return out


def _assistant(turn: dict, content: str) -> list[str]:
    """The assistant's turn as text, a piece for each call: results go between them."""
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


def _append(message: Message, text: str, given: str = "") -> None:
    """Adds text to a message, then text that is `given` to the model."""
    start = len(message["content"]) + len(text)
    message["content"] += text + given
    if given:
        message.setdefault("given", []).append((start, start + len(given)))


def _stripped(text: str) -> str:
    return text.lstrip("\n").rstrip()


def parse_react(text: str) -> Step:
    """The call that the model's text makes, or its answer (spec §10.2).

    The last '\\nAction:', '\\nAction Input:' and '\\nObservation:' count; the latter may be missing: generation stops
    there. An answer is what follows the last '\\nFinal Answer: ', or the whole text.
    """
    i, j, k = (text.rfind(word) for word in ("\nAction:", "\nAction Input:", "\nObservation:"))
    if 0 <= i < j:
        name = text[i + len("\nAction:") : j].strip()
        if name:
            arguments = text[j + len("\nAction Input:") : k if k > j else None].strip()
            before = text[:i]
            t = before.find("Thought: ")
            return Step((before[t + len("Thought: ") :] if t >= 0 else before).strip(), name, _object(arguments))
    z = text.rfind("\nFinal Answer: ")
    return Step(text[z + len("\nFinal Answer: ") :] if z >= 0 else text)


def _object(text: str) -> dict | str:
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
