"""Qwen-7B-Chat: supervised fine-tuning of the base model, the report's recipe (§3.1): 4,000 steps of 128 rows.

    python -m qwenjax.train --exp=qwen7b_chat_sft --set init_from=BASE --set chat.files.0.path=FILE.jsonl

The loss is on what the assistant says (report §3.1.2); the released code's mask is --set chat.loss_mask=finetune_py.
What follows the 1,430 steps of warm-up is not published: the rate stays. Adapters on a base model, as released:
    --set lora.rank=64 --set 'lora.modules_to_save=["embed", "head"]' --set dropout=0
    --set optim.peak_lr=3e-4 --set optim.schedule=cosine --set optim.min_lr_ratio=0 --set optim.warmup_steps=40
"""

from qwenjax.config import QWEN_7B, AdamW, Chat, ChatFile, Data, Experiment


def experiment() -> Experiment:
    return Experiment(
        name="qwen7b_chat_sft",
        task="sft",
        init_from="runs/qwen7b",
        model=QWEN_7B,
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
