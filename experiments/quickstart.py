"""A small Qwen with all of Qwen's features, trained on this machine's own Python library. No download.

    python -m qwenjax.train --exp=quickstart

About 5 minutes on 2 CPU cores, preparation included: trains an 8k tokenizer, makes shards, trains, writes a report.
"""

from qwenjax.config import AdamW, Compute, Data, Experiment, ModelConfig, Source


def experiment() -> Experiment:
    return Experiment(
        name="quickstart",
        model=ModelConfig(vocab=8192, layers=4, embed=128, heads=4, ffn=344, context=256),
        data=Data(
            sources=(Source(text="python-stdlib"),),
            tokenizer="train:8192",
            seq_len=256,
            batch_size=4,
            eval_tokens=50_000,
        ),
        # measured at 1M tokens: 3e-3 beats 8e-4, 1.5e-3 and 8e-3; batches of 1k tokens beat 2k and 4k
        optim=AdamW(peak_lr=3e-3, warmup_steps=50, min_lr_ratio=0.02),
        compute=Compute(dtype="float32", remat="none", scan=False, loss_chunk=512),
        steps=1500,
        eval_every=500,
        sample_every=750,
        save_every=500,
        prompts=("def read_", "import ", 'class Test(object):\n    """'),
    )
