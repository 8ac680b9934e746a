# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which of the report's choices matter when a model is aligned?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/qwenjax/qwenjax/blob/main/notebooks/04_sft_reward_ppo.ipynb)
#
# Section 3 of the report (arXiv 2309.16609): fine-tuning in ChatML, preference-model pretraining (PMP) and a reward
# model from it, then PPO with a value model that warms up alone, two responses to a query, top-p 0.9, a KL
# penalty and the pretrained gradient. Everything here learns from the docstrings of this machine's Python
# library: the model is to say in a sentence what a function does. Each choice is undone, one at a time.
#
# About 80 minutes on one CPU core, less on a free Colab GPU. What is finished is not run again. docs/alignment.md has the
# same recipe on what people wrote and rated.

# %%
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

if "google.colab" in sys.modules:
    source = "qwenjax @ git+https://github.com/qwenjax/qwenjax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", source], check=True)

from IPython.display import Markdown

import qwenjax
from qwenjax.common import figures

SCALE = os.environ.get("QWENJAX_SCALE", "laptop")  # smoke (seconds), laptop, colab-gpu or tpu
SEEDS = (0,) if SCALE == "smoke" else (0, 1, 2)
SHAPE = {"model.layers": 2, "model.embed": 64, "model.ffn": 176} if SCALE == "smoke" else {}
SHORT = {"steps": 4, "optim.warmup_steps": 2, "eval_every": 2, "save_every": 4} if SCALE == "smoke" else {}
OUT = Path("runs/align") / SCALE
OUT.mkdir(parents=True, exist_ok=True)
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `!python` is this Python
warnings.filterwarnings("ignore", message=r"os\.fork")  # what `!` does, beside jax
print(f"{SCALE}: {len(SEEDS)} seeds")

# %%
# !test -e {OUT}/conversation.jsonl || python -m qwenjax.data convert python-stdlib --to=conversation --out={OUT}/conversation.jsonl
# !test -e {OUT}/preference.jsonl || python -m qwenjax.data convert python-stdlib --to=preference --out={OUT}/preference.jsonl
# !test -e {OUT}/prompt.jsonl || python -m qwenjax.data convert python-stdlib --to=prompt --out={OUT}/prompt.jsonl

# %% [markdown]
# ## Which tokens carry loss
#
# Green: what carries loss. The report's mask has what the assistant says and nothing else (§3.1.2); the released code's
# has the control tokens of all turns, too.

# %%
base = qwenjax.experiment("quickstart", {**SHAPE, **SHORT, "prompts": ""})
BASE = qwenjax.sweep(base, {"base": {}}, (0,), OUT).runs[0].workdir
said = ["What is twelve times twelve?", "It is 144.", "And half of it?", "72."]
turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
_ = (OUT / "talk.jsonl").write_text(json.dumps({"messages": turns}))
# !python -m qwenjax.data show {OUT}/talk.jsonl --tokenizer={BASE} --loss-mask=assistant
# !python -m qwenjax.data show {OUT}/talk.jsonl --tokenizer={BASE} --loss-mask=finetune_py

# %% [markdown]
# ## Fine-tuning, and what PMP does for a reward model
#
# The reward model learns from 200 comparisons of docstrings, once from the preference model that read 5,000 of other
# modules before, once from the fine-tuned model alone; both are tested on 500 that neither has read.

# %%
sft = qwenjax.experiment(
    "tiny_sft", {**SHAPE, **SHORT, "init_from": BASE, "chat.files.0.path": OUT / "conversation.jsonl"}
)
found = qwenjax.sweep(sft, {"sft": {}}, (0,), OUT)
SFT = found.runs[0].workdir
found.plot("eval_loss")

# %%
rows = (OUT / "preference.jsonl").read_text().splitlines(keepends=True)
few, test = (40, 80) if SCALE == "smoke" else (200, 700)
for name, some in {"few": rows[:few], "test": rows[few:test], "many": rows[test:]}.items():
    _ = (OUT / f"{name}.jsonl").write_text("".join(some))
