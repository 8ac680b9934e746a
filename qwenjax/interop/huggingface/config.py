"""config.json of released checkpoints as a ModelConfig, and back.

Supported are Qwen (both generations of its file), Qwen2 (also Qwen1.5 and 2.5), Qwen3 and Llama, in the spelling of
transformers 4 and 5. A field is read, or it is in `HARMLESS` because it does not change what the model computes, or it
is refused by name: nobody knows what it means.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

from qwenjax.config import ModelConfig, RopeScaling

LAYOUT = {"qwen": "qwen", "qwen2": "qwen2", "qwen3": "qwen2", "llama": "qwen2"}  # model_type -> layout of the tensors

# Fields of `ModelConfig` -> required fields of the same meaning
QWEN_FIELDS = {
    "vocab": ("vocab_size", int),
    "layers": ("num_hidden_layers", int),
    "embed": ("hidden_size", int),
    "heads": ("num_attention_heads", int),
    "context": ("seq_length", int),
    "norm_eps": ("layer_norm_epsilon", float),
}
QWEN2_FIELDS = QWEN_FIELDS | {
    "ffn": ("intermediate_size", int),
    "context": ("max_position_embeddings", int),
    "norm_eps": ("rms_norm_eps", float),
}
# Fields of the first release (August 2023) under the names of the later one.
_FIRST = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
    "padded_vocab_size": "vocab_size",
}


# Read elsewhere: what ends a text, and how weights are packed
_ELSEWHERE = {"model_type", "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "quantization_config"}
_WINDOWS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
# What transformers takes where a field is absent
_COMMON = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0}
DEFAULTS = {
    "qwen2": {**_COMMON, "max_position_embeddings": 32_768, "max_window_layers": 28},
    "qwen3": {**_COMMON, "max_position_embeddings": 32_768, "max_window_layers": 28},
    "llama": {**_COMMON, "max_position_embeddings": 2_048},
}
# Do not change what a decoder computes, or only in training, or only in generation (generation_config.json counts)
HARMLESS = frozenset(
    """_name_or_path _commit_hash _attn_implementation _attn_implementation_autoset attn_implementation
    add_cross_attention attention_dropout attn_dropout_prob attn_pdrop auto_map bad_words_ids begin_suppress_tokens bf16
    bias_dropout_fusion chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty
    do_sample dtype early_stopping embd_pdrop emb_dropout_prob encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id fp16 fp32
    hidden_dropout_prob id2label initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length
    min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences onnx_safe output_attentions
    output_hidden_states output_scores params_dtype prefix pretraining_tp problem_type pruned_heads
    remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate softmax_in_fp32
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class tokenizer_type
    top_k top_p torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache use_cache_kernel
    use_cache_quantization use_flash_attn""".split()  # noqa: SIM905
)


class ConfigFields:
    """The fields of a config.json or of GGUF metadata, with errors that name what is missing or unsupported."""

    def __init__(self, values: Mapping[str, Any], source: str):
        self.values, self.source, self.read = values, source, set()

    def __call__(self, name: str, kind: type = int) -> Any:
        """A required field of the type int, float, bool, list or dict."""
        self.read.add(name)
        if self.values.get(name) is None:
            raise ValueError(f"{self.source} has no field {name!r}, which the model needs")
        value = self.values[name]
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            fits, value = True, float(value)
        if not fits:
            raise ValueError(f"{self.source}: {name}={value!r:.80}, wanted {kind.__name__}")
        return value

    def get(self, name: str, default: Any) -> Any:
        """A field, or the default where it is absent or null."""
        self.read.add(name)
        return default if self.values.get(name) is None else self(name, type(default))

    def refuse(self, name: str, unless: Any) -> None:
        """Raises ValueError if the field has a value other than the only supported one."""
        self.read.add(name)
        value = self.values.get(name)
        if value is not None and value != unless:
            raise ValueError(f"{self.source}: {name}={value!r} is not supported, only {unless!r} is")

    def refuse_unread(self, harmless: Collection[str]) -> None:
        """Raises ValueError for fields that say something, were not read and are not harmless."""
        unread = {name: value for name, value in self.values.items() if name not in self.read and name not in harmless}
        unread = {name: value for name, value in unread.items() if value not in (None, False, [], {}, "")}
        if unread:
            listed = ", ".join(f"{name}={value!r:.60}" for name, value in sorted(unread.items())[:4])
            raise ValueError(
                f"{self.source}: {listed} is not known, so it may change what the model computes; if it does not, "
                "remove it from the file"
            )


def read_config(values: Mapping[str, Any], source: str = "config.json") -> tuple[ModelConfig, str]:
    """The model that a config.json describes, and the layout of its tensors ('qwen' or 'qwen2').

    Raises:
      ValueError: an unsupported model_type, a field that is missing or of the wrong type, or one that asks for
        unsupported mathematics; with the field and `source`.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in LAYOUT:
        raise ValueError(f"{source}: model_type={kind!r} is not read; {', '.join(LAYOUT)} are")
    config = _read_qwen(values, source) if kind == "qwen" else _read_qwen2(values, source, kind)
    return config, LAYOUT[kind]


