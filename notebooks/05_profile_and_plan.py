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
# # Where does a training step's time go, and what would a pod do with it?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/qwenjax/qwenjax/blob/main/notebooks/05_profile_and_plan.ipynb)
#
# A profile of a training run as text: the biggest costs, one of them mended, and measured again. Then the same step
# compiled for a TPU slice that nobody rented: how its memory moves with what is recomputed, and with the mesh.
#
# About 8 minutes on one CPU core. Works the same on a GPU or a TPU, where the costs are others.

# %%
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

if "google.colab" in sys.modules:
    source = "qwenjax[profile,tpu-aot] @ git+https://github.com/qwenjax/qwenjax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", source], check=True)

from IPython.display import Markdown

import qwenjax
from qwenjax.common import figures

SCALE = os.environ.get("QWENJAX_SCALE", "laptop")  # smoke (seconds), laptop, colab-gpu or tpu
OUT = Path("runs/profile") / SCALE
OUT.mkdir(parents=True, exist_ok=True)
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `!python` is this Python
warnings.filterwarnings("ignore", message=r"os\.fork")  # what `!` does, beside jax

# %% [markdown]
# ## A trace
#
# The quickstart's model, but as a pod would train it: everything recomputed in the backward pass, layers in a scan.

# %%
SIZES = {
    "smoke": {
        "model.layers": 2,
        "model.embed": 64,
        "model.ffn": 176,
        "model.vocab": 2048,
        "data.tokenizer": "train:2048",
    },
    "laptop": {},
    "colab-gpu": {"model.layers": 12, "model.embed": 512, "model.ffn": 1376, "data.batch_size": 32},
    "tpu": {"model.layers": 12, "model.embed": 1024, "model.ffn": 2752, "data.batch_size": 64},
}[SCALE]
STEPS = 12 if SCALE == "smoke" else 40
common = {**SIZES, "steps": STEPS, "optim.warmup_steps": 5, "eval_every": 0, "save_every": STEPS, "prompts": ""}
slow = qwenjax.experiment("quickstart", {**common, "compute.remat": "full", "compute.scan": True})
qwenjax.fit(slow, OUT / "slow", profile=(STEPS - 6, STEPS - 2))

# %%
# !python -m qwenjax.profile {OUT}/slow

# %% [markdown]
# ## One cost mended
#
# What is recomputed has a column of its own above. A model as small as this fits without: keep all activations.

# %%
quick = qwenjax.experiment("quickstart", {**common, "compute.remat": "none", "compute.scan": True})
qwenjax.fit(quick, OUT / "quick", profile=(STEPS - 6, STEPS - 2))
# !python -m qwenjax.profile {OUT}/quick

# %% [markdown]
# Both again in one expression, over three seeds, and none of them profiled; and with a program for each layer instead of
# a loop over them:

# %%
variants = {
    "recomputed": {"compute.remat": "full"},
    "kept": {},
    "kept, unrolled": {"compute.scan": False},
}
found = qwenjax.sweep(quick, variants, (0,) if SCALE == "smoke" else (0, 1, 2), OUT / "speed")
Markdown(found.table("tokens_per_second", "mfu", "loss"))

# %% [markdown]
# ## For a pod
#
# The report's 1.8B on a slice of TPUs, by the TPU compiler, which needs no TPU: memory of a chip and seconds of a step,
# by what is recomputed and how the mesh is cut.

# %%
TARGET = (
    "--exp=quickstart --topology=v5e-8 --set data.batch_size=8"
    if SCALE == "smoke"
    else "--exp=qwen1b8 --topology=v5e-64 --set accumulate=16"
)
CASES = {"kept": "--set compute.remat=none", "recomputed": "--set compute.remat=full"}
if SCALE != "smoke":
    CASES = {
        "matmuls kept": "--set compute.remat=matmuls",
        "everything recomputed": "--set compute.remat=full",
        "recomputed, tensor 4": "--set compute.remat=full --set mesh.fsdp=16 --set mesh.tensor=4",
    }
plans = {}
for name, settings in CASES.items():
    command = [sys.executable, "-m", "qwenjax.plan", *TARGET.split(), *settings.split(), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    plans[name] = json.loads(done.stdout) if done.returncode == 0 else done.stderr.strip().splitlines()[-1]

# %%
lines = ["| | memory of a chip, GiB | step, s | MFU |", "| --- | --- | --- | --- |"]
for name, plan in plans.items():
    if isinstance(plan, str):
        lines.append(f"| {name} | {plan} | | |")
    else:
        lines.append(f"| {name} | {plan['peak_bytes'] / 2**30:.2f} | {plan['step_seconds']:.3f} | {plan['mfu']:.0%} |")
Markdown("\n".join(lines))

# %%
fitting = {name: plan for name, plan in plans.items() if not isinstance(plan, str)}
figure, (memory, time) = figures.canvas(11, 0.9 + 0.5 * len(fitting), 2)
memory.barh(list(fitting), [plan["peak_bytes"] / 2**30 for plan in fitting.values()], color=figures.COLORS[0])
memory.set(title="memory of a chip, GiB")
time.barh(list(fitting), [plan["step_seconds"] for plan in fitting.values()], color=figures.COLORS[1])
time.set(title="a step, seconds")
for axis in (memory, time):
    axis.invert_yaxis()
figure

# %% [markdown]
# ## What was seen
#
# At `laptop` scale, beside other work on the machine; the sweep has seeds 0, 1 and 2:
#
# * **The three biggest costs** of a step are the head with the loss (38 %), attention (29 %) and the feed-forward layers
#   (21 %). The forward pass that is made again is 9 % of it, 31 of 338 ms.
# * **Kept activations** take that column away. What they are worth is hardly more than the noise: 3,390 ± 215 tokens a
#   second before, 3,498 ± 104 after; with unrolled layers, too, 3,689 ± 172, 9 % more than at the beginning. (The second
#   trace fell into a busy moment of the machine: compare its parts, not its total.)
# * **On 64 chips of v5e**, by the compiler's model, the 1.8B takes 8.3 GiB and 6.6 s for a step with its matmuls kept, 5.2
#   GiB and 7.1 s with everything recomputed: 38 % less memory for 8 % more time. Four-way tensor parallelism brings 3.1
#   GiB, and a step of 13.1 s: it pays only where nothing else fits.
