"""The optimizer, its schedule, and what a run does about loss spikes (report §2.4)."""

from dataclasses import dataclass

from qwenjax.config.checks import check, one_of

SCHEDULES = ("cosine", "linear", "wsd", "constant")


@dataclass(frozen=True)
class AdamW:
    """Optimizer and schedule; the defaults are the report's (§2.4; warm-up, decay and clip from the tech memo)."""

    peak_lr: float = 3e-4
    schedule: str = "cosine"  # cosine | linear | wsd (warm-up, stable, decay) | constant; all start with the warm-up
    warmup_steps: int = 2000
    min_lr_ratio: float = 0.1  # last learning rate as a fraction of the peak
    decay_fraction: float = 0.2  # wsd: the last fraction of the steps decays
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # on matrices only
    grad_clip: float = 1.0  # global gradient norm

    def __post_init__(self):
        check(self.peak_lr > 0, f"optim.peak_lr={self.peak_lr} must be positive")
        one_of("optim.schedule", self.schedule, SCHEDULES)
        check(self.warmup_steps >= 0, f"optim.warmup_steps={self.warmup_steps} must not be negative")
        check(
            0 <= self.min_lr_ratio <= 1 and 0 < self.decay_fraction <= 1,
            "optim.min_lr_ratio and optim.decay_fraction are fractions of 1",
        )
        check(0 <= self.b1 < 1 and 0 <= self.b2 < 1, f"optim betas must lie in [0, 1), got {self.b1}, {self.b2}")
        check(self.grad_clip > 0, f"optim.grad_clip={self.grad_clip} must be positive")


@dataclass(frozen=True)
class Recovery:
    """What a run does when loss or gradient norm leap out of their recent range: leave the batch out, then rewind.

    Off by default, so that a small run shows its troubles; one of months needs it. What is usual is the median of the
    last steps, a leap is measured in their (robust) standard deviations.
    """

    deviations: float = 0.0  # beyond so many a batch is left out; 8 is far outside noise. 0: off, and NaN ends the run
    window: int = 128  # steps that say what is usual; until there are so many, only what is not finite is left out
    spikes: int = 3  # so many leaps …
    among: int = 10  # … in so many batches: back to the checkpoint before them, and on behind their rows
    rewinds: int = 3  # in one place, each a checkpoint further back; then the run stops

    def __post_init__(self):
        check(self.deviations >= 0, f"recovery.deviations={self.deviations} must not be negative; 0: off")
        check(self.window > 1, f"recovery.window={self.window} must be at least 2")
        check(0 < self.spikes <= self.among, "recovery.spikes must be 1 to recovery.among")
        check(self.rewinds >= 0, f"recovery.rewinds={self.rewinds} must not be negative")
