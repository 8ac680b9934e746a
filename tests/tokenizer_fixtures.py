"""Fixtures of the tokenizer and chat format tests: recorded goldens and a small vocabulary."""

import argparse
import inspect
import json
import textwrap
from pathlib import Path

import pytest

GOLDENS = Path(__file__).parent / "goldens" / "tokenizer"
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
