"""Fixtures of the tokenizer tests: hard strings, a little corpus, running a command."""

import inspect
import json
import textwrap

import pytest
from hypothesis import strategies as st
from tokenizer_fixtures import either, goldens, small, source_code  # noqa: F401 - fixtures

from qwenjax.tokenizer.__main__ import main


@pytest.fixture(scope="session")
def anything():
    """Strategy: any text, rich in what tokenizers trip over."""
    surfaces = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "<0x41>", "<s>", "▁", "▅", "\u2047", "\ufeff"]
    blanks = ["  ", "\n\n", "\r\n", "\t", "\x00", "\x7f", "\u3000", "\xa0", "def f(x):\n    "]
    marks = ["e\u0301", "中文，", "👩\u200d👧", "123"]
    traps = surfaces + blanks + marks
    return st.lists(st.one_of(st.text(max_size=20), st.sampled_from(traps)), max_size=12).map("".join)


@pytest.fixture
def corpus(tmp_path):
    """A .jsonl of two documents and a line that is none."""
    path = tmp_path / "corpus.jsonl"
    texts = [inspect.getsource(textwrap), "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。\n" * 20]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join([*lines, "broken"]), encoding="utf-8")
    return path


@pytest.fixture
def command(capsys):
    """command(*words) -> (exit code, stdout, stderr) of `python -m qwenjax.tokenizer`."""

    def run(*words):
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run
