"""Language models of the Llama kind as what a step computes with: the project's own GPT, and those of Hugging Face.

Their modules are made for whole batches of text: a token costs hundreds of calls that have nothing to do with its weights.
Here a token is read with the fewest calls, in PyTorch (:func:`read`), or in one call of native code, which gives the same
numbers but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoloss import native
from isoloss.deploy.linear import PackedEmbedding, PackedLinear
from isoloss.deploy.products import DECODED_FROM
from isoloss.native.decoding import GATED, MOST_SIZE, SQUARED, LayerWeights, Matrix, Native, Sizes
from isoloss.trainers.gpt_modules import Transformer

KNOWN = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Classes of Hugging Face whose layers are those of :class:`Stack`."""
STATIC = ("default", "linear", "llama3", "yarn")  # rotations that do not depend on the length of a text
FEW = 8  # tokens up to which native code reads weights that are floats; with more of them torch multiplies faster
WIDE = 16  # numbers that heads in a cache are filled up to
Module = nn.Module


@dataclass(frozen=True, eq=False)
class Block:
    """A layer: ``k`` and ``v`` are None where ``q`` has their rows behind its own, ``gate`` where there is none.

    Attributes:
        norms: weights of the norms of attention, MLP, queries and keys; None: no weights.
    """

    q: Module
    k: Module | None
    v: Module | None
    out: Module
    gate: Module | None
    up: Module
    down: Module
    norms: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True, eq=False)
