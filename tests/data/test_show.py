"""`show` for chat data: what is marked is the mask, what is printed is harmless, and the page is safe and whole."""

import json
import re
from html.parser import HTMLParser

import pytest
from data_doubles import ByteTokenizer
from hypothesis import given
from hypothesis import strategies as st

from qwenjax.chat_format import chatml
from qwenjax.chat_format.chatml import LOSS_MASKS, encode_with_mask
from qwenjax.data.__main__ import main
from qwenjax.data.batches.text import TextMixture
from qwenjax.data.conversations.schema import validate
from qwenjax.data.inspect.show import (
    END,
    LOSS,
    Piece,
    ShownBlock,
    ShownRow,
    chat_row,
    draw_rows,
    page,
    pieces,
    printable,
    row_lines,
    text_row,
)

pytest_plugins = ["data_fixtures"]

USER = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello!"}
BYE = {"role": "assistant", "content": "Bye 👩‍👧"}
CONVERSATION = {"messages": [USER, HELLO, USER, BYE], "id": "7"}
PREFERENCE = {"prompt": [USER], "responses": [HELLO, BYE], "scores": [1.5, -0.5]}
TOOLS = [{"name": "add", "parameters": {}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"a": 2}}]}
RESULT = {"role": "tool", "content": "the result is 4"}


