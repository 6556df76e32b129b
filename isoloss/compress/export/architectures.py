"""What GGUF calls the parts of a model: names of tensors, keys of its sizes, and how rows are ordered there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloss.compress.recipe import Identity

Config = Mapping[str, Any]
Key = tuple[str, str, Any]  # without the architecture's name in front; its type; the value


@dataclass(frozen=True)
class Architecture:
    """A model that llama.cpp knows.

    Attributes:
        name: in GGUF.
        keys: of a config: what is written of it.
        turned: ends of paths of the weights that the model stores as (in, out).
        unused: beginnings of paths that llama.cpp does not read -> why.
        prefix: in front of the paths in models with a head.
        rotated: ends of paths of what makes queries and keys, whose rows are ordered by pairs there.
    """

    name: str
    keys: Callable[[Config], list[Key]]
    turned: tuple[str, ...] = ()
    unused: Mapping[str, str] | None = None
    prefix: str = ""
    rotated: bool = False


def architecture(known: Identity) -> Architecture:
    """What GGUF calls a model.

    Raises:
        ValueError: llama.cpp or this export does not know it, or a setting of it.
    """
    config = known.config or {}
    kind = str(config.get("model_type")) if known.kind == "huggingface" else known.name
    if known.kind != "huggingface" or kind not in ARCHITECTURES:
        raise ValueError(
            f"GGUF is written for Hugging Face models of the types {', '.join(ARCHITECTURES)}, got {kind}. "
            "Export to ONNX"
        )
    _refuse(kind, config)
    return ARCHITECTURES[kind]


def of_pairs(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of queries or keys in llama.cpp's order: the two halves of a head, which are rotated together, alternate.

    Example:
        >>> of_pairs(np.arange(8)[:, None], 2)[:, 0].tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
    """
    size = rows.shape[0] // heads // 2
    return np.ascontiguousarray(
        rows.reshape(heads, 2, size, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
    )


def heads_of(path: str, config: Config) -> int | None:
    """Of how many heads a tensor's rows are, where llama.cpp orders them by pairs."""
    heads = int(config["num_attention_heads"])
    if ".q_proj." in path:
        return heads
    if ".k_proj." in path:
        return int(config.get("num_key_value_heads") or heads)
    return None


def _refuse(kind: str, config: Config) -> None:
    """Refuse what would be computed otherwise there."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    turning = rope.get("rope_type") or rope.get("type") or "default"
    if kind in ROTARY and turning != "default":
        raise ValueError(f"needed rotary positions as they were first published, got rope_type {turning!r}")
    wanted: dict[str, tuple[str, ...]] = {"hidden_act": ("silu",)} if kind in ROTARY else {}
    wanted |= {"activation_function": ("gelu_new", "gelu_pytorch_tanh")} if kind == "gpt2" else {}
    wanted |= {"hidden_act": ("gelu",)} if kind == "bert" else {}
    for key, values in wanted.items():
        if config.get(key, values[0]) not in values:
            raise ValueError(f"llama.cpp computes {kind} with {values[0]}, got {key}={config[key]!r}")
    if kind == "mistral" and config.get("sliding_window"):
        raise ValueError("llama.cpp reads mistral as llama, without a sliding window; the config has one")
    if kind in ("llama", "mistral", "qwen2", "qwen3") and config.get("mlp_bias"):
        raise ValueError(f"llama.cpp computes {kind} without biases in its MLP, and the config has mlp_bias")


def _rotary(config: Config) -> list[Key]:
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    return [
        ("context_length", "uint32", config["max_position_embeddings"]),
        ("embedding_length", "uint32", config["hidden_size"]),
        ("block_count", "uint32", config["num_hidden_layers"]),
        ("feed_forward_length", "uint32", config["intermediate_size"]),
        ("attention.head_count", "uint32", heads),
        ("attention.head_count_kv", "uint32", config.get("num_key_value_heads") or heads),
        ("attention.key_length", "uint32", width),
        ("attention.value_length", "uint32", width),
        ("attention.layer_norm_rms_epsilon", "float32", config["rms_norm_eps"]),
        ("rope.dimension_count", "uint32", width),
        ("rope.freq_base", "float32", theta),
        ("vocab_size", "uint32", config["vocab_size"]),
    ]


def _gpt2(config: Config) -> list[Key]:
    return [
        ("context_length", "uint32", config["n_positions"]),
        ("embedding_length", "uint32", config["n_embd"]),
        ("block_count", "uint32", config["n_layer"]),
        ("feed_forward_length", "uint32", config.get("n_inner") or 4 * config["n_embd"]),
        ("attention.head_count", "uint32", config["n_head"]),
        ("attention.layer_norm_epsilon", "float32", config["layer_norm_epsilon"]),
        ("vocab_size", "uint32", config["vocab_size"]),
    ]


def _bert(config: Config) -> list[Key]:
    return [
        ("context_length", "uint32", config["max_position_embeddings"]),
        ("embedding_length", "uint32", config["hidden_size"]),
        ("block_count", "uint32", config["num_hidden_layers"]),
        ("feed_forward_length", "uint32", config["intermediate_size"]),
        ("attention.head_count", "uint32", config["num_attention_heads"]),
        ("attention.layer_norm_epsilon", "float32", config["layer_norm_eps"]),
        ("attention.causal", "bool", False),
        ("vocab_size", "uint32", config["vocab_size"]),
    ]


ROTARY = ("llama", "mistral", "qwen2", "qwen3")
ARCHITECTURES = {
    "llama": Architecture("llama", _rotary, rotated=True),
    "mistral": Architecture("llama", _rotary, rotated=True),
    "qwen2": Architecture("qwen2", _rotary),
    "qwen3": Architecture("qwen3", _rotary),
    "gpt2": Architecture("gpt2", _gpt2, turned=("c_attn.weight", "c_proj.weight", "c_fc.weight")),
    "bert": Architecture(
        "bert",
        _bert,
        unused={"pooler.": "llama.cpp has no pooler of BERT", "cls.": "llama.cpp has no head of BERT"},
        prefix="bert.",
    ),
}
"""By ``model_type`` of the config."""
