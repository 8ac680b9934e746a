"""Supervised fine-tuning (report §3.1): next-token prediction of what the assistant says, on packed dialogues."""

import math
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from qwenjax import telemetry
from qwenjax.chat_format import chatml
from qwenjax.config import Experiment
from qwenjax.data.batches.conversations import DialogueMixture, validation_rows
from qwenjax.data.conversations.encode import Encoding
from qwenjax.data.conversations.folder import Dialogues
from qwenjax.telemetry import LOSS, Panel
from qwenjax.train import step as steps
from qwenjax.train.task import Task

SHOWN = 3  # held-out dialogues that a sample answers, when the experiment names no prompts


def batch_shapes(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of one step's batch."""
    shape = (experiment.data.batch_size, experiment.data.seq_len)
    names = {"inputs": np.int32, "targets": np.int32, "positions": np.int32, "weights": np.float32}
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in (names | {"segments": np.int32}).items()}


class Sft(Task):
    """Fine-tuning on conversations, judged by the loss on held-out ones and by answering them."""

    def __init__(self, experiment: Experiment, mesh: Mesh):
        super().__init__(experiment, mesh)
        loss, parts = self.backbone.loss(), self.backbone.random
        self.program = steps.build(experiment, loss, mesh, batch_shapes(experiment), parts)
        self.nll = jax.jit(self.backbone.loss(learning=False))

    def prepare(self, root: Path) -> list[str]:
        chat, data = self.experiment.chat, self.experiment.data
        self.tokenizer = self.load_tokenizer()
        how = Encoding(chat.loss_mask, data.seq_len, chat.truncate)
        files = self.open_files(how, root)
        weights = [file.weight for file in chat.files]
        self.mixture = DialogueMixture(files, weights, self.experiment.seed, chat.packed, chat.validation)
        self.read = self.mixture.batch
        size = data.batch_size // self.experiment.accumulate
        self.held_out = validation_rows(files, data.eval_tokens, size, chat.packed, chat.validation)
        self.prompts = self._prompts(files)
        epochs = ", ".join(f"{n:.2f}" for n in self.mixture.epochs(self.experiment.steps * data.batch_size))
        judged = sum(map(len, self.held_out.tokens))
        said = [line for file in files for line in file.lines()] + self.mixture.lines()
        said.append(f"this run reads {epochs} epochs; it is judged on {judged:,} trained tokens of held-out dialogues")
        return [f"data        {line}" for line in said]

    def _prompts(self, files: list[Dialogues]) -> list[list[int]]:
        """What samples answer: the experiment's prompts, or the last turn of some held-out dialogues."""
        if self.experiment.prompts:
            return [self.tokenizer.encode_chat([{"role": "user", "content": p}]) for p in self.experiment.prompts]
        found, header = [], self.tokenizer.encode_chat([{"role": "user", "content": ""}])
        header = len(header) - 1 - max(i for i, token in enumerate(header) if token == self.tokenizer.im_start)
        for file in files:
            for i in np.flatnonzero(file.held_out(self.experiment.chat.validation))[: SHOWN - len(found)]:
                ids = file.read(int(i))[0].tolist()
                starts = [at for at, token in enumerate(ids) if token == self.tokenizer.im_start]
                found.append(ids[: starts[-1] + 1 + header])
        return found

    def evaluate(self, state: steps.State) -> dict[str, float]:
        nats, tokens = self.held_out_nats(state)
        return {"eval_loss": nats / tokens, "eval_perplexity": math.exp(min(nats / tokens, 50))} if tokens else {}

    def samples(self, state: steps.State) -> list[tuple[str, str]]:
        stops = [ids[0] for ids in chatml.stop_sequences(self.tokenizer)] + [self.tokenizer.eot]
        asked = [self.tokenizer.decode(ids) for ids in self.prompts]
        return list(zip(asked, self.write(state, self.prompts, stops)))

    def summary_line(self, metrics: dict[str, float]) -> str:
        return f"held-out loss {metrics['eval_loss']:.4f}, perplexity {metrics['eval_perplexity']:.2f}"

    def report(self, workdir: Path, rows: list[dict], metrics: dict[str, float]) -> list[str]:
        held = Panel("held-out dialogues", "loss (nats per trained token)", ("eval_loss",))
        telemetry.plot(rows, workdir / "loss.png", [LOSS, held])
        table = [(r["step"], r["eval_loss"]) for r in rows if "eval_loss" in r]
        return [
            "![loss](loss.png)",
            "",
            "| step | held-out loss | perplexity |",
            "| --- | --- | --- |",
            *(f"| {step:,} | {loss:.4f} | {math.exp(min(loss, 50)):.2f} |" for step, loss in table),
        ]

    def _of_reward(self) -> list[str]:
        """What a reward model's experiment has otherwise than this one."""
        lora, chat = self.experiment.lora, self.experiment.chat
        changes = ["dropout=0", """'chat.files=[{"path": "PREFERENCES"}]'"""]
        changes += ["chat.loss_mask=assistant"] * (chat.loss_mask != "assistant")
        changes += ["chat.truncate=turns"] * (chat.truncate == "end")
        if "head" in lora.modules_to_save:
            rest = ", ".join(f'"{name}"' for name in lora.modules_to_save if name != "head")
            changes.append(f"'lora.modules_to_save=[{rest}]'")
        return changes

    def next_steps(self, workdir: Path) -> list[tuple[str, str]]:
        return [
            ("talk to it", f"python -m qwenjax.chat --model={workdir}"),
            (
                "a reward model of the same shape, from preferences",
                f"python -m qwenjax.train --exp={workdir} --set task=reward --set init_from={workdir} "
                f"{' '.join(f'--set {change}' for change in self._of_reward())} --workdir={workdir}-rm",
            ),
        ]
