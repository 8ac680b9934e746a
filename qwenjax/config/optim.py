"""The optimizer, its schedule, and how a run recovers from loss spikes (report §2.4)."""

from dataclasses import dataclass

from qwenjax.config.overrides import check, one_of

SCHEDULES = ("cosine", "linear", "wsd", "constant")


@dataclass(frozen=True)
class AdamW:
    """Optimizer and schedule. The defaults are the report's (§2.4; warm-up, decay and clip from the tech memo)."""

    peak_lr: float = 3e-4
    schedule: str = "cosine"  # cosine | linear | wsd (warm-up, stable, decay) | constant; all start with the warm-up
    warmup_steps: int = 2000
    min_lr_ratio: float = 0.1  # last learning rate as a fraction of the peak
    decay_fraction: float = 0.2  # wsd: share of the steps, at the end, in which the rate falls
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # on matrices only
    grad_clip: float = 1.0  # global gradient norm

    def __post_init__(self):
        check(self.peak_lr > 0, f"optim.peak_lr={self.peak_lr} must be positive")
        one_of("optim.schedule", self.schedule, SCHEDULES)
        check(self.warmup_steps >= 0, f"optim.warmup_steps={self.warmup_steps} must not be negative")
        fractions = 0 <= self.min_lr_ratio <= 1 and 0 < self.decay_fraction <= 1
        check(fractions, "optim.min_lr_ratio and optim.decay_fraction are fractions of 1")
        check(0 <= self.b1 < 1 and 0 <= self.b2 < 1, f"optim betas must lie in [0, 1), got {self.b1}, {self.b2}")
        check(self.grad_clip > 0, f"optim.grad_clip={self.grad_clip} must be positive")


@dataclass(frozen=True)
class Recovery:
    """What a run does when loss or gradient norm spike: skip the batch, and rewind if spikes persist.

    Off by default, so that a small run shows its problems; a run of months needs it. A spike is measured from the
    median of the last steps, in their (robust) standard deviations.
    """

    deviations: float = 0.0  # a batch beyond so many is skipped; 8 is far outside noise. 0: off, and NaN ends the run
    window: int = 128  # steps that the median is taken over; until there are so many, only NaN and Inf are skipped
    spikes: int = 3  # so many spikes …
    among: int = 10  # … among so many batches: go back to the checkpoint before them and skip their rows
    rewinds: int = 3  # to one point of the data, each a checkpoint further back; then the run stops

    def __post_init__(self):
        check(self.deviations >= 0, f"recovery.deviations={self.deviations} must not be negative; 0: off")
        check(self.window > 1, f"recovery.window={self.window} must be at least 2")
        check(0 < self.spikes <= self.among, "recovery.spikes must be 1 to recovery.among")
        check(self.rewinds >= 0, f"recovery.rewinds={self.rewinds} must not be negative")
