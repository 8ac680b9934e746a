"""The update of Qwen-7B from 2.2T to 2.4T tokens and to a context of 8192 (the released README): continued pretraining.

    python -m qwenjax.train --exp=qwen7b_8k --set init_from=PATH --workdir=runs/qwen7b_8k

PATH is a folder from a model hub (Qwen-7B of August 2023), a .gguf file or a run. 0.2T tokens in steps of 4M; the
learning rate of the update was never published; here it stays at the end of the cosine of the first 2.2T tokens.
"""

from dataclasses import replace

from qwenjax.config import QWEN_7B, AdamW, Data, Experiment, Recovery, Source


def experiment() -> Experiment:
    return Experiment(
        name="qwen7b_8k",
        model=replace(QWEN_7B, context=8192),
        data=Data(sources=(Source(shards="data/pretrain"),), tokenizer="qwen", seq_len=8192, batch_size=512),
        optim=AdamW(
            peak_lr=3e-5,
            schedule="constant",
            warmup_steps=500,
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.1,
            grad_clip=1.0,
        ),
        recovery=Recovery(deviations=8),
        steps=47_684,  # 0.2T tokens / (512 x 8192)
        prompts=("The capital of France is", "def quicksort(", "中国的首都是"),
        sample_every=5000,
    )
