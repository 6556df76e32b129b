r"""What models cost by analytical formulas: of single layers from their shapes, of transformers operation by operation.

Sources: Kim et al. 2023, arXiv:2302.14017 (transformer operations, arithmetic intensity); Kaplan et al. 2020,
arXiv:2001.08361 (2 FLOPs a parameter and token forward, twice that backward).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from isoloss.measure.subject import Subject

if TYPE_CHECKING:
    from isoloss.measure.flops import Counter

__all__ = ["Operation", "Transformer", "of_model", "of_module", "total"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)
CELLS = (nn.RNNCell, nn.LSTMCell, nn.GRUCell)
# Elementwise operations per element, rounded: what a plain kernel does, a fused one may do fewer.
SOFTMAX, NORM, ACTIVATION = 5, 7, 8


def of_module(module: nn.Module, inputs: Sequence[Any], keywords: dict[str, Any], output: Any) -> int | None:
    """FLOPs of one forward call of a layer, from its kind and shapes; None for kinds without a formula here.

    Only the exact kinds: a class derived from one may do something else.

    Example:
        >>> import torch
        >>> layer = nn.Conv2d(4, 6, 3, groups=2)
        >>> x = torch.ones(1, 4, 10, 10)
        >>> of_module(layer, (x,), {}, layer(x)) == 2 * (6 * 8 * 8) * (2 * 3 * 3)
        True
    """
    kind = type(module)
    layer: Any = module
    first = inputs[0] if inputs else next(iter(keywords.values()), None)
    if kind in RECURRENT:
        x = first[0] if isinstance(first, tuple) else first  # a packed sequence is a tuple
        return 2 * prod(x.shape[:-1]) * _matrices(module) if isinstance(x, Tensor) else None
    if not isinstance(first, Tensor) or first.is_nested:
        return None
    if kind in (nn.Embedding, nn.EmbeddingBag):
        return 0
    if kind in (nn.Linear, *CONVOLUTIONS):
        return int(2 * output.numel() * prod(layer.weight.shape[1:]))
    if kind in TRANSPOSED or _is_conv1d(module):
        return int(2 * first.numel() * prod(layer.weight.shape[1:]))
    if kind in CELLS:
        return 2 * prod(first.shape[:-1]) * _matrices(module)
    if kind is nn.MultiheadAttention:
        return _attention(layer, inputs, keywords)
    if kind is nn.TransformerEncoderLayer:
        length = first.shape[-2 if layer.self_attn.batch_first else 0]
        width, hidden = layer.linear1.in_features, layer.linear1.out_features
        return int(prod(first.shape[:-1]) * (8 * width * width + 4 * length * width + 4 * width * hidden))
    return None


def _is_conv1d(module: nn.Module) -> bool:
    """The transposed linear layer of GPT-2 in transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _matrices(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.ndim == 2)


def _attention(module: Any, inputs: Sequence[Any], keywords: dict[str, Any]) -> int | None:
    given = [*inputs, *(keywords[name] for name in ("query", "key", "value") if name in keywords)][:3]
    if len(given) < 3 or module.bias_k is not None or module.add_zero_attn or any(x.is_nested for x in given):
        return None
    query, key, value = given
    if query.ndim == 2:
        batch, queries, keys = 1, query.shape[0], key.shape[0]
    elif module.batch_first:
        batch, queries, keys = query.shape[0], query.shape[1], key.shape[1]
    else:
        batch, queries, keys = query.shape[1], query.shape[0], key.shape[0]
    width = module.embed_dim
    projections = 2 * width * (2 * queries * width + keys * (key.shape[-1] + value.shape[-1]))
    return int(batch * (projections + 4 * queries * keys * width))


@dataclass(frozen=True)
class Operation:
    """One kind of operation of a transformer, all layers together.

    Attributes:
        name: ``query, key, value``; ``scores``; ``softmax`` ...
        flops: floating-point operations.
        weights: bytes of weights read.
        activations: bytes of activations read and written.
        product: a product that is summed, and exact; else elementwise work, a round figure.
    """

    name: str
    flops: float
    weights: float
    activations: float
    product: bool = True

    @property
    def intensity(self) -> float:
        """FLOPs for one byte moved, if weights and activations are moved once."""
        return self.flops / (self.weights + self.activations)


