"""What alignment adds to a run: adapters, preferences, reinforcement learning (report §3)."""

from dataclasses import dataclass, field

from qwenjax.config.optim import AdamW
from qwenjax.config.overrides import check, one_of

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685) instead of all parameters; defaults as in the released finetune.py.

    The released targets c_attn, c_proj, w1, w2 are all seven projections: c_proj is in attention and in the MLP.
    """

    rank: int = 0  # 0: off, every parameter is trained; the releases use 64
    alpha: float = 16.0  # the low-rank product is scaled by alpha / rank
    dropout: float = 0.05  # on the input of the low-rank product
    targets: tuple[str, ...] = PROJECTIONS
    modules_to_save: tuple[str, ...] = ()  # embed, head: trained in full. A base model must learn ChatML's tokens
    base_dtype: str = "bfloat16"  # of the frozen weights: float32 | bfloat16 | int8 | nf4 (arXiv 2305.14314)

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

    responses: int = 2  # compared at a time; a longer list gives a new random choice of so many each epoch
    margin: float = 0.0  # reward: score difference that the loss asks for, per unit of rating difference (Llama 2)
    beta: float = 0.1  # dpo: strength of the pull to the reference
    smoothing: float = 0.0  # dpo: assumed share of wrong labels

    def __post_init__(self):
        check(self.responses > 1, f"preference.responses={self.responses}: a comparison needs 2 or more")
        check(self.margin >= 0, f"preference.margin={self.margin} must not be negative")
        check(self.beta > 0, f"preference.beta={self.beta} must be positive")
        check(0 <= self.smoothing < 0.5, f"preference.smoothing={self.smoothing} must lie in [0, 0.5)")


@dataclass(frozen=True)
class RL:
    """Learning from scores of the model's own responses: tasks ppo (report §3.2.2), grpo and reinforce.

    Values that the report gives are marked; the others are common choices. A step is one iteration: `data.batch_size`
    responses of up to `max_new_tokens` tokens are sampled and scored, then come `epochs` x `minibatches` updates.
    """

    reward: str = ""  # a reward model's run, or a Python function: 'FILE.py:NAME' or 'MODULE:NAME'
    gold_reward: str = ""  # a second reward, for evaluation only: a gain in `reward` alone is reward hacking
    reward_timeout: float = 60.0  # seconds; a reward function that needs longer for one batch counts as hung
    num_samples: int = 2  # responses to each prompt (report)
    max_new_tokens: int = 512  # of a response; a prompt may have data.seq_len - max_new_tokens
    top_p: float = 0.9  # (report)
    kl_coef: float = 0.04  # penalty in the reward of every token (report); grpo: in the loss
    kl_target: float = 0.0  # nats per response; the coefficient adapts to reach it. 0: the coefficient is constant
    normalize_std: bool = False  # divides scores by their running deviation; the report only subtracts their mean
    missing_eos_score: float = -1.0  # normalised score of a response that did not end
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip_ratio: float = 0.2  # of the ratio of new to old probabilities
    value_clip: float = 0.15  # (report)
    value_warmup_steps: int = 50  # first iterations, which train only the value model (report)
    value_from: str = ""  # checkpoint the value model starts from; '': the reward model, or the policy if there is none
    # (report)
    value_optim: AdamW = field(default_factory=lambda: AdamW(peak_lr=5e-6, schedule="constant", warmup_steps=0))
    epochs: int = 1
    minibatches: int = 1
    ptx_coef: float = 0.0  # weight of a loss on data.sources, against the alignment tax (report, without a value)
    ptx_batch: int = 0  # sequences of data.sources in each update; the report has many more of these than of responses
    eval_prompts: int = 64  # held-out prompts that an evaluation answers
    shuffle: bool = False  # a control experiment: permutes the scores of a batch at random

    def __post_init__(self):
        for name in ("reward_timeout", "num_samples", "max_new_tokens", "epochs", "minibatches", "eval_prompts"):
            check(getattr(self, name) > 0, f"rl.{name}={getattr(self, name)} must be positive")
        for name in ("kl_coef", "kl_target", "value_warmup_steps", "ptx_coef", "ptx_batch"):
            check(getattr(self, name) >= 0, f"rl.{name}={getattr(self, name)} must not be negative")
        for name in ("top_p", "gamma", "gae_lambda", "clip_ratio", "value_clip"):
            check(0 < getattr(self, name) <= 1, f"rl.{name}={getattr(self, name)} must lie in (0, 1]")
        both = (self.ptx_coef > 0) == (self.ptx_batch > 0)
        check(both, f"rl.ptx_coef={self.ptx_coef} and rl.ptx_batch={self.ptx_batch}: set both or neither")
