"""The schema: what is valid, what is refused and with which words, and files of it."""

import datetime
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenjax.chat_format.react import react_messages
from qwenjax.data.conversations.files import read_chat, read_objects, write_chat
from qwenjax.data.conversations.schema import (
    KINDS,
    ConversationRow,
    PreferenceRow,
    PromptRow,
    RowError,
    kind_of,
    to_json,
    validate,
)
from qwenjax.sources.slices import Report

USER = {"role": "user", "content": "2 + 2?"}
FOUR = {"role": "assistant", "content": "4"}
FIVE = {"role": "assistant", "content": "5"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"a": 2, "b": 2}}]}
RESULT = {"role": "tool", "content": "4"}

CONVERSATION = {"messages": [SYSTEM, USER, FOUR, USER, FOUR], "id": "1", "source": "s", "meta": {"x": [1]}}
CALLING = {"messages": [USER, CALL, RESULT, FOUR], "tools": [TOOL]}
PREFERENCE = {"prompt": [USER], "responses": [FOUR, FIVE], "scores": [1.5, -1]}
PROMPT = {"prompt": [USER, CALL, RESULT], "tools": [TOOL], "answer": "4"}
GOOD = [CONVERSATION, CALLING, PREFERENCE, PROMPT]


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_rows_know_their_kind_and_come_back_as_they_were():
    for row, cls in zip(GOOD, (ConversationRow, ConversationRow, PreferenceRow, PromptRow)):
        assert type(validate(row)) is cls
        assert to_json(validate(row)) == row
    assert [kind_of(validate(row)) for row in (CONVERSATION, PREFERENCE, PROMPT)] == list(KINDS)
    assert validate({**PROMPT, "answer": None}).answer is None


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ([], "not an object", "wanted an object"),
        ({"text": "x"}, "not a row of the schema", "fields text: wanted either 'messages' or 'prompt'"),
        ({"prompt": [USER], "messages": [USER, FOUR]}, "not a row of the schema", "wanted either"),
        ({"prompt": [USER], "respones": []}, "unknown field", "a prompt has no field 'respones'"),
        ({"prompt": [USER], "answers": "4"}, "unknown field", "did you mean 'answer'"),
        ({"messages": [USER, FOUR], "zzz": 1}, "unknown field", "into 'meta'"),
        ({"messages": "hi"}, "no messages", 'messages is "hi"; wanted a list of turns'),
        ({"messages": []}, "no messages", "wanted a list"),
        ({"messages": [USER]}, "ends with a user turn", "messages end with a user turn; wanted an assistant turn"),
        ({"messages": [USER, USER, FOUR]}, "user turn after a user turn", r"messages\[1\] is a user turn after a user"),
        (
            {"messages": [USER, FOUR, FOUR]},
            "assistant turn after an assistant turn",
            r"messages\[2\] is an assistant turn after",
        ),
        ({"messages": [FOUR]}, "assistant turn first", r"messages\[0\] is an assistant turn first"),
        ({"messages": [SYSTEM, FOUR]}, "assistant turn after a system turn", r"messages\[1\]"),
        ({"messages": [USER, FOUR, SYSTEM]}, "system turn not first", r"messages\[2\] is a system turn"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "empty assistant turn", r"messages\[1\]"),
        ({"messages": [{"role": "user", "content": ""}, FOUR]}, "empty user turn", r"messages\[0\]"),
        ({"messages": [{"role": "human", "content": "x"}, FOUR]}, "unknown role", '"human"; known: system, user'),
        ({"messages": ["x"]}, "malformed turn", "wanted {'role'"),
        ({"messages": [{"role": "user"}]}, "malformed turn", "wanted {'role'"),
        ({"messages": [{"role": "user", "content": 3}]}, "content that is not text", r"messages\[0\].content is 3"),
        ({"messages": [{"role": "user", "content": "\ud800"}, FOUR]}, "invalid UTF-8", "surrogate"),
        ({"messages": [{**USER, "tool_calls": []}, FOUR]}, "unknown field", "a user turn, has a field 'tool_calls'"),
        (
            {"messages": [USER, CALL]},
            "call of an unknown tool",
            r"calls 'add', not one of the tools \(there are none\)",
        ),
        ({"messages": [USER, {**CALL, "tool_calls": [{"name": "add"}]}]}, "malformed call", r"tool_calls\[0\]"),
        ({**CALLING, "messages": [USER, CALL, FOUR]}, "call without result", "a call still waits"),
        ({**CALLING, "messages": [USER, CALL, RESULT, USER, FOUR]}, "user turn after a tool turn", r"messages\[3\]"),
        ({**CALLING, "messages": [USER, CALL, RESULT, RESULT, FOUR]}, "result without call", r"messages\[3\]"),
        ({**CALLING, "tools": [TOOL, TOOL]}, "malformed tools", r"tools\[1\] is a second 'add'"),
        ({**CALLING, "tools": [{"type": "function"}]}, "malformed tools", r"tools\[0\]"),
        ({"prompt": [USER, FOUR]}, "prompt ends with an assistant turn", "wanted a user turn"),
        ({"prompt": [USER, CALL], "tools": [TOOL]}, "prompt ends with a call without result", "tool results"),
        ({"prompt": [USER], "answer": 4}, "content that is not text", "answer is 4"),
        ({**PREFERENCE, "responses": [FOUR]}, "fewer than two responses", "best first"),
        ({**PREFERENCE, "responses": [FOUR, USER]}, "response of another role", r"responses\[1\]"),
        (
            {**PREFERENCE, "responses": [FOUR, {**FOUR, "content": "4 "}]},
            "equal responses",
            r"responses\[1\] equals resp",
        ),
        ({**PREFERENCE, "scores": [1]}, "malformed scores", "one finite number for each"),
        ({**PREFERENCE, "scores": [True, 0]}, "malformed scores", "one finite number"),
        ({**PREFERENCE, "scores": [10**400, 0]}, "malformed scores", "one finite number"),
        ({**PREFERENCE, "scores": [1, float("nan")]}, "malformed scores", "one finite number"),
        ({**PREFERENCE, "scores": [0, 1]}, "scores against the ranking", "wanted falling scores"),
        ({**PREFERENCE, "scores": [1, 1]}, "scores against the ranking", "wanted falling scores"),
        ({**PROMPT, "meta": {"a": "\ud800"}}, "invalid UTF-8", "surrogate"),
        ({**PROMPT, "meta": {"a": float("inf")}}, "NaN or infinity", "infinity"),
        ({**PROMPT, "tools": {}}, "malformed tools", "wanted a list"),
        ({**PROMPT, "id": 3}, "malformed id", "id is 3; wanted a text"),
        ({**PROMPT, "meta": []}, "malformed meta", "wanted an object"),
    ],
)
def test_refused_rows_say_why(row, reason, detail):
    with pytest.raises(RowError, match=detail) as error:
        validate(row)
    assert error.value.reason == reason


