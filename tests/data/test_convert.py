"""Conversion: kinds, files, every real file with its counts, and damaged rows refused, not raised."""

import copy
import functools
import json
import operator
import re

import pytest
from chat_doubles import CALL, GOOD, one, says, user, write
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenjax.data.__main__ import Convert, main
from qwenjax.data.conversations.convert import ConversionReport, convert, convert_rows
from qwenjax.data.conversations.files import read_chat
from qwenjax.data.conversations.formats import FORMATS, recognise
from qwenjax.data.conversations.schema import KINDS, RowError, kind_of, to_json


def test_kinds_are_projections(tmp_path):
    row = {"instruction": "a", "output": ["b", "c"]}
    assert one(tmp_path, row, to="conversation")[1] == {"messages": [user("a"), says("b")]}
    assert one(tmp_path, row, to="prompt")[1] == {"prompt": [user("a")], "answer": "b"}
    worked = {"question": "a", "answer": "b\n#### 4"}
    assert one(tmp_path, worked, to="conversation")[1] == {"messages": [user("a"), says("b\n#### 4")]}
    with pytest.raises(ValueError, match=r"x.jsonl:1: 1 responses; a preference needs two"):
        one(tmp_path, worked, to="preference")


def test_instances_are_rows(tmp_path):
    row = {"instruction": "a", "instances": [{"input": "1", "output": "x"}, {"input": "2", "output": "y"}]}
    rows = [made for _, _, made in convert_rows(write(tmp_path / "x.jsonl", row), ConversionReport())]
    assert [r.messages for r in rows] == [[user(f"a\n\n{i}"), says(o)] for i, o in (("1", "x"), ("2", "y"))]


def test_placeholders_are_filled_or_kept_on_purpose(tmp_path):
    row = {"instruction": "Who?", "output": "I am {{name}} by {{ author }} and {{author}}."}
    fill = {"name": "Qwen {{author}}", "author": "{{author}}"}
    said = one(tmp_path, row, fill=fill)[1]["messages"][1]["content"]
    assert said == "I am Qwen {{author}} by {{ author }} and {{author}}."
    with pytest.raises(ValueError, match=r"placeholder \{\{author\}\} not filled"):
        one(tmp_path, row, fill={"name": "x"})


