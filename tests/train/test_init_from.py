"""`init_from`: training goes on from any checkpoint, and the first loss is what scoring says of the same rows."""

from dataclasses import replace

import pytest
import runs

import qwenjax
from qwenjax.config import AdamW
from qwenjax.train.stages.pretrain import Pretrain

FROZEN = AdamW(peak_lr=1e-30, warmup_steps=0, schedule="constant")


def test_a_folder_of_the_hubs_goes_on_training_where_scoring_says(uninterrupted, corpus, tmp_path):
    """A run, written as stock transformers would read it, and read again by a stage that starts from it."""
    model = qwenjax.load(uninterrupted)
    qwenjax.save(model, tmp_path / "hub", layout="qwen2")
    first = runs.experiment(corpus, steps=1, dropout=0.0, optim=FROZEN, init_from=str(tmp_path / "hub"))
    runs.run(first, corpus, tmp_path / "run")
    loss = next(row["loss"] for row in runs.numbers(tmp_path / "run") if "loss" in row)

    rows = _rows(first, corpus)
    scores = qwenjax.load(tmp_path / "hub").score([row[:1] for row in rows], [row[1:] for row in rows])
    want = -sum(scores) / sum(len(row) - 1 for row in rows)
    assert abs(loss - want) < 1e-5 * want


def test_a_start_that_failed_leaves_the_workdir_to_other_settings(uninterrupted, corpus, tmp_path):
    wrong = runs.experiment(corpus, init_from=str(uninterrupted), steps=1, optim=FROZEN, seed=3)
    with pytest.raises(ValueError, match="another model than"):
        runs.run(replace(wrong, model=replace(wrong.model, ffn=48)), corpus, tmp_path / "run")
    assert runs.run(wrong, corpus, tmp_path / "run").finished
    with pytest.raises(ValueError, match="holds another experiment"):
        runs.run(replace(wrong, seed=4), corpus, tmp_path / "run")


def _rows(experiment, corpus) -> list[list[int]]:
    """Ids of the first step's rows, each with the token that its last position predicts."""
    import jax

    from qwenjax import sharding

    mesh = sharding.make_mesh(experiment.mesh, experiment.model.embed, jax.devices()[:1])
    task = Pretrain(experiment, mesh)
    task.prepare(corpus / "data")
    _, batch = next(task.batches(0))
    return [[*row, last] for row, last in zip(batch["inputs"].tolist(), batch["targets"][:, -1].tolist())]
