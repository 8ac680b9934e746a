"""ReAct text: by hand from the released prompts (docs/report.md, ReAct), and calls that survive the way back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenjax.chat_format.chatml import encode_with_mask
from qwenjax.chat_format.react import ReActStep, instruction, parse_react, react_messages

TOOLS = [
    {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
    {
        "name": "search",
        "name_for_model": "google_search",
        "name_for_human": "谷歌搜索",
        "description_for_model": "A search engine.",
        "parameters": [{"name": "query", "description": "关键词", "required": True, "schema": {"type": "string"}}],
    },
]
INSTRUCTION = """Answer the following questions as best you can. You have access to the following APIs:

get_weather: Call this tool to interact with the get_weather API. What is the get_weather API useful for? \
Weather of a city. Parameters: {"type": "object", "properties": {"city": {"type": "string"}}}

google_search: Call this tool to interact with the 谷歌搜索 API. What is the 谷歌搜索 API useful for? \
A search engine. Parameters: \
[{"name": "query", "description": "关键词", "required": true, "schema": {"type": "string"}}]

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [get_weather, google_search]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!"""


def user(text):
    return {"role": "user", "content": text}


def says(text, **more):
    return {"role": "assistant", "content": text, **more}


def calls(text, *names_and_arguments, **more):
    return says(text, tool_calls=[{"name": n, "arguments": a} for n, a in names_and_arguments], **more)


def result(text):
    return {"role": "tool", "content": text}


ASKED = [user("How warm is Paris?"), calls("I look it up.", ("get_weather", {"city": "Paris"}))]


def test_instruction_is_the_released_one():
    assert instruction(TOOLS) == INSTRUCTION
    other = instruction(TOOLS, "json", "tools")
    assert other.startswith(INSTRUCTION.split("APIs")[0] + "tools:")
    assert (
        'Weather of a city. Parameters: {"type": "object", "properties": {"city": {"type": "string"}}} Format' in other
    )
    assert other.count(" Format the arguments as a JSON object.\n\n") == 2
    assert "one of [get_weather,google_search]" in other
    code = " Enclose the code within triple backticks (`) at the beginning and end of the code."
    assert instruction(TOOLS[:1], "code").count(code) == 1


def test_a_transcript_is_one_assistant_turn():
    turns = [*ASKED, result("17 °C\n"), says("It is 17 °C.")]
    text = (
        'Thought: I look it up.\nAction: get_weather\nAction Input: {"city": "Paris"}\nObservation: 17 °C\n'
        "Thought: I now know the final answer.\nFinal Answer: It is 17 °C."
    )
    asked, answered = react_messages(turns, TOOLS)
    assert asked == user(f"{INSTRUCTION}\n\nQuestion: How warm is Paris?")
    assert (answered["role"], answered["content"]) == ("assistant", text)
    assert [text[a:b] for a, b in answered["tool_results"]] == [" 17 °C"]


def test_after_a_result_the_turn_is_left_open():
    messages = react_messages([*ASKED, result("17 °C")], TOOLS)
    assert messages[-1]["content"].endswith("\nObservation: 17 °C\nThought:")


def test_several_calls_follow_each_other():
    turn = calls("", ("get_weather", {"city": "Paris"}), ("google_search", {"query": "巴黎"}), reasoning="Both.")
    [_, answered] = react_messages([user("?"), turn, result("a"), result("b"), says("c")], TOOLS)
    assert answered["content"] == (
        'Thought: Both.\nAction: get_weather\nAction Input: {"city": "Paris"}\nObservation: a\n'
        'Thought: \nAction: google_search\nAction Input: {"query": "巴黎"}\nObservation: b\n'
        "Thought: I now know the final answer.\nFinal Answer: c"
    )


def test_thoughts_are_not_doubled_and_reasoning_leads_an_answer():
    [_, said] = react_messages([user("?"), calls("Thought: mine", ("search", {}))], TOOLS)
    assert said["content"] == "Thought: mine\nAction: search\nAction Input: {}"
    [_, said] = react_messages([user("?"), says("4", reasoning="2 + 2")], TOOLS)
    assert said["content"] == "Thought: 2 + 2\nFinal Answer: 4"


def test_the_instruction_is_in_the_last_user_turn_or_in_the_first():
    turns = [{"role": "system", "content": "S"}, user("a"), says("b"), user("c")]
    at = {"last": 3, "first": 1}
    for where, place in at.items():
        messages = react_messages(turns, TOOLS, where)
        assert [i for i, m in enumerate(messages) if INSTRUCTION in m["content"]] == [place]
        assert messages[0] == turns[0]
    # the rule of the released server for what has been answered already: the last user turn of the history
    assert INSTRUCTION in react_messages([*turns[1:3], *ASKED, result("1")], TOOLS)[2]["content"]


def test_without_tools_turns_are_only_made_plain():
    turns = [user("\n a \n"), says("b", reasoning="r")]
    assert react_messages(turns) == [user(" a"), says("b")]


@pytest.mark.parametrize(
    ("turns", "tools", "message"),
    [
        (ASKED, [], r"messages\[1\] is part of a call, but no tools"),
        ([user("a"), result("b")], TOOLS, r"messages\[1\] is a tool turn without a call"),
        ([user("a"), calls("", ("search", {}), ("search", {}))], TOOLS, "2 calls at once"),
        ([user("a"), calls("", *[("search", {})] * 3), result("x"), says("y")], TOOLS, r"messages\[3\] comes before"),
        ([says("a")], TOOLS, "there is no user turn"),
    ],
)
def test_what_react_cannot_say_is_refused(turns, tools, message):
    with pytest.raises(ValueError, match=message):
        react_messages(turns, tools)


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["\nAction: x\nAction Input: {}", "\nObservation: 1", "Thought: a", "\nFinal Answer: no", "Action:"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(texts, names, st.dictionaries(texts, values, max_size=3))
def test_parsing_what_was_written_gives_the_call(thought, name, arguments):
    [_, said] = react_messages([user("?"), calls(thought, (name, arguments))], TOOLS)
    for end in ("", "\nObservation:", "\nObservation: "):
        step = parse_react(said["content"] + end)
        assert (step.name, step.arguments) == (name, arguments)
        if "Thought:" not in thought and not thought.startswith("\n"):
            assert step.content == thought.strip()


@given(texts.filter(lambda t: "Final Answer:" not in t and "Action" not in t))
def test_parsing_an_answer_gives_it(answer):
    [_, said] = react_messages([user("?"), says(answer)], TOOLS)
    assert parse_react(said["content"]) in (ReActStep(answer.lstrip("\n").rstrip()), ReActStep(said["content"]))
    if answer.strip():
        assert parse_react(said["content"]).content == answer.lstrip("\n").rstrip()


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("Thought: I search.\nAction: f\nAction Input: {'a': 1}", ReActStep("I search.", "f", "{'a': 1}")),
        ("Thought: x\nAction: f\nAction Input: 3\nObservation: y", ReActStep("x", "f", "3")),
        (" I go on\nAction: f\nAction Input: {\"a\": 1}", ReActStep("I go on", "f", {"a": 1})),
        ("t\nAction Input: {}\nAction: f", ReActStep("t\nAction Input: {}\nAction: f")),  # the wrong way round
        ("t\nAction: \nAction Input: {}", ReActStep("t\nAction: \nAction Input: {}")),  # no name
        ("Thought: x\nAction: a\nAction Input: {}\nObservation: r\nThought: y\nAction: b\nAction Input: {}", ReActStep(
            "x\nAction: a\nAction Input: {}\nObservation: r\nThought: y", "b", {})),
        ("Thought: done\nFinal Answer: 4", ReActStep("4")),
        ("plain", ReActStep("plain")),
        ("", ReActStep("")),
    ],
)  # fmt: skip
def test_parser_rule(text, step):
    assert parse_react(text) == step


def test_results_carry_no_loss_with_the_loss_mask_assistant(either):
    turns = [*ASKED, result('{"warm": 17}'), says("17")]
    messages = react_messages(turns, TOOLS)
    whole, bare = messages, [{k: v for k, v in m.items() if k != "tool_results"} for m in messages]
    for loss_mask in ("finetune_py", "all_but_user_content"):
        assert encode_with_mask(either, whole, loss_mask) == encode_with_mask(either, bare, loss_mask)
    ids, mask = encode_with_mask(either, whole, "assistant")
    assert ids == encode_with_mask(either, bare, "assistant")[0]
    trained = either.decode([i for i, m in zip(ids, mask) if m])
    assert '{"warm": 17}' not in trained
    assert trained.replace("\n", "").startswith(
        'Thought: I look it up.Action: get_weatherAction Input: {"city": "Paris"}'
    )
    assert "\nObservation:" in trained
    assert trained.endswith("Final Answer: 17<|im_end|>")
    hidden = either.decode([i for i, m in zip(ids, mask) if not m])
    assert hidden.count('{"warm": 17}') == 1
    assert "Final Answer: 17" not in hidden


def test_spans_follow_the_text_through_normalisation(either):
    """'e' + U+0301 before a span is one character after NFC; the span still covers the result alone."""
    content = "cafe\u0301 中\nObservation: re\u0301sultat\nThought: x"
    start = content.index(" re")
    message = {"role": "assistant", "content": content, "tool_results": [(start, content.index("\nThought"))]}
    ids, mask = encode_with_mask(either, [user("?"), message], "assistant")
    hidden = either.decode([i for i, m in zip(ids, mask) if not m])
    assert hidden.rstrip("\n").endswith("sultat")
    trained = either.decode([i for i, m in zip(ids, mask) if m])
    assert trained.startswith("caf")
    assert "Observation:" in trained
    assert "sultat" not in trained


def test_real_tool_dialogues_render(shared, qwen_vocab):
    from qwenjax.data.conversations.convert import ConversionReport, convert_rows

    dialogues = 0
    for name in ("glaive_toolcall_en_demo", "glaive_toolcall_zh_demo"):
        for _, _, row in convert_rows(shared / f"sft_pref_demo/{name}.jsonl.gz", ConversionReport()):
            wanted = [call for turn in row.messages for call in turn.get("tool_calls", ())]
            messages = react_messages(row.messages, row.tools, "first")
            assert {m["role"] for m in messages} <= {"user", "assistant", "system"}
            said = "".join(m["content"] for m in messages if m["role"] == "assistant")
            assert all(json.dumps(call["arguments"], ensure_ascii=False) in said for call in wanted)
            dialogues += bool(wanted)
    assert dialogues > 200
