"""Experiment A: PPO makes texts more positive by a reward model of one half of people's ratings, and the other half,
a lexicon and the held-out loss of the language model say whether that is what it learnt.

LM -> SFT -> a proxy and a gold reward model on texts of their own -> PPO against the proxy in three arms: with the
pretraining loss, without it, and with scores given to the wrong responses.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from qwenjax.common.jsonl import read_rows

from . import data, floor, scoring
from .data import Text
from .outcome import Wanted
from .stages import Stage, Stages

ARMS = {  # PPO's settings beside those of sentiment_ppo
    "ptx": {},
    "no_ptx": {"rl.ptx_coef": 0, "rl.ptx_batch": 0},
    "shuffled": {"rl.shuffle": True},
}
REWARDS = ("proxy", "gold", "random")  # files of pairs; the last has the ratings of other texts
ASKED = 1024  # requests that are answered before and after
LATE = 5  # iterations over whose mean a noisy number at the end is taken

CLAIMS = (
    Wanted("proxy RM, accuracy at a gap of 1", lambda r: r["accuracy"]["proxy"]["1"], ">=", 0.70),
    Wanted("gold RM, accuracy at a gap of 1", lambda r: r["accuracy"]["gold"]["1"], ">=", 0.70),
    Wanted("RM of random labels, its distance from chance", lambda r: _off_chance(r["accuracy"]["random"]), "<=", 0.05),
    Wanted("KL before the first update, nats", lambda r: abs(r["arms"]["ptx"]["kl_first"]), "<=", 0.01),
    Wanted("sampler against trainer, ratio - 1", lambda r: r["arms"]["ptx"]["ratio_error"], "<=", 0.01),
    Wanted("gain by the gold RM, z", lambda r: r["arms"]["ptx"]["gold_z"], ">=", 0.6),
    Wanted("gain by the lexicon", lambda r: r["arms"]["ptx"]["vader_rise"], ">=", 0.2),
    Wanted("that gain in standard errors", lambda r: _errors(r["arms"]["ptx"]), ">=", 10),
    Wanted("gain by gold over gain by proxy", lambda r: _ratio(r["arms"]["ptx"]), ">=", 0.5),
    Wanted("KL, nats per response", lambda r: r["arms"]["ptx"]["kl"], "<=", 8),
    Wanted("share of distinct answers", lambda r: r["arms"]["ptx"]["unique"], ">=", 0.85),
    Wanted("LM loss above the pretrained model's, with ptx", lambda r: forgotten(r["arms"]["ptx"]), "<=", 0.35),
    Wanted(
        "how much higher it is without",
        lambda r: forgotten(r["arms"]["no_ptx"]) - forgotten(r["arms"]["ptx"]),
        ">=",
        0.3,
    ),
    Wanted("gain by the lexicon, scores shuffled", lambda r: r["arms"]["shuffled"]["vader_rise"], "<=", 0.1),
    Wanted("every seed gains by gold, z", lambda r: r["arms"]["ptx"]["gold_z"], ">=", 0.3, min),
    Wanted("every seed gains by the lexicon", lambda r: r["arms"]["ptx"]["vader_rise"], ">=", 0.1, min),
    Wanted("no seed explodes, KL", lambda r: r["arms"]["ptx"]["kl"], "<=", 16, max),
)


def make(texts: Sequence[Text], folder: Path) -> None:
    """The files that the stages read, unless they are there. No text of the part 'test' is in any."""
    learnt = [text for text in texts if text.part != "test"]
    data.write(folder / "texts.jsonl", ({"text": text.whole} for text in learnt))
    data.write(folder / "conversations.jsonl", map(data.conversation, learnt))
    data.write(folder / "prompts.jsonl", map(data.prompt, learnt))
    for name in REWARDS:
        mine = [text for text in texts if text.part == ("gold" if name == "gold" else "proxy")]
        rated = data.relabelled(mine) if name == "random" else mine
        data.write(folder / f"{name}.jsonl", map(data.preference, data.pairs(rated)))


def floors(texts: Sequence[Text]) -> dict[str, dict[str, float]]:
    """Accuracies that a reward model must be compared with, on the pairs of 'test'."""
    parts = {name: data.pairs([text for text in texts if text.part == name]) for name in data.PARTS}
    test = parts["test"]
    return {
        "length": scoring.accuracy(floor.length_margins(test), test),
        "linear, proxy": scoring.accuracy(floor.linear_margins(parts["proxy"], test), test),
        "linear, gold": scoring.accuracy(floor.linear_margins(parts["gold"], test), test),
    }


def stages(seed: int, arms: Sequence[str], files: Path, folder: Path) -> dict[str, Stage]:
    """The training runs of a seed, in their order, by name."""
    read = {"seed": seed, "data.sources.0.text": files / "texts.jsonl"}
    tuned = {"seed": seed, "init_from": folder / "sft"}

    def chat(name: str) -> dict[str, Path]:
        return {"chat.files.0.path": files / f"{name}.jsonl"}

    found = [
        Stage("lm", "sentiment_lm", read),
        Stage("sft", "sentiment_sft", {"seed": seed, "init_from": folder / "lm", **chat("conversations")}),
        *(Stage(f"rm-{name}", "sentiment_rm", tuned | chat(name)) for name in REWARDS[:2]),
    ]
    models = {"rl.reward": folder / "rm-proxy", "rl.gold_reward": folder / "rm-gold"}
    for arm in arms:
        settings = read | tuned | chat("prompts") | models | ARMS[arm]
        found.append(Stage(f"ppo-{arm}", "sentiment_ppo", settings))
    if "shuffled" in arms:  # the controls go together; no stage waits for this one
        found.append(Stage("rm-random", "sentiment_rm", tuned | chat("random")))
    return {stage.name: stage for stage in found}


def run(seed: int, todo: dict[str, Stage], stages: Stages, texts: Sequence[Text]) -> dict:
    """Everything of one seed: trains what is not trained, scores what is not scored."""
    done = {name: stages.run(stage) for name, stage in todo.items()}
    test = [text for text in texts if text.part == "test"]
    pairs = data.pairs(test)
    result = {"seed": seed, "accuracy": {}, "arms": {}}
    for name in (name for name in REWARDS if f"rm-{name}" in done):
        result["accuracy"][name] = scoring.accuracy(*scoring.margins(done[f"rm-{name}"], pairs))
    reward_models = {name: done[f"rm-{name}"] for name in ("proxy", "gold")}
    asked = [data.request(text.kind, text.word) for text in test]
    for name, stage in todo.items():
        if name.startswith("ppo-"):
            workdir, rl = done[name], stage.experiment.rl
            some = scoring.answerable(done["sft"], asked, rl)[:ASKED]
            before, after = (
                scoring.scored_answers(path, reward_models, some, stages.folder / f"answers-{path.name}.jsonl", rl)
                for path in (done["sft"], workdir)
            )
            result["arms"][name.removeprefix("ppo-")] = scoring.gains(before, after, [*reward_models]) | course(
                done["lm"], workdir, stage
            )
    return result


def course(lm: Path, workdir: Path, stage: Stage) -> dict:
    """What a PPO run's own log says: KL, curves, and the loss on held-out text; `lm`: the pretrained model's run."""
    rows, first = read_rows(workdir / "metrics.jsonl"), stage.experiment.rl.value_warmup_steps
    steps = [row for row in rows if "kl" in row]
    evals = [row for row in rows if "eval_kl" in row]
    begun = next(row for row in evals if row["step"] <= first)  # the value model alone has learnt
    return {
        "kl_first": begun["eval_kl"],
        "kl": statistics.fmean(row["kl"] for row in steps[-LATE:]),
        "ratio_error": max(row["ratio_error"] for row in steps),
        "lm_loss_sft": begun["eval_lm_loss"],
        "lm_loss_pretrained": [row for row in read_rows(lm / "metrics.jsonl") if "eval_loss" in row][-1]["eval_loss"],
        "lm_loss": evals[-1]["eval_lm_loss"],
        "curves": {
            "step": [row["step"] for row in evals],
            **{name: [row[f"eval_{name}"] for row in evals] for name in ("score", "gold", "kl", "lm_loss")},
        },
    }


def _off_chance(accuracy: dict[str, float]) -> float:
    return abs(accuracy["1"] - 0.5)


def _errors(arm: dict) -> float:
    return arm["vader_rise"] / arm["vader_error"]


def _ratio(arm: dict) -> float:
    return arm["gold_z"] / arm["proxy_z"]


def forgotten(arm: dict) -> float:
    """By how much the loss on held-out text is above that of the pretrained model."""
    return arm["lm_loss"] - arm["lm_loss_pretrained"]
