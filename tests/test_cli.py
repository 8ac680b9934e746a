"""Commands: one form, one set of exit codes, errors as one line."""

import json
import os
import signal
import subprocess
import sys
import tomllib
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from paths import ROOT

import qwenjax.__main__
from qwenjax.common import command_line
from qwenjax.config import lookup, to_dict


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
        (KeyboardInterrupt(), 3, "\ninterrupted; run the same command again, finished work is kept\n"),
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


# ---- `qwenjax COMMAND` ----


def ended(*words: str, module: str = "qwenjax") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `python -m MODULE WORDS…`."""
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, cwd=ROOT, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_the_list_of_commands_has_every_package_that_can_be_run():
    code, listed, _ = ended()
    assert code == 0
    assert ended("--help") == ended("-h") == (0, listed, "")
    for file in Path(qwenjax.__main__.__file__).parent.glob("*/__main__.py"):
        assert any(line.split()[:1] == [file.parent.name] and line.split()[1:] for line in listed.splitlines())
    assert command_line.CODES in listed


def test_an_unknown_command_is_bad_usage_and_the_nearest_is_named():
    code, out, error = ended("trian", "--exp=quickstart")
    assert (code, out) == (2, "")
    assert "no command 'trian'. Did you mean 'train'?" in error


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--exp=quickstart", "--print-config"],
        ["train", "--exp=quickstrt"],
        ["train", "--help"],
        ["plan"],
        ["data", "tokenize", "--help"],
        ["data", "stats", "no such folder"],
    ],
)
def test_a_command_does_the_same_under_both_names(words):
    assert ended(*words) == ended(*words[1:], module=f"qwenjax.{words[0]}")


def test_the_console_script_is_this_list():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert EntryPoint("qwenjax", scripts["qwenjax"], "console_scripts").load() is qwenjax.__main__.main


# ---- fields under their former names ----


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.peak=1", "error: optim.peak is now called optim.peak_lr\n"),
        ("rl.new_tokens=8", "error: rl.new_tokens is now called rl.max_new_tokens\n"),
        ("data.isolate=true", "error: data.isolate is now called data.document_mask\n"),
        ("chat.policy=assistant", "error: chat.policy is now called chat.loss_mask\n"),
        ("preference.calibrate=8", "error: preference.calibrate no longer exists\n"),
    ],
)
def test_a_renamed_field_is_refused_with_its_new_name(setting, message):
    assert ended("--exp=quickstart", "--set", setting, module="qwenjax.train") == (2, "", message)


def test_a_run_with_a_renamed_field_is_refused_in_a_sentence_that_says_what_to_do(tmp_path):
    stored = to_dict(lookup.experiment("quickstart"))
    stored["optim"]["peak"] = stored["optim"].pop("peak_lr")
    (tmp_path / "config.json").write_text(json.dumps(stored))
    said = (
        f"error: {tmp_path / 'config.json'}: optim.peak is now called optim.peak_lr; these settings are of an earlier "
        "version: correct them in config.json, or start the run again\n"
    )
    assert ended(f"--exp={tmp_path}", "--print-config", module="qwenjax.train") == (2, "", said)
