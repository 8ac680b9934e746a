"""`python -m qwenjax.eval`: a checkpoint in, tables and pictures out."""

import json

import jax
import pytest
from flax import linen as nn

from qwenjax.common import command_line
from qwenjax.config import ModelConfig
from qwenjax.eval import __main__ as command
from qwenjax.eval.tasks import perplexity
from qwenjax.interop.huggingface.save import save_params
from qwenjax.model import transformer


def main(*argv: str) -> int:
    return command_line.main_of("qwenjax.eval", command, list(argv))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, qwen_vocab):
    config = ModelConfig(vocab=151_936, layers=1, embed=8, heads=1, ffn=8, context=8)
    params = jax.jit(lambda key: nn.unbox(transformer.init_params(config, key)))(jax.random.key(0))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_params(config, params, folder, tokenizer=qwen_vocab)
    return folder


def test_table_3_is_printed_kept_and_not_measured_twice(checkpoint, tmp_path, capsys, monkeypatch):
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("All happy families are alike; every unhappy family is unhappy in its own way. " * 3)
    asked = f"--model={checkpoint}", "--table=3", f"--text={text}", "--lengths=8,16", f"--out={out}"
    assert main(*asked) == 0
    printed = capsys.readouterr().out
    assert "tiny (T=8)" in printed
    assert "2645.09" in printed
    assert (out / "table3.txt").read_text() == printed
    result = json.loads((out / "table3.json").read_text())
    assert result["lengths"] == [8, 16]
    assert result["rows"]["plain"]["16"]["tokens"] == 15
    assert (out / "table3.png").stat().st_size < 100_000

    def again(*_):
        raise AssertionError("measured twice")

    monkeypatch.setattr(perplexity, "_score", again)
    assert main(*asked) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "nothing to measure: give --table=3, --table=4 or --tasks=passkey"),
        (["--table=12"], "known: passkey, entropy, table3, table4"),
        (["--tasks=paskey"], "no table or task 'paskey'"),
        (["--table=3", "--lengths=1,8"], "at least 2 each"),
        (["--table=3", "--lengths=8,64", "--tokens=32"], "tokens=32 are fewer"),
    ],
)
def test_bad_usage_exits_with_2_before_anything_is_read(options, words, capsys):
    assert main("--model=nowhere", *options) == 2
    assert words in capsys.readouterr().err


def test_a_model_that_is_not_there_is_one_line(tmp_path, capsys):
    assert main(f"--model={tmp_path / 'gone'}", "--tasks=passkey", f"--out={tmp_path}") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "gone" in error
    assert len(error.splitlines()) == 1
