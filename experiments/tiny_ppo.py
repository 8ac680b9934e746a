"""PPO on the fine-tuned quickstart model: report §3.2.2 at a laptop's size.

python -m qwenjax.train --exp=tiny_ppo --set chat.files.0.path=prompts.jsonl
"""

from qwenjax.config import RL, AdamW, Chat, ChatFile, Compute, Data, Experiment, ModelConfig


def experiment() -> Experiment:
    return Experiment(
        name="tiny_ppo",
        task="ppo",
        init_from="runs/tiny_sft",
        model=ModelConfig(vocab=8192, layers=4, embed=128, heads=4, ffn=344, context=256),
        data=Data(tokenizer="init_from", length=160, batch=32),
        chat=Chat(files=(ChatFile("prompts.jsonl"),)),
        optim=AdamW(peak=1e-4, schedule="constant", warmup=0),
        rl=RL(
            reward="runs/tiny_rm",
            new_tokens=48,
            value_steps=5,
            minibatches=2,
            epochs=2,
            value_optim=AdamW(peak=3e-4, schedule="constant", warmup=0),
        ),
        compute=Compute(dtype="float32", remat="none", scan=False, loss_tokens=512),
        steps=60,
        log_every=1,
        eval_every=20,
        save_every=20,
    )
