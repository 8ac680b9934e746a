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
# # What does the vocabulary do to text, and what does a batch hold?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/qwenjax/qwenjax/blob/main/notebooks/02_tokenizer_and_data.ipynb)
#
# Section 2.2 of the report (arXiv 2309.16609): a vocabulary of 152k byte-level pieces, with every digit a token of its
# own, compresses most languages better than its peers (Figure 3). Here: the figure for text of your own, what single
# digits do to numbers, and which documents lie in the rows of a batch, over epochs and from several sources.
#
# About a minute on one CPU core, and no faster anywhere else: there is no model in it.

# %%
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

if "google.colab" in sys.modules:
    source = "qwenjax[vocab] @ git+https://github.com/qwenjax/qwenjax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", source], check=True)

from IPython.display import Image, Markdown

import qwenjax

SCALE = os.environ.get("QWENJAX_SCALE", "laptop")  # smoke or laptop; more is never needed here
OUT = Path("runs/tokenizer") / SCALE
OUT.mkdir(parents=True, exist_ok=True)
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `!python` is this Python
warnings.filterwarnings("ignore", message=r"os\.fork")  # what `!` does, beside jax

# %% [markdown]
# ## Figure 3 on your own text
#
# A file of lines {"language", "text"}; put your own in its place. This one has the same four sentences in nine languages,
# written for this notebook. The published vocabulary is compared with one that is trained here, on the sources of
# Python's standard library, and with plain bytes; the line at 1 is the published one.

# %%
SENTENCES = {
    "en": "The first train leaves at half past six. Bring bread, water and a warm coat. The path along the river is "
    "closed until spring. Whoever comes late waits for the next boat.",
    "de": "Der erste Zug fährt um halb sieben. Nehmt Brot, Wasser und einen warmen Mantel mit. Der Weg am Fluss ist bis "
    "zum Frühling gesperrt. Wer zu spät kommt, wartet auf das nächste Schiff.",
    "fr": "Le premier train part à six heures et demie. Apportez du pain, de l'eau et un manteau chaud. Le chemin le long "
    "de la rivière est fermé jusqu'au printemps. Qui arrive en retard attend le prochain bateau.",
    "es": "El primer tren sale a las seis y media. Traed pan, agua y un abrigo caliente. El camino junto al río está "
    "cerrado hasta la primavera. Quien llega tarde espera el próximo barco.",
    "it": "Il primo treno parte alle sei e mezza. Portate pane, acqua e un cappotto caldo. Il sentiero lungo il fiume è "
    "chiuso fino a primavera. Chi arriva in ritardo aspetta la prossima barca.",
    "ru": "Первый поезд отправляется в половине седьмого. Возьмите хлеб, воду и тёплое пальто. Дорога вдоль реки закрыта "
    "до весны. Кто опоздает, ждёт следующего парохода.",
    "zh": "第一班火车六点半开。请带上面包、水和一件暖和的大衣。河边的小路到春天才开放。来晚的人要等下一班船。",
    "ja": "始発の列車は六時半に出ます。パンと水と暖かいコートを持ってきてください。川沿いの道は春まで通れません。"
    "遅れた人は次の船を待ちます。",
    "ko": "첫 기차는 여섯 시 반에 떠납니다. 빵과 물, 따뜻한 외투를 가져오세요. 강변길은 봄까지 막혀 있습니다. "
    "늦게 온 사람은 다음 배를 기다립니다.",
}
text = OUT / "sentences.jsonl"
_ = text.write_text("".join(json.dumps({"language": lang, "text": said}) + "\n" for lang, said in SENTENCES.items()))

# %%
# !test -e {OUT}/stdlib.model || python -m qwenjax.tokenizer train python-stdlib --size=8192 --out={OUT}/stdlib.model
# !python -m qwenjax.tokenizer compression stdlib={OUT}/stdlib.model --base=qwen --text={text} --out={OUT}/figure3.png

# %%
Image(OUT / "figure3.png")

# %% [markdown]
# ## Single digits
#
# Numbers are cut into digits, so a number of n digits is n tokens, and every digit stands at its place whatever its
# neighbours are. A vocabulary that had each number as one token would need fewer; the share below is an upper bound of
# what the choice costs, by kind of text.

# %%
tokenizer = qwenjax.load_tokenizer("qwen")


def spelled(text):
    """The pieces that a text is cut into."""
    return " | ".join(tokenizer.decode([token]) for token in tokenizer.encode(text))


for number in ("7", "42", "2023", "3.14159", "1000000", "0xff", "١٢٣"):
    print(f"{number:>8}  ->  {spelled(number)}")
assert spelled("2023") == "2 | 0 | 2 | 3"

# %%
import argparse
import inspect
import re

TEXTS = {
    "prose": SENTENCES["en"],
    "code": inspect.getsource(argparse),
    "a table of numbers": "\n".join(f"{i},{i * i},{i**0.5:.4f}" for i in range(1, 500)),
}
rows = ["| text | tokens | of them digits | saved if each run of digits were one token |", "| --- | --- | --- | --- |"]
for name, said in TEXTS.items():
    count = len(tokenizer.encode(said))
    runs = re.findall("[0-9]+", said)
    digits = sum(map(len, runs))
    rows.append(f"| {name} | {count:,} | {digits / count:.1%} | {(digits - len(runs)) / count:.1%} |")
Markdown("\n".join(rows))

# %% [markdown]
# ## What is in a batch
#
# Documents are joined with an end-of-text token between them and cut into rows. Row r of a run is a function of the seed
# and r: nothing is stored, a run resumes anywhere, and every process reads its own rows. Two sources, three parts code to
# one part of prose, so short that it is read many times.

# %%
prose = OUT / "prose.jsonl"
_ = prose.write_text("".join(json.dumps({"text": said}) + "\n" for said in SENTENCES.values()) * 30)
sources = json.dumps([{"text": "python-stdlib", "weight": 3}, {"text": str(prose), "weight": 1}])
ours = f"--set data.tokenizer={OUT}/stdlib.model --set 'data.sources={sources}'"
# !python -m qwenjax.data show --exp=quickstart {ours} --step=50 --rows=4 --png={OUT}/batch.png

# %%
Image(OUT / "batch.png")

# %% [markdown]
# One of these rows as text: where each document begins and ends, and which of its tokens are here.

# %%
# !python -m qwenjax.data show --exp=quickstart {ours} --row=201 --rows=1

# %% [markdown]
# ## What was seen
#
# * On Python code a vocabulary of 8,192 that was trained on it needs as many tokens as the published one of 151,851
#   (4.31 and 4.32 bytes each). For languages that it never saw it needs 1.5 to 1.9 times as many (Italian, French,
#   English, Spanish, German) and 3.2 to 4.3 times where the alphabet is another one (Korean, Chinese, Japanese, Russian).
# * Single digits cost nothing in prose and code: 0.7 % of the tokens of a large module are digits, and a token for each
#   run of them would save less than 0.05 %. In a table of numbers it would save 54.7 %.
# * In the batch drawn, rows of the short source lie several to a row and come again after 600 rows; those of the long one
#   are not met twice.
