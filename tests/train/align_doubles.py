"""Tiny stages of alignment for tests: chat data made of real lines, experiments on it, tasks on one device."""

import argparse
import contextlib
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import runs
from jax.experimental.compilation_cache import compilation_cache

from qwenjax import sharding
from qwenjax.common.jsonl import read_rows
from qwenjax.config import RL, AdamW, Chat, ChatFile, Data, Experiment, MeshShape, Source
from qwenjax.sharding import make_mesh
from qwenjax.train.loop import TASKS
from qwenjax.train.task import Task

SYSTEM = {"role": "system", "content": ""}
STEADY = AdamW(peak_lr=1e-2, warmup_steps=0, schedule="constant", weight_decay=0.0)
CLOCK = re.compile("second|mfu")

LETTERS = """
def letters(prompts, responses, answers):
    assert all(turns[-1]["role"] == "user" for turns in prompts)
    assert all(answer and turns[-1]["content"].startswith(answer) for turns, answer in zip(prompts, answers))
    return [float(response[:1] == "i") + 0.01 * len(response) for response in responses]
"""


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def says(text: str) -> dict:
    return {"role": "assistant", "content": text}


def lines() -> dict[str, str]:
    """Lines of real code and their first words: what is asked, and what a good answer is."""
    starts = r"^ +((if|elif|for|def|return|raise) [\w =.,()*:]{4,20})$"
    return dict(re.findall(starts, inspect.getsource(argparse), re.MULTILINE))


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_chats(folder: Path) -> None:
    """chat.jsonl, pairs.jsonl (with scores), lists.jsonl (of three) and prompts.jsonl."""
    asked, words = lines(), ("def", "for", "if", "return")
    rows: dict[str, list] = {name: [] for name in ("chat", "pairs", "lists", "prompts")}
    for i, (line, word) in enumerate(asked.items()):
        wrong = next(w for w in words[i % 4 :] + words if w != word)
        prompt, good, bad = [SYSTEM, user(line)], says(word), says(wrong)
        rows["chat"].append({"messages": [*prompt, good]})
        rows["pairs"].append({"prompt": prompt, "responses": [good, bad], "scores": [i % 4 + 1, 0]})
        rows["lists"].append({"prompt": prompt, "responses": [good, bad, says(f"{wrong} {wrong}")]})
        rows["prompts"].append({"prompt": prompt, "answer": word})
    for name, some in rows.items():
        write_rows(folder / f"{name}.jsonl", *some)


def stage(corpus: Path, task: str, file: str, start: Path | str = "", **change) -> Experiment:
    """A run of 8 steps on a file of `write_chats`."""
    settings = {
        "task": task,
        "init_from": str(start),
        "data": Data(tokenizer="init_from" if start else "train:512", seq_len=48, batch_size=8, eval_tokens=1000),
        "chat": Chat((ChatFile(str(corpus / file)),), validation=0.1),
        "optim": STEADY,
        "steps": 8,
        "eval_every": 4,
        "dropout": 0.0,
        "prompts": (),
    }
    return runs.experiment(corpus, **(settings | change))


def rl_stage(corpus: Path, task: str, start: Path | str, reward: Path | str, **change) -> Experiment:
    """Four iterations of sixteen responses; fields of `RL` are given as such."""
    names = {field.name for field in dataclasses.fields(RL)}
    more = {name: change.pop(name) for name in list(change) if name in names}
    small = {"max_new_tokens": 8, "value_warmup_steps": 1, "minibatches": 2, "epochs": 2, "eval_prompts": 8}
    small["value_optim"] = STEADY
    data = Data(tokenizer="init_from", seq_len=48, batch_size=16, eval_tokens=600)
    settings = {
        "data": data,
        "steps": 4,
        "eval_every": 0,
        "save_every": 1,
        "keep": 9,
        "rl": RL(str(reward), **(small | more)),
    }
    return stage(corpus, task, "prompts.jsonl", start, **(settings | change))


def texts(corpus: Path) -> tuple[Source, ...]:
    """Pretraining data, for the pretrained gradient."""
    return (Source(text=str(corpus / "text.jsonl")),)


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """Runs in this process use the first of its eight devices: collectives on two cores take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda shape, embed: make_mesh(shape, embed, jax.devices()[:1]))
        yield


@contextlib.contextmanager
def kept_programs(folder: Path) -> Iterator[None]:
    """What is compiled here is kept, and not compiled again by a run that resumes or a second task."""
    settings = {
        "jax_compilation_cache_dir": str(folder / "programs"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    compilation_cache.reset_cache()
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def run(experiment: Experiment, corpus: Path, workdir: Path):
    """A whole run in this process, on one device."""
    with one_device(), kept_programs(corpus):
        return runs.run(experiment, corpus, workdir)


def task_of(experiment: Experiment, corpus: Path, devices: int = 1, **mesh: int) -> Task:
    """A prepared task, as `fit` makes it."""
    task = TASKS[experiment.task](experiment, make_mesh(MeshShape(**mesh), 16, jax.devices()[:devices]))
    task.prepare(corpus / "data")
    return task


def numbers(workdir: Path) -> list[dict]:
    """metrics.jsonl without what the clock says."""
    rows = read_rows(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not CLOCK.search(k)} for row in rows]


def column(workdir: Path, name: str) -> list[float]:
    return [row[name] for row in numbers(workdir) if name in row]


def saved(workdir: Path, step: int) -> dict:
    """All that a checkpoint says of itself: hashes of every array, rows, frozen models, calibration."""
    meta = json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())
    return {name: meta[name] for name in meta.keys() - {"experiment", "tokenizer", "digest"}}
