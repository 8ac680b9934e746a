"""A reward model from pairs of texts that people rated: report §3.2.1 at a laptop's size.

    python -m experiments.studies.alignment --data=ratings.jsonl.gz

makes the pairs, names the files and runs all stages; expect 72 to 75 % of the pairs whose ratings are 1 apart
(docs/alignment.md).
"""

from qwenjax.config import AdamW, Chat, ChatFile, Compute, Data, Experiment, ModelConfig


def experiment() -> Experiment:
    return Experiment(
        name="sentiment_rm",
        task="reward",
        init_from="runs/sentiment_sft",
        model=ModelConfig(vocab=2048, layers=2, embed=64, heads=4, ffn=176, context=72),
        data=Data(tokenizer="init_from", seq_len=72, batch_size=32, eval_tokens=100_000),
        chat=Chat(files=(ChatFile("pairs.jsonl"),)),
        optim=AdamW(peak_lr=1e-3, warmup_steps=50, min_lr_ratio=0.02),
        compute=Compute(dtype="float32", remat="none", scan=False),
        dropout=0.1,
        steps=1000,
        eval_every=250,
        save_every=500,
        keep=1,
    )
