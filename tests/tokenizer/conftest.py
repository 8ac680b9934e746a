"""Fixtures of the tokenizer: recorded goldens, a small vocabulary, hard strings, a little corpus, running a command."""

import argparse
import inspect
import json
import textwrap
from pathlib import Path

import pytest
from hypothesis import strategies as st

from qwenjax.tokenizer.__main__ import main

GOLDENS = Path(__file__).parent.parent / "goldens" / "tokenizer"
CHINESE = "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。\n"


@pytest.fixture(scope="session")
def goldens():
    """Recorded from the original tokenizer: encode, decode and chatml cases."""
    return {name: json.loads((GOLDENS / f"{name}.json").read_text()) for name in ("encode", "decode", "chatml")}


@pytest.fixture(scope="session")
def source_code() -> list[str]:
    return [inspect.getsource(argparse), inspect.getsource(textwrap), CHINESE * 20]


@pytest.fixture(scope="session")
def small(source_code, tmp_path_factory):
    """A sentencepiece vocabulary of 1,000 ids, for Python source and a little Chinese."""
    from qwenjax.tokenizer import sentencepiece

    return sentencepiece.train(source_code, 1000, tmp_path_factory.mktemp("spm") / "tokenizer.model")


@pytest.fixture(params=["qwen_vocab", "small"])
def either(request):
    """Each kind of tokenizer in turn."""
    return request.getfixturevalue(request.param)


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
