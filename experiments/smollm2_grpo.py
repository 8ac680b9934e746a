"""GRPO on SmolLM2-135M-Instruct with adapters, against a Python function or a reward model (arXiv 2402.03300).

    python -m qwenjax.train --exp=smollm2_grpo --set init_from=SmolLM2-135M-Instruct.gguf --set rl.reward=FILE.py:NAME

About 30 minutes on 2 CPU cores.
"""

from qwenjax.config import RL, SMOLLM2_135M, AdamW, Chat, ChatFile, Compute, Data, Experiment, Lora


def experiment() -> Experiment:
    return Experiment(
        name="smollm2_grpo",
        task="grpo",
        init_from="SmolLM2-135M-Instruct.gguf",
        model=SMOLLM2_135M,
        data=Data(tokenizer="init_from", seq_len=160, batch_size=32),
        chat=Chat(files=(ChatFile("prompts.jsonl"),)),
        lora=Lora(rank=16, alpha=16, base_dtype="float32"),
        optim=AdamW(peak_lr=1e-4, schedule="constant", warmup_steps=0, weight_decay=0.0),
        rl=RL(reward="runs/smollm2_rm", num_samples=8, max_new_tokens=64, minibatches=4, top_p=1.0, eval_prompts=32),
        compute=Compute(dtype="float32", remat="none", loss_chunk=256),
        steps=30,
        log_every=1,
        eval_every=10,
        save_every=5,
    )
