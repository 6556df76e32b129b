"""Parameters by every way of counting, against sizes written out."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.flop_cases import Experts  # noqa: E402
from isoloss.measure.parameters import parameters  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402
from isoloss.runs import from_rows  # noqa: E402


def subject(model, inputs, outputs=None):
    return Subject(model, [(inputs, torch.zeros(1))], lambda z, _: z.square().mean(), outputs=outputs)


def test_a_tied_head_is_an_embedding_and_counts_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(50, 8), nn.Embedding(6, 8)
            self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 50, bias=False)
            self.head.weight = self.words.weight
            self.register_buffer("seen", torch.zeros(3, dtype=torch.int64))
            self.body.bias.requires_grad_(False)

        def forward(self, x):
            return self.head(self.body(self.words(x) + self.places(torch.arange(6))))

    found = parameters(subject(Tied(), torch.arange(6)))
    assert (found.total, found.trainable) == (400 + 48 + 72, 400 + 48 + 64)
    assert (found.embedding, found.tied, found.nonembedding) == (448, 400, 72)
    assert (found.active, found.buffers, found.bytes_buffers) == (520, 3, 24)
    assert found.bytes_params == 4 * 520
    assert not found.findings


def test_a_table_without_a_module_is_found_by_its_use():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.matrix = nn.Parameter(torch.randn(20, 4)), nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return F.embedding(x, self.table) @ self.matrix

    found = parameters(subject(Bare(), torch.arange(5)))
    assert (found.embedding, found.tied) == (80, 0)


@pytest.mark.parametrize("best", [1, 2, 3])
def test_experts_count_by_what_a_token_meets(best):
    d, f, experts = 8, 16, 6
    net = nn.Sequential(nn.Embedding(30, d), Experts(d, f, experts, best), nn.Linear(d, 5))
    found = parameters(subject(net, torch.arange(30).view(3, 10)))
    one = d * f + f + f * d + d
    (held,) = found.experts
    assert (held.path, held.experts, held.params) == ("1.experts", experts, experts * one)
    assert held.density == best / experts
    assert found.active == pytest.approx(found.total - (experts - best) * one)
    values = {m.name: m.value for m in found.measurements() if not m.of}
    assert (values["experts"], values["expert_density"]) == (experts, best / experts)
    assert from_rows([values])["params_active"][0] == found.active


def test_experts_by_path_and_as_declared():
    net = nn.Sequential(nn.Linear(8, 8), nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)}))
    net.forward = lambda x: net[1]["a"](net[0](x))
    given = subject(net, torch.ones(4, 8))
    assert parameters(given).experts == ()
    assert parameters(given, experts=["1"]).active == 72 + 72
    assert parameters(given, experts=["1"], per_token=2).active == 3 * 72
    with pytest.raises(ValueError, match="got '2'"):
        parameters(given, experts=["2"])
    with pytest.raises(ValueError, match="got Linear"):
        parameters(given, experts=["0"])


def test_experts_that_nobody_called_are_not_known():
    class Off(Experts):
        def forward(self, x):
            return self.router(x)

    found = parameters(subject(Off(8, 16), torch.ones(4, 8)))
    assert math.isnan(found.active)
    assert [f.code for f in found.findings] == ["experts-not-measured"]
    assert parameters(subject(Off(8, 16), torch.ones(4, 8)), per_token=2).active == 64 + 2 * (
        128 + 16 + 128 + 8
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["grouped_mm", "batched_mm", "eager"])
def test_experts_of_mixtral_however_they_are_computed(how):
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24, vocab_size=50,
        num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=1,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config)
    model.config._experts_implementation = how
    found = parameters(subject(model, torch.arange(40).view(2, 20), lambda out: out.logits))
    assert [each.density for each in found.experts] == [0.25, 0.25]
    assert found.total - found.active == 2 * 3 * (3 * 32 * 24)
    model.config.num_experts_per_tok = 2
    found = parameters(subject(model, torch.arange(40).view(2, 20), lambda out: out.logits))
    assert {f.code for f in found.findings} == {"experts-not-as-declared"}


def test_parameters_that_nothing_reads_are_named():
    net = nn.ModuleDict({"used": nn.Linear(3, 3), "idle": nn.Linear(3, 2)})
    net.forward = lambda x: net["used"](x)
    found = parameters(subject(net, torch.ones(1, 3)))
    assert found.unused == ("idle.weight", "idle.bias")
    assert [f.code for f in found.findings] == ["params-unused"]


@pytest.mark.filterwarnings("ignore")
def test_packed_weights_are_said_to_be_missing():
    net = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)), dtype=torch.qint8)
    found = parameters(subject(net, torch.ones(1, 4)))
    assert found.total == 0
    assert [f.code for f in found.findings] == ["params-packed"]


def test_bytes_follow_the_type():
    assert parameters(subject(nn.Linear(3, 2).bfloat16(), torch.ones(1, 3).bfloat16())).bytes_params == 16
