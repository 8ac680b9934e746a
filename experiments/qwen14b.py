"""Qwen-14B from scratch, the report's recipe (§2.4, Table 1): 3.0T tokens in steps of 4M, context 2048, peak 3e-4.

    python -m qwenjax.data tokenize TEXT... --out=data/pretrain --tokenizer=qwen
    python -m qwenjax.train --exp=qwen14b --workdir=runs/qwen14b

Warm-up, weight decay and clipping come from the tech memo; the mixture was never published, so the data is yours.

On TPUs, from `python -m qwenjax.plan --search` (docs/performance.md):
    v5e-256     as it is
    v5p-256     --set accumulate=2 --set compute.remat=matmuls --set mesh.fsdp=64 --set mesh.data=2
"""

from qwenjax.config import QWEN_14B, AdamW, Data, Experiment, Recovery, Source


def experiment() -> Experiment:
    return Experiment(
        name="qwen14b",
        model=QWEN_14B,
        data=Data(sources=(Source(shards="data/pretrain"),), tokenizer="qwen", seq_len=2048, batch_size=2048),
        optim=AdamW(
            peak_lr=3e-4,
            schedule="cosine",
            warmup_steps=2000,
            min_lr_ratio=0.1,
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.1,
            grad_clip=1.0,
        ),
        recovery=Recovery(deviations=8),  # months of steps: spikes are left out, and rewound if they stay
        steps=715_256,  # 3.0T tokens / (2048 x 2048)
        prompts=("The capital of France is", "def quicksort(", "中国的首都是"),
        sample_every=5000,
        keep_every=20_000,
    )
