"""Curves of the arms of an experiment as a PNG: each seed thin, the median over seeds thick."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qwenjax.evals.figures import COLORS, canvas, save

PANELS = {
    "score": "reward model (proxy)",
    "gold": "gold reward model",
    "kl": "KL, nats per response",
    "lm_loss": "loss on held-out text",
}


def draw(seeds: Sequence[dict], path: Path) -> None:
    """Draws the evaluations of the arms of seeds (`curves` of their results) over PPO's iterations."""
    figure, axes = canvas(14, 3.4, len(PANELS))
    for axis, (name, title) in zip(axes, PANELS.items()):
        for color, arm in zip(COLORS, seeds[0]["arms"]):
            curves = [seed["arms"][arm]["curves"] for seed in seeds]
            steps, values = curves[0]["step"], np.array([curve[name] for curve in curves])
            axis.plot(steps, values.T, color=color, lw=0.6, alpha=0.4)
            axis.plot(steps, np.median(values, axis=0), color=color, lw=2, label=arm)
        axis.set(title=title, xlabel="iteration")
    axes[0].legend(frameon=False)
    save(figure, path)