def test_a_file_holds_one_kind_and_is_whole_or_absent(tmp_path):
    a = write(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"})
    b = write(tmp_path / "b.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    with pytest.raises(ValueError, match=r"b.jsonl:1 \(pairs\) is a preference, but a.jsonl:1 a conversation"):
        convert([a, b], tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match="no row could be converted: skipped 1 x fewer than two responses"):
        convert([a], tmp_path / "out.jsonl", to="preference")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]
    account = convert([a, b], tmp_path / "out.jsonl.gz", to="conversation")
    assert (account.read, account.rows) == (2, 2)
    rows = list(read_chat(tmp_path / "out.jsonl.gz", "conversation", strict=True))
    assert [r.source for r in rows] == ["a", "b"]
    with pytest.raises(ValueError, match="format='xml' is unknown; known: auto, glaive"):
        convert([a], tmp_path / "out.jsonl", format="xml")
    with pytest.raises(ValueError, match=r"a.jsonl:1: fields prompt, completion: wanted messages"):
        convert([a], tmp_path / "out.jsonl", format="openai", strict=True)


# Every data set of these kinds that we know of: {format and kind: rows}, {reason: rows refused}.
REAL = {
    "sft_pref_demo/alpaca_en_demo": (999, "alpaca", "conversation", {}),
    "sft_pref_demo/alpaca_zh_demo": (1000, "alpaca", "conversation", {}),
    "sft_pref_demo/dpo_en_demo": (244, "pairs", "preference", {}),
    "sft_pref_demo/dpo_zh_demo": (244, "pairs", "preference", {}),
    "sft_pref_demo/glaive_toolcall_en_demo": (244, "sharegpt", "conversation", {}),
    "sft_pref_demo/glaive_toolcall_zh_demo": (243, "sharegpt", "conversation", {"result without call": 1}),
    "sft_pref_demo/identity": (6, "alpaca", "conversation", {"name": 71, "author": 14}),
    "sft_pref_demo/kto_en_demo": (150, "kto", "conversation", {"labelled undesirable": 150}),
    "sft_pref_demo/reason_tool_use_demo_50": (50, "openai", "conversation", {}),
    "oasst_zh/oaast_rm_zh": (621, "ranked", "preference", {"equal responses": 3}),
    "oasst_zh/oaast_sft_zh": (766, "alpaca", "conversation", {}),
    "hh_rlhf/harmless-base_test": (1854, "hh", "preference", {"empty assistant turn": 4}),
    "belle/eval_set": (679, "question", "prompt", {}),
    "belle/zh_seed_tasks": (175, "seeds", "conversation", {}),
    "self_instruct/seed_tasks": (175, "seeds", "conversation", {}),
    "self_instruct/user_oriented_instructions": (252, "seeds", "conversation", {}),
    "codealpaca/code_alpaca_2k": (2015, "alpaca", "conversation", {"empty assistant turn": 2}),
}


def test_every_real_file_converts_or_says_why_not(shared, tmp_path):
    files = {p for name in {n.split("/")[0] for n in REAL} for p in (shared / name).glob("*.jsonl*")}
    assert files == {shared / f"{name}.jsonl.gz" for name in REAL}
    for name, (rows, format, kind, refused) in REAL.items():
        account = convert([shared / f"{name}.jsonl.gz"], tmp_path / "a.jsonl")
        assert account.written == {(f"{name.split('/')[1]}.jsonl.gz", format, kind): rows}
        assert account.read == rows + sum(refused.values())
        counts = {reason: count for reason, (count, _) in account.skipped.items()}
        if "name" in refused:
            assert sorted(reason[:25] for reason in counts) == [
                "placeholder {{author}} no",
                "placeholder {{name}} not ",
            ]
        else:
            assert counts == refused
        assert sorted(counts.values()) == sorted(refused.values())
        again = convert([tmp_path / "a.jsonl"], tmp_path / "b.jsonl", strict=True)
        assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
        assert not again.changed


def test_real_details(shared):
    def rows(name, **options):
        account = ConversionReport()
        return [row for _, _, row in convert_rows(shared / name, account, **options)], account

    identity, account = rows("sft_pref_demo/identity.jsonl.gz", fill={"name": "Qwen", "author": "us"})
    assert (len(identity), account.skipped) == (91, {})
    assert not any("{{" in turn["content"] for row in identity for turn in row.messages)
    problems, _ = rows("gsm8k/train.jsonl.gz")
    assert len(problems) == 7473
    assert problems[0].answer == "72"
    assert all(float(row.answer) == float(row.answer) for row in problems)  # every one a number
    worked, _ = rows("gsm8k/train.jsonl.gz", to="conversation")
    assert worked[0].messages[1]["content"].endswith("\n#### 72")
    bench, account = rows("mt_bench/question.jsonl.gz")
    assert len(bench) == 80
    assert sum(row.answer is not None for row in bench) == 38  # of 39 references, one begins with an empty one
    tools, _ = rows("sft_pref_demo/glaive_toolcall_en_demo.jsonl.gz")
    assert sum(len(turn.get("tool_calls", ())) for row in tools for turn in row.messages) == 166


JUNK = [
    None, True, 0, 1.5, "", "x", "{", "[1]", json.dumps(CALL), "\ud800", "system", "tool", [], {}, ["a"], [[]], [{}],
    [None], {"a": 1}, {"role": "user"}, {"function": {"name": "add", "arguments": []}}, [["a", "b"]], [3, 2],
]  # fmt: skip


def places(value, at=()):
    """Every place in a JSON value, as a path."""
    if at:
        yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([row for _, row, _ in GOOD]),
    st.lists(st.tuples(st.floats(0, 0.999), st.sampled_from([*JUNK, "gone"])), min_size=1, max_size=3),
    st.sampled_from([None, *KINDS]),
    st.sampled_from(["auto", *FORMATS]),
)
def test_damaged_rows_are_converted_or_refused_and_never_raised(tmp_path_factory, row, damages, to, format):
    row = json.loads(json.dumps(row))
    for share, junk in damages:
        if found := list(places(row)):
            *path, last = found[int(share * len(found))]
            inner = functools.reduce(operator.getitem, path, row)
            inner[last] = copy.deepcopy(junk)
            if junk == "gone":
                del inner[last]
    path, account = tmp_path_factory.getbasetemp() / "damaged.jsonl", ConversionReport()
    made = list(convert_rows(write(path, row), account, format=format, to=to))
    assert bool(made) or sum(count for count, _ in account.skipped.values()) == 1
    for _, _, one_row in made:  # what comes out is of the schema, and stays as it is
        write(path, to_json(one_row))
        [(_, _, again)] = convert_rows(path, ConversionReport(), to=kind_of(one_row), strict=True)
        assert again == one_row


def test_recognition_is_unambiguous_for_the_documented_fields():
    assert recognise({"chosen": "a", "rejected": "b", "prompt": "c"}) == "pairs"
    assert recognise({"chosen": "a", "rejected": "b"}) == "hh"
    assert recognise({"instruction": "a", "output": "b"}) == "alpaca"
    with pytest.raises(RowError, match="fields text: no known format"):
        recognise({"text": "a"})


def run(*argv):
    return main(["convert", *map(str, argv)])


def test_command_prints_an_account(tmp_path, capsys):
    a = write(
        tmp_path / "a.jsonl", {"prompt": "a {{x}}", "completion": "b"}, {"prompt": "a", "completion": " "}, {"y": 1}
    )
    assert run(a, f"--out={tmp_path / 'out.jsonl'}", "--fill", "x=1") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["file", "format", "kind", "rows"]
    assert out[1].split() == ["a.jsonl", "completion", "conversation", "1"]
    assert "skipped 1 x empty assistant turn (first: a.jsonl:2: messages[1], an assistant turn, is empty)" in out
    assert out[-1] == f"{tmp_path / 'out.jsonl'}: 1 rows from 3"
    assert run(a, f"--out={tmp_path / 'no.jsonl'}", "--strict", "--fill", "x=1") == 1
    assert "error: a.jsonl:2: messages[1], an assistant turn, is empty" in capsys.readouterr().err
    assert not (tmp_path / "no.jsonl").exists()
    assert run(a, f"--out={tmp_path / 'no.jsonl'}", "--format=xml") == 2
    assert run(a, f"--out={tmp_path / 'no.jsonl'}", "--fill", "x") == 2
    assert run(a, f"--out={tmp_path / 'no.txt'}", "--fill", "x=1") == 1
    assert "wanted a name ending in .jsonl" in capsys.readouterr().err


def test_help_lists_every_format():
    table = Convert.EXAMPLES.split("without --to:\n")[1].split("\n--to")[0].splitlines()
    listed = {name: line.split()[-1] for line in table for name in re.findall(r"(\w+)(?: \([^)]*\))?(?:,|  )", line)}
    assert listed == {name: format.kind for name, format in FORMATS.items()}
