"""The optimizer: one optax chain built from the config (report §2.4). No task builds its own."""

import jax
import optax

from qwenjax.config import AdamW

# Weight decay is chosen by name: under the scan over layers a norm scale is two-dimensional, as a matrix is.
DECAYED = {"embed", "head", "q", "k", "v", "o", "gate", "up", "down", "a", "b", "reward"}  # a, b: of adapters
NOT_DECAYED = {"scale", "bias", "q_bias", "k_bias", "v_bias", "q_norm", "k_norm"}


def schedule(config: AdamW, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine | linear to floor·peak, wsd, or constant.

    Raises:
      ValueError: the warm-up leaves no step for the rest.
    """
    if config.warmup_steps >= steps:
        raise ValueError(f"optim.warmup_steps={config.warmup_steps} leaves nothing of {steps} steps; lower it")
    last, rest = config.min_lr_ratio * config.peak_lr, steps - config.warmup_steps
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.peak_lr, rest, alpha=config.min_lr_ratio)
    elif config.schedule == "linear":
        after = optax.linear_schedule(config.peak_lr, last, rest)
    elif config.schedule == "wsd":
        down = max(1, round(config.decay_fraction * steps))
        after = optax.linear_schedule(config.peak_lr, last, down, transition_begin=max(0, rest - down))
    else:
        after = optax.constant_schedule(config.peak_lr)
    # step 0 already learns: the first update has peak/warmup, the last of the warm-up peak
    warm = optax.linear_schedule(
        config.peak_lr / max(1, config.warmup_steps), config.peak_lr, max(1, config.warmup_steps - 1)
    )
    return optax.join_schedules([warm, after], [config.warmup_steps])


def decay_mask(params) -> dict:
    """True for every parameter that is decayed: the matrices, embeddings included.

    Raises:
      ValueError: a parameter that neither list names; decaying it or not must be a decision.
    """

    def decided(path, _):
        name = path[-1].key
        if name not in DECAYED | NOT_DECAYED:
            raise ValueError(f"optim.py does not say whether parameter {jax.tree_util.keystr(path)} is decayed")
        return name in DECAYED

    return jax.tree_util.tree_map_with_path(decided, params)


def make(config: AdamW, steps: int, mask=decay_mask, every: int = 1) -> optax.GradientTransformation:
    """Clip by global norm, Adam moments in float32, decoupled decay where `mask` says, scheduled learning rate.

    Args:
      every: updates that count as one step of the schedule.
    """
    rate = schedule(config, steps)
    return optax.chain(
        optax.clip_by_global_norm(config.grad_clip),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=mask),
        optax.scale_by_learning_rate(rate if every == 1 else lambda count: rate(count // every)),
    )
