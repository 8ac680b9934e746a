"""`qwenjax.generate`: options that reach the decode loop."""

import pytest
import tiny_model

import qwenjax
from qwenjax.common import command_line
from qwenjax.generate import __main__ as command
from qwenjax.generate.decode import Request, generate

PROMPT, LIMIT = "import argparse, what else?", 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("generate") / "tiny", generation={"eos_token_id": 1})


@pytest.fixture(scope="module")
def expected(folder):
    """What the decode loop writes with some options."""
    model = qwenjax.load(folder, context=8, ntk=True)

    def run(**options):
        size = model.tokenizer.size
        request = Request(model.encode(PROMPT), LIMIT)
        stops = [*{model.tokenizer.eot, 1}]
        (out,) = generate(model.network, model.params, [request], size=size, stops=stops, **options)
        return model.tokenizer.decode(out.ids)

    return run


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ((), {}),
        (("--frozen-ntk",), {"frozen_ntk": True}),
        (("--kv-cache=int8",), {"kv_cache": "int8"}),
        (("--kv-cache=int8_released", "--frozen-ntk"), {"kv_cache": "int8_released", "frozen_ntk": True}),
    ],
)
def test_cache_and_frozen_ntk_are_options(flags, options, folder, expected, capsys):
    """A text of several times T: each option changes what is written."""
    model = f"--model={folder}", "--set=context=8", "--set=ntk=true", f"--max-new-tokens={LIMIT}"
    assert command_line.main_of("qwenjax.generate", command, [*model, *flags, PROMPT]) == 0
    written = capsys.readouterr().out
    assert written == PROMPT + expected(**options) + "\n"
    assert not options or expected() != expected(**options)
