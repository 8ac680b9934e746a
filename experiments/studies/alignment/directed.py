"""Experiment B: the report's whole path (§3.2), asked for a positive or a negative text.

LM -> SFT -> preference-model pretraining (PMP) on reviews -> a reward model from 1000 comparisons of tweets and
newspaper sentences -> PPO with the report's preset. Whoever says one nice word to everything gains nothing: half of the
requests want the other direction, which a gold reward model on texts of its own looks for as well.

PMP and the gold model learn in two stages: first what people like, then to give what was asked for. A text alone and a
direction alone say nothing about which answer is better, and a model that learns both at once stays at chance
(measured: 50.0 % after 500 steps; 72 % after 100 from a model that knows what people like).
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from qwenjax.common.jsonl import read_rows

from . import data, floor, scoring
from .data import DIRECTIONS, RatedPair, Text
from .outcome import Wanted
from .sentiment import ASKED, course, forgotten
from .stages import Stage, Stages

ARMS = {"preset": {}}  # the one there is
REVIEWS = ("movie review", "product review")  # what PMP reads; the reward model proper reads the other kinds
COMPARISONS = 1000  # rows that the reward model proper is trained on: half as many pairs, in both directions
CLEAR = 1.5  # distance from neutral of the texts of SFT
STEPS = {"rm-plain": 1000, "rm-directed": 1000, "rm-few": 150}  # of training: on likes, on requests, on comparisons

CLAIMS = (
    Wanted("PMP then RM, accuracy at a gap of 1", lambda r: r["accuracy"]["rm"]["1"], ">=", 0.6),
    Wanted(
        "by how much RM without PMP is worse",
        lambda r: r["accuracy"]["rm"]["0.5"] - r["accuracy"]["alone"]["0.5"],
        ">=",
        0.02,
    ),
    Wanted("policy the same after the value-only iterations", lambda r: r["arms"]["preset"]["kept"], ">=", 1),
    Wanted("fall of the value loss in them", lambda r: r["arms"]["preset"]["value_fall"], ">=", 0.3),
    *(
        Wanted(f"gain by the gold RM, {one} asked for, z", lambda r, d=one: r["arms"]["preset"][d]["gold_z"], ">=", 0.4)
        for one in DIRECTIONS
    ),
    Wanted("KL, nats per response", lambda r: r["arms"]["preset"]["kl"], "<=", 8),
    Wanted("LM loss above the pretrained model's", lambda r: forgotten(r["arms"]["preset"]), "<=", 0.35),
)


def make(texts: Sequence[Text], folder: Path) -> None:
    """The files that the stages read, unless they are there. No text of the part 'test' is in any."""
    learnt = [text for text in texts if text.part != "test"]
    data.write(folder / "directed-texts.jsonl", map(asked_for, learnt))
    clear = (text for text in learnt if abs(text.rating) >= CLEAR)
    data.write(folder / "directed.jsonl", (data.conversation(text, data.leaning(text)) for text in clear))
    data.write(folder / "directed-prompts.jsonl", (data.prompt(text, way) for text in learnt for way in DIRECTIONS))
    for name, some in comparisons(texts).items():
        if name != "test":
            data.write(folder / f"directed-{name}.jsonl", map(data.preference, some))


def asked_for(text: Text) -> dict[str, str]:
    """A row of the language model's text: what one may ask for, and the text. As pretraining data have instructions
    among them (report §2.1), so that "negative" is a word of the vocabulary and means something before SFT.
    """
    asked = data.request(text.kind, text.word, data.leaning(text))[-1]["content"]
    return {"text": f"{asked}\n{text.whole}"}


def comparisons(texts: Sequence[Text]) -> dict[str, list[RatedPair]]:
    """Pairs in both directions: to pretrain on, to tune on, of the gold reward model, and to test on."""

    def plain(part: str, kinds: Sequence[str], partners: int = data.PARTNERS) -> list[RatedPair]:
        return data.pairs((text for text in texts if text.part == part and text.kind in kinds), partners)

    kinds = [*data.KINDS.values()]
    others = [kind for kind in kinds if kind not in REVIEWS]
    likes = {"pmp": plain("proxy", REVIEWS), "gold": plain("gold", kinds)}
    return {
        **{f"{name}-plain": some for name, some in likes.items()},
        **{name: data.both_directions(some, plain=True) for name, some in likes.items()},
        "rm": data.both_directions(plain("proxy", others, 1))[:COMPARISONS],
        "test": data.both_directions(plain("test", others)),
    }


def floors(texts: Sequence[Text]) -> dict[str, dict[str, float]]:
    """Accuracies that a reward model must be compared with, on pairs of 'test'."""
    pairs = comparisons(texts)
    return {
        "length": scoring.accuracy(floor.length_margins(pairs["test"]), pairs["test"]),
        "linear, 1000 comparisons": scoring.accuracy(floor.linear_margins(pairs["rm"], pairs["test"]), pairs["test"]),
    }


def stages(seed: int, arms: Sequence[str], files: Path, folder: Path) -> dict[str, Stage]:
    """The training runs of a seed, in their order, by name."""
    read = {"seed": seed, "data.sources.0.text": files / "directed-texts.jsonl"}
    tuned = {"seed": seed, "init_from": folder / "sft"}

    def chat(name: str) -> dict[str, Path]:
        return {"chat.files.0.path": files / f"{name}.jsonl"}

    def reward(name: str, start: str, pairs: str, steps: str) -> Stage:
        settings = {"init_from": folder / start, "steps": STEPS[steps], "optim.warmup_steps": STEPS[steps] // 10}
        return Stage(name, "sentiment_rm", {"seed": seed} | settings | chat(f"directed-{pairs}"))

    longer = {"steps": 1000, "optim.peak_lr": 3e-3}  # to say what is asked for is more to learn than a form
    found = [
        Stage("lm", "sentiment_lm", read),
        Stage("sft", "sentiment_sft", {"seed": seed, "init_from": folder / "lm"} | longer | chat("directed")),
        reward("pmp-plain", "sft", "pmp-plain", "rm-plain"),
        reward("pmp", "pmp-plain", "pmp", "rm-directed"),
        reward("rm", "pmp", "rm", "rm-few"),
        reward("rm-alone", "sft", "rm", "rm-few"),
        reward("rm-gold-plain", "sft", "gold-plain", "rm-plain"),
        reward("rm-gold", "rm-gold-plain", "gold", "rm-directed"),
    ]
    models = {"rl.reward": folder / "rm", "rl.gold_reward": folder / "rm-gold"}
    for arm in arms:
        settings = read | tuned | chat("directed-prompts") | models | ARMS[arm]
        found.append(Stage(f"ppo-{arm}", "directed_ppo", settings))
    return {stage.name: stage for stage in found}


def run(seed: int, todo: dict[str, Stage], stages: Stages, texts: Sequence[Text]) -> dict:
    """Everything of one seed: trains what is not trained, scores what is not scored."""
    done = {name: stages.run(stage) for name, stage in todo.items()}
    pairs = comparisons(texts)["test"]
    result = {"seed": seed, "accuracy": {}, "arms": {}}
    for name, workdir in (("pmp", "pmp"), ("rm", "rm"), ("alone", "rm-alone"), ("gold", "rm-gold")):
        result["accuracy"][name] = scoring.accuracy(*scoring.margins(done[workdir], pairs))
    reward_models = {"proxy": done["rm"], "gold": done["rm-gold"]}
    test = [text for text in texts if text.part == "test"]
    for name, stage in todo.items():
        if name.startswith("ppo-"):
            workdir, rl = done[name], stage.experiment.rl
            found = course(done["lm"], workdir, stage) | warm_up(done["sft"], workdir, stage)
            for way in DIRECTIONS:
                asked = [data.request(text.kind, text.word, way) for text in test]
                some = scoring.answerable(done["sft"], asked, rl)[: ASKED // 2]
                before, after = (
                    scoring.scored_answers(
                        path, reward_models, some, stages.folder / f"answers-{path.name}-{way}.jsonl", rl
                    )
                    for path in (done["sft"], workdir)
                )
                found[way] = scoring.gains(before, after, [*reward_models])
            result["arms"][name.removeprefix("ppo-")] = found
    return result


def warm_up(sft: Path, workdir: Path, stage: Stage) -> dict[str, float]:
    """What the value-only iterations did: `kept` is 1 if every array of the policy is bit by bit that of the SFT run
    after them, `value_fall` by what share their loss fell, first and last tenth.
    """
    last = stage.experiment.rl.value_warmup_steps
    start = hashes(max((sft / "checkpoints").iterdir(), key=lambda step: int(step.name)))
    end = hashes(workdir / "checkpoints" / str(last))
    losses = [
        row["value_loss"] for row in read_rows(workdir / "metrics.jsonl") if row["step"] <= last and "value_loss" in row
    ]
    some = max(1, len(losses) // 10)
    fall = 1 - statistics.fmean(losses[-some:]) / statistics.fmean(losses[:some])
    return {"kept": float(start == end), "value_fall": fall}


def hashes(checkpoint: Path) -> dict[str, str]:
    """The hash of every parameter array in a checkpoint."""
    kept = json.loads((checkpoint / "meta" / "metadata").read_text())["hashes"]
    return {name: value for name, value in kept.items() if name.startswith("['params']")}
