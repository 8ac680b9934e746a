"""Qwen-1.8B: preference-model pretraining (report §3.2.1), on a large set of comparisons.

    python -m qwenjax.train --exp=qwen1b8_pmp --set init_from=BASE --set chat.files.0.path=FILE.jsonl --set steps=N

The report gives values for "this process", which reads as the reward model's; PMP takes the same here.
"""

from qwenjax.config import QWEN_1B8, AdamW, Chat, ChatFile, Data, Experiment


def experiment() -> Experiment:
    return Experiment(
        name="qwen1b8_pmp",
        task="reward",
        init_from="runs/qwen1b8",
        model=QWEN_1B8,
        data=Data(tokenizer="qwen", seq_len=2048, batch_size=64),
        chat=Chat(files=(ChatFile("data/preferences.jsonl"),)),
        optim=AdamW(peak_lr=3e-6, schedule="constant", warmup_steps=0, weight_decay=0.1, grad_clip=1.0),
        steps=10_000,
        eval_every=1000,
        save_every=1000,
    )
