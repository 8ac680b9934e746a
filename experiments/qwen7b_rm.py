"""Qwen-7B: the reward model (report §3.2.1), on annotated comparisons, from the PMP.

    python -m qwenjax.train --exp=qwen7b_rm --set init_from=PMP --set chat.files.0.path=FILE.jsonl --set steps=N

A constant 3e-6, 64 pairs a step, one epoch: set `steps` to the number of pairs / 64.
"""

from qwenjax.config import QWEN_7B, AdamW, Chat, ChatFile, Data, Experiment


def experiment() -> Experiment:
    return Experiment(
        name="qwen7b_rm",
        task="reward",
        init_from="runs/qwen7b_pmp",
        model=QWEN_7B,
        data=Data(tokenizer="qwen", seq_len=2048, batch_size=64),
        chat=Chat(files=(ChatFile("data/annotated.jsonl"),)),
        optim=AdamW(peak_lr=3e-6, schedule="constant", warmup_steps=0, weight_decay=0.1, grad_clip=1.0),
        steps=1000,
        eval_every=250,
        save_every=250,
    )
