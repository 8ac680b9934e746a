"""A language model of 20k short rated texts, 0.4M parameters: the first stage of the sentiment experiments.

    python -m qwenjax.bench align --data=ratings.jsonl.gz

makes texts.jsonl and runs all stages, two minutes of which are this one on 2 CPU cores (docs/alignment.md).
"""

from qwenjax.config import AdamW, Compute, Data, Experiment, ModelConfig, Source


def experiment() -> Experiment:
    return Experiment(
        name="sentiment_lm",
        model=ModelConfig(vocab=2048, layers=2, embed=64, heads=4, ffn=176, context=72),
        data=Data(
            sources=(Source(text="texts.jsonl"),),
            tokenizer="train:2000",
            length=72,
            batch=32,
            isolate=True,
            eval_tokens=50_000,
        ),
        optim=AdamW(peak=5e-3, warmup=50, floor=0.02),
        compute=Compute(dtype="float32", remat="none", scan=False, loss_tokens=2048),
        steps=1200,
        eval_every=400,
        save_every=400,
        keep=1,
        prompts=("The", "I"),
    )