@dataclass(frozen=True)
class Transformer:
    r"""Sizes of a transformer; its costs by formula.

    Per layer, for B sequences of l new tokens that attend to c tokens, with h heads of size s, :math:`h_{kv}` heads
    of keys and values, width d and hidden size :math:`d_F`:

    .. math:: 2Bld(h + 2h_{kv})s + 4Bhlcs + 2Blhsd + 4Bld\,d_F

    (:math:`6Bld\,d_F` where the feed-forward layer is gated), and :math:`2BldV` for the head. Attention is over the
    full square, whatever the mask.

    Attributes:
        layers: their number.
        width: d.
        heads: h.
        hidden: d_F.
        vocabulary: V; 0: there is no head.
        kv_heads: default: as many as heads.
        head_size: s; default: d / h.
        gated: whether the feed-forward layer has three matrices.
        element: bytes of a number.

    Source: Kim et al. 2023, arXiv:2302.14017; grouped heads and gates as in Llama.

    Example:
        >>> gpt = Transformer(layers=12, width=768, heads=12, hidden=3072, vocabulary=50257)
        >>> sizes = 12 * (24 * 1024 * 768**2 + 4 * 1024**2 * 768) + 2 * 1024 * 768 * 50257
        >>> total(gpt.prefill(1, 1024)) == sizes
        True
        >>> round(gpt.matrices / 1e6, 1)  # parameters in matrix products
        123.5
    """

    layers: int
    width: int
    heads: int
    hidden: int
    vocabulary: int = 0
    kv_heads: int | None = None
    head_size: int | None = None
    gated: bool = False
    element: int = 4

    def prefill(self, batch: int, length: int) -> list[Operation]:
        """A forward pass over ``length`` tokens of ``batch`` sequences: training, or reading a prompt."""
        return self._pass(batch, length, length)

    def decode(self, batch: int, context: int) -> list[Operation]:
        """One further token for each of ``batch`` sequences, ``context`` tokens long with the new one."""
        return self._pass(batch, 1, context)

    def cache_bytes(self, batch: int, context: int) -> int:
        """Keys and values kept: :math:`2 N B c h_{kv} s` numbers."""
        return 2 * self.layers * batch * context * self._keys * self.element

    @property
    def matrices(self) -> int:
        """Parameters that take part in matrix products; norms, biases and lookups are not among them."""
        attention = self.width * (2 * self._queries + 2 * self._keys)
        return (
            self.layers * (attention + (3 if self.gated else 2) * self.width * self.hidden)
            + self.width * self.vocabulary
        )

    @property
    def _queries(self) -> int:
        return self.heads * (self.head_size or self.width // self.heads)

    @property
    def _keys(self) -> int:
        return (self.kv_heads or self.heads) * (self.head_size or self.width // self.heads)

    def _pass(self, batch: int, new: int, context: int) -> list[Operation]:
        n, e, d, f = self.layers, self.element, self.width, self.hidden
        q, k = self._queries, self._keys
        tokens, pairs = batch * new, batch * self.heads * new * context
        mixed = tokens * q + batch * context * k + pairs  # numbers that scores and mixing read and write
        matrices = 3 if self.gated else 2
        per_layer = [
            Operation("query, key, value", 2 * tokens * d * (q + 2 * k), d * (q + 2 * k), tokens * (d + q + 2 * k)),
            Operation("scores", 2 * batch * new * context * q, 0, mixed),
            Operation("softmax", SOFTMAX * pairs, 0, 2 * pairs, product=False),
            Operation("mixing", 2 * batch * new * context * q, 0, mixed),
            Operation("attention output", 2 * tokens * q * d, q * d, tokens * (q + d)),
            Operation("feed-forward", 2 * matrices * tokens * d * f, matrices * d * f, matrices * tokens * (d + f)),
            Operation("activation", ACTIVATION * tokens * f, 0, (matrices if self.gated else 2) * tokens * f, product=False),
            Operation("norms", 2 * NORM * tokens * d, 4 * d, 4 * tokens * d, product=False),
        ]  # fmt: skip
        out = [
            Operation(op.name, n * op.flops, n * e * op.weights, n * e * op.activations, op.product)
            for op in per_layer
        ]
        if self.vocabulary:
            v = self.vocabulary
            out.append(Operation("head", 2 * tokens * d * v, e * d * v, e * tokens * (d + v)))
        return out

    @classmethod
    def of_config(cls, config: Any) -> Transformer | None:
        """The sizes of a Hugging Face configuration; None for a kind of model that is not known here.

        Example:
            >>> from types import SimpleNamespace
            >>> config = SimpleNamespace(model_type="gpt2", n_layer=2, n_embd=64, n_head=4, n_inner=None, vocab_size=100)
            >>> Transformer.of_config(config).matrices
            104704
        """
        kind = getattr(config, "model_type", None)
        if kind == "gpt2":
            hidden = config.n_inner or 4 * config.n_embd
            return cls(config.n_layer, config.n_embd, config.n_head, hidden, config.vocab_size)
        if kind in ("bert", "roberta"):
            sizes = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
            return cls(*sizes, config.intermediate_size, config.vocab_size)
        if kind in ("llama", "mistral", "qwen2", "qwen3"):
            return cls(
                config.num_hidden_layers,
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                config.vocab_size,
                config.num_key_value_heads,
                getattr(config, "head_dim", None),
                gated=True,
            )
        return None


def total(operations: Sequence[Operation], elementwise: bool = False) -> float:
    """FLOPs of operations; the elementwise ones only on request."""
    return sum(op.flops for op in operations if op.product or elementwise)


def of_model(subject: Subject, counter: Counter) -> tuple[int, int] | None:
    """FLOPs of a known model's layers on the subject's batches: (as counted, by formula); None for other models.

    The model is known by its Hugging Face configuration; embeddings, head and what stands between are left out,
    since they are checked one by one (:func:`of_module`).
    """
    sizes = Transformer.of_config(getattr(subject.model, "config", None))
    if sizes is None:
        return None
    stack = next(
        (
            name
            for name, module in subject.model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == sizes.layers
        ),
        None,
    )
    shapes = [_ids(inputs) for inputs, _ in subject.batches]
    if stack is None or any(shape is None for shape in shapes):
        return None
    layers = Transformer(
        sizes.layers, sizes.width, sizes.heads, sizes.hidden, 0, sizes.kv_heads, sizes.head_size, sizes.gated
    )
    expected = sum(total(layers.prefill(*shape)) for shape in shapes if shape is not None)
    return counter.total(backward=False, below=stack).flops, int(expected)


def _ids(inputs: Any) -> tuple[int, int] | None:
    """Batch and length, where the inputs are token ids and nothing kept from earlier ones."""
    if isinstance(inputs, dict):
        if inputs.get("past_key_values") is not None:
            return None
        inputs = inputs.get("input_ids")
    elif isinstance(inputs, tuple):
        inputs = inputs[0]
    return tuple(inputs.shape) if isinstance(inputs, Tensor) and inputs.ndim == 2 else None  # type: ignore[return-value]
