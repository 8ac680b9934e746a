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
# About 2 minutes on two CPU cores, and no faster anywhere else: there is no model in it.

# %%
import json
import os
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules:
    source = "qwenjax[vocab] @ git+https://github.com/qwenjax/qwenjax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", source], check=True)

from IPython.display import HTML, Image, Markdown

import qwenjax

SCALE = os.environ.get("QWENJAX_SCALE", "laptop")  # smoke or laptop; more is never needed here
OUT = Path("runs/tokenizer")
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Figure 3 on your own text
#
# A file of lines {"lang", "text"}; put your own in its place. This one has the same four sentences in nine languages,
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
text.write_text("".join(json.dumps({"lang": lang, "text": said}) + "\n" for lang, said in SENTENCES.items()))

# %%
train = "python-stdlib"
# !{sys.executable} -m qwenjax.tokenizer train {train} --size=8192 --out={OUT}/stdlib.model
# !{sys.executable} -m qwenjax.tokenizer compression stdlib={OUT}/stdlib.model --base=qwen --text={text} --out={OUT}/figure3.png

# %%
Image(OUT / "figure3.png")
