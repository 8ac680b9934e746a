"""Alarms of the report: every problem raises its own, and a run without problems raises none."""

import numpy as np
import pytest

from qwenjax.train.rl.evaluation import summary
from qwenjax.train.rl.report import alarms

N = 64  # held-out prompts
STEP = {"score": 0.0, "kl": 2.0, "ratio_error_mean": 0.02, "explained_variance": 0.4, "clip_fraction": 0.05}


def responses(score: float = 0.0, gold: float = 0.0, seed: int = 0, **change) -> dict:
    """Evaluated responses whose scores have these means and standard deviation 1."""
    draw = np.random.default_rng(seed)
    arrays = {"reward": score + draw.standard_normal(N), "gold_reward": gold + draw.standard_normal(N)}
    arrays |= {"kl": np.full(N, 3.0), "length": np.full(N, 20.0), "ended": np.ones(N, bool)}
    return arrays | {"answers": [f"answer {i}" for i in range(N)]} | change


def raised(after: dict, *steps: dict) -> list[str]:
    rows = [{"step": 1, **STEP}, *(STEP | step for step in steps or ({},))]
    return alarms(rows, summary(after), responses())


def test_a_run_that_learns_raises_no_alarm():
    assert raised(responses(1.0, 0.8, seed=1)) == []


@pytest.mark.parametrize(
    ("after", "step", "words"),
    [
        (responses(1.0, 1.0, kl=np.full(N, 11.0)), {}, "KL explosion: 11.0 nats"),
        (responses(1.0, 1.0), {"ratio_error_mean": 0.5}, "sampling and training disagree"),
        (responses(1.0, 0.1), {}, "reward hacking: the score rose by"),
        (responses(1.0, 1.0, length=np.full(N, 40.0)), {}, "length: responses have become 2.0 times as long"),
        (responses(1.0, 1.0, ended=np.arange(N) < 20), {}, "only 31% of the responses end"),
        (responses(1.0, 1.0, answers=["the same"] * N), {}, "collapse: 2% of the responses differ"),
        (responses(1.0, 1.0), {"explained_variance": -0.2}, "the value model explains -0.20"),
        (responses(1.0, 1.0), {"clip_fraction": 0.4}, "40% of the tokens are clipped"),
    ],
)
def test_every_problem_raises_its_own_alarm(after, step, words):
    (alarm,) = raised(after, step)
    assert alarm.startswith(words)


def test_noise_is_not_reward_hacking():
    """Of runs that learn nothing, fewer than one in twenty looks like reward hacking."""
    assert sum(bool(raised(responses(seed=seed))) for seed in range(2, 202)) < 10
