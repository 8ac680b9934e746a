"""PPO of the sentiment model against a reward model of people's ratings: report §3.2.2 at a laptop's size.

    python -m qwenjax.bench align --data=ratings.jsonl.gz

runs it with and without the pretraining loss, and with shuffled scores as a control (docs/alignment.md). The first 5
iterations teach the value model alone; an evaluation after them shows where the policy began.
"""

from qwenjax.config import RL, AdamW, Chat, ChatFile, Compute, Data, Experiment, ModelConfig, Source


def experiment() -> Experiment:
    return Experiment(
        name="sentiment_ppo",
        task="ppo",
        init_from="runs/sentiment_sft",
        model=ModelConfig(vocab=2048, layers=2, embed=64, heads=4, ffn=176, context=72),
        data=Data(
            sources=(Source(text="texts.jsonl"),),
            tokenizer="init_from",
            length=72,
            batch=64,
            isolate=True,
            eval_tokens=50_000,
        ),
        chat=Chat(files=(ChatFile("prompts.jsonl"),), validation=0.2),
        optim=AdamW(peak=3e-4, schedule="constant", warmup=0, decay=0.0),
        rl=RL(
            reward="runs/sentiment_rm",
            new_tokens=32,
            top_p=1.0,
            kl_coef=0.2,
            missing_end=-1.0,
            value_steps=5,
            value_optim=AdamW(peak=1e-3, schedule="constant", warmup=0, decay=0.0),
            epochs=2,
            minibatches=4,
            ptx=0.2,
            ptx_rows=16,
        ),
        compute=Compute(dtype="float32", remat="none", scan=False, loss_tokens=2048),
        steps=85,
        log_every=1,
        eval_every=5,
        save_every=20,
        keep=1,
    )