FIELDS = (
    *("messages", "prompt", "responses", "scores", "answer", "tools", "id", "meta"),
    *USER,
    *CALL,
    "reasoning",
    *TOOL,
    "arguments",
)
PARTS = [USER, FOUR, CALL, RESULT, [USER, FOUR], "user", "assistant", "add", [TOOL]]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS), inner | st.sampled_from(PARTS), max_size=5)
    ),
    max_leaves=12,
)
turns = st.lists(st.sampled_from([USER, FOUR, CALL, RESULT, SYSTEM]), max_size=7)


@given(json_values | st.fixed_dictionaries({"messages": turns, "tools": st.sampled_from([[], [TOOL]])}))
def test_anything_is_valid_or_refused_and_what_is_valid_can_be_encoded(value):
    try:
        row = validate(value)
    except RowError:
        return
    assert validate(to_json(row)) == row
    if isinstance(row, ConversationRow):
        assert react_messages(row.messages, row.tools)[-1]["role"] == "assistant"


def test_files_round_trip(tmp_path):
    rows = [validate(CONVERSATION), validate(CALLING)]
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert write_chat(tmp_path / name, rows) == 2
        assert list(read_chat(tmp_path / name, "conversation", strict=True)) == rows
    first = (tmp_path / "a.jsonl.gz").read_bytes()
    write_chat(tmp_path / "a.jsonl.gz", rows)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == first
    (tmp_path / "b.json").write_text(json.dumps([CONVERSATION, CALLING], indent=1))
    assert list(read_chat(tmp_path / "b.json", "conversation", strict=True)) == rows


