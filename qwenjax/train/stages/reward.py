"""Reward models (report §3.2.1): preference-model pretraining (PMP), and the reward model proper from it.

Both are this task on different data: pairs or ranked lists of responses, a scalar score at the end token of each, and
the pairwise loss. Axes: b lists, k responses to a prompt, t positions.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwenjax.config import Experiment
from qwenjax.data.batches.preferences import PreferenceMixture, batch_shapes, validation_batches
from qwenjax.data.conversations.encode import Encoding
from qwenjax.eval import accuracy
from qwenjax.model import reward_head
from qwenjax.objectives import preference
from qwenjax.train import step as steps
from qwenjax.train.backbone import Loaded
from qwenjax.train.task import Task

CALIBRATION_LISTS = 256  # lists of responses whose scores get mean 0 and standard deviation 1


class Preferences(Task):
    """A stage that learns from rated responses, several to each prompt."""

    rewards: Callable  # (trained, frozen, batch) -> float32 [b k], jitted; each process gets all of them
    pairs: list[accuracy.ScoredPair]  # of held-out responses, with the scores of the last evaluation

    def prepare(self, root: Path) -> list[str]:
        chat, data = self.experiment.chat, self.experiment.data
        self.tokenizer = self.load_tokenizer()
        files = self.open_files(Encoding(chat.loss_mask, data.seq_len, chat.truncate, "preference"), root)
        weights = [file.weight for file in chat.files]
        k = self.experiment.preference.responses
        self.mixture = PreferenceMixture(files, weights, self.experiment.seed, chat.validation, k)
        self.read = self.mixture.batch
        size = data.batch_size // self.experiment.accumulate
        self.lists = validation_batches(files, data.eval_tokens, size, chat.validation, k)
        held_out = sum(int(batch["real"].any(axis=1).sum()) for batch in self.lists)
        return self.data_lines(self.file_lines(), f"{held_out:,} lists")

    def evaluate(self, state: steps.State) -> dict[str, float]:
        """Loss and accuracy over all held-out pairs."""
        self.pairs = []
        with jax.set_mesh(self.mesh):
            for batch in self.lists:
                scores = np.asarray(self.rewards(state.params, state.frozen, self.to_mesh(batch, self.program.batch)))
                self.pairs += accuracy.ranked_pairs(scores, batch["ratings"], batch["real"], batch["file"])
        config = self.experiment.preference
        return accuracy.loss_and_accuracy(self.pairs, config.margin, config.smoothing)


class Reward(Preferences):
    """A reward model, evaluated by how many held-out pairs it puts in the right order."""

    has_lm_head = False

    def __init__(self, experiment: Experiment, mesh: Mesh):
        if "head" in experiment.lora.modules_to_save:
            raise ValueError("lora.modules_to_save names the head, and a reward model has none: leave it out")
        super().__init__(experiment, mesh)
        backbone = self.backbone

        def init_params(key):
            trained, frozen = backbone.init_params(key)
            head = reward_head.init_head(backbone.cfg, jax.random.fold_in(key, 1))
            return {"backbone": trained, "reward": head}, frozen

        def score(network, trained, frozen, batch, rng):
            """Scores [b k] of responses [b k t]."""
            tokens, positions = (batch[name].reshape(-1, batch[name].shape[-1]) for name in ("tokens", "positions"))
            variables, end = backbone.variables(trained["backbone"], frozen), batch["end"].reshape(-1)
            rngs = backbone.rngs(network, rng)
            scores = reward_head.scores(network, variables, trained["reward"], tokens, positions, end, rngs)
            return scores.reshape(batch["end"].shape)

        def loss_fn(trained, frozen, batch, rng):
            scores = score(backbone.network, trained, frozen, batch, rng)
            margin = experiment.preference.margin
            lists = jax.vmap(lambda s, r, real: preference.ranked_loss(s, r, real, margin))
            total, weight = lists(scores, batch["ratings"], batch["real"])
            return jnp.sum(total), jnp.sum(weight)

        batch = batch_shapes(experiment.data.batch_size, experiment.preference.responses, experiment.data.seq_len)
        self.program = steps.build(experiment, loss_fn, mesh, batch, init_params)
        self.rewards = jax.jit(
            lambda trained, frozen, batch: score(backbone.eval_network, trained, frozen, batch, None),
            out_shardings=self.program.shardings.step,
        )

    def stage_params(self, loaded: Loaded) -> tuple[dict, object]:
        key = jax.random.fold_in(jax.random.key(self.experiment.seed), 1)
        head = loaded.scorer.head if loaded.scorer else reward_head.init_head(self.backbone.cfg, key).value
        return {"backbone": loaded.trained, "reward": head}, loaded.frozen

    def checkpoint_meta(self, state: steps.State) -> dict:
        """With gain and bias, which give the scores of some training responses mean 0 and standard deviation 1."""
        scores, size = [], self.experiment.data.batch_size // self.experiment.accumulate
        with jax.set_mesh(self.mesh):
            for first in range(0, CALIBRATION_LISTS, size):
                batch = self.mixture.batch(np.arange(first, first + size))
                found = np.asarray(self.rewards(state.params, state.frozen, self.to_mesh(batch, self.program.batch)))
                scores.append(found[batch["real"]])
        scores = jnp.asarray(np.concatenate(scores))
        gain, bias = preference.calibration(scores, jnp.ones(scores.shape, bool))
        return super().checkpoint_meta(state) | {"calibration": [float(gain), float(bias)]}
