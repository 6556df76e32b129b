"""Packed modules: what a call without torch's dispatcher must still notice, and what it must leave alone."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from isoloss.compress import formats
from isoloss.deploy.linear import PackedConv, PackedEmbedding, PackedLinear
from isoloss.deploy.packing import pack_weight


def layer(spec: str = "int4/g128", bias: bool = True):
    torch.manual_seed(0)
    plain = nn.Linear(300, 20, bias=bias)
    return PackedLinear.of(formats.get(spec).encode(plain.weight), plain.bias), torch.randn(2, 3, 300)


class Seen(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_called_and_watched_it_gives_the_same(bias, dtype):
    fast, x = layer(bias=bias)
    x = x.to(dtype)
    wanted = fast(x)
    assert wanted.dtype == dtype
    assert wanted.shape == (2, 3, 20)
    with Seen() as seen:
        got = fast(x)
    assert torch.equal(got, wanted)
    assert any(name.startswith("isoloss.packed_product") for name in seen.names)
    assert torch.equal(torch.jit.trace(fast, x, check_trace=False)(2 * x), fast(2 * x))
    if bias:
        fast.bias = fast.bias.bfloat16()
        assert torch.allclose(fast(x).float(), wanted.float(), atol=0.02)


def test_no_gradient_goes_through_and_none_is_kept():
    fast, x = layer()
    x.requires_grad_()
    for tokens in (x, x.repeat(20, 1, 1)):  # by the kernels, and decoded
        assert not fast(tokens).requires_grad


def test_changed_buffers_are_noticed():
    fast, x = layer()
    before, packed = fast(x), fast.packed
    assert fast.packed is packed
    fast.scale.mul_(2)
    assert torch.allclose(fast(x) - fast.bias, 2 * (before - fast.bias), rtol=1e-4, atol=1e-5)
    fast.scale = fast.scale / 2
    assert torch.allclose(fast(x), before, rtol=1e-4, atol=1e-5)
    fast.load_state_dict(layer()[0].state_dict())
    assert torch.equal(fast(x), before)


def test_what_was_replaced_is_let_go():
    fast, x = layer()
    fast(x)
    packed = weakref.ref(fast.packed)
    for key in fast._keys:
        setattr(fast, key, getattr(fast, key).clone())
    gc.collect()
    assert packed() is None
    assert fast(x).shape == (2, 3, 20)


@pytest.mark.parametrize("to", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_leaves_the_stored_bits(to):
    layer = nn.Linear(96, 8)
    fast = PackedLinear.of(formats.get("int4/g32").encode(layer.weight), layer.bias)
    found = PackedEmbedding(pack_weight(formats.get("table3").encode(layer.weight)))
    before = {name: one.clone() for name, one in fast.named_buffers()}
    x = torch.randn(3, 96)
    wanted, rows = fast(x), found(torch.tensor([1, 5]))
    fast.to(to), found.to(to)
    assert fast.bias.dtype is to
    assert all(torch.equal(one, before[name]) for name, one in fast.named_buffers() if name != "bias")
    got, looked = fast(x.to(to)), found(torch.tensor([1, 5]))
    assert got.dtype is looked.dtype is to
    assert torch.allclose(got.float(), wanted, atol=0.03)
    assert torch.equal(looked, rows.to(to))


def test_copies_and_saved_modules_compute_the_same():
    fast, x = layer()
    wanted = fast(x)
    assert torch.equal(copy.deepcopy(fast)(x), wanted)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), wanted)


def test_a_pointwise_convolution_is_a_product():
    torch.manual_seed(0)
    plain = nn.Conv2d(64, 8, 1)
    encoded = formats.get("int8").encode(plain.weight)
    packed = PackedLinear.of(encoded, None).packed
    fast, x = PackedConv(packed, plain), torch.randn(2, 64, 3, 4)
    assert torch.allclose(fast(x), plain(x), atol=0.05)
    assert torch.equal(fast(x), PackedLinear(packed, plain.bias)(x.movedim(1, -1)).movedim(-1, 1))
