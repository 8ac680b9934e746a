"""ChatML, the chat format of Qwen (report §A.1.1), in one place: prompts, training masks, history truncation.

A turn is `<|im_start|>` role `\\n` content `<|im_end|>`, and one `\\n` stands between turns. Role, newline and content
are encoded separately, so the ids of a header do not depend on what follows. Contents are always encoded as plain
text: `<|im_end|>` typed by a user cannot end the turn. The first turn is always a system turn.
"""

from collections.abc import Sequence
from typing import NotRequired, Protocol, TypedDict

SYSTEM = "You are a helpful assistant."
ROLES = ("system", "user", "assistant")


class ChatTokenizer(Protocol):
    """What this file needs of a tokenizer; `tokenizer.base.Tokenizer` says what each member means."""

    name: str
    eot: int
    im_start: int | None
    im_end: int | None

    def encode(self, text: str) -> list[int]: ...

    def encode_ordinary(self, text: str) -> list[int]: ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes: ...


class Message(TypedDict):
    """One turn; `role` is one of `ROLES`. `given` are character spans of an assistant's content that it did not write,
    such as results of tools.
    """

    role: str
    content: str
    given: NotRequired[list[tuple[int, int]]]


# Which parts of whose turns carry loss. The parts of a turn: start (the control token), role (the word and its
# newline), content, given (what the assistant did not write of it), end (the control token), newline (the one after
# the turn).
_ALL = frozenset({"start", "role", "content", "given", "end", "newline"})
_FRAME = frozenset({"start", "end", "newline"})
POLICIES = {
    # report §3.1.2: no loss on system and user inputs. What is left is what the assistant itself says, and that it
    # stops; its header is given by the prompt and the newline follows the stop, so it never has to produce these.
    "assistant": {"system": frozenset(), "user": frozenset(), "assistant": frozenset({"content", "end"})},
    # the mask of the released finetune.py: the frame of every turn carries loss too, and so do results of tools
    "finetune_py": {"system": _FRAME, "user": _FRAME, "assistant": _FRAME | {"content", "given"}},
    # the tech memo of Qwen-7B: everything except what users say
    "all_but_user_content": {"system": _ALL, "user": _ALL - {"content"}, "assistant": _ALL},
}


