"""Fine-tuning of SmolLM2-135M-Instruct on dialogues with adapters: a real model on a laptop.

    python -m qwenjax.train --exp=smollm2_sft --set init_from=SmolLM2.gguf --set chat.files.0.path=FILE.jsonl

About 20 minutes on 2 CPU cores.
"""

from qwenjax.config import SMOLLM2_135M, AdamW, Chat, ChatFile, Compute, Data, Experiment, Lora


def experiment() -> Experiment:
    return Experiment(
        name="smollm2_sft",
        task="sft",
        init_from="SmolLM2-135M-Instruct.gguf",
        model=SMOLLM2_135M,
        data=Data(tokenizer="init_from", seq_len=256, batch_size=4, eval_tokens=8_000),
        chat=Chat(files=(ChatFile("chat.jsonl"),)),
        lora=Lora(rank=16, alpha=16, dropout=0.05, base_dtype="float32"),
        optim=AdamW(peak_lr=3e-4, warmup_steps=5, min_lr_ratio=0.1, weight_decay=0.1),
        compute=Compute(dtype="float32", remat="none", loss_chunk=256),
        steps=60,
        eval_every=30,
        save_every=15,
    )