reward = {**SHAPE, **SHORT, "chat.files.0.path": OUT / "many.jsonl", "init_from": SFT}
PMP = qwenjax.sweep(qwenjax.experiment("tiny_rm", reward), {"pmp": {}}, (0,), OUT).runs[0].workdir
rm = qwenjax.experiment("tiny_rm", {"steps": 100, **reward, "chat.files.0.path": OUT / "few.jsonl"})
reward_models = qwenjax.sweep(rm, {"from SFT": {}, "PMP, then RM": {"init_from": PMP}}, SEEDS, OUT / "rm")
measured = reward_models.evaluate("table4", data=(str(OUT / "test.jsonl"),))
accuracy = {name: [one.result["sets"][0]["accuracy"] for one in of] for name, of in measured.items()}
figure, (axis,) = figures.canvas(7, 1.8)
figures.dots(axis, accuracy)
axis.axvline(0.5, ls="--", lw=1, color="#555555")
axis.set(title="pairs of unseen modules in the right order; a dot a seed", xlabel="accuracy")
figure

# %% [markdown]
# ## PPO, one choice undone at a time
#
# The score is that of the reward model, KL in nats per response against the fine-tuned model, `eval_lm_loss` the loss on
# held-out text of pretraining: what alignment costs.

# %%
VARIANTS = {
    "report": {},
    "no value-only start": {"rl.value_warmup_steps": 0},
    "one response to a query": {"rl.num_samples": 1},
    "top-p 1": {"rl.top_p": 1.0},
    "KL 0": {"rl.kl_coef": 0.0},
    "KL 0.2": {"rl.kl_coef": 0.2},
    "no pretrained gradient": {"rl.ptx_coef": 0.0, "rl.ptx_batch": 0},
}
if SCALE == "smoke":
    VARIANTS = dict(list(VARIANTS.items())[:3])
ppo = qwenjax.experiment(
    "tiny_ppo",
    {
        **SHAPE,
        **(
            {
                "steps": 4,
                "eval_every": 2,
                "save_every": 4,
                "rl.value_warmup_steps": 2,
                "data.batch_size": 8,
                "rl.eval_prompts": 8,
            }
            if SCALE == "smoke"
            else {"steps": 40, "eval_every": 10, "save_every": 40, "data.batch_size": 16, "rl.ptx_batch": 8}
        ),
        "init_from": SFT,
        "rl.reward": reward_models.variants["PMP, then RM"][0].workdir,
        "chat.files.0.path": OUT / "prompt.jsonl",
    },
)
found = qwenjax.sweep(ppo, VARIANTS, SEEDS, OUT / "ppo")
Markdown(found.table("eval_score", "eval_kl", "eval_entropy", "eval_length", "eval_lm_loss"))

# %% [markdown]
# While the value model warms up, no gradient reaches the policy:

# %%
for run in found.variants["report"]:
    alone = [norm for step, norm in run.curve("grad_norm").items() if step <= ppo.rl.value_warmup_steps]
    assert len(alone) == ppo.rl.value_warmup_steps
    assert not any(alone)

# %%
found.plot("eval_score", "eval_kl", "eval_entropy", "eval_length", "eval_lm_loss", "value_loss")

# %% [markdown]
# ## What was seen
#
# At `laptop` scale, seeds 0, 1 and 2, mean ± standard deviation:
#
# * **PMP helps.** From 200 comparisons a reward model that begins as the preference model orders 79.7 ± 0.2 % of the
#   pairs of unseen modules, one that begins as the fine-tuned model 75.3 ± 2.6 %.
# * **The KL coefficient is the trade.** 0, 0.04 (the report's) and 0.2 end at 7.1 ± 1.8, 3.2 ± 0.4 and 1.3 ± 0.6 nats,
#   and at scores of 1.01 ± 0.01, 0.90 ± 0.07 and 0.75 ± 0.08, from 0.65.
# * **The pretrained gradient repairs what fine-tuning forgot.** Without it held-out text of pretraining stands at
#   7.49 ± 0.21 nats per token, with it at 5.77 ± 0.07; both began at 7.2. The score does not suffer visibly: 0.90 ± 0.07
#   against 1.02 ± 0.11.
# * **Top-p 0.9 against 1:** with 1 the score rises less, to 0.78 ± 0.04, at a KL that is no smaller.
# * **Not seen:** that the value model should warm up alone, or that a query should have two responses. Without
#   either the score is as high (0.96 ± 0.03, 0.94 ± 0.07) and the KL somewhat higher (4.6 ± 1.0, 4.4 ± 0.9). Without the
#   start the policy learns in all 40 iterations instead of 35, and here the value model begins as the reward model and
#   explains little at any time.