def write_config(config: ModelConfig, layout: str, dtype: str = "float32") -> tuple[dict[str, Any], list[str]]:
    """The config.json of a layout, and a sentence for each thing that it cannot express and that is left out.

    Raises ValueError for a model that no class of transformers computes.
    """
    return _write_qwen(config, dtype) if layout == "qwen" else _write_qwen2(config, dtype)


# ---- Qwen ----


def _read_qwen(values: Mapping[str, Any], source: str) -> ModelConfig:
    """Both generations; a field of the first one is used where the later name is absent."""
    fields = ConfigFields({**{new: values[old] for old, new in _FIRST.items() if old in values}, **values}, source)
    if "padded_vocab_size" in values:  # its vocab_size may be the tokenizer's
        fields.values["vocab_size"] = values["padded_vocab_size"]
    fields.refuse("rotary_pct", unless=1.0)
    fields.refuse("no_bias", unless=True)
    fields.refuse("scale_attn_weights", unless=True)
    fields.refuse("activation", unless="swiglu")
    fields.refuse("pos_emb", unless="rotary")
    fields.refuse("apply_residual_connection_post_layernorm", unless=False)
    if "visual" in values:
        raise ValueError(f"{source} has a field 'visual': vision models are not supported")
    base = "rotary_emb_base" if "rotary_emb_base" in values else "rope_theta"
    width = fields("intermediate_size")
    if width % 2:
        raise ValueError(f"{source}: intermediate_size={width} is odd; in this format it is twice ffn")
    shape = {ours: fields(*theirs) for ours, theirs in QWEN_FIELDS.items()}
    head = fields.get("kv_channels", 0)
    config = ModelConfig(
        **shape,
        ffn=width // 2,
        head_dim=0 if head * shape["heads"] == shape["embed"] else head,
        rope_base=fields(base, float),
        tie_embeddings=fields.get("tie_word_embeddings", False),
        ntk=fields.get("use_dynamic_ntk", False),
        logn=fields.get("use_logn_attn", False),
    )
    # some files also say how long texts may be; seq_length is what the model was trained for
    lengths = {"max_position_embeddings", "n_positions", "vocab_size"}
    fields.refuse_unread(HARMLESS | _ELSEWHERE | lengths | _FIRST.keys())
    return config


