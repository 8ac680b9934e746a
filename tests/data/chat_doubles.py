"""Doubles for the tests of chat data: turns, and a row of every format with what it becomes."""

import json

from qwenjax.data.conversations.convert import ConversionReport, convert_rows
from qwenjax.data.conversations.schema import to_json


def user(text):
    return {"role": "user", "content": text}


def says(text, **more):
    return {"role": "assistant", "content": text, **more}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(tmp_path, row, **options):
    """(format, row, changes) of a single row, which must convert to a single one."""
    account = ConversionReport()
    [(place, format, made)] = convert_rows(write(tmp_path / "x.jsonl", row), account, strict=True, **options)
    assert place == "x.jsonl:1"
    made = to_json(made)
    assert made.pop("source") == "x"
    return format, made, list(account.changed)


ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
SUB = {"name": "sub", "parameters": {}}
CALL = {"name": "add", "arguments": {"a": 2}}
CALLING = [user("2 + 2?"), says("", tool_calls=[CALL]), {"role": "tool", "content": "4"}, says("4")]
SCORES = {"score_chosen": 8.0, "score_rejected": 5}
HH = "\n\nHuman: a\n\nAssistant: b"
GLAIVE = {
    "system": "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
    '{\n    "name": "add",\n    "description": "Adds.",\n    "parameters": {"type": "object"}\n}\n'
    '{"name": "sub", "parameters": {}}',
    "chat": 'USER: 2 + 2?\n\n\nASSISTANT: <functioncall> {"name": "add", "arguments": \'{"a": 2}\'} <|endoftext|>\n\n\n'
    "FUNCTION RESPONSE: 4\n\n\nASSISTANT: It is 4. <|endoftext|>\n\n\n",
}


GOOD = [
    (
        "sharegpt",  # also Qwen's finetune.py, which says user and assistant
        {
            "id": "i",
            "system": "S",
            "conversations": [{"from": "human", "value": "\na "}, {"from": "gpt", "value": "b"}],
        },
        {"messages": [{"role": "system", "content": "S"}, user("a"), says("b")], "id": "i"},
    ),
    (
        "sharegpt",
        {"id": 7, "conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}], "x": 1},
        {"messages": [user("a"), says("b")], "id": "7", "meta": {"x": 1}},
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "2 + 2?"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
                {"from": "observation", "value": "4"},
                {"from": "gpt", "value": "4"},
            ],
            "tools": json.dumps([ADD]),
        },
        {"messages": CALLING, "tools": [ADD]},
    ),
    (
        "openai",
        {
            "messages": [
                {"role": "developer", "content": "S"},
                {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "4"},
                {"role": "assistant", "content": "4", "reasoning_content": "sum"},
            ],
            "tools": [{"type": "function", "function": ADD}],
        },
        {
            "messages": [{"role": "system", "content": "S"}, *CALLING[:3], says("4", reasoning="sum")],
            "tools": [ADD],
        },
    ),
    (
        "openai",  # calls as they were before tools
        {
            "messages": [
                user("2 + 2?"),
                {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 2}'}},
                {"role": "function", "name": "add", "content": "4"},
                says("4"),
            ],
            "functions": [ADD],
        },
        {"messages": CALLING, "tools": [ADD]},
    ),
    ("glaive", GLAIVE, {"messages": [*CALLING[:3], says("It is 4.")], "tools": [ADD, SUB]}),
    (
        "glaive",
        {"system": "SYSTEM: You cannot call.", "chat": "USER: a\n\n\nASSISTANT: b"},
        {"messages": [{"role": "system", "content": "You cannot call."}, user("a"), says("b")]},
    ),
    (
        "alpaca",
        {"instruction": "Add.", "input": "2, 2", "output": "4", "history": [["a", "b"]], "system": "S"},
        {"messages": [{"role": "system", "content": "S"}, user("a"), says("b"), user("Add.\n\n2, 2"), says("4")]},
    ),
    (
        "alpaca",
        {"instruction": "a", "response": "b", "category": "c"},
        {"messages": [user("a"), says("b")], "meta": {"category": "c"}},
    ),
    (
        "seeds",
        {"id": "t0", "instruction": "a", "instances": [{"input": "", "output": "b"}], "is_classification": False},
        {"messages": [user("a"), says("b")], "id": "t0", "meta": {"is_classification": False}},
    ),
    ("completion", {"prompt": "a", "completion": "b"}, {"messages": [user("a"), says("b")]}),
    ("kto", {"messages": [user("a"), says("b")], "label": True}, {"messages": [user("a"), says("b")]}),
    ("kto", {"prompt": "a", "completion": "b", "label": True}, {"messages": [user("a"), says("b")]}),
    (
        "hh",
        {"chosen": f"{HH}\n\nHuman: c\n\nAssistant: d", "rejected": f"{HH}\n\nHuman: c\n\nAssistant: e"},
        {"prompt": [user("a"), says("b"), user("c")], "responses": [says("d"), says("e")]},
    ),
    (
        "pairs",
        {
            "conversations": [{"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
        {"prompt": [user("a")], "responses": [says("b"), says("c")]},
    ),
    (
        "pairs",
        SCORES | {"prompt": "a", "chosen": [user("a"), says("b")], "rejected": [says("c")]},
        {"prompt": [user("a")], "responses": [says("b"), says("c")], "scores": [8.0, 5]},
    ),
    (
        "pairs",
        {"chosen": [user("a"), says("b")], "rejected": [user("a"), says("c")], "margin": 0.5},
        {"prompt": [user("a")], "responses": [says("b"), says("c")], "scores": [0.5, 0]},
    ),
    (
        "pairs",
        {"system": "S", "instruction": "a", "input": "i", "chosen": "b", "rejected": "c"},
        {"prompt": [{"role": "system", "content": "S"}, user("a\n\ni")], "responses": [says("b"), says("c")]},
    ),
    (
        "ranked",
        {"instruction": "a", "input": "", "output": ["b", "c", "d"], "history": []},
        {"prompt": [user("a")], "responses": [says("b"), says("c"), says("d")]},
    ),
    (
        "ranked",
        {"prompt": "a", "responses": ["b", says("c")], "scores": [2, 1]},
        {"prompt": [user("a")], "responses": [says("b"), says("c")], "scores": [2, 1]},
    ),
    (
        "question",
        {"question": "a", "answer": "1,000 + 8 = <<1000+8=1008>>1008\n#### 1,008"},
        {"prompt": [user("a")], "answer": "1008"},
    ),
    (
        "question",
        {"question": "a", "std_answer": "b", "class": "c"},
        {"prompt": [user("a")], "answer": "b", "meta": {"class": "c"}},
    ),
    ("question", {"question": "a", "std_answer": ""}, {"prompt": [user("a")]}),
    (
        "mt_bench",
        {"question_id": 81, "category": "c", "turns": ["a", "b"], "reference": ["r", "s"]},
        {"prompt": [user("a")], "answer": "r", "id": "81", "meta": {"category": "c", "turns": ["a", "b"]}},
    ),
    ("prompt", {"prompt": "a", "answer": 4}, {"prompt": [user("a")], "answer": "4"}),
    ("prompt", {"prompt": [user("a")]}, {"prompt": [user("a")]}),
]
