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
# model from it, then PPO with a value model that learns alone at first, two responses to a query, top-p 0.9, a KL
# penalty and the gradient of pretraining mixed in. Everything here learns from the docstrings of this machine's Python
# library: the model is to say in a sentence what a function does. Each choice is undone, one at a time.
#
# About 75 minutes on two CPU cores, 25 on a free Colab GPU. What is finished is not run again. docs/alignment.md has the
# same recipe on what people wrote and rated.

# %%
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

SCALE = os.environ.get("QWENJAX_SCALE", "laptop")  # smoke (seconds), laptop, colab-gpu or tpu
SEEDS = (0,) if SCALE == "smoke" else (0, 1, 2)
SHAPE = {"model.layers": 2, "model.embed": 64, "model.ffn": 176} if SCALE == "smoke" else {}
SHORT = {"steps": 4, "optim.warmup": 2, "eval_every": 2, "save_every": 4} if SCALE == "smoke" else {}
OUT = Path("runs/align") / SCALE
OUT.mkdir(parents=True, exist_ok=True)
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `!python` is this Python
warnings.filterwarnings("ignore", message=r"os\.fork")  # what `!` does, beside jax

# %%
# !test -e {OUT}/conversation.jsonl || python -m qwenjax.data convert python-stdlib --to=conversation --out={OUT}/conversation.jsonl
# !test -e {OUT}/preference.jsonl || python -m qwenjax.data convert python-stdlib --to=preference --out={OUT}/preference.jsonl
# !test -e {OUT}/prompt.jsonl || python -m qwenjax.data convert python-stdlib --to=prompt --out={OUT}/prompt.jsonl

# %% [markdown]
# ## Which tokens carry loss
#
# Green: what the assistant says. The report's mask leaves everything else out (§3.1.2).

# %%
qwenjax.fit(qwenjax.experiment("quickstart", {**SHAPE, **SHORT, "prompts": ""}), OUT / "base")
# !python -m qwenjax.data show {OUT}/conversation.jsonl --tokenizer={OUT}/base --policy=assistant --row=40 --rows=3

# %% [markdown]
# ## Fine-tuning, and what PMP does for a reward model
#
# PMP reads the comparisons of all modules but those that begin with a to c, the reward model 200 comparisons of these,
# once from the pretrained preference model, once from the fine-tuned model alone.

# %%
sft = qwenjax.experiment(
    "tiny_sft", {**SHAPE, **SHORT, "init_from": OUT / "base", "chat.files.0.path": OUT / "conversation.jsonl"}
)
qwenjax.fit(sft, OUT / "sft")

# %%
rows = (OUT / "preference.jsonl").read_text().splitlines(keepends=True)
few = 40 if SCALE == "smoke" else 200
(OUT / "few.jsonl").write_text("".join(rows[:few]))
(OUT / "many.jsonl").write_text("".join(rows[few:]))
(OUT / "test.jsonl").write_text("".join(rows[-few:]))
reward = {**SHAPE, **SHORT, "chat.files.0.path": OUT / "many.jsonl", "init_from": OUT / "sft"}
qwenjax.fit(qwenjax.experiment("tiny_rm", reward), OUT / "pmp")
base = qwenjax.experiment("tiny_rm", {**reward, "chat.files.0.path": OUT / "few.jsonl"})
if SCALE != "smoke":
    base = qwenjax.experiment("tiny_rm", {**reward, "chat.files.0.path": OUT / "few.jsonl", "steps": 100})
judges = qwenjax.sweep(base, {"from SFT": {}, "PMP, then RM": {"init_from": OUT / "pmp"}}, SEEDS, OUT / "rm")
Markdown(judges.table("eval_accuracy", "eval_loss"))

# %% [markdown]
# ## PPO, one choice undone at a time
#
# The score is that of the reward model, KL in nats per response against the fine-tuned model, `eval_lm_loss` the loss on
# held-out text of pretraining: what alignment costs.

# %%
VARIANTS = {
    "report": {},
    "no value-only start": {"rl.value_steps": 0},
    "one response to a query": {"rl.responses": 1},
    "top-p 1": {"rl.top_p": 1.0},
    "KL 0": {"rl.kl_coef": 0.0},
    "KL 0.2": {"rl.kl_coef": 0.2},
    "no pretrained gradient": {"rl.ptx": 0.0, "rl.ptx_rows": 0},
}
if SCALE == "smoke":
    VARIANTS = dict(list(VARIANTS.items())[:3])
ppo = qwenjax.experiment(
    "tiny_ppo",
    {
        **SHAPE,
        **(
            {"steps": 4, "eval_every": 2, "save_every": 4, "rl.value_steps": 2, "data.batch": 8, "rl.eval_prompts": 8}
            if SCALE == "smoke"
            else {"steps": 40, "eval_every": 10, "save_every": 40, "data.batch": 16, "rl.ptx_rows": 8}
        ),
        "init_from": OUT / "sft",
        "rl.reward": OUT / "rm" / "PMP, then RM" / "seed0",
        "chat.files.0.path": OUT / "prompt.jsonl",
    },
)
found = qwenjax.sweep(ppo, VARIANTS, SEEDS, OUT / "ppo")
Markdown(found.table("eval_score", "eval_kl", "eval_entropy", "eval_length", "eval_lm_loss"))

# %% [markdown]
# While the value model learns alone, no gradient reaches the policy:

# %%
for run in found.variants["report"]:
    alone = [norm for step, norm in run.curve("grad_norm").items() if step <= ppo.rl.value_steps]
    assert len(alone) == ppo.rl.value_steps
    assert not any(alone)

# %%
found.plot("eval_score", "eval_kl", "eval_entropy", "eval_length", "eval_lm_loss", "value_loss")
