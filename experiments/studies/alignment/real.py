"""Experiment C: a real model of 135M parameters through all stages with adapters, small enough for two CPU cores.

SmolLM2-135M-Instruct is fine-tuned on dialogues and on requests for short texts; a text that is in neither says what it
forgot. A reward model learns from 400 comparisons, against a linear model of words that learns from the same. GRPO
teaches the fine-tuned model what the reward model likes, and a lexicon that nothing was trained on scores the result.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from qwenjax.common.jsonl import read_rows

from . import data, floor, scoring
from .data import RatedPair, Text
from .outcome import Wanted
from .sentiment import LATE
from .stages import Stage, Stages

COMPARISONS = 400  # pairs that reward model and linear model learn from
TEST_PAIRS = 400  # pairs that they are tested on
ASKED = 128  # requests that are answered before and after
WINDOW, TOKENS = 512, 16_384  # of the other text

CLAIMS = (
    Wanted("SFT, fall of the loss on held-out dialogues", lambda r: r["sft"]["fall"], ">=", 0.05),
    Wanted("SFT, rise of the perplexity of another text", lambda r: r["sft"]["perplexity_rise"], "<=", 0.02),
    Wanted("RM, accuracy above a linear model's", lambda r: _above(r, "linear"), ">=", 0.02),
    Wanted("RM, accuracy above length's", lambda r: _above(r, "length"), ">=", 0.02),
    Wanted("GRPO, gain by the reward model, z", lambda r: r["arms"]["grpo"]["proxy_z"], ">=", 0.3),
    Wanted("GRPO, gain by the lexicon", lambda r: r["arms"]["grpo"]["vader_rise"], ">=", 0.1),
    Wanted("GRPO, KL, nats per response", lambda r: r["arms"]["grpo"]["kl"], "<=", 8),
)


@dataclass(frozen=True)
class Real:
    """The experiment, for a model.

    Attributes:
      model: SmolLM2-135M-Instruct, in any form that `--model` takes. chat: dialogues, in any form that
        `qwenjax.data convert` reads. text: plain text that the model is not fine-tuned on.
    """

    model: Path
    chat: Path
    text: Path

    ARMS: ClassVar[dict[str, dict]] = {"grpo": {}}
    CLAIMS: ClassVar[tuple[Wanted, ...]] = CLAIMS

    def make(self, texts: Sequence[Text], folder: Path) -> None:
        """The files that the stages read, unless they are there."""
        from qwenjax.data.conversations.convert import convert

        learnt = [text for text in texts if text.part != "test"]
        if not (dialogues := folder / "dialogues.jsonl").exists():
            folder.mkdir(parents=True, exist_ok=True)
            convert([self.chat], dialogues, to="conversation")
        data.write(folder / "conversations.jsonl", map(data.conversation, learnt))
        data.write(folder / "prompts.jsonl", map(data.prompt, learnt))
        data.write(folder / "few.jsonl", map(data.preference, few(texts)))

    def floors(self, texts: Sequence[Text]) -> dict[str, dict[str, float]]:
        """Accuracies that the reward model must be compared with, on the same pairs of 'test'."""
        test = tested(texts)
        return {
            "length": scoring.accuracy(floor.length_margins(test), test),
            "linear": scoring.accuracy(floor.linear_margins(few(texts), test), test),
        }

    def stages(self, seed: int, arms: Sequence[str], files: Path, folder: Path) -> dict[str, Stage]:
        """The training runs of a seed, in their order, by name."""
        chat = json.dumps([{"path": str(files / f"{name}.jsonl")} for name in ("dialogues", "conversations")])
        start = {"seed": seed, "init_from": self.model}
        found = [
            Stage("sft", "smollm2_sft", start | {"chat.files": chat}),
            Stage("rm", "smollm2_rm", start | {"chat.files.0.path": files / "few.jsonl", "data.seq_len": 72}),
        ]
        for arm in arms:
            models = {"init_from": folder / "sft", "rl.reward": folder / "rm"}
            sizes = {"data.seq_len": 72, "rl.max_new_tokens": 32, "chat.files.0.path": files / "prompts.jsonl"}
            found.append(Stage(f"rl-{arm}", "smollm2_grpo", {"seed": seed} | models | sizes | self.ARMS[arm]))
        return {stage.name: stage for stage in found}

    def run(self, seed: int, todo: dict[str, Stage], stages: Stages, texts: Sequence[Text]) -> dict:
        """Everything of one seed: trains what is not trained, scores what is not scored."""
        done = {name: stages.run(stage) for name, stage in todo.items()}
        tuned = [row["eval_loss"] for row in read_rows(done["sft"] / "metrics.jsonl") if "eval_loss" in row]
        before, after = (self.perplexity(path, stages.folder / "perplexity") for path in (self.model, done["sft"]))
        result = {
            "seed": seed,
            "sft": {"fall": tuned[0] - tuned[-1], "perplexity_rise": after / before - 1},
            "accuracy": {"rm": scoring.accuracy(*scoring.margins(done["rm"], tested(texts)))},
            "floors": self.floors(texts),
            "arms": {},
        }
        asked = [data.request(text.kind, text.word) for text in texts if text.part == "test"]
        for name, stage in todo.items():
            if name.startswith("rl-"):
                rl = stage.experiment.rl
                some = scoring.answerable(done["sft"], asked, rl)[:ASKED]
                old, new = (
                    scoring.scored_answers(
                        path, {"proxy": done["rm"]}, some, stages.folder / f"answers-{path.name}.jsonl", rl
                    )
                    for path in (done["sft"], done[name])
                )
                arm = name.removeprefix("rl-")
                result["arms"][arm] = scoring.gains(old, new, ["proxy"]) | course(done[name])
        return result

    def perplexity(self, model: Path, kept: Path) -> float:
        """Of the text, in windows that the model was trained on; kept in a folder."""
        from qwenjax import api
        from qwenjax.eval.task import ResultCache, Settings, model_key
        from qwenjax.eval.tasks import perplexity

        settings = Settings(text=str(self.text), lengths=(WINDOW,), tokens=TOKENS)
        log = ResultCache(kept, {"model": model_key(str(model))})
        found = perplexity.measure(api.load(model), settings, log)
        return perplexity.perplexity(found["rows"]["plain"][str(WINDOW)])


def few(texts: Sequence[Text]) -> list[RatedPair]:
    """What the reward model learns from."""
    return data.pairs(text for text in texts if text.part == "proxy")[:COMPARISONS]


def tested(texts: Sequence[Text]) -> list[RatedPair]:
    """What it is tested on."""
    return data.pairs(text for text in texts if text.part == "test")[:TEST_PAIRS]


def course(workdir: Path) -> dict:
    """What the run's own log says: KL and curves."""
    rows = read_rows(workdir / "metrics.jsonl")
    steps, evals = ([row for row in rows if name in row] for name in ("kl", "eval_kl"))
    curves = {"step": [row["step"] for row in evals]} | {
        n: [row[f"eval_{n}"] for row in evals] for n in ("score", "kl")
    }
    return {"kl": statistics.fmean(row["kl"] for row in steps[-LATE:]), "curves": curves}


def _above(result: dict, name: str) -> float:
    return result["accuracy"]["rm"]["0.5"] - result["floors"][name]["0.5"]
