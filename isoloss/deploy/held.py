"""A packed weight where a module wants a tensor: experts, torch's attention, layers with a forward of their own.

What multiplies with it is given the product, what picks one of several experts that expert; all else gets the decoded
numbers, for as long as it needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.deploy import gpu
from isoloss.deploy.packing import Activations, Packed
from isoloss.deploy.products import product


class Held:
    """One packed weight, or those of experts, in the place of a parameter.

    Args:
        parts: the weight; of a parameter of experts those of each, which may also be plain.
        shape: of the parameter.
        dtype: of it.
        transposed: stored as (in, out).
        activations: what products are with.

    Example:
        >>> from isoloss.compress import formats
        >>> from isoloss.deploy.packing import pack_weight
        >>> weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
        >>> held = Held([pack_weight(formats.get("int8").encode(weight), "float")], (8, 64), torch.float32)
        >>> x = torch.ones(2, 64)
        >>> torch.allclose(torch.nn.functional.linear(x, held), x @ held.decode().T, atol=1e-4)
        True
    """

    def __init__(
        self,
        parts: Sequence[Packed | Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        transposed: bool = False,
        activations: Activations = "int8",
    ) -> None:
        self.parts, self.shape, self.dtype = list(parts), torch.Size(shape), dtype
        self.transposed, self.activations = transposed, activations
        self.requires_grad = False
        self.move(self.parts[0].device)

    def move(self, device: torch.device) -> None:
        """Put all parts there."""
        self.parts = [one if one.device == device else one.to(device) for one in self.parts]
        self.device, self.is_cuda = device, device.type == "cuda"

    @property
    def ndim(self) -> int:
        """Of the parameter."""
        return len(self.shape)

    @property
    def bytes(self) -> int:
        """Of what is held."""
        return sum(
            one.bytes if isinstance(one, Packed) else one.numel() * one.element_size() for one in self.parts
        )

    def decode(self) -> Tensor:
        """The numbers of the parameter."""
        each = [self._numbers(one) for one in self.parts]
        return (torch.stack(each) if self.ndim == 3 else each[0]).reshape(self.shape)

    def _numbers(self, part: Packed | Tensor) -> Tensor:
        if isinstance(part, Tensor):
            return part
        matrix = part.decode().to(self.dtype)
        return matrix.T if self.transposed else matrix

    def __getitem__(self, index: Any) -> Any:
        whole = isinstance(index, int) or (
            isinstance(index, Tensor) and index.ndim == 0 and index.dtype != torch.bool
        )
        if self.ndim != 3 or not whole:
            return self.decode()[index]
        part = self.parts[int(index)]
        if isinstance(part, Tensor):
            return part
        return Held([part], tuple(self.shape[1:]), self.dtype, self.transposed, self.activations)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def T(self) -> Any:
        """Transposed; still packed."""
        part = self.parts[0]
        if self.ndim != 2 or not isinstance(part, Packed):
            return self.decode().T
        return Held([part], tuple(reversed(self.shape)), self.dtype, not self.transposed, self.activations)

    def t(self) -> Any:
        """As :attr:`T`."""
        return self.T

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.decode(), name)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Products are computed packed, all else with the decoded numbers."""
        given = dict(kwargs or {})
        if function is torch.nn.functional.linear:
            x, weight = args[0], args[1] if len(args) > 1 else given.get("weight")
            bias = args[2] if len(args) > 2 else given.get("bias")
            if isinstance(weight, Held) and isinstance(x, Tensor):
                out = weight.product(x, False)
                if out is not None:
                    return out if bias is None else out + bias
        if function in (torch.matmul, Tensor.matmul, Tensor.__matmul__) and len(args) == 2 and not given:
            x, weight = args
            if isinstance(weight, Held) and isinstance(x, Tensor):
                out = weight.product(x, True)
                if out is not None:
                    return out
        return function(*map(_plain, args), **{name: _plain(one) for name, one in given.items()})

    def product(self, x: Tensor, turned: bool) -> Tensor | None:
        """x times this, transposed unless ``turned``, where it is one packed matrix that lies so."""
        part = self.parts[0]
        if self.ndim != 2 or turned is not self.transposed or not isinstance(part, Packed):
            return None
        if x.ndim < 1 or x.shape[-1] != part.shape[1]:
            return None
        with torch.no_grad():
            flat = x.reshape(-1, part.shape[1])
            flat = flat if flat.is_cuda and flat.dtype in gpu.TYPES else flat.float()
            out = product(part, flat, self.activations)
            return out.reshape(*x.shape[:-1], part.shape[0]).to(x.dtype)


class Carrier(nn.Module):
    """Moves a held weight with its module, whose ``to`` looks at parameters, buffers and children alone."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.carried = (held,)  # in a tuple: who looks for held weights finds it where it belongs

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Carrier:
        (held,) = self.carried
        held.move(fn(torch.empty(0, device=held.device)).device)
        return self


def _with_numbers(name: str) -> Callable[[Held, Any], Any]:
    """An operator of Python on the decoded numbers."""

    def operate(self: Held, other: Any) -> Any:
        return getattr(self.decode(), name)(_plain(other))

    return operate


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "matmul"):
    setattr(Held, f"__{_name}__", _with_numbers(f"__{_name}__"))


def _plain(one: Any) -> Any:
    if isinstance(one, Held):
        return one.decode()
    if isinstance(one, (list, tuple)) and any(isinstance(part, Held) for part in one):
        return type(one)([_plain(part) for part in one])
    return one
