"""Models and vocabularies written as GGUF, for llama.cpp and programs built on it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qwenjax.chat_format.template import ChatTemplate
from qwenjax.config import ModelConfig
from qwenjax.interop import HubCheckpoint, Tensor
from qwenjax.interop.gguf.read import FIELDS, NAMES, PAIRED, frequency_factors, library, pairs, rename
from qwenjax.interop.huggingface.config import extensions_left_out
from qwenjax.interop.huggingface.layout import Table
from qwenjax.interop.huggingface.load import check
from qwenjax.interop.huggingface.tokenizer import sentencepiece_model
from qwenjax.tokenizer.base import Tokenizer
from qwenjax.tokenizer.bpe import QwenBPE, merges, spell
from qwenjax.tokenizer.gguf import CONTROL_TYPE, NORMAL, UNUSED, hub_facts
from qwenjax.tokenizer.hub import HubTokenizer, named_tokens

# Dtype of matrices -> what GGUF calls such files
KINDS = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
LARGEST = {"F16": 65504.0, "Q8_0": 127 * 65504.0}  # bfloat16 has no such limit
GGUF_NAMES = {name: gguf for gguf, name in NAMES["qwen2"].items()}


def write_gguf(
    path: str | Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    vocabulary: Mapping[str, Any],
    kind: str = "f16",
    name: str = "",
    progress: Callable[[int], None] = lambda written: None,
) -> list[str]:
    """Writes a model, reading its tensors one at a time. The file gets its name when it is complete.

    Vectors are float32 for every kind; matrices whose rows are no multiple of 32, the block of q8_0, become float16.

    Args:
      tensors: those of the layout "qwen2", as `save.as_tensors` gives them.
      vocabulary: metadata `tokenizer.…` with a token for each row of the embedding: from `vocabulary`, or of a file.
      kind: dtype of matrices, of `KINDS`.
      progress: called after each tensor with its number of values; `config.params` is their sum.
    Returns: a sentence for each thing that the format cannot express and that is left out.
    Raises:
      ValueError: an unknown kind; tensors that are not those of the config, or too large for the kind; or a model that
        no architecture of GGUF has. Then there is no file.
    """
    gguf, path = library(), Path(path)
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; known: {', '.join(KINDS)}")
    table, architecture = Table(config, "qwen2"), _architecture(config)
    if biases := check(HubCheckpoint(config, "qwen2", dict(tensors), {}), table):
        raise ValueError(f"the model has no {biases[0]}")
    tokens = len(vocabulary.get("tokenizer.ggml.tokens", ()))
    if tokens != config.vocab:
        raise ValueError(f"{tokens} tokens for an embedding of {config.vocab} rows: GGUF wants one for each")
    vocabulary = {key: value for key, value in vocabulary.items() if key.startswith("tokenizer.")}
    types = {name: _type(gguf, kind, tensors[name].shape) for name in table.parts}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    writer = gguf.GGUFWriter(unfinished, architecture)
    try:
        metadata = _metadata(config, architecture, name) | vocabulary
        metadata["general.file_type"] = int(gguf.LlamaFileType[KINDS[kind]])
        metadata["general.quantization_version"] = gguf.GGML_QUANT_VERSION
        for key, value in metadata.items():
            _add(writer, key, value)
        for theirs, type_ in types.items():
            shape = tensors[theirs].shape
            size = int(np.prod(gguf.quant_shape_to_byte_shape(shape, type_)))
            writer.add_tensor_info(rename(theirs, GGUF_NAMES), shape, np.dtype(np.float32), size, type_)
        factors = frequency_factors(config) if config.rope_scaling.kind == "llama3" else None
        if factors is not None:
            kind_ = gguf.GGMLQuantizationType.F32
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes, kind_)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for theirs, type_ in types.items():
            array = tensors[theirs].read()
            stem = rename(theirs, GGUF_NAMES).split(".")[-2]
            if architecture == "llama" and stem in PAIRED:
                array = pairs(array, config.heads if stem == "attn_q" else config.kv)
            writer.write_tensor_data(_stored(gguf, theirs, array, type_))
            progress(array.size)
        if factors is not None:
            writer.write_tensor_data(factors)
        writer.close()
        unfinished.replace(path)
    finally:
        writer.close()
        unfinished.unlink(missing_ok=True)
    windows = ["windows left out: every layer of the written model sees all positions"] if any(config.windows) else []
    return extensions_left_out(config, "GGUF") + windows


def _architecture(config: ModelConfig) -> str:
    if config.qk_norm and config.qkv_bias:
        raise ValueError("GGUF has no architecture with norms of queries and keys and biases, too")
    if config.qk_norm:
        return "qwen3"
    # llama.cpp gives qwen2 heads of embed / heads only; its llama may have other ones, and biases
    return "qwen2" if config.qkv_bias and config.heads * config.head_size == config.embed else "llama"


def _type(gguf, kind: str, shape: tuple[int, ...]):
    """The type of a tensor: vectors are float32, as llama.cpp wants them."""
    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    if kind == "q8_0" and shape[-1] % 32:
        kind = "f16"
    return gguf.GGMLQuantizationType[kind.upper()]


def _stored(gguf, name: str, array: np.ndarray, type_) -> np.ndarray:
    """The values of a tensor as the file has them."""
    array = np.ascontiguousarray(array)
    if type_.name == "BF16":
        return array.astype(ml_dtypes.bfloat16).view(np.uint16)
    array = array.astype(np.float32, copy=False)
    if type_.name == "F32":
        return array
    if not np.abs(array).max() <= LARGEST[type_.name]:  # also NaN
        raise ValueError(f"tensor {name!r} has values that {type_.name} cannot hold; write bf16 or f32")
    return array.astype(np.float16) if type_.name == "F16" else gguf.quantize(array, type_)


def _metadata(config: ModelConfig, architecture: str, name: str) -> dict[str, Any]:
    """The shape of the model under llama.cpp's keys."""
    facts = {theirs: getattr(config, ours) for ours, (theirs, _) in FIELDS.items()} | {
        "feed_forward_length": config.ffn,
        "attention.head_count_kv": config.kv,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "rope.dimension_count": config.head_size,
        "rope.freq_base": float(config.rope_base),
        "vocab_size": config.vocab,
    }
    scaling = config.rope_scaling
    if scaling.kind == "dynamic" or scaling.attention or (scaling.kind == "llama3" and architecture != "llama"):
        what = "attention factors of its own" if scaling.attention else f"rope scaling {scaling.kind!r}"
        raise ValueError(f"the model has {what}, which GGUF cannot express for {architecture}; use --to=qwen2")
    if scaling.kind in ("linear", "yarn"):
        facts |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": float(scaling.factor)}
        if scaling.kind == "yarn":
            facts |= {
                "rope.scaling.original_context_length": scaling.original or config.context,
                "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
                "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
            }
    general = {"general.type": "model"} | ({"general.name": name} if name else {})
    return general | {f"{architecture}.{key}": value for key, value in facts.items()}


