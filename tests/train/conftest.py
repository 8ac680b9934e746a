"""Whole runs that several tests compare with."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import align_doubles
import pytest
import runs

from qwenjax.config import from_dict, to_dict


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Two hundred short documents of real text: tests of this project, frozen, so that no change moves a run."""
    folder = tmp_path_factory.mktemp("corpus")
    text = gzip.decompress((Path(__file__).parent / "corpus.txt.gz").read_bytes()).decode()
    pieces = [text[i : i + 700] for i in range(0, 140_000, 700)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    return folder


@pytest.fixture(scope="session")
def uninterrupted(corpus) -> Path:
    """The workdir of a run in this process, of 12 steps."""
    workdir = corpus / "uninterrupted"
    outcome = runs.run(runs.experiment(corpus), corpus, workdir)
    assert outcome.finished
    assert outcome.step == 12
    return workdir


@pytest.fixture(scope="session")
def killable(corpus) -> Path:
    """The config file of a command that saves often; corpus/whole is the workdir of its uninterrupted run."""
    path = corpus / "killable.json"
    often = runs.experiment(corpus, steps=30, save_every=3, eval_every=15, sample_every=15)
    path.write_text(json.dumps(to_dict(often)))
    codes, said = runs.ended(runs.command(corpus, corpus / "whole", path))
    assert codes == [0], said
    return path


@pytest.fixture(scope="session")
def pair(corpus, killable) -> Path:
    """The same for two processes, without samples; corpus/pair is the workdir."""
    path = corpus / "pair.json"
    often = from_dict(json.loads(killable.read_text()))
    path.write_text(json.dumps(to_dict(replace(often, sample_every=0, prompts=()))))
    codes, said = runs.ended(*runs.two(corpus, corpus / "pair", path))
    assert codes == [0, 0], said
    return path


# ---- alignment: each stage starts from the one before ----


@pytest.fixture(scope="session")
def chats(corpus) -> Path:
    """The corpus, and beside it conversations, preferences and prompts."""
    align_doubles.write_chats(corpus)
    return corpus


def _stage(name: str, chats: Path, experiment) -> Path:
    """The workdir of a finished run on one device."""
    assert align_doubles.run(experiment, chats, chats / name).finished
    return chats / name


@pytest.fixture(scope="session")
def base(chats) -> Path:
    """A pretrained model, of 12 steps."""
    return _stage("base", chats, runs.experiment(chats, eval_every=0, prompts=()))


@pytest.fixture(scope="session")
def sft(chats, base) -> Path:
    """Fine-tuned until most answers end."""
    change = {"steps": 40, "eval_every": 20, "save_every": 20, "dropout": 0.1}
    return _stage("sft", chats, align_doubles.stage(chats, "sft", "chat.jsonl", base, **change))


@pytest.fixture(scope="session")
def rm(chats, sft) -> Path:
    """A reward model from it."""
    return _stage("rm", chats, align_doubles.stage(chats, "reward", "pairs.jsonl", sft, save_every=4))


@pytest.fixture(scope="session")
def letters(chats) -> str:
    """A reward function: 1 for what begins as "if" does, and a little for length."""
    (chats / "letters.py").write_text(align_doubles.LETTERS)
    return f"{chats / 'letters.py'}:letters"
