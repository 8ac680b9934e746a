"""The optimizer of all tasks: one optax chain, built from the config (report §2.4)."""

import jax
import optax

from qwenjax.config import AdamW

# Chosen by name: under the scan over layers a norm scale has two dimensions, as a matrix has.
DECAYED = {"embed", "head", "q", "k", "v", "o", "gate", "up", "down", "a", "b", "reward"}  # a, b: of adapters
NOT_DECAYED = {"scale", "bias", "q_bias", "k_bias", "v_bias", "q_norm", "k_norm"}


def schedule(config: AdamW, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine or linear to min_lr_ratio·peak_lr, wsd, or constant."""
    if config.warmup_steps >= steps:
        advice = f"add --set optim.warmup_steps={steps // 10}"
        raise ValueError(f"optim.warmup_steps={config.warmup_steps} leaves no step of {steps}: {advice}")
    last, remaining = config.min_lr_ratio * config.peak_lr, steps - config.warmup_steps
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.peak_lr, remaining, alpha=config.min_lr_ratio)
    elif config.schedule == "linear":
        after = optax.linear_schedule(config.peak_lr, last, remaining)
    elif config.schedule == "wsd":
        decay = max(1, round(config.decay_fraction * steps))
        after = optax.linear_schedule(config.peak_lr, last, decay, transition_begin=max(0, remaining - decay))
    else:
        after = optax.constant_schedule(config.peak_lr)
    # the rate of step 0 is not 0: the first update has peak / warm-up, the last of the warm-up has the peak
    first = config.peak_lr / max(1, config.warmup_steps)
    warmup = optax.linear_schedule(first, config.peak_lr, max(1, config.warmup_steps - 1))
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def decay_mask(params) -> dict:
    """True for every parameter with weight decay: the matrices and the embeddings."""

    def decayed(path, _):
        name = path[-1].key
        if name not in DECAYED | NOT_DECAYED:
            raise ValueError(f"optim.py does not say whether parameter {jax.tree_util.keystr(path)} has weight decay")
        return name in DECAYED

    return jax.tree_util.tree_map_with_path(decayed, params)


def make(config: AdamW, steps: int, mask=decay_mask, every: int = 1) -> optax.GradientTransformation:
    """Clip by global norm, Adam moments in float32, decoupled weight decay (on `mask`), scheduled learning rate.

    `steps` are of the whole run, for the schedule; `every` so many updates count as one.
    """
    rate = schedule(config, steps)
    return optax.chain(
        optax.clip_by_global_norm(config.grad_clip),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=mask),
        optax.scale_by_learning_rate(rate if every == 1 else lambda count: rate(count // every)),
    )
