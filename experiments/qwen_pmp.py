"""Preference-model pretraining of Qwen-1.8B, 7B or 14B (report §3.2.1) on a large set of comparisons.

    python -m qwenjax.train --exp=qwen14b_pmp --set init_from=BASE --set chat.files.0.path=FILE.jsonl --set steps=N

The report gives one set of values, which reads as the reward model's; PMP takes the same here.
"""

from qwenjax.config import QWEN_SIZES, AdamW, Chat, ChatFile, Data, Experiment


def experiment(size: str) -> Experiment:
    return Experiment(
        name=f"qwen{size}_pmp",
        task="reward",
        init_from=f"runs/qwen{size}",
        model=QWEN_SIZES[size],
        data=Data(tokenizer="qwen", seq_len=2048, batch_size=64),
        chat=Chat(files=(ChatFile("data/preferences.jsonl"),)),
        optim=AdamW(peak_lr=3e-6, schedule="constant", warmup_steps=0, weight_decay=0.1, grad_clip=1.0),
        steps=10_000,
        eval_every=1000,
        save_every=1000,
    )