def _write_qwen(config: ModelConfig, dtype: str) -> tuple[dict[str, Any], list[str]]:
    values = {theirs: getattr(config, ours) for ours, (theirs, _) in QWEN_FIELDS.items()} | {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
        "attn_dropout_prob": 0.0,
        "bf16": dtype == "bfloat16",
        "emb_dropout_prob": 0.0,
        "fp16": False,
        "fp32": dtype == "float32",
        "initializer_range": 0.02,
        "intermediate_size": 2 * config.ffn,
        "kv_channels": config.head_size,
        "max_position_embeddings": config.context,
        "model_type": "qwen",
        "no_bias": True,
        "onnx_safe": None,
        "rotary_emb_base": config.rope_base,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "tie_word_embeddings": config.tie_embeddings,
        "tokenizer_class": "QWenTokenizer",
        "torch_dtype": dtype,
        "transformers_version": "4.32.0",
        "use_cache": True,
        "use_dynamic_ntk": config.ntk,
        "use_flash_attn": "auto",
        "use_logn_attn": config.logn,
    }
    return values, ["windows are left out: the Qwen-v1 layout has none"] if any(config.windows) else []


# ---- Qwen2, Qwen3, Llama ----


def _read_qwen2(values: Mapping[str, Any], source: str, kind: str) -> ModelConfig:
    fields = ConfigFields({**DEFAULTS[kind], **{k: x for k, x in values.items() if x is not None}}, source)
    if fields.get("hidden_act", "silu") != "swish":  # two names of one function
        fields.refuse("hidden_act", unless="silu")
    fields.refuse("use_mrope", unless=False)
    fields.refuse("mlp_bias", unless=False)
    fields.refuse("partial_rotary_factor", unless=1.0)
    shape = {ours: fields(*theirs) for ours, theirs in QWEN2_FIELDS.items()}
    kv = fields.get("num_key_value_heads", shape["heads"])
    head = fields.get("head_dim", 128 if kind == "qwen3" else 0)  # 128 is the default of Qwen3
    # transformers 5 has one dictionary; before, rope_theta was a field and the rest was called rope_scaling
    parameters = {**fields.get("rope_scaling", {}), **fields.get("rope_parameters", {})}
    rope = ConfigFields(parameters, f"{source}, rope_parameters")
    base = (rope if "rope_theta" in parameters else fields)("rope_theta", float)
    rope.refuse("partial_rotary_factor", unless=1.0)
    config = ModelConfig(
        **shape,
        kv_heads=0 if kv == shape["heads"] else kv,
        head_dim=0 if head * shape["heads"] == shape["embed"] else head,
        rope_base=base,
        qkv_bias=kind == "qwen2" or fields.get("attention_bias", False),
        qk_norm=kind == "qwen3",
        tie_embeddings=fields.get("tie_word_embeddings", False),
        rope_scaling=_read_scaling(rope, shape["context"]),
        windows=_read_windows(fields) if kind != "llama" else (),
    )
    fields.refuse_unread(HARMLESS | _ELSEWHERE | {"rope_theta", *_WINDOWS})
    rope.refuse_unread({"rope_type", "type", "original_max_position_embeddings"})
    return config


def _write_qwen2(config: ModelConfig, dtype: str) -> tuple[dict[str, Any], list[str]]:
    if config.qk_norm and config.qkv_bias:
        raise ValueError("the qwen2 layout has no model with both qk_norm and qkv_bias")
    kind = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    values = {theirs: getattr(config, ours) for ours, (theirs, _) in QWEN2_FIELDS.items()} | {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "hidden_act": "silu",
        "model_type": kind,
        "num_key_value_heads": config.kv,
        # the spelling of transformers 4, which 5, vLLM and llama.cpp read as well
        "rope_theta": config.rope_base,
        "rope_scaling": _write_scaling(config),
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
    }
    if kind != "qwen2":
        values["attention_bias"] = config.qkv_bias
    if kind != "qwen2" or config.head_dim:
        values["head_dim"] = config.head_size
    dropped = extensions_left_out(config, "the qwen2 layout")
    widths = {*config.windows} - {0}
    if len(widths) == 1 and kind != "llama":
        values |= {
            "layer_types": ["sliding_attention" if width else "full_attention" for width in config.windows],
            "max_window_layers": next(i for i, width in enumerate(config.windows) if width),
            "sliding_window": widths.pop(),
            "use_sliding_window": True,
        }
    elif widths:
        why = "Llama has none" if kind == "llama" else "the qwen2 layout has one width for all layers"
        dropped.append(f"windows left out: {why}; every layer of the written model sees all positions")
    return values, dropped


