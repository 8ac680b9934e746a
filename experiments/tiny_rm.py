"""A reward model from the fine-tuned quickstart model and pairs of responses: report §3.2.1 at a laptop's size.

python -m qwenjax.train --exp=tiny_rm --set chat.files.0.path=pairs.jsonl
"""

from qwenjax.config import AdamW, Chat, ChatFile, Compute, Data, Experiment, ModelConfig


def experiment() -> Experiment:
    return Experiment(
        name="tiny_rm",
        task="reward",
        init_from="runs/tiny_sft",
        model=ModelConfig(vocab=8192, layers=4, embed=128, heads=4, ffn=344, context=256),
        data=Data(tokenizer="init_from", length=256, batch=8, eval_tokens=50_000),
        chat=Chat(files=(ChatFile("pairs.jsonl"),), validation=0.1),
        optim=AdamW(peak=3e-4, schedule="constant", warmup=10),
        compute=Compute(dtype="float32", remat="none", scan=False),
        steps=200,
        eval_every=100,
        save_every=100,
    )
