"""A reward model from SmolLM2-135M-Instruct, with adapters: real preferences on a laptop (report §3.2.1).

    python -m qwenjax.train --exp=smollm2_rm --set init_from=SmolLM2.gguf --set chat.files.0.path=FILE.jsonl

About 30 minutes on 2 CPU cores.
"""

from qwenjax.config import SMOLLM2_135M, AdamW, Chat, ChatFile, Compute, Data, Experiment, Lora


def experiment() -> Experiment:
    return Experiment(
        name="smollm2_rm",
        task="reward",
        init_from="SmolLM2-135M-Instruct.gguf",
        model=SMOLLM2_135M,
        data=Data(tokenizer="init_from", seq_len=256, batch_size=4, eval_tokens=60_000),
        chat=Chat(files=(ChatFile("pairs.jsonl"),), validation=0.1),
        lora=Lora(rank=16, alpha=16, dropout=0.05, base_dtype="float32"),
        optim=AdamW(peak_lr=5e-4, warmup_steps=5, min_lr_ratio=0.1, weight_decay=0.1),
        compute=Compute(dtype="float32", remat="none", loss_chunk=256),
        steps=100,
        eval_every=50,
        save_every=25,
    )
