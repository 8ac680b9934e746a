"""A reward model from the fine-tuned quickstart model and ranked answers: report §3.2.1 at a laptop's size.

    python -m qwenjax.data convert python-stdlib --to=preference --out=preference.jsonl
    python -m qwenjax.train --exp=tiny_rm

About 2 minutes on 2 CPU cores. A model of this size tells a sentence from its words in disorder, and not which of two
sentences belongs to a function.
"""

from qwenjax.config import AdamW, Chat, ChatFile, Compute, Data, Experiment, ModelConfig


def experiment() -> Experiment:
    return Experiment(
        name="tiny_rm",
        task="reward",
        init_from="runs/tiny_sft",
        model=ModelConfig(vocab=8192, layers=4, embed=128, heads=4, ffn=344, context=256),
        data=Data(tokenizer="init_from", seq_len=128, batch_size=8, eval_tokens=50_000),
        chat=Chat(files=(ChatFile("preference.jsonl"),), validation=0.1),
        optim=AdamW(peak_lr=3e-4, schedule="constant", warmup_steps=10),
        compute=Compute(dtype="float32", remat="none", scan=False),
        steps=300,
        eval_every=100,
        save_every=100,
    )
