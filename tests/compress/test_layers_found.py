"""Which weights of a model are found, as which matrices, and why others are left."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.compress.layers import find  # noqa: E402
from tests.compress.models import Experts, Language, convolutions, filled  # noqa: E402


def test_every_parameter_is_a_layer_or_left_with_a_reason():
    net = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 6),
            "conv": nn.Conv1d(4, 6, 3, groups=2),
            "back": nn.ConvTranspose2d(4, 6, 3),
            "table": nn.EmbeddingBag(5, 4),
            "norm": nn.BatchNorm2d(4),
            "lstm": nn.LSTM(4, 5),
            "wave": nn.Linear(4, 4, dtype=torch.complex64, bias=False),
            "mixed": nn.Bilinear(3, 4, 5),
            "attention": nn.MultiheadAttention(8, 2, kdim=4),
            "made": nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)),
            "experts": Experts(),
        }
    )
    found = find(net)
    covered = {layer.path for layer in found.layers} | set(found.left)
    assert covered == {name for name, _ in net.named_parameters()}
    assert not {layer.path for layer in found.layers} & set(found.left)
    assert {layer.name: layer.kind for layer in found.layers} == {
        "linear": "linear",
        "conv": "conv",
        "table": "embedding",
        "attention.q_proj_weight": "linear",
        "attention.k_proj_weight": "linear",
        "attention.v_proj_weight": "linear",
        "attention.out_proj": "linear",
        "experts.up_proj.0": "experts",
        "experts.up_proj.1": "experts",
        "experts.up_proj.2": "experts",
        "experts.router": "linear",
    }
    assert found.left["back.weight"] == "of a transposed convolution"
    assert found.left["lstm.weight_ih_l0"] == "of a recurrent layer"
    assert found.left["wave.weight"] == "complex64 numbers"
    assert found.left["norm.weight"] == "of a normalisation"
    assert found.left["made.parametrizations.weight.original1"] == "the weight is computed from it"
    assert found.left["mixed.weight"] == "a parameter of Bilinear, whose use is not known"


def test_a_tied_weight_is_one_layer():
    [embedding, *_] = find(Language()).layers
    assert (embedding.name, embedding.kind, embedding.tied) == ("embedding", "embedding", ("head.weight",))
    first = nn.ModuleDict({"head": nn.Linear(4, 9, bias=False), "table": nn.Embedding(9, 4)})
    first["head"].weight = first["table"].weight
    [layer] = find(first).layers
    assert (layer.name, layer.kind, layer.tied) == ("head", "embedding", ("table.weight",))


@pytest.mark.parametrize("net", [Language(), convolutions(), Experts(), Experts(transposed=True)], ids=str)
def test_a_matrix_that_is_put_back_changes_nothing_and_rows_are_outputs(net):
    filled(net)
    before = {name: p.clone() for name, p in net.named_parameters()}
    for layer in find(net).layers:
        matrix = layer.matrix()
        assert tuple(matrix.shape) == layer.shape
        layer.put(matrix)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_layouts_by_hand():
    conv = nn.Conv2d(4, 6, 3, groups=2)
    assert torch.equal(find(conv).layers[0].matrix(), conv.weight.detach().reshape(6, 18))
    experts = Experts(transposed=True)
    assert torch.equal(find(experts)["up_proj.1"].matrix(), experts.up_proj.detach()[1].T)


def test_gpt2_stores_its_weights_the_other_way_round():
    transformers = pytest.importorskip("transformers")
    conv = transformers.pytorch_utils.Conv1D(6, 4)
    [layer] = find(conv).layers
    assert (layer.kind, layer.shape) == ("conv1d", (6, 4))
    layer.put(torch.arange(24.0).reshape(6, 4))
    assert torch.equal(conv.weight.detach(), torch.arange(24.0).reshape(6, 4).T)


def test_putting_rounds_to_the_parameters_own_type_and_refuses_other_shapes():
    net = nn.Linear(2, 3).bfloat16()
    [layer] = find(net).layers
    layer.put(torch.full((3, 2), 1.001))
    assert net.weight.dtype == torch.bfloat16
    assert torch.equal(net.weight.detach(), torch.ones(3, 2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"needs a matrix of shape \(3, 2\), got \(2, 3\)"):
        layer.put(torch.ones(2, 3))


def test_weights_without_numbers_are_refused():
    with pytest.raises(ValueError, match="weight has no numbers yet"):
        find(nn.Linear(2, 3, device="meta"))
    with pytest.raises(ValueError, match="weight has no numbers yet"):
        find(nn.LazyLinear(3))
