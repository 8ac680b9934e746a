"""ChatML, the chat format of Qwen (report §A.1.1): prompts, history truncation, stop sequences and loss masks.

A turn is `<|im_start|>` role `\\n` content `<|im_end|>`, with one `\\n` between turns; the first is a system turn.
Role, newline and content are encoded separately, so the ids of a header do not depend on what follows. Contents are
plain text: `<|im_end|>` typed by a user cannot end the turn. `tokenizer` is a `qwenjax.tokenizer.Tokenizer`.
"""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

SYSTEM = "You are a helpful assistant."
ROLES = ("system", "user", "assistant")
# ChatML (report §A.1.1) as `render` writes it, for programs that take a Jinja template
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\n" + SYSTEM + "<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for turn in messages -%}"
    "{%- if not loop.first -%}{{ '\\n' }}{%- endif -%}"
    "{{ '<|im_start|>' + turn['role'] + '\\n' + turn['content'] + '<|im_end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\\n<|im_start|>assistant\\n' }}{%- endif -%}"
)

# By role, the parts of a turn that carry loss: start and end (the control tokens), role (with its newline), content,
# tool_results (what tools returned within an assistant's content), newline (the one after the turn)
_ALL = frozenset({"start", "role", "content", "tool_results", "end", "newline"})
_FRAME = frozenset({"start", "end", "newline"})
LOSS_MASKS = {
    # The report: no loss on system and user inputs. What remains is the assistant's text and its decision to stop. The
    # prompt already holds the header of its turn, and generation ends before the newline, so it never produces these.
    "assistant": {"system": frozenset(), "user": frozenset(), "assistant": frozenset({"content", "end"})},
    # The released finetune.py: the frame of every turn carries loss too, and so do tool results.
    "finetune_py": {"system": _FRAME, "user": _FRAME, "assistant": _FRAME | {"content", "tool_results"}},
    # The tech memo of Qwen-7B: everything except what users write.
    "all_but_user_content": {"system": _ALL, "user": _ALL - {"content"}, "assistant": _ALL},
}


class Message(TypedDict):
    """One turn; `role` is one of `ROLES`. `tool_results` are character spans of an assistant's content that tools
    returned, so the assistant did not write them.
    """

    role: str
    content: str
    tool_results: NotRequired[list[tuple[int, int]]]


