"""Fine-tuning of the quickstart's model on dialogues: SFT as in report §3.1, at a laptop's size.

    python -m qwenjax.train --exp=quickstart
    python -m qwenjax.data convert python-stdlib --to=conversation --out=conversation.jsonl
    python -m qwenjax.train --exp=tiny_sft

About 2 minutes on 2 CPU cores: the model learns to say in a sentence what a function of Python's library does.
"""

from qwenjax.config import AdamW, Chat, ChatFile, Compute, Data, Experiment, ModelConfig


def experiment() -> Experiment:
    return Experiment(
        name="tiny_sft",
        task="sft",
        init_from="runs/quickstart",
        model=ModelConfig(vocab=8192, layers=4, embed=128, heads=4, ffn=344, context=256),
        data=Data(tokenizer="init_from", seq_len=256, batch_size=4, eval_tokens=50_000),
        chat=Chat(files=(ChatFile("conversation.jsonl"),)),
        optim=AdamW(peak_lr=1e-3, warmup_steps=20, min_lr_ratio=0.1),
        compute=Compute(dtype="float32", remat="none", scan=False, loss_chunk=512),
        dropout=0.1,
        steps=600,
        eval_every=200,
        save_every=200,
    )