class Stack:
    """A model: in each layer x += out(attention(norm x)), then x += down(silu(gate) up) or down(relu(up)^2), of norm x.

    Attributes:
        heads: of queries; kv_heads: of keys and values; size: numbers of a head.
        inner: of the MLP.
        context: most tokens.
        normed_heads: queries and keys are normalised before they are rotated.
        cosine: (context, size / 2), float32; sine: the same.
        norm: weight of the last norm.
    """

    width: int
    heads: int
    kv_heads: int
    size: int
    inner: int
    vocabulary: int
    context: int
    normed_heads: bool
    eps: float
    head_eps: float
    cosine: Tensor
    sine: Tensor
    embedding: Module
    head: Module
    norm: Tensor | None
    blocks: tuple[Block, ...]

    def cache(self, room: int) -> Tensor:
        """Keys and values of a text, of so many places: (layers, 2, kv_heads, room, size filled up to 16), float32."""
        return torch.zeros(len(self.blocks), 2, self.kv_heads, room, -(-self.size // WIDE) * WIDE)

    @cached_property
    def native(self) -> Native | None:
        """For native code; None where that is not there or does not know how one of the weights is stored."""
        if not native.available() or self.size > MOST_SIZE:
            return None
        try:
            layers = [_native_layer(block) for block in self.blocks]
            sizes = Sizes(
                self.width, self.heads, self.kv_heads, self.size, self.inner, self.vocabulary, self.context,
                SQUARED if self.blocks and self.blocks[0].gate is None else GATED, self.normed_heads, self.eps, self.head_eps,
            )  # fmt: skip
            head = _weight(self.head)
            table = _weight(self.embedding)
            return Native(
                sizes, layers, table, head, _numbers(self.norm), _floats(self.cosine), _floats(self.sine)
            )
        except _Unknown:
            return None

    @cached_property
    def most_native(self) -> int:
        """Tokens up to which native code reads them faster than PyTorch; 0: there is none for this model."""
        if self.native is None:
            return 0
        packed = all(isinstance(one, PackedLinear) for block in self.blocks for one in _products(block))
        return DECODED_FROM - 1 if packed else FEW


class _Unknown(Exception):
    """A weight that native code does not know."""


def stack_of(model: nn.Module) -> Stack | None:
    """What a model's step computes with; None where it is of another kind, or something listens to its modules."""
    if any(one._forward_pre_hooks or one._forward_hooks for one in model.modules()):
        return None
    if any(p.device.type != "cpu" for p in (*model.parameters(), *model.buffers())):
        return None
    if isinstance(model, Transformer):
        return _of_transformer(model)
    return _of_hugging_face(model) if type(model).__name__ in KNOWN else None


def _of_transformer(model: Transformer) -> Stack:
    layers = [cast(Any, layer) for layer in model.layers]
    size = layers[0].attention.head_size if layers else 2
    half = size // 2
    width = _shape(model.head)[1]
    heads = width // size
    return Stack(
        width, heads, heads, size, _shape(layers[0].mlp.up)[0] if layers else 1, _shape(model.head)[0], model.cos.shape[0],
        bool(layers and layers[0].attention.normalised), float(model.norm.eps or 0), 1e-6,
        model.cos[:, :half].float().contiguous(), model.sin[:, :half].float().contiguous(), model.embedding, model.head, None,
        tuple(
            Block(
                layer.attention.qkv, None, None, layer.attention.out, None, layer.mlp.up, layer.mlp.down, (None,) * 4
            )
            for layer in layers
        ),
    )  # fmt: skip


def _of_hugging_face(model: Any) -> Stack | None:
    config, inner = model.config, model.model
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    kind = rope.get("rope_type", "default") if isinstance(rope, dict) else "?"
    if kind not in STATIC or sliding or config.hidden_act != "silu" or not len(inner.layers):
        return None
    if getattr(model, "is_quantized", False) and not hasattr(inner.layers[0].self_attn.q_proj, "weight"):
        return None
    context = int(config.max_position_embeddings)
    with torch.no_grad():
        cosine, sine = inner.rotary_emb(torch.zeros(1), torch.arange(context)[None])
    first = inner.layers[0].self_attn
    size, half = int(first.head_dim), int(first.head_dim) // 2
    if cosine.shape[-1] != size:  # a part of each head is rotated
        return None
    blocks = []
    for layer in inner.layers:
        own, mlp = layer.self_attn, layer.mlp
        norms = [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [getattr(own, name, None) for name in ("q_norm", "k_norm")]
        weights = tuple(None if norm is None else norm.weight for norm in norms)
        blocks.append(
            Block(
                own.q_proj, own.k_proj, own.v_proj, own.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj,
                cast(Any, weights),
            )
        )  # fmt: skip
    vocabulary, width = _shape(model.lm_head)
    normed = getattr(first, "q_norm", None)
    return Stack(
        width, int(config.num_attention_heads), int(config.num_key_value_heads), size, _shape(blocks[0].up)[0],
        vocabulary, context, normed is not None, float(inner.norm.variance_epsilon),
        1e-6 if normed is None else float(normed.variance_epsilon), cosine[0, :, :half].float().contiguous(),
        sine[0, :, :half].float().contiguous(), inner.embed_tokens, model.lm_head, inner.norm.weight, tuple(blocks),
    )  # fmt: skip


def _shape(module: Module) -> tuple[int, int]:
    if isinstance(module, PackedLinear):
        return module.out_features, module.in_features
    rows, columns = cast(Tensor, module.weight).shape
    return rows, columns


def _products(block: Block) -> Iterator[Module]:
    for one in (block.q, block.k, block.v, block.out, block.gate, block.up, block.down):
        if one is not None:
            yield one


@torch.no_grad()
def read(stack: Stack, ids: Tensor, cache: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Tokens (n,) of one text behind the ``length`` that the cache holds, in PyTorch: what the head gets, and logits."""
    n, size, heads, kv = len(ids), stack.size, stack.heads, stack.kv_heads
    stop = length + n
    x = stack.embedding(ids)
    dtype = x.dtype
    cosine, sine = (one[length:stop, None].to(dtype) for one in (stack.cosine, stack.sine))
    mask = None if n == 1 else torch.ones(n, stop, dtype=torch.bool).tril(length)
    for i, block in enumerate(stack.blocks):
        h = _normed(x, block.norms[0], stack.eps)
        if block.k is None or block.v is None:
            q, k, v = block.q(h).view(n, -1, size).split((heads, kv, kv), 1)
        else:
            q, k, v = (one(h).view(n, -1, size) for one in (block.q, block.k, block.v))
        if stack.normed_heads:
            q, k = _normed(q, block.norms[2], stack.head_eps), _normed(k, block.norms[3], stack.head_eps)
        q, k = _turned(q, cosine, sine), _turned(k, cosine, sine)
        cache[i, 0, :, length:stop, :size] = k.transpose(0, 1)
        cache[i, 1, :, length:stop, :size] = v.transpose(0, 1)
        keys, values = cache[i, :, None, :, :stop, :size].to(dtype)
        mixed = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys, values, mask, enable_gqa=heads != kv
        )
        x = x + block.out(mixed[0].transpose(0, 1).reshape(n, heads * size))
        h = _normed(x, block.norms[1], stack.eps)
        if block.gate is None:
            x = x + block.down(block.up(h).relu().square())
        else:
            x = x + block.down(F.silu(block.gate(h)) * block.up(h))
    hidden = _normed(x, stack.norm, stack.eps)
    return hidden, stack.head(hidden)


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)


def read_natively(
    stack: Stack, ids: Tensor, texts: Sequence[int], caches: Sequence[Tensor], positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens (n,), token i of the text number ``texts[i]`` at ``positions[i]``; what the head gets, and logits."""
    found = stack.native
    assert found is not None
    hidden = torch.empty(len(ids), stack.width)
    logits = torch.empty(len(ids), stack.vocabulary)
    at = [one.data_ptr() for one in caches]
    rooms = [one.shape[3] for one in caches]
    found.step(
        ids.numpy(), positions.numpy(), [at[i] for i in texts], [rooms[i] for i in texts], hidden.numpy(), logits.numpy(),
        torch.get_num_threads(),
    )  # fmt: skip
    return hidden, logits


def _native_layer(block: Block) -> LayerWeights:
    own = [
        None if one is None else _weight(one) for one in (block.q, block.k, block.v, block.out, block.gate)
    ]
    q, k, v, out, gate = own
    assert q is not None
    assert out is not None
    a, b, c, d = (_numbers(one) for one in block.norms)
    return LayerWeights(q, k, v, out, gate, _weight(block.up), _weight(block.down), (a, b, c, d))


def _weight(module: Module) -> Matrix:
    bias = _numbers(cast("Tensor | None", getattr(module, "bias", None)))
    if isinstance(module, (PackedLinear, PackedEmbedding)):
        packed = module.packed
        if packed.kind == "dense" and set(packed.tensors) == {"weight"}:
            return Matrix(_floats(packed.tensors["weight"]), 1, bias)
        looked_up = packed.kind in ("table", "float-table", "levels")
        if (
            packed.kind == "dense"
            or packed.thin is not None
            or not (looked_up or isinstance(module, PackedLinear))
        ):
            raise _Unknown
        two = getattr(module, "activations", "int8") == "int16" and packed.kind in ("table", "levels")
        return Matrix(packed.ready, 2 if two else 1, bias)
    if type(module) not in (nn.Linear, nn.Embedding):
        raise _Unknown
    weight = cast(Tensor, module.weight).detach()
    if weight.dtype not in (torch.float32, torch.bfloat16) or not weight.is_contiguous():
        raise _Unknown
    held = weight.view(torch.uint16) if weight.dtype == torch.bfloat16 else weight
    return Matrix(held.numpy(), 1, bias)


def _numbers(given: Tensor | None) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    return None if given is None else _floats(given.detach().float().contiguous())


def _floats(given: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return given.detach().numpy()
