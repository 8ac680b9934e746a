"""Fine-tuning of the sentiment language model on requests for a kind of text: report §3.1 at a laptop's size.

    python -m experiments.studies.alignment --data=ratings.jsonl.gz

makes conversations.jsonl and runs all stages (docs/alignment.md).
"""

from qwenjax.config import AdamW, Chat, ChatFile, Compute, Data, Experiment, ModelConfig


def experiment() -> Experiment:
    return Experiment(
        name="sentiment_sft",
        task="sft",
        init_from="runs/sentiment_lm",
        model=ModelConfig(vocab=2048, layers=2, embed=64, heads=4, ffn=176, context=72),
        data=Data(tokenizer="init_from", seq_len=72, batch_size=32, eval_tokens=50_000),
        chat=Chat(files=(ChatFile("conversations.jsonl"),)),
        optim=AdamW(peak_lr=1e-3, warmup_steps=20, min_lr_ratio=0.02),
        compute=Compute(dtype="float32", remat="none", scan=False, loss_chunk=2048),
        steps=500,
        eval_every=250,
        save_every=250,
        keep=1,
    )
