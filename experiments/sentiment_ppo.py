"""PPO of the sentiment model against a reward model of people's ratings: report §3.2.2 at a laptop's size.

    python -m experiments.studies.alignment --data=ratings.jsonl.gz

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
            seq_len=72,
            batch_size=64,
            document_mask=True,
            eval_tokens=50_000,
        ),
        chat=Chat(files=(ChatFile("prompts.jsonl"),), validation=0.2),
        optim=AdamW(peak_lr=3e-4, schedule="constant", warmup_steps=0, weight_decay=0.0),
        rl=RL(
            reward="runs/sentiment_rm",
            max_new_tokens=32,
            top_p=1.0,
            kl_coef=0.2,
            missing_eos_score=-1.0,
            value_warmup_steps=5,
            value_optim=AdamW(peak_lr=1e-3, schedule="constant", warmup_steps=0, weight_decay=0.0),
            epochs=2,
            minibatches=4,
            ptx_coef=0.2,
            ptx_batch=16,
        ),
        compute=Compute(dtype="float32", remat="none", scan=False, loss_chunk=2048),
        steps=85,
        log_every=1,
        eval_every=5,
        save_every=20,
        keep=1,
    )
