"""A conversation's commands, history and interruptions, with a scripted model; and the command from a pipe."""

import io
from types import SimpleNamespace

import pytest
import tiny_model

from qwenjax.api.generation_defaults import GenerationDefaults
from qwenjax.api.model import Completion
from qwenjax.chat import __main__ as command
from qwenjax.chat.session import HELP, Exit, Session
from qwenjax.common import command_line
from qwenjax.tokenizer import Tokenizer


class Scripted:
    """A model that says the same thing in three pieces, and remembers what it was asked."""

    def __init__(self, window=4096, interrupt=False):
        self.vocabulary, self.window = tiny_model.tokenizer(), window
        self.generation_defaults = GenerationDefaults(chat=True)
        self.asked, self.interrupt = [], interrupt

    def complete(self, prompts, sampling, max_new_tokens, stop, seeds, on_text):
        self.asked.append((self.vocabulary.decode(prompts[0]), sampling, max_new_tokens, list(seeds)))
        for piece in ("I ", "do ", "not"):
            on_text(0, piece)
            if self.interrupt:
                raise KeyboardInterrupt
        return [Completion("I do not", [1, 2, 3], -1.0, "stop")]


def test_what_was_said_is_in_the_next_prompt():
    model, pieces = Scripted(), []
    session = Session(model, system="Be brief.")
    summary = session.answer("Do you?", pieces.append)
    assert "".join(pieces) == "I do not"
    assert summary.startswith("3 tokens")
    session.answer("Why?", pieces.append)
    assert model.asked[1][0] == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nDo you?<|im_end|>\n"
        "<|im_start|>assistant\nI do not<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert session.command(":history") == "user: Do you?\nassistant: I do not\nuser: Why?\nassistant: I do not"
    assert session.command(":clear") == "forgotten"
    assert session.command(":history") == "nothing yet"


def test_old_turns_leave_the_prompt_and_not_the_history():
    model = Scripted(window=150)
    session = Session(model, settings={"max_new_tokens": 10})
    for i in range(8):
        summary = session.answer(f"question {i}", lambda text: None)
    assert "old turns no longer fit" in summary
    assert "question 7" in model.asked[-1][0]
    assert "question 0" not in model.asked[-1][0]
    assert len(session.history) == 8


def test_an_interruption_stops_the_answer_and_keeps_what_came():
    session = Session(Scripted(interrupt=True))
    assert session.answer("go", lambda text: None).endswith("stopped")
    assert session.history == [("go", "I ")]


def test_settings():
    model = Scripted()
    session = Session(model, settings={"max_new_tokens": 20})
    assert session.command(":conf") == "temperature=0, repetition_penalty=1.0, max_new_tokens=20"
    changed = "temperature=0.5, top_k=0, top_p=0.9, repetition_penalty=1.0, max_new_tokens=20"
    assert session.command(":conf temperature=0.5 top_p=0.9") == changed
    assert session.command(":seed 7") == "seed=7"
    session.answer("x", lambda text: None)
    assert model.asked[0][1].top_p == 0.9
    assert model.asked[0][2:] == (20, [7])
    assert session.command(":conf reset").startswith("temperature=0,")
    assert session.command(":help") == HELP
    assert session.command(":) nice") is None
    for line, message in (
        (":conf tempera=1", "Did you mean 'temperature'"),
        (":conf top_p=2", "top_p <= 1"),
        (":conf top_k=x", "top_k='x': wanted a whole number"),
        (":conf max_new_tokens=0", "at least 1"),
        (":seed x", "wanted a whole number"),
        (":quit", "no command :quit; known: :help"),
    ):
        with pytest.raises(ValueError, match=message):
            session.command(line)
    assert session.settings == {"max_new_tokens": 20}
    with pytest.raises(Exit):
        session.command(":exit")


def test_from_a_pipe(tmp_path, monkeypatch, capsys):
    """The whole command on a tiny model: answers on stdout, the rest on stderr, errors do not end it."""
    folder = tiny_model.write(tmp_path / "tiny")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n:nonsense\n:history\n:exit\nnever asked\n"))
    words = [f"--model={folder}", "--max-new-tokens=3", "--temperature=0"]
    assert command_line.main_of("qwenjax.chat", command, words) == command_line.DONE
    out, err = capsys.readouterr()
    assert "user: hello" in out
    assert "never asked" not in out
    assert "tokens" in err
    assert "error: no command :nonsense" in err


def test_a_model_without_chatml_is_refused(tmp_path, monkeypatch, capsys):
    model = Scripted()
    other = SimpleNamespace(name="other", im_start=None, im_end=None, chat_template=None)
    other.check_chat = lambda: Tokenizer.check_chat(other)
    model.vocabulary = other
    with pytest.raises(ValueError, match="does not chat in ChatML"):
        Session(model)
