"""Which tokens of a training conversation carry loss (report §3.1.2, and the two masks of the released code and memo).

The parts of a turn, as `chatml.turn_parts` names them: start (the control token), role (the word and its newline),
content, end (the control token) and newline (the one after the turn). `tool_results` is the part of an assistant's
content that tools returned; the assistant did not write it.
"""

from collections.abc import Sequence

from qwenjax.chat_format.chatml import ChatTokenizer, Message, turn_parts, with_system

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


def encode_with_mask(
    tokenizer: ChatTokenizer, messages: Sequence[Message], loss_mask: str = "assistant"
) -> tuple[list[int], list[int]]:
    """Ids of a training conversation, and for each id whether predicting it carries loss (1) or not (0).

    Every turn, the last one too, is followed by its newline. The mask is aligned with the ids; the loss shifts both by
    one.

    Two deliberate differences from the released finetune.py, whichever mask is used. It encodes contents with the
    tokenizer's default, so control strings inside training text become control ids; here they never do. And it always
    puts the default system turn first and has no system turns in its data (a role `system` is a KeyError there); here
    the conversation's own system turn is kept.

    Args:
      loss_mask: a key of `LOSS_MASKS`: 'assistant' (report), 'finetune_py' (released code) or 'all_but_user_content'
        (tech memo).
    Raises:
      ValueError: an unknown loss mask, or messages that `chatml.encode_chat` refuses.
    """
    turns = turns_with_mask(tokenizer, messages, loss_mask)
    return [i for ids, _ in turns for i in ids], [m for _, mask in turns for m in mask]


def turns_with_mask(
    tokenizer: ChatTokenizer, messages: Sequence[Message], loss_mask: str = "assistant"
) -> list[tuple[list[int], list[int]]]:
    """`encode_with_mask` turn by turn: one pair of ids and mask for each turn of `chatml.with_system(messages)`."""
    if loss_mask not in LOSS_MASKS:
        raise ValueError(f"loss_mask={loss_mask!r} is unknown; known: {', '.join(LOSS_MASKS)}")
    turns = []
    for message in with_system(messages):
        trained = LOSS_MASKS[loss_mask][message["role"]]
        ids: list[int] = []
        mask: list[int] = []
        for part, part_ids in turn_parts(tokenizer, message):
            ids += part_ids
            part_mask = [int(part in trained)] * len(part_ids)
            if part == "content" and message.get("tool_results"):
                from_tool = _overlaps_tool_results(tokenizer, message, part_ids)
                part_mask = [int(("tool_results" if tool else "content") in trained) for tool in from_tool]
            mask += part_mask
        turns.append((ids, mask))
    return turns


def _overlaps_tool_results(tokenizer: ChatTokenizer, message: Message, ids: list[int]) -> list[bool]:
    """For each id of the content, whether any of its text lies in a tool result.

    The content is encoded as one text, because the model continues it after a result, so an id may cross the border of
    a result. Such an id counts as the tool's: it holds text that the model cannot know.
    """
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
