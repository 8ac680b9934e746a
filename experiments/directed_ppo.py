"""PPO with the report's preset (§3.2.2) at a laptop's size, asked for a positive or a negative text.

    python -m experiments.studies.alignment --experiment=B --data=ratings.jsonl.gz

makes the prompts and the models that are named here. 50 iterations of the value model alone, two responses to each
prompt, top-p 0.9, KL 0.04 against the reference, values clipped at 0.15, the value model's rate five times the
policy's, and the pretraining loss (docs/alignment.md). The rates themselves are those of a model 40,000 times smaller
than the 14B.
"""

from qwenjax.config import RL, AdamW, Chat, ChatFile, Compute, Data, Experiment, ModelConfig, Source


def experiment() -> Experiment:
    return Experiment(
        name="directed_ppo",
        task="ppo",
        init_from="runs/directed_sft",
        model=ModelConfig(vocab=2048, layers=2, embed=64, heads=4, ffn=176, context=72),
        data=Data(
            sources=(Source(text="directed-texts.jsonl"),),
            tokenizer="init_from",
            seq_len=72,
            batch_size=128,
            document_mask=True,
            eval_tokens=50_000,
        ),
        chat=Chat(files=(ChatFile("prompts.jsonl"),), validation=0.2),
        optim=AdamW(peak_lr=2e-4, schedule="constant", warmup_steps=0, weight_decay=0.0),
        rl=RL(
            reward="runs/directed_rm",
            num_samples=2,
            max_new_tokens=32,
            top_p=0.9,
            kl_coef=0.04,
            missing_eos_score=-1.0,
            value_clip=0.15,
            value_warmup_steps=50,
            value_optim=AdamW(peak_lr=1e-3, schedule="constant", warmup_steps=0, weight_decay=0.0),
            epochs=2,
            minibatches=4,
            ptx_coef=0.2,
            ptx_batch=16,
        ),
        compute=Compute(dtype="float32", remat="none", scan=False, loss_chunk=2048),
        steps=120,
        log_every=1,
        eval_every=10,
        save_every=25,
        keep_every=25,
    )