def encode_chat(tokenizer: ChatTokenizer, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
    """Ids of a conversation.

    Args:
      messages: turns; if the first is no system turn, one with `SYSTEM` is put before it.
      add_generation_prompt: end with `\\n<|im_start|>assistant\\n`, so that the assistant speaks next. Otherwise the
        ids end with the last `<|im_end|>`.
    Raises:
      ValueError: no messages, an unknown role, a system turn that is not the first, or a content that is no text.
    """
    newline = tokenizer.encode_ordinary("\n")
    ids: list[int] = []
    for message in with_system(messages):
        ids += [*(newline if ids else ()), *_turn_ids(tokenizer, message)]
    if add_generation_prompt:
        ids += [*newline, tokenizer.im_start, *tokenizer.encode_ordinary("assistant"), *newline]
    return ids


def render(messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    """The conversation as text, for people and logs. Do not encode it: contents could then forge control tokens."""
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>" for m in with_system(messages)]
    return "\n".join(turns + ["<|im_start|>assistant\n"] * add_generation_prompt)


def encode_with_mask(
    tokenizer: ChatTokenizer, messages: Sequence[Message], policy: str = "assistant"
) -> tuple[list[int], list[int]]:
    """Ids of a training conversation, and for each id whether predicting it carries loss (1) or not (0).

    Every turn, the last one too, is followed by its newline. The mask belongs to the ids as they stand; the shift by
    one is the loss's business.

    Two deliberate differences from the released finetune.py, whichever the policy: it encodes contents with the
    tokenizer's default, so control strings inside training text DO become control ids there, and here never; and it
    drops a system turn found in the data in favour of the default one, while here the data's own turn is kept.

    Args:
      policy: a key of `POLICIES`: 'assistant' (report), 'finetune_py' (released code), 'all_but_user_content' (tech
        memo).
    Raises:
      ValueError: unknown policy, or messages that `encode_chat` refuses.
    """
    turns = turns_with_mask(tokenizer, messages, policy)
    return [i for ids, _ in turns for i in ids], [m for _, mask in turns for m in mask]


def turns_with_mask(
    tokenizer: ChatTokenizer, messages: Sequence[Message], policy: str = "assistant"
) -> list[tuple[list[int], list[int]]]:
    """`encode_with_mask` turn by turn: its ids and its mask, one pair for each turn of `with_system(messages)`."""
    if policy not in POLICIES:
        raise ValueError(f"mask policy {policy!r} is unknown; known: {', '.join(POLICIES)}")
    turns = []
    for message in with_system(messages):
        learnt = POLICIES[policy][message["role"]]
        ids: list[int] = []
        mask: list[int] = []
        for part, piece in _turn(tokenizer, message):
            ids += piece
            if part == "content" and message.get("given") and ("given" in learnt) != ("content" in learnt):
                mask += [
                    int(("given" if given else "content") in learnt) for given in _given(tokenizer, message, piece)
                ]
            else:
                mask += [int(part in learnt)] * len(piece)
        turns.append((ids, mask))
    return turns


def _given(tokenizer: ChatTokenizer, message: Message, ids: list[int]) -> list[bool]:
    """For each id of the content, whether its text lies in a given span, in whole or in part.

    The content is encoded whole, as it is when a model goes on after a result, so an id may cross a span's border;
    such an id holds text that the model cannot know.
    """
    edges = []  # spans in bytes of what the ids decode to, which normalisation may have changed
    for span in message["given"]:
        edges.append([len(tokenizer.decode_bytes(tokenizer.encode_ordinary(message["content"][:at]))) for at in span])
    inside, at = [], 0
    for token in ids:
        end = at + len(tokenizer.decode_bytes([token]))
        inside.append(any(at < stop and start < end for start, stop in edges))
        at = end
    return inside


def make_context(
    tokenizer: ChatTokenizer,
    query: str,
    history: Sequence[tuple[str, str]] | None = None,
    system: str = SYSTEM,
    max_window_size: int = 6144,
    chat_format: str = "chatml",
) -> tuple[str, list[int]]:
    """Prompt of the next answer, as text and ids, with old turns dropped as the released code drops them.

    Turns are taken from the newest backwards while system + turns taken + this turn stay below `max_window_size` ids;
    at the first that does not fit, all older ones go too. The query is not counted, and is always there, so the
    prompt may exceed the window.

    Args:
      history: (query, response) pairs, oldest first.
      chat_format: 'chatml', or 'raw' (base models): the query alone, its control surfaces becoming control tokens.
    """
    if chat_format == "raw":
        return query, tokenizer.encode(query)
    if chat_format != "chatml":
        raise ValueError(f"chat_format={chat_format!r} is unknown; known: chatml, raw")
    first: Message = {"role": "system", "content": system}
    newline = len(tokenizer.encode_ordinary("\n"))
    used = len(_turn_ids(tokenizer, first))
    kept: list[Message] = []
    for said, answered in reversed(history or ()):
        pair: list[Message] = [{"role": "user", "content": said}, {"role": "assistant", "content": answered}]
        block = sum(newline + len(_turn_ids(tokenizer, message)) for message in pair)
        if used + block >= max_window_size:
            break
        used += block
        kept = pair + kept
    messages = [first, *kept, {"role": "user", "content": query}]
    return render(messages), encode_chat(tokenizer, messages)


def stop_sequences(tokenizer: ChatTokenizer, chat_format: str = "chatml") -> list[list[int]]:
    """Ids that end an answer (spec §6.3): the end or a forged start of a turn; for base models 'Human:' or the end."""
    if chat_format == "chatml":
        check(tokenizer)
        return [[tokenizer.im_end], [tokenizer.im_start]]
    if chat_format == "raw":
        return [tokenizer.encode_ordinary("Human:"), [tokenizer.eot]]
    raise ValueError(f"chat_format={chat_format!r} is unknown; known: chatml, raw")


def check(tokenizer: ChatTokenizer) -> None:
    """Raises ValueError if the vocabulary lacks the control tokens of ChatML."""
    if tokenizer.im_start is None or tokenizer.im_end is None:
        raise ValueError(
            f"the vocabulary {tokenizer.name} has no <|im_start|> and <|im_end|>, so its model does not chat in "
            "ChatML; continue texts with it instead (qwenjax.generate)"
        )


def with_system(messages: Sequence[Message]) -> list[Message]:
    """The messages, checked, with the default system turn in front if they have none (an empty one is one).

    Raises:
      ValueError: see `encode_chat`.
    """
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
    head: list[Message] = [] if messages[0]["role"] == "system" else [{"role": "system", "content": SYSTEM}]
    return [*head, *messages]


def _turn(tokenizer: ChatTokenizer, message: Message) -> list[tuple[str, list[int]]]:
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


def _turn_ids(tokenizer: ChatTokenizer, message: Message) -> list[int]:
    """A turn without the newline after it."""
    return [i for part, piece in _turn(tokenizer, message) if part != "newline" for i in piece]
