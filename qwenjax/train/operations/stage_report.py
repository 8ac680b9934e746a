"""What a run prints and reports about the numbers of its stage. `loop.REPORTS` names the class of every task."""

import math
from pathlib import Path

from qwenjax import telemetry
from qwenjax.common.figures import markdown
from qwenjax.eval import accuracy
from qwenjax.telemetry import LOSS, Panel

TALK = "talk to it"


class StageReport:
    """The words about a task; the numbers are the task's.

    Attributes:
      picture: the file that `write` draws in the workdir.
    """

    picture = "loss.png"

    def __init__(self, task):
        self.task, self.experiment = task, task.experiment

    def progress(self, numbers: dict) -> list[str]:
        """Parts of the progress line, from the metrics of a step."""
        return [f"loss {numbers['loss']:.4f}", f"lr {numbers['lr']:.2e}", f"|g| {numbers['grad_norm']:.2f}"]

    def evaluation(self, metrics: dict[str, float]) -> str:
        """One line about an evaluation; `metrics` are not empty."""
        raise NotImplementedError

    def outcome(self, metrics: dict[str, float]) -> str:
        """The outcome of a finished run in a few words."""
        return self.evaluation(metrics)

    def write(self, workdir: Path, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        """Draws the picture of a finished run. Returns lines of markdown: the picture and tables.

        Args:
          rows: of metrics.jsonl.
          metrics: the last evaluation.
        """
        raise NotImplementedError

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        """Suggestions after a finished run: (purpose, command)."""
        return [(TALK, f"python -m qwenjax.chat --model={workdir}")]


class PretrainReport(StageReport):
    """Bits per byte of held-out text, next to what general compressors need."""

    def evaluation(self, metrics: dict[str, float]) -> str:
        others = ", ".join(f"{name} {value:.3f}" for name, value in self.task.compressors.items())
        ours = metrics["eval_bits_per_byte"]
        return f"held-out loss {metrics['eval_loss']:.4f}, {ours:.3f} bits per byte ({others})"

    def outcome(self, metrics: dict[str, float]) -> str:
        ours = metrics["eval_bits_per_byte"]
        beaten = [name for name, value in self.task.compressors.items() if ours < value]
        return f"{ours:.3f} bits per byte on held-out text" + (
            f", less than {' and '.join(beaten)} need" if beaten else ""
        )

    def write(self, workdir: Path, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        compressors = self.task.compressors
        held_out = Panel("held-out text", "bits per byte", ("eval_bits_per_byte",), compressors)
        telemetry.plot(rows, workdir / self.picture, [LOSS, held_out])
        values = {"this model": metrics.get("eval_bits_per_byte", math.nan), **compressors}
        table = [(name, f"{value:.3f}") for name, value in values.items()]
        return [
            f"![loss]({self.picture})",
            "",
            *markdown((f"held-out text, {self.task.held_out_bytes:,} bytes", "bits per byte"), table),
        ]

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        steps = self.experiment.steps
        return [
            (
                "longer, from here, with a fresh schedule",
                f"python -m qwenjax.train --exp={workdir} --set init_from={workdir} "
                f"--set steps={2 * steps} --workdir={workdir}-longer",
            ),
            (
                "what a step read, and from which documents",
                f"python -m qwenjax.data show --exp={workdir} --step={steps // 2}",
            ),
            (
                "your own text, in a larger model",
                "python -m qwenjax.train --exp=mid --set data.sources.0.text=PATH --workdir=runs/mine",
            ),
        ]


class SftReport(StageReport):
    """Loss and perplexity of held-out conversations."""

    def evaluation(self, metrics: dict[str, float]) -> str:
        return f"held-out loss {metrics['eval_loss']:.4f}, perplexity {metrics['eval_perplexity']:.2f}"

    def write(self, workdir: Path, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        held_out = Panel("held-out dialogues", "loss (nats per trained token)", ("eval_loss",))
        telemetry.plot(rows, workdir / self.picture, [LOSS, held_out])
        losses = [(r["step"], r["eval_loss"]) for r in rows if "eval_loss" in r]
        table = [(f"{step:,}", f"{loss:.4f}", f"{math.exp(min(loss, 50)):.2f}") for step, loss in losses]
        return [
            f"![loss]({self.picture})",
            "",
            *markdown(("step", "held-out loss", "perplexity"), table),
        ]

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        changes = " ".join(f"--set {change}" for change in self._reward_changes())
        command = f"python -m qwenjax.train --exp={workdir} --set task=reward --set init_from={workdir} {changes}"
        return [
            *super().next_steps(workdir),
            ("a reward model of the same shape, from preferences", f"{command} --workdir={workdir}-rm"),
        ]

    def _reward_changes(self) -> list[str]:
        """Settings in which the experiment of a reward model differs from this one."""
        lora, chat = self.experiment.lora, self.experiment.chat
        changes = ["dropout=0", """'chat.files=[{"path": "PREFERENCES"}]'"""]
        changes += ["chat.loss_mask=assistant"] * (chat.loss_mask != "assistant")
        changes += ["chat.truncate=turns"] * (chat.truncate == "end")
        if "head" in lora.modules_to_save:
            others = ", ".join(f'"{name}"' for name in lora.modules_to_save if name != "head")
            changes.append(f"'lora.modules_to_save=[{others}]'")
        return changes


class DpoReport(StageReport):
    """Pairwise loss and accuracy on held-out preferences."""

    def evaluation(self, metrics: dict[str, float]) -> str:
        return (
            f"held-out loss {metrics['eval_loss']:.4f}, accuracy {metrics['eval_accuracy']:.1%} of "
            f"{len(self.task.pairs):,} pairs"
        )

    def write(self, workdir: Path, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        panels = [
            Panel("loss", "pairwise loss", ("loss", "eval_loss"), {"chance": math.log(2)}),
            Panel("held-out pairs", "in the right order", ("eval_accuracy",), {"chance": 0.5}),
        ]
        telemetry.plot(rows, workdir / self.picture, panels)
        names = [Path(file.path).name for file in self.experiment.chat.files]
        return [f"![loss]({self.picture})", "", *accuracy.markdown_table(self.task.pairs, names)]


class RewardReport(DpoReport):
    """The same for a reward model, which cannot talk."""

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        return [
            ("its accuracy on other preferences", f"python -m qwenjax.eval --model={workdir} --table=4 --data FILE"),
            (
                "the best of several answers",
                f"python -m qwenjax.generate --model=POLICY --reward={workdir} --best-of=8 --temperature=1 PROMPT",
            ),
            (
                "a policy that learns from it (docs/alignment.md)",
                f"python -m qwenjax.train --exp=tiny_ppo --set init_from=POLICY --set rl.reward={workdir} "
                "--set chat.files.0.path=PROMPTS",
            ),
        ]