def _add(writer, key: str, value: Any) -> None:
    """Adds metadata in the types that llama.cpp expects: single integers unsigned, those in lists signed."""
    if key.endswith("precompiled_charsmap"):
        value = bytes(value)
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


# ---- the vocabulary ----


def vocabulary(tokenizer: Tokenizer, rows: int, chat_template: str = "") -> dict[str, Any]:
    """Metadata `tokenizer.…` from which llama.cpp gets our ids for text that is in Unicode NFC; it does not normalise.

    Args:
      rows: of the embedding; ids from the tokenizer's size on become unused tokens [PAD…].
      chat_template: a Jinja template, where the tokenizer has none of its own. With one, <|im_end|> ends what the
        model writes, without one <|endoftext|>.
    Raises:
      ValueError: more ids than rows, or a token that is no merge of two others.
    """
    if tokenizer.size > rows:
        raise ValueError(f"the tokenizer {tokenizer.name} has {tokenizer.size} ids, the embedding only {rows} rows")
    is_hub = isinstance(tokenizer, HubTokenizer)
    make = hub_facts if is_hub else _pieces if tokenizer.file.endswith(".model") else _ranks
    values = make(tokenizer)
    end = tokenizer.eot if tokenizer.im_end is None or not chat_template else tokenizer.im_end
    eot, named = end if is_hub else tokenizer.im_end, named_tokens(tokenizer.config) if is_hub else {}
    templates: dict[str, Any] = {"tokenizer.chat_template": chat_template} if chat_template else {}
    if tokenizer.chat_template is not None:
        end, eot, templates = tokenizer.eot, tokenizer.turn_end, _templates(tokenizer.chat_template)
    tokens, types = values["tokens"], values["token_type"]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), rows)]
    types += [UNUSED] * (rows - len(types))
    if "scores" in values:
        values["scores"] += [0.0] * (rows - len(values["scores"]))
    values |= {
        "bos_token_id": tokenizer.added.get(named.get("bos_token"), (*tokenizer.prefix, tokenizer.eot)[0]),
        "eos_token_id": tokenizer.added.get(named.get("eos_token"), end),
        "eot_token_id": eot,
        "padding_token_id": tokenizer.eot,
        "add_bos_token": bool(tokenizer.prefix),
        "add_eos_token": False,
    }
    metadata = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return metadata | templates


def _templates(template: ChatTemplate) -> dict[str, Any]:
    """Chat templates under the keys that llama.cpp reads: one, and others with their names."""
    if template.templates is None:
        return {"tokenizer.chat_template": template.source()}
    more = {name: text for name, text in template.templates.items() if name != "default"}
    keys = {f"tokenizer.chat_template.{name}": text for name, text in more.items()}
    keys |= {"tokenizer.chat_templates": sorted(more)} if more else {}
    return keys | ({"tokenizer.chat_template": template.source()} if "default" in template.templates else {})


def _ranks(tokenizer: QwenBPE) -> dict[str, Any]:
    """Byte-level BPE as GPT-2 writes it: bytes as printable characters, and the pair that each token is merged of."""
    ids = {index: (spell(token), NORMAL) for token, index in tokenizer.ranks.items()}
    ids |= {index: (surface, CONTROL_TYPE) for surface, index in tokenizer.special.items()}
    every = [ids.get(i, (f"[PAD{i}]", UNUSED)) for i in range(tokenizer.size)]
    return {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": [token for token, _ in every],
        "token_type": [kind for _, kind in every],
        "merges": [f"{spell(left)} {spell(right)}" for left, right in merges(tokenizer.ranks)],
    }


def _pieces(tokenizer: Tokenizer) -> dict[str, Any]:
    """Pieces, scores and types of a sentencepiece model."""
    model = sentencepiece_model(tokenizer)
    return {
        "model": "t5" if model.trainer_spec.model_type == 1 else "llama",
        "pre": "default",
        "tokens": [piece.piece for piece in model.pieces],
        "scores": [piece.score for piece in model.pieces],
        "token_type": [piece.type for piece in model.pieces],  # GGUF numbers types as sentencepiece does
        "unknown_token_id": model.trainer_spec.unk_id,
        "add_space_prefix": model.normalizer_spec.add_dummy_prefix,
        "remove_extra_whitespaces": model.normalizer_spec.remove_extra_whitespaces,
    }
