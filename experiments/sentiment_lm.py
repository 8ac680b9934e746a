"""A language model of 20k short rated texts, 0.4M parameters: the first stage of the sentiment experiments.

    python -m experiments.studies.alignment --data=ratings.jsonl.gz

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
            seq_len=72,
            batch_size=32,
            document_mask=True,
            eval_tokens=50_000,
        ),
        optim=AdamW(peak_lr=5e-3, warmup_steps=50, min_lr_ratio=0.02),
        compute=Compute(dtype="float32", remat="none", scan=False, loss_chunk=2048),
        steps=1200,
        eval_every=400,
        save_every=400,
        keep=1,
        prompts=("The", "I"),
    )
