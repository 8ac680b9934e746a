"""What a run prints and reports about the numbers of its stage. `loop.REPORTS` names the class of every task."""

import math
from collections.abc import Sequence
from pathlib import Path

from qwenjax import telemetry
from qwenjax.common.figures import markdown
from qwenjax.eval import accuracy
from qwenjax.telemetry import LOSS, Panel


class StageReport:
    """The words about a task; the numbers are the task's.

    Attributes:
      picture: the file that `write` draws in the workdir. panels: what it shows.
    """

    picture = "loss.png"
    panels: Sequence[Panel]

    def __init__(self, task):
        self.task, self.experiment = task, task.experiment

    def progress(self, numbers: dict) -> list[str]:
        """Parts of the progress line, from the metrics of a step."""
        return [f"loss {numbers['loss']:.4f}", f"lr {numbers['lr']:.2e}", f"|g| {numbers['grad_norm']:.2f}"]

    def evaluation(self, metrics: dict[str, float]) -> str:
        """One line about an evaluation; `metrics` are not empty."""
        raise NotImplementedError

    def write(self, workdir: Path, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        """Draws the picture of a finished run from its `metrics.jsonl`. Returns markdown: the picture and `table`."""
        telemetry.plot(rows, workdir / self.picture, self.panels)
        return [f"![loss]({self.picture})", "", *self.table(rows, metrics)]

    def table(self, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        """The table of `write`."""
        raise NotImplementedError

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        """Suggestions after a finished run: (purpose, command)."""
        return [("talk to it", f"python -m qwenjax.chat --model={workdir}")]


class PretrainReport(StageReport):
    """Bits per byte of held-out text, next to what general compressors need."""

    def evaluation(self, metrics: dict[str, float]) -> str:
        others = ", ".join(f"{name} {value:.3f}" for name, value in self.task.compressors.items())
        return f"held-out loss {metrics['eval_loss']:.4f}, {metrics['eval_bits_per_byte']:.3f} bits per byte ({others})"

    @property
    def panels(self) -> Sequence[Panel]:
        return LOSS, Panel("held-out text", "bits per byte", ("eval_bits_per_byte",), self.task.compressors)

    def table(self, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        values = {"this model": metrics.get("eval_bits_per_byte", math.nan), **self.task.compressors}
        table = [(name, f"{value:.3f}") for name, value in values.items()]
        return markdown((f"held-out text, {self.task.held_out_bytes:,} bytes", "bits per byte"), table)

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        train = "python -m qwenjax.train"
        longer = f"--exp={workdir} --set init_from={workdir} --set steps={2 * self.experiment.steps}"
        show = f"python -m qwenjax.data show --exp={workdir} --step={self.experiment.steps // 2}"
        return [
            ("longer, from here, with a fresh schedule", f"{train} {longer} --workdir={workdir}-longer"),
            ("what a step read, and from which documents", show),
            ("your own text", f"{train} --exp=mid --set data.sources.0.text=PATH --workdir=runs/mine"),
        ]


class SftReport(StageReport):
    """Loss and perplexity of held-out conversations."""

    panels = LOSS, Panel("held-out dialogues", "loss (nats per trained token)", ("eval_loss",))

    def evaluation(self, metrics: dict[str, float]) -> str:
        return f"held-out loss {metrics['eval_loss']:.4f}, perplexity {metrics['eval_perplexity']:.2f}"

    def table(self, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        evaluated = [r for r in rows if "eval_loss" in r]
        table = [(f"{r['step']:,}", f"{r['eval_loss']:.4f}", f"{r['eval_perplexity']:.2f}") for r in evaluated]
        return markdown(("step", "held-out loss", "perplexity"), table)

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        """With a reward model, and the settings in which its experiment differs from this one."""
        lora, chat = self.experiment.lora, self.experiment.chat
        changes = ["task=reward", f"init_from={workdir}", "dropout=0", """'chat.files=[{"path": "PREFERENCES"}]'"""]
        changes += ["chat.loss_mask=assistant"] * (chat.loss_mask != "assistant")
        changes += ["chat.truncate=turns"] * (chat.truncate == "end")
        changes += ["'lora.modules_to_save=[]'"] * ("head" in lora.modules_to_save)
        command = f"python -m qwenjax.train --exp={workdir} --workdir={workdir}-rm"
        reward = " ".join((command, *(f"--set {change}" for change in changes)))
        return [*super().next_steps(workdir), ("a reward model of the same shape, from preferences", reward)]


class DpoReport(StageReport):
    """Pairwise loss and accuracy on held-out preferences."""

    panels = (
        Panel("loss", "pairwise loss", ("loss", "eval_loss"), {"chance": math.log(2)}),
        Panel("held-out pairs", "in the right order", ("eval_accuracy",), {"chance": 0.5}),
    )

    def evaluation(self, metrics: dict[str, float]) -> str:
        loss, share = metrics["eval_loss"], metrics["eval_accuracy"]
        return f"held-out loss {loss:.4f}, accuracy {share:.1%} of {len(self.task.pairs):,} pairs"

    def table(self, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        names = [Path(file.path).name for file in self.experiment.chat.files]
        return accuracy.markdown_table(self.task.pairs, names)


class RewardReport(DpoReport):
    """The same for a reward model, which cannot talk."""

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        best = f"python -m qwenjax.generate --model=POLICY --reward={workdir} --best-of=8 --temperature=1 PROMPT"
        ppo = f"--exp=tiny_ppo --set init_from=POLICY --set rl.reward={workdir} --set chat.files.0.path=PROMPTS"
        return [
            ("its accuracy on other preferences", f"python -m qwenjax.eval --model={workdir} --table=4 --data FILE"),
            ("the best of several answers", best),
            ("a policy that learns from it (docs/alignment.md)", f"python -m qwenjax.train {ppo}"),
        ]
