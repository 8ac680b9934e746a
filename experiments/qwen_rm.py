"""The reward model of Qwen-1.8B, 7B or 14B (report §3.2.1), on annotated comparisons, from the PMP.

    python -m qwenjax.train --exp=qwen14b_rm --set init_from=PMP --set chat.files.0.path=FILE.jsonl --set steps=N

A constant 3e-6, 64 pairs a step, one epoch: set `steps` to the number of pairs / 64.
"""

from qwenjax.config import QWEN_SIZES, AdamW, Chat, ChatFile, Data, Experiment


def experiment(size: str) -> Experiment:
    return Experiment(
        name=f"qwen{size}_rm",
        task="reward",
        init_from=f"runs/qwen{size}_pmp",
        model=QWEN_SIZES[size],
        data=Data(tokenizer="qwen", seq_len=2048, batch_size=64),
        chat=Chat(files=(ChatFile("data/annotated.jsonl"),)),
        optim=AdamW(peak_lr=3e-6, schedule="constant", warmup_steps=0, weight_decay=0.1, grad_clip=1.0),
        steps=1000,
        eval_every=250,
        save_every=250,
    )
