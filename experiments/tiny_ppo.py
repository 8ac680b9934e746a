"""PPO on the fine-tuned quickstart model against its reward model: report §3.2.2 at a laptop's size.

    python -m qwenjax.data convert python-stdlib --to=prompt --out=prompt.jsonl
    python -m qwenjax.train --exp=tiny_ppo

About 5 minutes on 2 CPU cores.
"""

from qwenjax.config import RL, AdamW, Chat, ChatFile, Compute, Data, Experiment, ModelConfig, Source


def experiment() -> Experiment:
    return Experiment(
        name="tiny_ppo",
        task="ppo",
        init_from="runs/tiny_sft",
        model=ModelConfig(vocab=8192, layers=4, embed=128, heads=4, ffn=344, context=256),
        data=Data(
            sources=(Source(text="python-stdlib"),),
            tokenizer="init_from",
            seq_len=112,
            batch_size=32,
            eval_tokens=20_000,
        ),
        chat=Chat(files=(ChatFile("prompt.jsonl"),)),
        optim=AdamW(peak_lr=2e-4, schedule="constant", warmup_steps=0, weight_decay=0.0),
        rl=RL(
            reward="runs/tiny_rm",
            max_new_tokens=32,
            value_warmup_steps=5,
            minibatches=2,
            epochs=2,
            value_optim=AdamW(peak_lr=1e-3, schedule="constant", warmup_steps=0, weight_decay=0.0),
            ptx_coef=0.2,
            ptx_batch=16,
        ),
        compute=Compute(dtype="float32", remat="none", scan=False, loss_chunk=512),
        steps=60,
        log_every=1,
        eval_every=20,
        save_every=20,
    )
