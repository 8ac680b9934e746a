"""`init_from`: training goes on from any checkpoint, and the first loss is what scoring says of the same rows."""

import runs

import qwenjax
from qwenjax.config import AdamW
from qwenjax.train.pretrain import Pretrain

FROZEN = AdamW(peak=1e-30, warmup=0, schedule="constant")


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


def _rows(experiment, corpus) -> list[list[int]]:
    """Ids of the first step's rows, each with the token that its last position predicts."""
    import jax

    from qwenjax import sharding

    mesh = sharding.make_mesh(experiment.mesh, experiment.model.embed, jax.devices()[:1])
    task = Pretrain(experiment, mesh)
    task.prepare(corpus / "data")
    _, batch = next(task.batches(0))
    return [[*row, last] for row, last in zip(batch["inputs"].tolist(), batch["targets"][:, -1].tolist())]
