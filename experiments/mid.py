"""A larger run on any text: a folder, a .txt, a .jsonl or .jsonl.gz with a `text` field.

    python -m qwenjax.train --exp=mid --set data.sources.0.text=PATH --workdir=runs/mine

Thirteen million parameters, a tokenizer of its own; about two hours on 2 CPU cores, minutes on one GPU (there, also
--set compute.dtype=bfloat16 --set compute.scan=true).
"""

from qwenjax.config import AdamW, Compute, Data, Experiment, ModelConfig, Source


def experiment() -> Experiment:
    return Experiment(
        name="mid",
        model=ModelConfig(vocab=16_384, layers=6, embed=256, heads=8, ffn=688, context=512),
        data=Data(
            sources=(Source(text="python-stdlib"),),
            tokenizer="train:16384",
            seq_len=512,
            batch_size=16,
            eval_tokens=200_000,
        ),
        optim=AdamW(peak_lr=3e-3, warmup_steps=100, min_lr_ratio=0.02),
        compute=Compute(dtype="float32", remat="none", scan=False, loss_chunk=512),
        steps=2000,
        eval_every=200,
        sample_every=500,
        save_every=200,
        prompts=("The ", "def ", "\n"),
    )
