"""What alignment adds to a run: adapters, preferences, reinforcement learning (report §3)."""

from dataclasses import dataclass, field

from qwenjax.config.checks import check, one_of
from qwenjax.config.optim import AdamW

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685) instead of all parameters; defaults as released (spec §14.4).

    The released targets c_attn, c_proj, w1, w2 are all seven projections: c_proj is in attention and in the MLP.
    """

    rank: int = 0  # 0: off, every parameter is trained; the releases use 64
    alpha: float = 16.0  # the low-rank product is scaled by alpha / rank
    dropout: float = 0.05  # on the input of the low-rank product
    targets: tuple[str, ...] = PROJECTIONS
    modules_to_save: tuple[
        str, ...
    ] = ()  # of embed and head, trained in full beside: to base models ChatML's tokens are new
    base_dtype: str = "bfloat16"  # how the frozen weights are held: float32 | bfloat16 | int8 | nf4 (arXiv 2305.14314)

    def __post_init__(self):
        check(self.rank >= 0, f"lora.rank={self.rank} must not be negative; 0 trains every parameter")
        check(self.alpha > 0, f"lora.alpha={self.alpha} must be positive")
        check(0 <= self.dropout < 1, f"lora.dropout={self.dropout} must lie in [0, 1)")
        check(bool(self.targets), "lora.targets is empty; wanted at least one of " + ", ".join(PROJECTIONS))
        for name in self.targets:
            one_of("lora.targets", name, PROJECTIONS)
        for name in self.modules_to_save:
            one_of("lora.modules_to_save", name, ("embed", "head"))
        one_of("lora.base_dtype", self.base_dtype, ("float32", "bfloat16", "int8", "nf4"))


@dataclass(frozen=True)
class Preference:
    """Learning from comparisons: reward models (report §3.2.1) and DPO (arXiv 2305.18290)."""

    responses: int = 2  # per list that is read together; of longer ones as many at random, others at each reading
    margin: float = 0.0  # reward: by how much, per unit of rating difference, the better one must win
    beta: float = 0.1  # dpo: strength of the pull to the reference
    smoothing: float = 0.0  # dpo: share of the labels taken to be flipped
    calibrate: int = 256  # reward: lists of responses whose scores get mean 0 and deviation 1

    def __post_init__(self):
        check(self.responses > 1, f"preference.responses={self.responses}: a comparison needs 2 or more")
        check(self.margin >= 0, f"preference.margin={self.margin} must not be negative")
        check(self.beta > 0, f"preference.beta={self.beta} must be positive")
        check(0 <= self.smoothing < 0.5, f"preference.smoothing={self.smoothing} must lie in [0, 0.5)")
        check(self.calibrate > 0, f"preference.calibrate={self.calibrate} must be positive")


@dataclass(frozen=True)
class RL:
    """Learning from scores of own responses: tasks ppo (report §3.2.2), grpo and reinforce.

    What the report gives is marked; the rest are common values, and ours. A step is an iteration: `data.batch_size`
    responses of up to `new_tokens` tokens, scored, and then `epochs` times `minibatches` updates.
    """

    reward: str = ""  # a reward model's run, or a Python function: 'FILE.py:NAME' or 'MODULE:NAME'
    gold_reward: str = ""  # a second judge, of the held-out prompts only: what it does not see rise is reward hacking
    reward_timeout: float = 60.0  # a reward function that takes longer for one batch hangs
    num_samples: int = 2  # per query, sampled at the same time (report)
    max_new_tokens: int = 512  # of a response; a prompt has room for data.seq_len - new_tokens
    top_p: float = 0.9  # (report)
    kl_coef: float = 0.04  # in the reward of every token (report); grpo: in the loss
    kl_target: float = 0.0  # nats per response that an adaptive coefficient aims at; 0: it stays
    normalize_std: bool = False  # scores also over their running deviation; the report has their mean alone
    missing_eos_score: float = -1.0  # score of a response that did not end, in place of the normalised one
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip_ratio: float = 0.2  # of the policy's ratio
    value_clip: float = 0.15  # (report)
    value_warmup_steps: int = 50  # first iterations, in which the value model alone learns (report)
    value_from: str = ""  # where the value model starts; '': from the reward model, or from the policy if that is none
    value_optim: AdamW = field(
        default_factory=lambda: AdamW(peak_lr=5e-6, schedule="constant", warmup_steps=0)
    )  # (report)
    epochs: int = 1
    minibatches: int = 1
    ptx_coef: float = (
        0.0  # weight of the loss on data.sources, against the alignment tax (report; coefficient not given)
    )
    ptx_batch: int = 0  # of data.sources, in each update; the report wants many more than of the policy's own
    eval_prompts: int = 64  # held-out prompts that an evaluation answers
    shuffle: bool = False  # control: the scores of a batch are dealt out anew, at random

    def __post_init__(self):
        for name in ("reward_timeout", "num_samples", "max_new_tokens", "epochs", "minibatches", "eval_prompts"):
            check(getattr(self, name) > 0, f"rl.{name}={getattr(self, name)} must be positive")
        for name in ("kl_coef", "kl_target", "value_warmup_steps", "ptx_coef", "ptx_batch"):
            check(getattr(self, name) >= 0, f"rl.{name}={getattr(self, name)} must not be negative")
        for name in ("top_p", "gamma", "gae_lambda", "clip_ratio", "value_clip"):
            check(0 < getattr(self, name) <= 1, f"rl.{name}={getattr(self, name)} must lie in (0, 1]")
        check(
            (self.ptx_coef > 0) == (self.ptx_batch > 0),
            f"rl.ptx_coef={self.ptx_coef} and rl.ptx_batch={self.ptx_batch}: set both or neither",
        )