def test_zst_and_parquet_are_read(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    row = {"messages": [USER, FOUR], "id": "1"}
    with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as file:
        file.write(lines(row, row).encode())
    dated = {**row, "meta": {"on": datetime.date(2023, 9, 28)}}
    pq.write_table(pa.Table.from_pylist([dated, {**row, "id": None}]), tmp_path / "a.parquet")
    assert [r.id for r in read_chat(tmp_path / "a.jsonl.zst", "conversation", strict=True)] == ["1", "1"]
    read = list(read_chat(tmp_path / "a.parquet", "conversation", strict=True))
    assert [r.id for r in read] == ["1", None]
    assert read[0] == validate({**row, "meta": {"on": "2023-09-28"}})
    (tmp_path / "bad.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(ValueError, match="corrupt parquet"):
        list(read_chat(tmp_path / "bad.parquet", "conversation"))


def test_bad_rows_are_counted_or_with_strict_named(tmp_path):
    path = tmp_path / "mixed.jsonl"
    bad = [b"{", b"\xff\n", b"\n", lines({"messages": [USER]}, PREFERENCE, {"messages": [USER]}).encode()]
    path.write_bytes(lines(CONVERSATION).encode() + bad[0] + b"\n" + b"".join(bad[1:]) + lines(CALLING).encode())
    report = Report()
    assert len(list(read_chat(path, "conversation", report))) == 2
    assert {reason: count for reason, (count, _) in report.items()} == {
        "bad JSON": 1, "invalid UTF-8": 1, "ends with a user turn": 2, "a preference, not a conversation": 1,
    }  # fmt: skip
    assert report["ends with a user turn"][1].startswith("mixed.jsonl:5: messages end with a user turn")
    with pytest.raises(ValueError, match=r"^mixed.jsonl:2: not JSON"):
        list(read_chat(path, "conversation", strict=True))


def test_damaged_files_give_what_is_before_the_damage(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(lines(*[{**CONVERSATION, "id": str(i) * 50} for i in range(2000)]).encode())
    for data, what in ((whole[:-100], "truncated gzip"), (whole[:2000] + b"garbage" + whole[2007:], "corrupt gzip")):
        path.write_bytes(data)
        report = Report()
        assert 0 < len(list(read_chat(path, "conversation", report))) < 2000
        [(reason, (count, place))] = [item for item in report.items() if "gzip" in item[0]]
        assert (reason, count) == (f"{what}, the rest of the file", 1)
        assert place.startswith("a.jsonl.gz:")


def test_a_line_without_end_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("qwenjax.data.conversations.files.MAX_BYTES", 200)
    path = tmp_path / "a.jsonl"
    path.write_text(
        lines({"messages": [USER, FOUR]}, {"messages": [USER, {**FOUR, "content": "4" * 5000}]}, {"prompt": [USER]})
    )
    report = Report()
    assert [place for place, _ in read_objects(path, report)] == ["a.jsonl:1", "a.jsonl:3"]
    assert report["over 0 MiB"][1].startswith("a.jsonl:2: ")


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*wanted .jsonl"):
        list(read_chat(tmp_path / "nowhere.jsonl", "prompt"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"no prompt in .*empty.jsonl: it is empty"):
        list(read_chat(tmp_path / "empty.jsonl", "prompt"))
    (tmp_path / "other.jsonl").write_text(lines(PREFERENCE))
    with pytest.raises(ValueError, match=r"a preference, not a prompt; `qwenjax.data convert --to=prompt`"):
        list(read_chat(tmp_path / "other.jsonl", "prompt"))
    with pytest.raises(ValueError, match="known: conversation, preference, prompt"):
        list(read_chat(tmp_path / "other.jsonl", "dialogue"))


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("before")

    def rows():
        yield validate(CONVERSATION)
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="the source broke"):
        write_chat(path, rows())
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]
    with pytest.raises(ValueError, match=r"wanted a name ending in .jsonl or .jsonl.gz"):
        write_chat(tmp_path / "out.json", [])
