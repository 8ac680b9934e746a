"""Whole runs that several tests compare with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import runs
from paths import ROOT

from qwenjax.config import from_dict, to_dict


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Two hundred short documents of real text: these tests."""
    folder = tmp_path_factory.mktemp("corpus")
    text = "".join(path.read_text() for path in sorted((ROOT / "tests").rglob("*.py")))
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
