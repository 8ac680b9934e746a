"""What a run of reinforcement learning says about itself: curves, answers before and after, alarms."""

from pathlib import Path
from typing import Any

import numpy as np

from qwenjax import telemetry
from qwenjax.telemetry import Panel
from qwenjax.train.rl.evaluation import summary

SHOWN = 8  # prompts in the table of answers
NAMES = {
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


def summary_line(metrics: dict[str, float], before: dict[str, float]) -> str:
    """One line on an evaluation, beside the policy that the run began with."""
    parts = [f"held-out prompts: score {before['eval_score']:+.3f} -> {metrics['eval_score']:+.3f}"]
    if "eval_gold" in metrics:
        parts.append(f"gold {before['eval_gold']:+.3f} -> {metrics['eval_gold']:+.3f}")
    parts.append(f"KL {metrics['eval_kl']:.2f}, {metrics['eval_length']:.0f} tokens, {metrics['eval_ended']:.0%} end")
    if "eval_lm_loss" in metrics:
        parts.append(f"loss on text {metrics['eval_lm_loss']:.4f}")
    return ", ".join(parts)


def alarms(rows: list[dict], metrics: dict[str, float], spread: dict[str, Any]) -> list[str]:
    """What looks wrong, in words; thresholds are ours.

    Args:
      rows: of metrics.jsonl. spread: what `Evaluation` found of the policy that the run began with.
    """
    before = summary(spread)
    steps = [r for r in rows if "score" in r]
    found = []
    if not steps:
        return found
    last = steps[-max(1, len(steps) // 10) :]

    def late(name: str) -> float:
        return sum(r[name] for r in last if name in r) / max(1, sum(name in r for r in last))

    if metrics.get("eval_kl", late("kl")) > 0.5 * max(metrics.get("eval_length", 0), 20):
        found.append(
            f"KL explosion: {metrics.get('eval_kl', late('kl')):.1f} nats per response, more than half a nat per "
            "token; raise rl.kl_coef or lower optim.peak_lr"
        )
    apart = max(r["ratio_error_mean"] for r in steps)  # single tokens are off by 0.3 in correct bfloat16
    if apart > 0.1:
        found.append(
            f"sampling and training disagree: before an update the ratios of tokens were off by {apart:.2g} on average "
            "where they should be 1; another kernel, or a precision that is too low"
        )
    proxy = metrics["eval_score"] - before["eval_score"]
    if "eval_gold" in metrics:
        units = [max(float(np.std(spread[name])), 1e-6) for name in ("reward", "gold_reward")]
        gain, rise = (metrics["eval_gold"] - before["eval_gold"]) / units[1], proxy / units[0]
        noise = (2 / len(spread["reward"])) ** 0.5  # standard error of either, in deviations
        if rise > 2 * noise and gain < 0.5 * rise:
            found.append(
                f"reward hacking: the score rose by {rise:.2f} standard deviations, and by {gain:+.2f} in the eyes of "
                "a judge that did not teach"
            )
    longer = metrics["eval_length"] / max(before["eval_length"], 1)
    if longer > 1.5 and proxy > 0:
        found.append(f"length: responses have become {longer:.1f} times as long while the score rose; look at them")
    if metrics["eval_ended"] < 0.5:
        found.append(f"only {metrics['eval_ended']:.0%} of the responses end within rl.max_new_tokens; raise that")
    if metrics["eval_unique"] < 0.5 * before["eval_unique"]:
        found.append(
            f"collapse: {metrics['eval_unique']:.0%} of the responses differ, {before['eval_unique']:.0%} before"
        )
    if any("explained_variance" in r for r in last) and late("explained_variance") < 0:
        found.append(
            f"the value model explains {late('explained_variance'):.2f} of the returns' variance: less than none"
        )
    if any("clip_fraction" in r for r in last) and late("clip_fraction") > 0.3:
        found.append(
            f"{late('clip_fraction'):.0%} of the tokens are clipped: updates are too large; lower optim.peak_lr"
        )
    return found


def write(task: Any, workdir: Path, rows: list[dict], metrics: dict[str, float]) -> list[str]:
    """Draws curves.png; lines of the report."""
    panels = [panel for panel in PANELS if any(name in row for row in rows for name in panel.names)]
    telemetry.plot(rows, workdir / "curves.png", panels)
    judged, before = task.evaluation, summary(task.evaluation.before)
    raised = alarms(rows, metrics, judged.before)
    asked = "prompts, of which it learns from some" if task.mixture.shared else "held-out prompts"
    lines = ["![curves](curves.png)", "", *(f"**Alarm.** {text}\n" for text in raised)]
    lines += ["No alarms."] if not raised else []
    lines += ["", f"| {len(judged.rows)} {asked} | before | after |", "| --- | --- | --- |"]
    for name, title in NAMES.items():
        if name in metrics:
            old = f"{before[name]:.3f}" if name in before else _first(rows, name)
            lines.append(f"| {title} | {old} | {metrics[name]:.3f} |")
    lines += ["", "| prompt | before | score | after | score |", "| --- | --- | --- | --- | --- |"]
    for i, row in enumerate(judged.rows[:SHOWN]):
        cells = [_cell(row["prompt"][-1]["content"])]
        for found in (judged.before, judged.after):
            cells += [_cell(found["answers"][i]), f"{found['reward'][i]:+.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _first(rows: list[dict], name: str) -> str:
    found = [row[name] for row in rows if name in row]
    return f"{found[0]:.3f} (first)" if found else ""


def _cell(text: str) -> str:
    """A text in a table's cell."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 200 else text[:197] + "…"