def encode_chat(tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
    """Ids of a conversation.

    Args:
      messages: turns; if the first is not a system turn, one with `SYSTEM` is put before it.
      add_generation_prompt: end with `\\n<|im_start|>assistant\\n`, so that the assistant speaks next. Otherwise the
        ids end with the last `<|im_end|>`.
    Raises:
      ValueError: no messages, an unknown role, a system turn that is not the first, or a content that is not text.
    """
    parts = [part for message in with_system(messages) for part in _turn_parts(tokenizer, message)]
    if add_generation_prompt:
        parts += _turn_parts(tokenizer, {"role": "assistant", "content": ""})[:2]
    else:
        parts.pop()  # the newline
    return [i for _, ids in parts for i in ids]


def render(messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    """The conversation as text, for people and logs. Do not encode it: contents could then forge control tokens."""
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>" for m in with_system(messages)]
    return "\n".join(turns + ["<|im_start|>assistant\n"] * add_generation_prompt)


def make_context(
    tokenizer,
    query: str,
    history: Sequence[tuple[str, str]] | None = None,
    system: str = SYSTEM,
    max_window_size: int = 6144,
    chat_format: str = "chatml",
) -> tuple[str, list[int]]:
    """Prompt of the next answer, as text and ids, with old turns dropped as the released code drops them.

    Exchanges are taken from the newest backwards while they and the system turn stay below `max_window_size` ids. The
    query is not counted and is always included, so the prompt may exceed the window.

    Args:
      history: (query, response) pairs, oldest first.
      chat_format: 'chatml', or 'raw' (base models): only the query, in which control strings become control tokens.
    Raises:
      ValueError: an unknown chat format.
    """
    if chat_format == "raw":
        return query, tokenizer.encode(query)
    if chat_format != "chatml":
        raise ValueError(f"chat_format={chat_format!r} is unknown; known: chatml, raw")
    first: Message = {"role": "system", "content": system}
    used = sum(len(ids) for _, ids in _turn_parts(tokenizer, first)[:-1])
    kept: list[Message] = []
    for question, answer in reversed(history or ()):
        exchange: list[Message] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        tokens = sum(len(ids) for message in exchange for _, ids in _turn_parts(tokenizer, message))
        if used + tokens >= max_window_size:
            break
        used += tokens
        kept = exchange + kept
    messages = [first, *kept, {"role": "user", "content": query}]
    return render(messages), encode_chat(tokenizer, messages)


def stop_sequences(tokenizer, chat_format: str = "chatml") -> list[list[int]]:
    """Id sequences that end an answer: the end or start of a turn; for base models 'Human:' or the end of the text."""
    if chat_format == "chatml":
        check(tokenizer)
        return [[tokenizer.im_end], [tokenizer.im_start]]
    if chat_format == "raw":
        return [tokenizer.encode_ordinary("Human:"), [tokenizer.eot]]
    raise ValueError(f"chat_format={chat_format!r} is unknown; known: chatml, raw")


def check(tokenizer) -> None:
    """Raises ValueError if the vocabulary lacks the control tokens of ChatML."""
    if tokenizer.im_start is None or tokenizer.im_end is None:
        raise ValueError(
            f"the vocabulary {tokenizer.name} has no <|im_start|> and <|im_end|>, so its model does not chat in "
            "ChatML; use python -m qwenjax.generate to continue texts with it"
        )


def with_system(messages: Sequence[Message]) -> list[Message]:
    """The messages, checked as `encode_chat` says, after the default system turn if they have none."""
    if not messages:
        raise ValueError("a conversation needs at least one message, like {'role': 'user', 'content': 'Hello!'}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"message {i} is {message!r}: wanted {{'role': …, 'content': …}}")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise ValueError(f"message {i} has role {role!r}; known roles: {', '.join(ROLES)}")
        if role == "system" and i:
            raise ValueError(f"message {i} is a system turn; only the first message may be one")
        if not isinstance(content, str):
            raise ValueError(f"message {i} has a content of type {type(content).__name__}; wanted a string")
    default: list[Message] = [] if messages[0]["role"] == "system" else [{"role": "system", "content": SYSTEM}]
    return [*default, *messages]


def _turn_parts(tokenizer, message: Message) -> list[tuple[str, list[int]]]:
    """The parts of a turn by name, each encoded on its own."""
    check(tokenizer)
    newline = tokenizer.encode_ordinary("\n")
    return [
        ("start", [tokenizer.im_start]),
        ("role", tokenizer.encode_ordinary(message["role"]) + newline),
        ("content", tokenizer.encode_ordinary(message["content"])),
        ("end", [tokenizer.im_end]),
        ("newline", newline),
    ]


# ---- training conversations ----


def encode_with_mask(
    tokenizer, messages: Sequence[Message], loss_mask: str = "assistant"
) -> tuple[list[int], list[int]]:
    """Ids of a training conversation, and for each id whether predicting it carries loss (1) or not (0).

    Every turn, the last one too, is followed by its newline. Unlike in the released finetune.py, control strings in
    contents stay plain text, and a conversation's own system turn is kept (there, it is a KeyError).

    Args:
      loss_mask: a key of `LOSS_MASKS`.
    Raises:
      ValueError: an unknown loss mask, or messages that `chatml.encode_chat` refuses.
    """
    turns = turns_with_mask(tokenizer, messages, loss_mask)
    return [i for ids, _ in turns for i in ids], [m for _, mask in turns for m in mask]


def turns_with_mask(
    tokenizer, messages: Sequence[Message], loss_mask: str = "assistant"
) -> list[tuple[list[int], list[int]]]:
    """`encode_with_mask` turn by turn: one pair of ids and mask for each turn of `chatml.with_system(messages)`."""
    if loss_mask not in LOSS_MASKS:
        raise ValueError(f"loss_mask={loss_mask!r} is unknown; known: {', '.join(LOSS_MASKS)}")
    turns = []
    for message in with_system(messages):
        trained = LOSS_MASKS[loss_mask][message["role"]]
        ids: list[int] = []
        mask: list[int] = []
        for part, part_ids in _turn_parts(tokenizer, message):
            ids += part_ids
            part_mask = [int(part in trained)] * len(part_ids)
            if part == "content" and message.get("tool_results"):
                from_tool = _overlaps_tool_results(tokenizer, message, part_ids)
                part_mask = [int(("tool_results" if tool else "content") in trained) for tool in from_tool]
            mask += part_mask
        turns.append((ids, mask))
    return turns


def _overlaps_tool_results(tokenizer, message: Message, ids: list[int]) -> list[bool]:
    """For each id of the content, whether any of its text lies in a tool result: text that the model cannot know."""
    # Spans in bytes of what the ids decode to: the tokenizer may have normalised the text, so characters do not do.
    spans = [
        [len(tokenizer.decode_bytes(tokenizer.encode_ordinary(message["content"][:edge]))) for edge in span]
        for span in message["tool_results"]
    ]
    overlaps, begin = [], 0
    for token in ids:
        end = begin + len(tokenizer.decode_bytes([token]))
        overlaps.append(any(begin < stop and start < end for start, stop in spans))
        begin = end
    return overlaps
