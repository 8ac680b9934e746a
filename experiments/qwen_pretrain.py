"""Pretraining of Qwen-1.8B, 7B and 14B from scratch: the report's recipe (§2.4, Table 1), 4M tokens a step.

    python -m qwenjax.data tokenize TEXT... --out=data/pretrain --tokenizer=qwen
    python -m qwenjax.train --exp=qwen14b --workdir=runs/qwen14b          (or qwen1b8, qwen7b)

2.2T, 2.4T and 3.0T tokens, context 2048, peak learning rate 3e-4. Warm-up, weight decay and clipping come from the
tech memo; the mixture was never published, so the data is yours.

Settings on TPUs, from `python -m qwenjax.plan --search` (docs/performance.md):
    qwen1b8  v5e-256  --set accumulate=2 --set compute.remat=matmuls --set mesh.fsdp=128 --set mesh.data=2
             v5p-256  --set compute.remat=matmuls --set mesh.fsdp=64 --set mesh.data=2
    qwen7b   v5e-256  --set compute.remat=attn_out
             v5p-256  --set accumulate=2 --set compute.remat=matmuls --set mesh.fsdp=64 --set mesh.data=2
    qwen14b  v5e-256  as it is
             v5p-256  --set accumulate=2 --set compute.remat=matmuls --set mesh.fsdp=64 --set mesh.data=2
"""

from qwenjax.config import QWEN_SIZES, AdamW, Data, Experiment, Recovery, Source

STEPS = {"1b8": 524_520, "7b": 572_205, "14b": 715_256}  # 2.2T, 2.4T and 3.0T tokens / (2048 x 2048)


def experiment(size: str) -> Experiment:
    return Experiment(
        name=f"qwen{size}",
        model=QWEN_SIZES[size],
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
        recovery=Recovery(deviations=8),  # a run of months skips spikes, and rewinds if they stay
        steps=STEPS[size],
        prompts=("The capital of France is", "def quicksort(", "中国的首都是"),
        sample_every=5000,
        keep_every=20_000,
    )
