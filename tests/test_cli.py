"""Commands: one form, one set of exit codes, errors as one line."""

import os
import signal
import subprocess
import sys
import types

import pytest

from qwenjax.common import command_line
from qwenjax.config import lookup


def command(run) -> types.ModuleType:
    module = types.ModuleType("greet", "Says hello.\n\nTo everybody.")
    module.EXAMPLES = "\nexamples:\n  greet --loud\n"
    module.arguments = lambda add: add("--times", type=command_line.positive, default=1)
    module.run = run
    return module


def call(run, *words: str) -> int:
    return command_line.main("qwenjax.x", "Things.", {"greet": command(run)}, ["greet", *words])


def test_help_has_summary_text_examples_and_codes(capsys):
    for words, wanted in ((["--help"], ["Things.", "Says hello."]), (["greet", "--help"], ["To everybody.", "--loud"])):
        with pytest.raises(SystemExit) as end:
            command_line.main("qwenjax.x", "Things.", {"greet": command(None)}, words)
        assert end.value.code == 0
        said = capsys.readouterr().out
        assert all(text in said for text in wanted)
    assert command_line.CODES in said


def fail(error: BaseException):
    def run(options):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("no such file"), 1, "error: no such file\n"),
        (FileNotFoundError("gone"), 1, "error: gone\n"),
        (command_line.Usage("unknown name"), 2, "error: unknown name\n"),
        (KeyboardInterrupt(), 3, "\ninterrupted; run the same command again, what is finished is kept\n"),
    ],
)
def test_errors_become_a_line_and_a_code(error, code, said, capsys):
    assert call(fail(error)) == code
    assert capsys.readouterr().err == said


def test_other_errors_are_ours_and_keep_their_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        call(fail(ZeroDivisionError()))
    monkeypatch.setenv("QWENJAX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="bad"):
        call(fail(ValueError("bad")))


def test_terminate_is_an_interruption():
    assert call(lambda options: signal.raise_signal(signal.SIGTERM)) == 3


def test_numbers():
    assert (command_line.natural("0"), command_line.positive("12")) == (0, 12)
    for kind, text in (
        (command_line.natural, "-1"),
        (command_line.positive, "0"),
        (command_line.positive, "1.5"),
        (command_line.natural, ""),
    ):
        with pytest.raises(command_line.argparse.ArgumentTypeError, match="is not a whole number"):
            kind(text)
    with pytest.raises(SystemExit) as end:
        call(lambda options: 0, "--times=none")
    assert end.value.code == 2
    assert call(lambda options: options.times, "--times=7") == 7


def test_experiments_that_do_not_exist_are_bad_usage():
    options = command_line.argparse.Namespace(exp="quickstrt", set=[])
    with pytest.raises(command_line.Usage, match="Did you mean 'quickstart'"):
        lookup.experiment_from(options)
    with pytest.raises(command_line.Usage, match="FIELD=VALUE"):
        lookup.experiment_from(command_line.argparse.Namespace(exp="quickstart", set=["steps"]))
    assert lookup.experiment_from(command_line.argparse.Namespace(exp="quickstart", set=["steps=3"])).steps == 3


def test_a_reader_that_has_seen_enough_is_no_error():
    """As `… | head -1`: the pipe is closed before anything is written to it."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "qwenjax.train", "--exp=qwen14b", "--print-config"]
    found = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert found.stderr == b""