def extensions_left_out(config: ModelConfig, where: str) -> list[str]:
    """A sentence, if the model has context extensions that a format cannot express."""
    names = " and ".join(name for name in ("ntk", "logn") if getattr(config, name))
    why = f"{where} has no such context extension; the model is the same up to {config.context} tokens only"
    return [f"{names} left out: {why}"] if names else []


def _read_scaling(rope: ConfigFields, context: int) -> RopeScaling:
    """Scaling of rotary frequencies; transformers called `rope_type` `type` before."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return RopeScaling()
    if kind not in ("linear", "dynamic", "yarn", "llama3"):
        raise ValueError(
            f"{rope.source}: rotary scaling {kind!r} is not supported; default, linear, dynamic, yarn and llama3 are"
        )
    original = rope.get("original_max_position_embeddings", context)
    default = context / original if kind == "yarn" and rope.values.get("factor") is None else None
    factor = default or rope("factor", float)
    if kind in ("linear", "dynamic"):
        return RopeScaling(kind, factor)
    original = 0 if original == context else original
    if kind == "llama3":
        return RopeScaling(kind, factor, original, rope("high_freq_factor", float), rope("low_freq_factor", float))
    rope.refuse("truncate", unless=True)
    attention = rope.get("attention_factor", 0.0) or _mscale(rope, factor)
    if math.isclose(attention, 0.1 * math.log(factor) + 1, rel_tol=1e-6):
        attention = 0.0
    fast, slow = rope.get("beta_fast", 0.0) or 32.0, rope.get("beta_slow", 0.0) or 1.0
    return RopeScaling(kind, factor, original, fast, slow, attention)


def _mscale(rope: ConfigFields, factor: float) -> float:
    """YaRN's factor on queries and keys, as DeepSeek's fields give it."""
    sizes = rope.get("mscale", 0.0), rope.get("mscale_all_dim", 0.0)
    if not all(sizes) or factor <= 1:
        return 0.1 * math.log(factor) + 1
    above, below = (0.1 * size * math.log(factor) + 1 for size in sizes)
    return above / below


def _write_scaling(config: ModelConfig) -> dict[str, Any] | None:
    scaling = config.rope_scaling
    if scaling.kind == "none":
        return None
    values = {"rope_type": scaling.kind, "type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("linear", "dynamic"):
        return values
    values["original_max_position_embeddings"] = scaling.original or config.context
    if scaling.kind == "llama3":
        return values | {"high_freq_factor": scaling.beta_fast, "low_freq_factor": scaling.beta_slow}
    betas = {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    return values | betas | ({"attention_factor": scaling.attention} if scaling.attention else {})


def _read_windows(fields: ConfigFields) -> tuple[int, ...]:
    """Sliding windows of the layers in `layer_types`, or without it of those from `max_window_layers` on."""
    if not fields.get("use_sliding_window", False) or fields.values.get("sliding_window") is None:
        return ()
    width, layers = fields("sliding_window"), fields("num_hidden_layers")
    if fields.values.get("layer_types") is None:
        first = fields("max_window_layers")
        kinds = ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
    else:
        kinds = fields("layer_types", list)
    unknown = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
    if unknown or len(kinds) != layers:
        what = f"the kind {unknown[0]!r}" if unknown else f"{len(kinds)} entries for {layers} layers"
        raise ValueError(f"{fields.source}: layer_types has {what}")
    windows = tuple(width if kind == "sliding_attention" else 0 for kind in kinds)
    return windows if any(windows) else ()
