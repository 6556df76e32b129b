"""Models with packed layers: the same as with decoded weights, tied layers share, compile and export take them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from isoloss import compress, deploy
from isoloss.compress import Choice, formats
from isoloss.deploy.linear import PackedConv, PackedEmbedding, PackedLinear
from isoloss.deploy.packing import pack_weight


def seeded(*sizes: int) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(0))


class Tied(nn.Module):
    """An embedding whose weight is the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(50, 96)
        self.middle = nn.Linear(96, 96)
        self.head = nn.Linear(96, 50, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.middle(self.wte(ids))))


@pytest.mark.parametrize("spec", ["int8", "int4/g32/asym", "table4", "nf4/g32"])
def test_a_packed_model_says_what_the_decoded_one_says(spec, tmp_path):
    torch.manual_seed(0)
    net = Tied()
    made = compress.compress(net, Choice(spec, "nearest"))
    ids = torch.randint(0, 50, (2, 7))
    wanted = net(ids).detach()
    compress.save(made, tmp_path)
    for fast in (deploy.pack(copy.deepcopy(net), made, "int16"), deploy.load(tmp_path, Tied(), "int16")):
        got = fast(ids)
        # Tables of bytes are off by 1/510 of their range, activations of 16 bits by next to nothing.
        assert float((got - wanted).abs().max()) < (2e-3 if spec.startswith("int") else 0.05) * float(
            wanted.abs().max()
        )
        assert set(deploy.packed_layers(fast)) == {"wte", "middle", "head"}
        assert fast.wte.codes.data_ptr() == fast.head.codes.data_ptr()
        assert not [name for name, _ in fast.named_parameters()]
        assert torch.equal(fast.middle.bias, net.middle.bias)


def test_a_model_with_other_layers_is_refused_and_left_alone():
    net = nn.Sequential(nn.Linear(64, 32))
    made = compress.compress(net, Choice("int4", "nearest"))
    for other in (nn.Sequential(nn.Linear(64, 31)), nn.Sequential(nn.ReLU())):
        with pytest.raises(ValueError, match="Give the same model"):
            deploy.pack(other, made)
        assert not deploy.packed_layers(other)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(32, 16, 1), seeded(2, 32, 3, 3)),
        (nn.Conv2d(32, 16, 3, padding=1, stride=2), seeded(2, 32, 9, 9)),
        (nn.Conv2d(32, 16, 1, padding=1), seeded(2, 32, 3, 3)),
        (
            nn.Conv2d(32, 16, 3, groups=4, bias=False, padding_mode="circular", padding="same"),
            seeded(1, 32, 5, 5),
        ),
        (nn.Conv1d(32, 16, 3, dilation=2), seeded(2, 32, 9)),
        (nn.Conv1d(32, 16, 1), seeded(32, 9)),
    ],
)
def test_convolutions(layer, x):
    encoded = formats.get("int8").encode(layer.weight)
    packed = PackedConv(pack_weight(encoded, "int16"), layer, "int16")
    layer.weight.data = encoded.decode()
    wanted = layer(x)
    got = packed(x)
    assert got.shape == wanted.shape
    assert torch.allclose(got, wanted, atol=2e-3, rtol=1e-3)
    assert packed(x.bfloat16()).dtype == torch.bfloat16


def test_embeddings_look_up_what_was_stored():
    for spec in ("int4/g32/asym", "table3+1.0%", "vq2-16"):
        encoded = formats.get(spec).encode(seeded(40, 96))
        layer = PackedEmbedding(pack_weight(encoded, "float"))
        ids = torch.tensor([[0, 39, 7], [7, 0, 1]])
        assert torch.equal(layer(ids), encoded.decode()[ids])
        assert layer(ids[:0]).shape == (0, 3, 96)
        for bad in (40, -1):
            with pytest.raises(IndexError, match="rows need to lie in 0 to 39"):
                layer(torch.tensor([bad]))


def test_states_are_saved_and_loaded_and_damaged_ones_refused():
    encoded = formats.get("table3+1.0%").encode(seeded(40, 96))
    layer, x = PackedLinear.of(encoded, torch.ones(40)), seeded(3, 96)
    other = PackedLinear.of(formats.get("table3+1.0%").encode(2 * seeded(40, 96)))
    wanted = layer(x)
    other.bias = torch.zeros(40)
    other(x)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), wanted)
    state = {name: one.clone() for name, one in layer.state_dict().items()}
    state["outliers_columns"].fill_(96)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="sparse rows need pointers"):
        other(x)
    layer.table = layer.table.double()
    with pytest.raises(ValueError, match="needs"):
        layer(x)


def test_operators_follow_their_fakes():
    encoded = formats.get("int4/g32").encode(seeded(40, 96))
    layer = PackedLinear.of(encoded)
    given = (layer.tensors(), layer.names, layer.settings)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.isoloss.packed_product, (seeded(3, 96), *given, "int8"), test_utils=checks
    )
    torch.library.opcheck(torch.ops.isoloss.packed_rows, (torch.tensor([1, 3]), *given), test_utils=checks)


# Another test's library may have left hooks of its own.
@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks")
def test_export_and_compile_take_packed_layers():
    net = nn.Sequential(
        PackedLinear.of(formats.get("int4/g32").encode(seeded(40, 96)), torch.ones(40)), nn.ReLU()
    )
    x = seeded(3, 96)
    wanted = net(x)
    exported = torch.export.export(net, (x,))
    assert torch.equal(exported.module()(x), wanted)
    graphs = [
        str(one.graph) for one in exported.graph_module.modules() if isinstance(one, torch.fx.GraphModule)
    ]
    assert any("isoloss.packed_product" in graph for graph in graphs)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), wanted)


def test_no_gradient_passes():
    layer = PackedLinear.of(formats.get("int4").encode(seeded(4, 64)))
    assert not layer(torch.ones(1, 64, requires_grad=True)).requires_grad
    assert "levels, 4 x 64, 4 bits" in repr(layer)


def test_inputs_that_the_recipe_rounds_are_rounded_before_packed_layers_too(tmp_path):
    from isoloss.compress.activations import Activations

    torch.manual_seed(0)
    x = torch.randn(64, 32)
    net = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8))
    made = compress.compress(net, Choice("int8", "nearest"), [x], activations=Activations("int2", "static"))
    compress.save(made, tmp_path / "small")
    fresh = [nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8)) for _ in range(2)]
    with torch.no_grad():
        stored = compress.load(tmp_path / "small", fresh[0])(x)
        fast = deploy.load(tmp_path / "small", fresh[1], "int16")(x)
    torch.testing.assert_close(fast, stored, rtol=1e-3, atol=1e-3)


def test_a_packed_layer_that_is_let_go_leaves_nothing_behind():
    import gc

    from isoloss.deploy.operators import _known

    def used() -> None:
        layer = PackedLinear.of(formats.get("int4/g32").encode(seeded(40, 96)), None)
        with torch.inference_mode():
            layer(seeded(1, 96))

    used()
    gc.collect()
    before = len(_known)
    for _ in range(3):
        used()
    gc.collect()
    assert len(_known) <= before


def test_a_layer_with_a_forward_of_its_own_keeps_it():
    class Scaled(nn.Embedding):
        def forward(self, index: torch.Tensor) -> torch.Tensor:
            return 8 * super().forward(index)

    net = nn.Sequential(Scaled(20, 32), nn.Linear(32, 4))
    made = compress.compress(net, Choice("int8", "nearest"))
    ids = torch.arange(20)
    with torch.no_grad():
        wanted = net(ids)
        found = deploy.pack(net, made, "int16")(ids)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
