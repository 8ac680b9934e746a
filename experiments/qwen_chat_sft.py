"""Supervised fine-tuning of Qwen-1.8B, 7B or 14B: the report's recipe (§3.1), 4,000 steps of 128 sequences.

    python -m qwenjax.train --exp=qwen14b_chat_sft --set init_from=BASE --set chat.files.0.path=FILE.jsonl

The loss is on what the assistant says (report §3.1.2); the released code's mask is --set chat.loss_mask=finetune_py.
The schedule after the 1,430 steps of warm-up is not published; here the rate stays constant.
Adapters on a base model, as released:
    --set lora.rank=64 --set 'lora.modules_to_save=["embed", "head"]' --set dropout=0
    --set optim.peak_lr=3e-4 --set optim.schedule=cosine --set optim.min_lr_ratio=0 --set optim.warmup_steps=40
"""

from qwenjax.config import QWEN_SIZES, AdamW, Chat, ChatFile, Data, Experiment


def experiment(size: str) -> Experiment:
    return Experiment(
        name=f"qwen{size}_chat_sft",
        task="sft",
        init_from=f"runs/qwen{size}",
        model=QWEN_SIZES[size],
        data=Data(tokenizer="qwen", seq_len=2048, batch_size=128),
        chat=Chat(files=(ChatFile("data/chat.jsonl"),), loss_mask="assistant"),
        optim=AdamW(
            peak_lr=2e-6,
            schedule="constant",
            warmup_steps=1430,
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.1,
            grad_clip=1.0,
        ),
        dropout=0.1,
        steps=4000,
        eval_every=500,
        save_every=500,
    )
