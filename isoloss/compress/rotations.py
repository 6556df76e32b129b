r"""Rotations that leave a model's function as it is and its weights easier to round.

A model with RMS norms does the same when its stream of states is turned by an orthogonal :math:`R`: the norm's gain is
first folded into the weights that read from it, then every weight that reads the stream becomes :math:`W R` and every
one that writes to it :math:`R^\top W`. A large weight, or a large feature, is spread over all columns, so that the range of a group is
smaller than it was. Nothing is added to the model: all rotations are folded into weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.measure.storages import bytes_of

STREAM = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Rotation:
    """What is rotated.

    Args:
        residual: the stream of states. A head that is tied to the embedding gets a weight of its own, as the final norm's
            gain is folded into it alone.
        heads: the values of each attention head, between the value projection and the output projection.
        seed: of the rotations.

    Source:
        S. Ashkboos et al., SliceGPT, 2024, arXiv 2401.15024 and QuaRot, 2024, arXiv 2404.00456.
    """

    residual: bool = True
    heads: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.residual or self.heads):
            raise ValueError("nothing is rotated. Set residual or heads")


@dataclass(frozen=True)
class Rotated:
    """What was done.

    Attributes:
        blocks: how many were rotated.
        added: bytes that a head which was tied now takes for itself.
        notes: what a reader must know.
        how: settings.
    """

    blocks: int
    added: int
    notes: tuple[str, ...]
    how: Rotation


def orthogonal(size: int, seed: int = 0) -> Tensor:
    """A random rotation, float64 (size, size): random signs, then a Hadamard matrix of the largest power of two that
    divides the size, with a random orthogonal one for what is left.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> r = orthogonal(12)
        >>> torch.allclose(r @ r.T, torch.eye(12, dtype=torch.float64))
        True
        >>> orthogonal(8).abs().unique().mul(8**0.5).round(decimals=6).tolist()  # no entry larger than another
        [1.0]
    """
    if size < 1:
        raise ValueError(f"a rotation needs a size of at least 1, got {size}")
    generator = torch.Generator().manual_seed(seed)
    power = size & -size
    matrix = torch.ones(1, 1, dtype=torch.float64)
    half = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    while len(matrix) < power:
        matrix = torch.kron(matrix, half)
    if size > power:
        rest = torch.randn(size // power, size // power, dtype=torch.float64, generator=generator)
        factor, upper = torch.linalg.qr(rest)
        matrix = torch.kron(matrix, (factor * upper.diagonal().sign()).contiguous())
    signs = torch.randint(0, 2, (size, 1), generator=generator).double() * 2 - 1
    return signs * matrix


def incoherence(weight: Tensor) -> float:
    r"""Largest entry over the root mean square, :math:`\max|w| / \mathrm{rms}(w)`: what a rotation makes smaller.

    Example:
        >>> incoherence(torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
        2.0
    """
    own = weight.detach().double()
    return float(own.abs().max() / own.square().mean().sqrt())


def rotate(model: nn.Module, how: Rotation | None = None) -> Rotated:
    """Rotate a model of Llama's kind in place; its outputs stay as they are, to rounding.

    Args:
        model: a causal language model with RMS norms before attention and MLP, linear layers named as in Llama, and no
            other user of the stream.
        how: what to rotate; default: all.

    Raises:
        TypeError: a model of another kind; nothing is changed then.

    Source:
        See :class:`Rotation`.
    """
    how = Rotation() if how is None else how
    trunk, blocks = _parts(model)
    notes: list[str] = []
    added = 0
    with torch.no_grad():
        if how.residual:
            added = _untie(model, trunk)
            if added:
                notes.append(
                    f"the head was tied to the embedding and now has a weight of its own, of {added:,} bytes before compression"
                )
            _turn_stream(model, trunk, blocks, orthogonal(trunk.embed_tokens.weight.shape[1], how.seed))
        if how.heads:
            for i, block in enumerate(blocks):
                _turn_heads(block.self_attn, how.seed + 1 + i)
    return Rotated(len(blocks), added, tuple(notes), how)


def _turn_stream(model: Any, trunk: Any, blocks: list[Any], r: Tensor) -> None:
    for block in blocks:
        attention, mlp = block.self_attn, block.mlp
        readers = [getattr(attention, name) for name in STREAM], [mlp.gate_proj, mlp.up_proj]
        for norm, own in zip((block.input_layernorm, block.post_attention_layernorm), readers, strict=True):
            for layer in own:
                _read(layer, norm, r)
            norm.weight.fill_(1)
        for layer in (attention.o_proj, mlp.down_proj):
            _set(layer.weight, r.T @ layer.weight.double())
            if layer.bias is not None:
                _set(layer.bias, r.T @ layer.bias.double())
    _read(model.lm_head, trunk.norm, r)
    trunk.norm.weight.fill_(1)
    _set(trunk.embed_tokens.weight, trunk.embed_tokens.weight.double() @ r)


def _turn_heads(attention: Any, seed: int) -> None:
    values, output = attention.v_proj, attention.o_proj
    size = int(attention.head_dim)
    r = orthogonal(size, seed)
    _set(
        values.weight, (r.T @ values.weight.double().reshape(-1, size, values.weight.shape[1])).flatten(0, 1)
    )
    if values.bias is not None:
        _set(values.bias, (values.bias.double().reshape(-1, size) @ r).flatten())
    _set(output.weight, (output.weight.double().reshape(len(output.weight), -1, size) @ r).flatten(1))


def _read(layer: Any, norm: Any, r: Tensor) -> None:
    """Fold the gain of a norm in, then the rotation."""
    _set(layer.weight, (layer.weight.double() * norm.weight.double()) @ r)


def _set(parameter: Tensor, new: Tensor) -> None:
    parameter.copy_(new.to(parameter.dtype))


def _untie(model: Any, trunk: Any) -> int:
    """Give the head a weight of its own; bytes that this adds."""
    if model.lm_head.weight is not trunk.embed_tokens.weight:
        return 0
    model.lm_head.weight = nn.Parameter(trunk.embed_tokens.weight.detach().clone())
    if getattr(model, "config", None) is not None:
        model.config.tie_word_embeddings = False
    return bytes_of([model.lm_head.weight])


def _parts(model: Any) -> tuple[Any, list[Any]]:
    """The trunk and its blocks, once all is known to be of Llama's kind."""
    trunk = getattr(model, "model", model)
    blocks: list[Any] = list(getattr(trunk, "layers", []) or [])
    if not blocks or not all(hasattr(trunk, name) for name in ("embed_tokens", "norm")):
        raise TypeError(f"rotations need a model with the parts of Llama, got {type(model).__name__}")
    if not hasattr(model, "lm_head") or model.lm_head.bias is not None:
        raise TypeError(f"rotations need a head without a bias, which {type(model).__name__} has not")
    for block in blocks:
        modules = dict(block.named_children())
        known = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
        linear = [
            getattr(getattr(block, part, None), name, None)
            for part, names in (
                ("self_attn", (*STREAM, "o_proj")),
                ("mlp", ("gate_proj", "up_proj", "down_proj")),
            )
            for name in names
        ]
        if set(modules) != known or not all(isinstance(layer, nn.Linear) for layer in linear):
            raise TypeError(
                f"rotations need blocks of {', '.join(sorted(known))} with linear layers named as in Llama, got "
                f"{', '.join(sorted(modules))}"
            )
    norms: list[Any] = [
        norm for block in blocks for norm in (block.input_layernorm, block.post_attention_layernorm)
    ]
    for norm in [*norms, trunk.norm]:
        if not _is_rms(norm):
            raise TypeError(f"rotations need RMS norms with a plain gain, got {type(norm).__name__}")
    return trunk, blocks


def _is_rms(norm: Any) -> bool:
    """Whether a norm is ``gain * x / rms(x)``: tried, as names and formulas vary."""
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor) or getattr(norm, "bias", None) is not None:
        return False
    x = torch.linspace(-2, 3, weight.numel(), device=weight.device)[None]
    with torch.no_grad():
        own = norm(x.to(weight.dtype)).float()
        wanted = x / x.square().mean().sqrt() * weight.float()
    return bool(torch.allclose(own, wanted, atol=1e-2 * float(wanted.abs().max()), rtol=1e-2))
