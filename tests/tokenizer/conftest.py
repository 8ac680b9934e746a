"""Fixtures of the tokenizer room: a little text in files, and running a command."""

import inspect
import json
import textwrap

import pytest

from qwenjax.tokenizer.__main__ import main


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
