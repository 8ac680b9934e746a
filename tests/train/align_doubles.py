"""Tiny stages of alignment for tests: chat data made of real lines, experiments on it, tasks on a mesh of one device."""

import argparse
import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import jax
from runs import experiment

from qwenjax import sharding
from qwenjax.config import RL, AdamW, Chat, ChatFile, Data, Experiment, MeshShape, Preference, Source
from qwenjax.jsonl import read_rows
from qwenjax.train.loop import TASKS
from qwenjax.train.task import Task

SYSTEM = {"role": "system", "content": ""}
STEADY = AdamW(peak=1e-2, warmup=0, schedule="constant", decay=0.0)
CLOCK = re.compile("seconds|per_second|mfu")


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
        "data": Data(tokenizer="init_from" if start else "train:512", length=48, batch=8, eval_tokens=1000),
        "chat": Chat((ChatFile(str(corpus / file)),), validation=0.1),
        "optim": STEADY,
        "steps": 8,
        "eval_every": 4,
        "dropout": 0.0,
        "prompts": (),
    }
    return experiment(corpus, **(settings | change))
