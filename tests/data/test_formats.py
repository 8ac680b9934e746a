"""Formats: each by a hand-written row, and what is refused, changed or joined on the way."""

import json

import pytest
from chat_doubles import ADD, CALL, CALLING, GLAIVE, GOOD, HH, one, says, user, write

from qwenjax.data.conversations.convert import ConversionReport, convert_rows


@pytest.mark.parametrize(("format", "row", "made"), GOOD)
def test_formats(tmp_path, format, row, made):
    assert one(tmp_path, row)[:2] == (format, made)
    assert one(tmp_path, row, format=format)[:2] == (format, made)
    assert one(tmp_path, made)[1] == made  # our own schema stays as it is


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"a": 1}, "no known format"),
        ([1], "no known format"),
        ({"messages": [user("a"), says("b")], "label": False}, "labelled undesirable"),
        ({"messages": [user("a")]}, "no assistant turn"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content that is not text"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "unknown role"),
        ({"conversations": []}, "no turns"),
        ({"conversations": [{"from": "function_call", "value": "add(2)"}]}, "malformed call"),
        ({"instruction": "a", "output": ""}, "empty assistant turn"),
        (
            {"instruction": "I am {{name}}", "output": "b"},
            "placeholder {{name}} not filled: --fill name=TEXT, or --fill 'name={{name}}' to keep it",
        ),
        ({"chosen": HH, "rejected": HH}, "equal responses"),
        (
            {"chosen": HH, "rejected": "\n\nHuman: a\n\nAssistant: c\n\nHuman: d\n\nAssistant: e"},
            "chosen and rejected differ before their last turn",
        ),
        ({"chosen": "a", "rejected": "b"}, "no known format"),
        ({"instruction": "a", "output": ["b", "b"]}, "equal responses"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1}, "scores against the ranking"),
        ({**GLAIVE, "system": "SYSTEM: {broken"}, "malformed tools"),
    ],
)  # fmt: skip
def test_refused_rows_have_a_reason(tmp_path, row, reason):
    account = ConversionReport()
    assert list(convert_rows(write(tmp_path / "x.jsonl", row), account)) == []
    assert list(account.skipped) == [reason]
    with pytest.raises(ValueError, match=r"^x.jsonl:1: "):
        list(convert_rows(tmp_path / "x.jsonl", ConversionReport(), strict=True))


def test_what_is_changed_is_counted(tmp_path):
    turns = [user("a"), user("b"), says("c"), says("d"), user("e")]
    _, made, changed = one(tmp_path, {"messages": turns})
    assert made["messages"] == [user("a\n\nb"), says("c\n\nd")]
    assert changed == [
        "consecutive user turns merged",
        "consecutive assistant turns merged",
        "removed turns after the last answer",
    ]
    _, made, changed = one(tmp_path, {"messages": turns}, to="prompt")
    assert made["prompt"] == [user("a\n\nb"), says("c\n\nd"), user("e")]
    _, made, changed = one(tmp_path, {"instruction": "a", "input": "<noinput>", "output": "b"})
    assert (made["messages"][0], len(changed)) == (user("a"), 1)
    _, made, changed = one(tmp_path, {"instruction": "a", "output": ["b", "c", "b"]})
    assert (made["responses"], len(changed)) == ([says("b"), says("c")], 1)


def test_an_announced_call_is_one_turn(tmp_path):
    said = [
        {"from": "human", "value": "2 + 2?"},
        {"from": "gpt", "value": "I add."},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "4"},
        {"from": "gpt", "value": "4"},
    ]
    _, made, _ = one(tmp_path, {"conversations": said, "tools": [ADD]})
    assert made["messages"] == [CALLING[0], {**CALLING[1], "content": "I add."}, *CALLING[2:]]


def test_results_stand_in_the_order_of_their_calls(tmp_path):
    two = [{"id": i, "function": CALL} for i in ("x", "y")]
    answers = [{"role": "tool", "tool_call_id": i, "content": i} for i in ("y", "x")]
    row = {"messages": [user("a"), {"role": "assistant", "tool_calls": two}, *answers, says("b")], "tools": [ADD]}
    assert [turn["content"] for turn in one(tmp_path, row)[1]["messages"]] == ["a", "", "x", "y", "b"]
    row["messages"][2:4] = [{"role": "tool", "content": '["x", {"y": 1}]'}]  # or both in one turn
    assert [turn["content"] for turn in one(tmp_path, row)[1]["messages"]] == ["a", "", "x", '{"y": 1}', "b"]
