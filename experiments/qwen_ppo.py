"""PPO of Qwen-1.8B, 7B or 14B against the reward model: the report's recipe (§3.2.2) with the pretrained gradient.

    python -m qwenjax.train --exp=qwen14b_ppo --set init_from=SFT --set rl.reward=RM --set chat.files.0.path=FILE.jsonl

From the report: 50 iterations of the value model alone, two responses a query, KL coefficient 0.04, scores minus their
running mean, learning rates 1e-6 and 5e-6, value clip 0.15, top-p 0.9, much more pretraining data than prompts. Not
published, so ours: batch, clip of the ratio, gamma, lambda, updates per iteration, coefficient of the pretrained
gradient, number of iterations.
"""

from qwenjax.config import QWEN_SIZES, RL, AdamW, Chat, ChatFile, Data, Experiment, Source


def experiment(size: str) -> Experiment:
    return Experiment(
        name=f"qwen{size}_ppo",
        task="ppo",
        init_from=f"runs/qwen{size}_chat_sft",
        model=QWEN_SIZES[size],
        data=Data(sources=(Source(shards="data/pretrain"),), tokenizer="qwen", seq_len=2048, batch_size=256),
        chat=Chat(files=(ChatFile("data/prompts.jsonl"),)),
        optim=AdamW(peak_lr=1e-6, schedule="constant", warmup_steps=0, weight_decay=0.0),
        rl=RL(
            reward=f"runs/qwen{size}_rm",
            max_new_tokens=1024,
            minibatches=2,
            value_optim=AdamW(peak_lr=5e-6, schedule="constant", warmup_steps=0, weight_decay=0.0),
            ptx_coef=0.1,
            ptx_batch=512,
        ),
        steps=1000,
        log_every=1,
        eval_every=50,
        save_every=50,
    )
