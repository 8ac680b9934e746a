"""Test loader: the Qwen-v1 goldens as our parameters."""

import json

import numpy as np
from paths import GOLDENS
from safetensors.numpy import load_file

from qwenjax.config import ModelConfig

FOLDER = GOLDENS / "qwen1_tiny" / "base"


def config() -> ModelConfig:
    c = json.loads((FOLDER / "config.json").read_text())
    return ModelConfig(
        vocab=c["vocab_size"],
        layers=c["num_hidden_layers"],
        embed=c["hidden_size"],
        heads=c["num_attention_heads"],
        ffn=c["intermediate_size"] // 2,
        context=128,
        rope_base=c["rotary_emb_base"],
        norm_eps=c["layer_norm_epsilon"],
    )


def from_qwen1(tensors: dict, cfg: ModelConfig) -> dict:
    """Tensors by released name -> our parameter tree (also maps a tree of gradients). Linear weights are [out, in]."""
    d, n, h = cfg.embed, cfg.heads, cfg.head_size

    def stack(name, change):
        return np.stack([change(tensors[f"transformer.h.{i}.{name}"]) for i in range(cfg.layers)])

    def rows(part):  # c_attn holds q, k, v as three row blocks
        return slice(part * d, (part + 1) * d)

    attn = {"o": stack("attn.c_proj.weight", lambda w: w.T.reshape(n, h, d))}
    for part, name in enumerate("qkv"):
        attn[name] = stack("attn.c_attn.weight", lambda w, p=part: w[rows(p)].T.reshape(d, n, h))
        attn[f"{name}_bias"] = stack("attn.c_attn.bias", lambda w, p=part: w[rows(p)].reshape(n, h))
    mlp = {
        "up": stack("mlp.w1.weight", np.transpose),
        "gate": stack("mlp.w2.weight", np.transpose),
        "down": stack("mlp.c_proj.weight", lambda w: w),  # [d f], as ours
    }
    blocks = {
        "attn": attn,
        "mlp": mlp,
        "norm1": {"scale": stack("ln_1.weight", lambda w: w)},
        "norm2": {"scale": stack("ln_2.weight", lambda w: w)},
    }
    return {
        "embed": tensors["transformer.wte.weight"],
        "blocks": blocks,
        "norm": {"scale": tensors["transformer.ln_f.weight"]},
        "head": tensors["lm_head.weight"].T,
    }


def params() -> dict:
    return from_qwen1(load_file(FOLDER / "model.safetensors"), config())


def golden(name: str) -> dict:
    return dict(np.load(FOLDER / f"{name}.npz"))
