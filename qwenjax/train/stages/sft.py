"""Supervised fine-tuning (report §3.1): next-token prediction of what the assistant says, on packed dialogues."""

import math
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from qwenjax.chat_format import chatml
from qwenjax.config import Experiment
from qwenjax.data.batches import text
from qwenjax.data.batches.conversations import ConversationMixture, validation_batches
from qwenjax.data.conversations.encode import Encoding
from qwenjax.data.conversations.store import ChatDataset
from qwenjax.train import step as steps
from qwenjax.train.task import Task

SAMPLES = 3  # held-out conversations that samples answer, when the experiment names no prompts


class Sft(Task):
    """Fine-tuning on conversations, evaluated by the loss on held-out ones."""

    def __init__(self, experiment: Experiment, mesh: Mesh):
        super().__init__(experiment, mesh)
        batch = text.batch_shapes(experiment.data.batch_size, experiment.data.seq_len)
        self.program = steps.build(experiment, self.backbone.loss(), mesh, batch, self.backbone.init_params)
        self.nll = jax.jit(self.backbone.loss(learning=False))

    def prepare(self, root: Path) -> list[str]:
        chat, data = self.experiment.chat, self.experiment.data
        self.tokenizer = self.load_tokenizer()
        files = self.open_files(Encoding(chat.loss_mask, data.seq_len, chat.truncate), root)
        weights = [file.weight for file in chat.files]
        self.mixture = ConversationMixture(files, weights, self.experiment.seed, chat.packed, chat.validation)
        self.read = self.mixture.batch
        size = data.batch_size // self.experiment.accumulate
        self.held_out = validation_batches(files, data.eval_tokens, size, chat.packed, chat.validation)
        self.prompts = self._prompts(files)
        return self.data_lines(self.file_lines(), f"{sum(map(len, self.held_out.tokens)):,} trained tokens")

    def _prompts(self, files: list[ChatDataset]) -> list[list[int]]:
        """Ids of what samples answer: the experiment's prompts, or the last turn of some held-out conversations."""
        if self.experiment.prompts:
            return [self.tokenizer.encode_chat([{"role": "user", "content": p}]) for p in self.experiment.prompts]
        prompts = []
        for file in files:
            for i in np.flatnonzero(file.held_out(self.experiment.chat.validation))[: SAMPLES - len(prompts)]:
                ids, mask = (array.tolist() for array in file.read(int(i))[:2])
                prompts.append(ids[: self._last_answer(ids, mask)])
        return prompts

    def _last_answer(self, ids: list[int], mask: list[int]) -> int:
        """Where the last answer of a conversation begins."""
        if self.experiment.chat.loss_mask == "assistant":
            return max(i for i in range(1, len(ids)) if mask[i] and not mask[i - 1])
        header = chatml.encode_chat(self.tokenizer, [{"role": "user", "content": ""}])  # the other masks are of ChatML
        opening = len(header) - max(i for i, token in enumerate(header) if token == self.tokenizer.im_start)
        return max(i for i, token in enumerate(ids) if token == self.tokenizer.im_start) + opening

    def evaluate(self, state: steps.State) -> dict[str, float]:
        nats, tokens = self.held_out_nats(state)
        return {"eval_loss": nats / tokens, "eval_perplexity": math.exp(min(nats / tokens, 50))} if tokens else {}

    def samples(self, state: steps.State) -> list[tuple[str, str]]:
        stops = [ids[0] for ids in self.tokenizer.turn_stops()] + [self.tokenizer.eot]
        prompts = [self.tokenizer.decode(ids) for ids in self.prompts]
        return list(zip(prompts, self.complete(state, self.prompts, stops)))
