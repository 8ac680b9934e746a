"""What a run of reinforcement learning prints and reports: curves, responses before and after, alarms."""

from pathlib import Path
from typing import Any

import numpy as np

from qwenjax import telemetry
from qwenjax.common.figures import markdown
from qwenjax.telemetry import Panel
from qwenjax.train.operations.stage_report import StageReport
from qwenjax.train.rl.evaluation import summary

SHOWN = 8  # prompts in the table of responses
TITLES = {
    "eval_score": "score",
    "eval_gold": "gold score",
    "eval_kl": "KL to the reference, nats per response",
    "eval_entropy": "entropy, nats per token",
    "eval_length": "tokens per response",
    "eval_ended": "responses that end",
    "eval_unique": "different responses",
    "eval_lm_loss": "held-out loss on text",
}
PANELS = (
    Panel("score", "mean of a batch", ("score", "eval_score", "eval_gold")),
    Panel("KL to the reference", "nats per response", ("kl", "eval_kl")),
    Panel("entropy", "nats per token", ("entropy",)),
    Panel("length", "tokens per response", ("length", "eval_length")),
    Panel("value model", "explained variance of returns", ("explained_variance",)),
    Panel("held-out text", "nats per token", ("eval_lm_loss",)),
)


class RLReport(StageReport):
    """Scores, KL and lengths, compared with the policy that the run started from."""

    picture = "curves.png"

    def progress(self, numbers: dict) -> list[str]:
        return [
            f"score {numbers['score']:+.3f}",
            f"KL {numbers['kl']:.2f}",
            f"length {numbers['length']:.0f}",
            f"entropy {numbers['entropy']:.2f}",
        ]

    def evaluation(self, metrics: dict[str, float]) -> str:
        before = summary(self.task.evaluation.before)
        parts = [f"held-out prompts: score {before['eval_score']:+.3f} -> {metrics['eval_score']:+.3f}"]
        if "eval_gold" in metrics:
            parts.append(f"gold {before['eval_gold']:+.3f} -> {metrics['eval_gold']:+.3f}")
        length, ended = metrics["eval_length"], metrics["eval_ended"]
        parts.append(f"KL {metrics['eval_kl']:.2f}, {length:.0f} tokens, {ended:.0%} end")
        if "eval_lm_loss" in metrics:
            parts.append(f"loss on text {metrics['eval_lm_loss']:.4f}")
        return ", ".join(parts)

    def write(self, workdir: Path, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        panels = [panel for panel in PANELS if any(name in row for row in rows for name in panel.names)]
        telemetry.plot(rows, workdir / self.picture, panels)
        evaluation = self.task.evaluation
        raised, before = alarms(rows, metrics, evaluation.before), summary(evaluation.before)
        first = next((f"{row['eval_lm_loss']:.3f} (first)" for row in rows if "eval_lm_loss" in row), "")
        lines = [f"![curves]({self.picture})", "", *(f"**Alarm.** {text}\n" for text in raised)]
        lines += ["No alarms."] if not raised else []
        prompts = "prompts, some of them trained on" if self.task.mixture.files_without_held_out else "held-out prompts"
        numbers = [
            (title, f"{before[name]:.3f}" if name in before else first, f"{metrics[name]:.3f}")
            for name, title in TITLES.items()
            if name in metrics
        ]
        answers = [[_cell(example["prompt"][-1]["content"])] for example in evaluation.examples[:SHOWN]]
        for i, cells in enumerate(answers):
            for responses in (evaluation.before, evaluation.after):
                cells += [_cell(responses["answers"][i]), f"{responses['reward'][i]:+.2f}"]
        lines += ["", *markdown((f"{len(evaluation.examples)} {prompts}", "before", "after"), numbers)]
        return [*lines, "", *markdown(("prompt", "before", "score", "after", "score"), answers)]


def alarms(rows: list[dict], metrics: dict[str, float], before: dict[str, Any]) -> list[str]:
    """What looks wrong, in words, by `rows` of metrics.jsonl and the last evaluation; the thresholds are ours."""
    steps = [r for r in rows if "score" in r]
    if not steps:
        return []
    last, was = steps[-max(1, len(steps) // 10) :], summary(before)

    def late(name: str) -> float:
        """Mean over the last tenth of the run; 0 where there is none."""
        return float(np.mean([r[name] for r in last if name in r] or 0))

    raised = []
    kl, length, ended = metrics["eval_kl"], metrics["eval_length"], metrics["eval_ended"]
    if kl > 0.5 * max(length, 20):
        raised.append(
            f"KL explosion: {kl:.1f} nats per response, more than half a nat per token; raise rl.kl_coef or lower "
            "optim.peak_lr"
        )
    error = max(r["ratio_error_mean"] for r in steps)  # single tokens are off by 0.3 in correct bfloat16
    if error > 0.1:
        raised.append(
            f"sampling and training disagree: before an update the ratios of tokens were off by {error:.2g} on average "
            "where they should be 1; they use different kernels, or the precision is too low"
        )
    rise = metrics["eval_score"] - was["eval_score"]
    if "eval_gold" in metrics:
        score_std, gold_std = (max(float(np.std(before[name])), 1e-6) for name in ("reward", "gold_reward"))
        gain, proxy_gain = (metrics["eval_gold"] - was["eval_gold"]) / gold_std, rise / score_std
        noise = (2 / len(before["reward"])) ** 0.5  # standard error of either gain
        if proxy_gain > 2 * noise and gain < 0.5 * proxy_gain:
            raised.append(
                f"reward hacking: the score rose by {proxy_gain:.2f} standard deviations, and by {gain:+.2f} for the "
                "gold reward, which the policy did not learn from"
            )
    longer = length / max(was["eval_length"], 1)
    if longer > 1.5 and rise > 0:
        raised.append(f"length: responses have become {longer:.1f} times as long while the score rose; look at them")
    if ended < 0.5:
        raised.append(f"only {ended:.0%} of the responses end within rl.max_new_tokens; raise that")
    unique, unique_before = metrics["eval_unique"], was["eval_unique"]
    if unique < 0.5 * unique_before:
        raised.append(f"collapse: {unique:.0%} of the responses differ, {unique_before:.0%} before")
    explained, clipped = late("explained_variance"), late("clip_fraction")
    if explained < 0:
        raised.append(f"the value model explains {explained:.2f} of the returns' variance: less than a constant")
    if clipped > 0.3:
        raised.append(f"{clipped:.0%} of the tokens are clipped: updates are too large; lower optim.peak_lr")
    return raised


def _cell(text: str) -> str:
    """A text for a cell of a markdown table."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 200 else text[:197] + "…"