class Page(HTMLParser):
    """What a browser makes of a page: tags, and text by place."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.path, self.text = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag != "meta":
            self.path.append(tag)

    def handle_endtag(self, tag):
        assert self.path.pop() == tag

    def handle_data(self, data):
        self.text.append((self.path[-1] if self.path else "", data))

    def inside(self, tag):
        return "".join(text for where, text in self.text if where == tag)


def test_pieces_join_what_shares_a_character(qwen_vocab):
    text = "a👩‍👧中文 e\u0301"
    ids = qwen_vocab.encode_ordinary(text)
    made = pieces(qwen_vocab, ids, [1] * len(ids))
    assert [i for piece in made for i in piece.ids] == ids
    assert "".join(piece.text for piece in made) == qwen_vocab.decode(ids)
    assert any(len(piece.ids) > 1 for piece in made)
    assert not any("\ufffd" in piece.text for piece in made)
    cut = pieces(qwen_vocab, qwen_vocab.encode_ordinary("𓂀")[:-1], [0] * 9)
    assert [piece.text for piece in cut] == ["\ufffd"]


@given(st.binary(max_size=30))
def test_pieces_of_any_bytes_are_their_decoding(data):
    made = pieces(ByteTokenizer(), list(data), [0] * len(data))
    assert "".join(piece.text for piece in made) == data.decode(errors="replace")
    assert [i for piece in made for i in piece.ids] == list(data)


@pytest.mark.parametrize("loss_mask", LOSS_MASKS)
def test_a_conversation_is_marked_by_its_mask(qwen_vocab, loss_mask):
    shown = chat_row(validate(CONVERSATION), qwen_vocab, loss_mask, "row 3")
    ids, mask = encode_with_mask(qwen_vocab, CONVERSATION["messages"], loss_mask)
    made = [piece for block in shown.blocks for piece in block.pieces]
    assert [i for piece in made for i in piece.ids] == ids
    assert [piece.mark for piece in made for _ in piece.ids] == mask
    assert [block.title for block in shown.blocks] == ["system", "user", "assistant", "user", "assistant"]
    share = f"{len(ids)} tokens, {sum(mask)} with loss ({sum(mask) / len(ids):.0%}), 4 turns"
    assert shown.title == f"row 3: conversation, {share}"
    assert shown.facts == ["id: 7"]


def test_without_colour_what_carries_loss_is_between_signs(qwen_vocab):
    lines = row_lines(chat_row(validate(CONVERSATION), qwen_vocab, "assistant"), colour=False)
    text = "\n".join(lines)
    assert re.findall(f"{LOSS[0]}(.*?){LOSS[1]}", text) == ["Hello!<|im_end|>", f"{BYE['content']}<|im_end|>"]
    unmarked = text.replace(LOSS[0], "").replace(LOSS[1], "")
    assert chatml.render(CONVERSATION["messages"], add_generation_prompt=False) in unmarked
    assert "\x1b" not in text
    coloured = "\n".join(row_lines(chat_row(validate(CONVERSATION), qwen_vocab, "assistant"), colour=True))
    assert re.findall("\x1b\\[32m(.*?)\x1b\\[0m", coloured)[0] == "Hello!<|im_end|>"
    assert re.sub("\x1b\\[\\d*m", "", coloured) == unmarked


def test_a_preference_shows_what_each_response_adds(qwen_vocab):
    shown = chat_row(validate(PREFERENCE), qwen_vocab)
    prompt, chosen, rejected = shown.blocks
    assert shown.alternatives == 2
    ids = {name: [i for piece in b.pieces for i in piece.ids] for name, b in zip("pcr", shown.blocks)}
    assert ids["p"] == qwen_vocab.encode_chat([USER])
    assert ids["p"] + ids["c"] == qwen_vocab.encode_chat([USER, HELLO], add_generation_prompt=False)
    assert ids["p"] + ids["r"] == qwen_vocab.encode_chat([USER, BYE], add_generation_prompt=False)
    assert {piece.mark for piece in prompt.pieces} == {0}
    assert {piece.mark for block in (chosen, rejected) for piece in block.pieces} == {1}
    assert chosen.title == f"chosen, {len(ids['c'])} tokens, score 1.5"
    assert "margin: 2" in shown.facts
    lines = row_lines(shown, colour=False)
    assert lines.index(f"--- {chosen.title}") < lines.index(f"{LOSS[0]}Hello!<|im_end|>{LOSS[1]}") < len(lines)
    ranked = chat_row(validate({"prompt": [USER], "responses": [HELLO, BYE, USER | {"role": "assistant"}]}), qwen_vocab)
    assert [b.title.split(",")[0] for b in ranked.blocks[1:]] == [f"response {i} of 3" for i in (1, 2, 3)]


def test_tool_turns_are_shown_as_they_are_trained(qwen_vocab):
    row = validate({"messages": [USER, CALL, RESULT, HELLO], "tools": TOOLS})
    text = "\n".join(row_lines(chat_row(row, qwen_vocab, "assistant"), colour=False))
    assert f"Observation:{LOSS[1]} the result is 4{LOSS[0]}\nThought: I now know" in text
    assert "add: Call this tool to interact with the add API." in text
    prompt = validate({"prompt": [USER, CALL, RESULT], "responses": [HELLO, BYE], "tools": TOOLS})
    shown = chat_row(prompt, qwen_vocab)
    said = ["".join(piece.text for piece in block.pieces) for block in shown.blocks]
    assert said[0].endswith("\nObservation: the result is 4\nThought:")
    assert said[1] == " I now know the final answer.\nFinal Answer: Hello!<|im_end|>"


def test_a_prompt_ends_where_the_assistant_speaks(qwen_vocab):
    shown = chat_row(validate({"prompt": [USER], "answer": "72"}), qwen_vocab)
    assert "".join(piece.text for piece in shown.blocks[0].pieces).endswith("<|im_start|>assistant\n")
    assert "answer: 72" in shown.facts


def test_data_cannot_steer_the_terminal(qwen_vocab):
    evil = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\u202eabc\x00\x7f"
    assert printable(evil) == "␛[2J␛]0;owned␇⟨009B⟩31m␍⟨202E⟩abc␀␡"
    assert printable("a\n\tb 中 עברית 👩‍👧") == "a\n\tb 中 עברית 👩‍👧"
    row = validate({"messages": [{**USER, "content": evil}, HELLO], "id": evil, "source": evil})
    text = "\n".join(row_lines(chat_row(row, qwen_vocab), colour=False))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)


EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</div></section><style>*{}</style>",
    "&lt;b&gt;",
]


def test_data_cannot_act_in_the_page(qwen_vocab):
    said = " ".join(EVIL)
    row = {"prompt": [{**USER, "content": said}], "responses": [HELLO, BYE], "id": said, "source": said}
    text = page(said, said, [chat_row(validate(row), qwen_vocab, title=said)])
    made = Page(text)
    assert not {"script", "img", "b"} & set(made.tags)
    assert made.tags.count("style") == 1
    assert {tag for tag, _, _ in made.attributes} <= {"html", "meta", "h2", "p", "div", "section", "span"}
    assert not [a for a in made.attributes if a[1].startswith("on") or a[1] in ("src", "href")]
    assert said in made.inside("span")  # and it is there to read
    assert said in made.inside("h1")
    assert made.inside("h2").count(said) == 1
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in made.attributes
    assert not re.search(r"https?:|url\(|@import", text)


def test_the_page_shows_every_token(qwen_vocab):
    shown = chat_row(validate(CONVERSATION), qwen_vocab, "assistant")
    made = Page(page("h", "l", [shown]))
    ids = [int(i) for tag, name, value in made.attributes if name == "title" for i in re.findall(r"\d+", value)]
    assert ids == [i for block in shown.blocks for piece in block.pieces for i in piece.ids]
    kinds = [value for tag, name, value in made.attributes if tag == "span" and name == "class"]
    assert kinds == ["l" if piece.mark else "n" for block in shown.blocks for piece in block.pieces]
    assert made.inside("span") == "".join(piece.text for block in shown.blocks for piece in block.pieces)
    assert made.path == []


def test_alternatives_stand_side_by_side_and_control_tokens_keep_their_order(qwen_vocab):
    row = {"prompt": [USER], "responses": [{**HELLO, "content": "שלום <|im_end|>"}, BYE]}
    text = page("h", "l", [chat_row(validate(row), qwen_vocab)])
    assert text.count('<div class="side">') == 1
    assert text.split('<div class="side">')[1].count("<section>") == 2
    # the token, not the text that looks like it
    assert text.split('<div class="side">')[1].count('dir="ltr">&lt;|im_end|&gt;</span>') == 2


def test_documents_of_a_training_row(shards):
    mixture = TextMixture([shards], [1], 300, 0)
    for row in range(20):
        shown, tokens = text_row(mixture, row, ByteTokenizer()), mixture.row(row).tolist()
        assert [i for block in shown.blocks for piece in block.pieces for i in piece.ids] == tokens
        assert len(shown.blocks) == len(mixture.documents(row))
        lines = row_lines(shown, by_document=True)
        assert lines[0] == shown.title
        assert sum(line.count(END) for line in lines) == tokens.count(256)
        made = Page(page("h", "l", [shown], by_document=True))
        styles = [value for tag, name, value in made.attributes if tag == "div" and name == "style"]
        assert len(set(styles)) == len(shown.blocks)


def test_a_picture_has_every_document_of_every_row(shards, tmp_path):
    mixture = TextMixture([shards, shards], [3, 1], 300, 0)
    figure = draw_rows(mixture, 2, 4, 80, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    left, right = figure.axes
    assert sum(len(points.get_offsets()) for points in left.collections) == 80
    first = sum(mixture.locate(row).source == 0 for row in range(80))
    assert f": {first / 80:.0%} of the rows" in left.get_legend().get_texts()[0].get_text()
    bars = right.patches
    assert len(bars) == sum(len(mixture.documents(row)) for row in range(2, 6))
    for line in range(2, 6):
        own = [bar for bar in bars if round(bar.get_y() + bar.get_height() / 2) == line]
        assert sum(bar.get_width() for bar in own) == 301


def test_an_empty_page_is_whole():
    assert Page(page("h", "l", [])).path == []
    assert Page(page("h", "l", [ShownRow("t", [], [ShownBlock("b", [Piece("…", (), 1)])])])).inside("i") == "…"


def run(*argv):
    return main(["show", *map(str, argv)])


def test_command(tmp_path, capsys, monkeypatch, qwen_vocab):
    path = tmp_path / "a.jsonl"
    rows = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(6)]
    path.write_text("bad\n" + "".join(json.dumps(row) + "\n" for row in rows))
    assert run(path, "--row=2", "--rows=2", "--loss-mask=assistant") == 0
    out, err = capsys.readouterr()
    assert re.findall(r"row (\d) \(a.jsonl:(\d), alpaca\)", out) == [("2", "4"), ("3", "5")]
    assert f"{LOSS[0]}a2<|im_end|>{LOSS[1]}" in out
    assert "skipped 1 x bad JSON (first: a.jsonl:1" in err
    assert "carries loss (assistant" in err
    assert run(path, f"--html={tmp_path / 'a.html'}") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a.html'}: 4 rows\n"
    assert "a3" in Page((tmp_path / "a.html").read_text()).inside("span")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for value, coloured in (("1", False), ("", True)):
        monkeypatch.setenv("NO_COLOR", value)
        assert run(path, "--rows=1") == 0
        assert ("\x1b[32m" in capsys.readouterr().out) == coloured


def test_rows_of_a_run_that_has_the_tokenizer_of_the_model_it_starts_from(tmp_path, capsys, qwen_vocab):
    (tmp_path / "a.txt").write_text("All work and no play. " * 200)
    qwen_vocab.save(tmp_path / "run" / "tokenizer")
    changes = {"data.tokenizer": "init_from", "init_from": tmp_path / "run", "data.sources.0.text": tmp_path / "a.txt"}
    asked = [f"--set={name}={value}" for name, value in changes.items()]
    assert run("--exp=quickstart", "--row=0", "--rows=1", f"--data-root={tmp_path}", *asked) == 0
    assert "All work and no play." in capsys.readouterr().out


def test_command_mistakes(tmp_path, capsys, qwen_vocab):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"instruction": "q", "output": "a"}) + "\n")
    for argv, code, message in (
        ([path, "--row=1"], 1, "has 1 rows that can be shown; wanted row 1"),
        ([tmp_path / "b.jsonl"], 1, "no file"),
        ([path, "--loss-mask=all"], 2, "known: assistant, finetune_py, all_but_user_content"),
        ([path, "--step=1"], 2, "--row=R"),
        ([path, "--exp=quickstart"], 2, "one of them"),
        (["--step=1"], 2, "wanted a FILE of chat data or --exp=NAME"),
        (["--exp=quickstart"], 2, "wanted --step=N or --row=R"),
    ):
        assert run(*argv) == code, argv
        assert message in capsys.readouterr().err


def test_rows_that_cannot_be_shown_are_named(tmp_path, capsys, qwen_vocab):
    two = {**CALL, "tool_calls": CALL["tool_calls"] * 2}
    path = tmp_path / "a.jsonl"
    rows = [{"messages": [USER, two], "tools": TOOLS}, CONVERSATION]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(path) == 0
    out, err = capsys.readouterr()
    assert "row 0 (a.jsonl:1) cannot be shown: the last turn makes 2 calls at once" in err
    assert out.startswith("row 1 (a.jsonl:2, openai)")
