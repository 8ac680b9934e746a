"""A small Qwen with all of Qwen's features, trained on this machine's own Python library. No download.

    python -m qwenjax.train --exp=quickstart

Under 5 minutes on 2 CPU cores, preparation included: trains an 8k tokenizer, makes shards, trains, writes a report.
"""

from qwenjax.config import AdamW, Compute, Data, Experiment, ModelConfig, Source


def experiment() -> Experiment:
    return Experiment(
        name="quickstart",
        model=ModelConfig(vocab=8192, layers=4, embed=192, heads=6, ffn=512, context=256),
        data=Data(
            sources=(Source(text="python-stdlib"),),
            tokenizer="train:8192",
            length=256,
            batch=16,
            eval_tokens=100_000,
        ),
        optim=AdamW(peak=4e-3, warmup=50, floor=0.02),
        compute=Compute(dtype="float32", remat="none", scan=False, loss_tokens=512),
        steps=600,
        eval_every=150,
        sample_every=300,
        save_every=200,
        prompts=("def read_", "import ", 'class Test(object):\n    """'),
    )
