"""Scores of layers: closed forms on quadratic models, invariants, ranks against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scipy.stats import spearmanr  # noqa: E402
from torch import nn  # noqa: E402

from isoloss.compress import Choice, find  # noqa: E402
from isoloss.compress.candidates import candidates, ladder  # noqa: E402
from isoloss.compress.sensitivity import SENSITIVITIES, get, score  # noqa: E402
from isoloss.compress.sensitivity.changes import changes, one_by_one  # noqa: E402
from isoloss.compress.sensitivity.gradients import of_examples, squares  # noqa: E402
from isoloss.compress.sensitivity.ranking import (  # noqa: E402
    agreement,
    means,
    resampled,
    spearman,
    times,
)
from isoloss.errors import NoAnswer  # noqa: E402
from isoloss.measure import Subject  # noqa: E402
from isoloss.measure.criteria import CrossEntropy, SquaredError  # noqa: E402
from tests.compress.models import Experts, Language, convolutions, filled  # noqa: E402

FORMATS = (Choice("int2/asym"), Choice("int4/asym"))


class Sum(nn.Module):
    """A sum of two linear layers of parts of the input: quadratic loss, no terms between layers if parts do not agree."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 1, bias=False), nn.Linear(2, 1, bias=False)

    def forward(self, x):
        return self.a(x[:, :3]) + self.b(x[:, 3:])


def quadratic(inputs):
    """At its optimum, so that the rise is half the error's quadratic form."""
    net = filled(Sum())
    with torch.no_grad():
        return Subject(net, [(inputs, net(inputs))], SquaredError())


def tried(subject, choices=FORMATS):
    model = subject.model
    return candidates(model, find(model).layers, choices, [x for x, _ in subject.batches])


def test_one_direction_at_a_time_makes_the_diagonal_exact_and_scores_add_up():
    # Every example is one coordinate: H is diagonal, so is the whole curvature.
    subject = quadratic(torch.diag(torch.tensor([2.0, 1.0, 3.0, 0.5, 1.5])))
    found = tried(subject)
    measured = score("measured", subject, found)
    for name in ("fisher", "kronecker", "block-fisher", "pd"):
        own = score(name, subject, found)
        assert own.unit == "nats"
        for layer, row in own.table.items():
            for format, value in row.items():
                assert value == pytest.approx(measured.table[layer][format], rel=1e-4, abs=1e-9)
    for format in ("int2/asym", "int4/asym"):
        plan = found.uniform(format)
        whole = changes(subject, found, [plan])[0].rise
        assert measured.added(plan) == pytest.approx(whole, rel=1e-4)
        assert score("block-fisher", subject, found).together(plan) == pytest.approx(whole, rel=1e-4)


def test_with_any_inputs_whole_blocks_are_exact_and_so_are_the_terms_between_them():
    generator = torch.Generator().manual_seed(1)
    subject = quadratic(torch.randn(40, 5, generator=generator) + 0.7)
    found = tried(subject)
    measured, whole = score("measured", subject, found), score("block-fisher", subject, found)
    kronecker, diagonal = score("kronecker", subject, found), score("fisher", subject, found)
    for layer, row in measured.table.items():
        for format, value in row.items():
            assert whole.table[layer][format] == pytest.approx(value, rel=1e-4)
            # One output: the factors are exact; the diagonal is not.
            assert kronecker.table[layer][format] == pytest.approx(value, rel=1e-4)
    assert any(
        diagonal.table[n]["int2/asym"] != pytest.approx(measured.table[n]["int2/asym"], rel=1e-2)
        for n in "ab"
    )
    plan = {"a": "int2/asym", "b": "int4/asym"}
    joint = changes(subject, found, [plan])[0].rise
    assert whole.together(plan) == pytest.approx(joint, rel=1e-4)
    assert whole.added(plan) != pytest.approx(joint, rel=1e-2)


def test_hawq_is_the_top_eigenvalue_and_hawq_v2_the_mean_trace():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(50, 5, generator=generator) @ torch.diag(torch.tensor([3.0, 1.0, 1.0, 0.5, 2.0]))
    subject = quadratic(x)
    found = tried(subject)
    one, two = score("hawq", subject, found), score("hawq-v2", subject, found)
    for layer, part in (("a", x[:, :3]), ("b", x[:, 3:])):
        hessian = (part.T @ part / len(part)).double().numpy()
        for format, candidate in found.of[layer].items():
            assert one.table[layer][format] == pytest.approx(
                0.5 * np.linalg.eigvalsh(hessian)[-1] * candidate.distance, rel=2e-2
            )
            assert two.table[layer][format] == pytest.approx(
                0.5 * np.trace(hessian) / len(hessian) * candidate.distance, rel=1e-3
            )
    # Nothing is above the steepest direction.
    measured = score("measured", subject, found)
    assert all(measured.table[n][f] <= one.table[n][f] * 1.02 for n in one.table for f in one.table[n])


def test_the_squares_are_the_diagonal_of_the_gauss_newton_matrix():
    # Cross-entropy of a linear model: the diagonal is the mean of p (1 - p) x^2.
    generator = torch.Generator().manual_seed(3)
    net = filled(nn.Linear(4, 3, bias=False), 1)
    x, y = torch.randn(6, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, -100])
    subject = Subject(net, [(x, y)], CrossEntropy())
    draws = [squares(subject, find(net).layers, seed)["model"] for seed in range(120)]
    p = net(x[:5]).softmax(1).double().detach()
    exact = ((p * (1 - p)).T @ x[:5].double().square()) / 5
    mean, sd = torch.stack(draws).mean(0), torch.stack(draws).std(0) / math.sqrt(120)
    assert ((mean - exact).abs() <= 4.5 * sd + 1e-9).all()


@pytest.mark.parametrize("kind", ["language", "convolutions", "experts"])
def test_all_kinds_of_layers_are_scored_and_the_model_stays_as_it_is(kind):
    generator = torch.Generator().manual_seed(4)
    if kind == "language":
        model, x = filled(Language()), torch.randint(0, 13, (6, 5), generator=generator)
        y = torch.randint(0, 13, (6, 5), generator=generator)
    elif kind == "convolutions":
        model, x = filled(convolutions()), torch.randn(6, 3, 16, 16, generator=generator)
        y = torch.randint(0, 5, (6,), generator=generator)
    else:
        model, x = filled(Experts()), torch.randn(24, 6, generator=generator)
        y = torch.randint(0, 12, (24,), generator=generator)
    subject = Subject(model, [(x[:4], y[:4]), (x[4:], y[4:])], CrossEntropy())
    before = {name: p.clone() for name, p in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    found = tried(subject)
    for name in SENSITIVITIES:
        if kind == "experts" and name.startswith("hawq"):
            with pytest.raises(ValueError, match="part of one"):
                score(name, subject, found)
            continue
        if kind == "language" and name.startswith("hawq"):
            continue  # many products
        own = score(name, subject, found)
        assert set(own.table) == {layer.name for layer in find(model).layers}
        for row in own.table.values():
            assert set(row) == {"int2/asym", "int4/asym"}
            assert all(math.isfinite(value) for value in row.values())
            if name not in ("measured", "hawq-v2"):  # noise; a trace at a saddle
                assert all(value >= -1e-6 for value in row.values()), name
        assert own.spent.cpu_seconds >= 0
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad for p in model.parameters())


def test_gradients_in_parts_are_those_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(5)
    subject = quadratic(torch.randn(9, 5, generator=generator))
    found = tried(subject)
    whole = score("block-fisher", subject, found)
    monkeypatch.setattr("isoloss.compress.sensitivity.block_fisher.NUMBERS", 2 * found.weights)
    parts = score("block-fisher", subject, found)
    for name, own in whole.along.items():
        for format, value in own.items():
            assert torch.allclose(value, parts.along[name][format])


def test_a_criterion_of_unknown_curvature_takes_the_gradients_of_its_examples():
    net = filled(nn.Linear(2, 1, bias=False))
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    subject = Subject(net, [(x, None)], lambda z, _: z.mean())
    [(c, g), (d, h)] = of_examples(subject, find(net).layers)
    assert (c, d) == (0.5, 0.5)
    assert torch.equal(g["model"], x[:1])
    assert torch.equal(h["model"], x[1:])


def test_the_change_is_paired_and_the_difference_is_a_divergence():
    generator = torch.Generator().manual_seed(6)
    net = filled(nn.Linear(5, 4, bias=False))
    x, y = torch.randn(12, 5, generator=generator), torch.randint(0, 4, (12,), generator=generator)
    subject = Subject(net, [(x[:7], y[:7]), (x[7:], y[7:])], CrossEntropy())
    found = tried(subject)
    change = one_by_one(subject, found)["model"]["int2/asym"]
    with found.applied({"model": "int2/asym"}):
        after = net(x).log_softmax(1).detach().double()
    before = net(x).log_softmax(1).detach().double()
    rise = -(after - before)[torch.arange(12), y]
    assert change.rise == pytest.approx(float(rise.mean()), rel=1e-5)
    assert change.loss == pytest.approx(float(-after[torch.arange(12), y].mean()), rel=1e-5)
    assert change.se == pytest.approx(float(rise.std() / math.sqrt(12)), rel=1e-5)
    assert change.difference == pytest.approx(
        float((before.exp() * (before - after)).sum(1).mean()), rel=1e-4
    )


def test_ranks_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, 12), rng.normal(size=12)
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert math.isnan(spearman([1, 1], [1, 2]))


def test_ranks_of_rows_drawn_again_are_those_of_scipy():
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 4, (9, 3)).astype(float), rng.normal(size=(9, 3))
    a[:, 2] = 1.0
    counts = times(9, 5)[:30]
    found = resampled(a, b, counts)
    assert np.isnan(found[:, 2]).all()
    for row, own in zip(counts.astype(int), found, strict=True):
        for k in (0, 1):
            x, y = (np.repeat(values[:, k], row) for values in (a, b))
            assert own[k] == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert means(found) == pytest.approx(found[:, :2].mean(1))
    assert math.isnan(means(found[:1, 2:])[0])


def test_agreement_is_over_layers_at_one_format():
    rng = np.random.default_rng(1)
    names, formats = [f"l{i}" for i in range(15)], ["x", "y"]
    table = {n: {f: float(rng.normal()) + 100 * k for k, f in enumerate(formats)} for n in names}
    noisy = {n: {f: v + float(rng.normal()) for f, v in own.items()} for n, own in table.items()}
    same, other = agreement(table, table), agreement(table, noisy)
    assert (same.layers, same.low, same.high, same.all) == pytest.approx((1, 1, 1, 1))
    by_hand = np.mean(
        [spearmanr([table[n][f] for n in names], [noisy[n][f] for n in names]).statistic for f in formats]
    )
    assert other.layers == pytest.approx(by_hand)
    assert other.low < other.layers < other.high
    assert other.all > other.layers
    with pytest.raises(ValueError, match="three layers"):
        agreement({"l0": {"x": 1.0}}, {"l0": {"x": 1.0}})
    with pytest.raises(ValueError, match="same layers"):
        agreement(table, {n: {"x": 1.0} for n in names})


def test_candidates_are_what_the_solver_gives_and_sizes_are_those_of_the_formats():
    from isoloss.compress import formats, solvers
    from isoloss.compress.statistics import Collector

    generator = torch.Generator().manual_seed(7)
    model, x = filled(Language()), torch.randint(0, 13, (6, 5), generator=generator)
    layers = find(model).layers
    found = candidates(model, layers, [Choice("int4/asym", "gptq")], [x])
    collector = Collector(layers)
    with torch.no_grad(), collector.watching():
        model(x)
    seen = collector.statistics()
    for layer in layers:
        one = found.of[layer.name]["int4/asym"]
        own = solvers.get("gptq").solve(layer.matrix(), formats.get("int4/asym"), seen[layer.name])
        assert torch.equal(one.encoded.decode(), own.decode())
        assert one.encoded.bits == formats.get("int4/asym").size(layer.shape)
        gap = (own.decode() - layer.matrix()).double()
        assert one.distance == pytest.approx(float(gap.square().sum()))
        second = seen[layer.name].hessian.double()
        assert torch.allclose(one.rows, ((gap @ second) * gap).sum(1) / second.trace(), rtol=1e-4)
    tied = [layer for layer in layers if layer.tied]
    assert [layer.name for layer in tied] == ["embedding"]
    assert found.weights == sum(p.numel() for p in model.parameters() if p.ndim == 2)


def test_second_moments_in_several_passes_are_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(8)
    model, x = filled(Language()), torch.randint(0, 13, (6, 5), generator=generator)
    layers = find(model).layers
    whole = candidates(model, layers, ladder("gptq")[:1], [x])
    monkeypatch.setattr("isoloss.compress.candidates.NUMBERS", 100)
    parts = candidates(model, layers, ladder("gptq")[:1], [x])
    for name, own in whole.of.items():
        for format, one in own.items():
            assert torch.equal(one.encoded.decode(), parts.of[name][format].encoded.decode())


def test_candidates_of_another_model_are_refused():
    subject, other = (quadratic(torch.eye(5)) for _ in range(2))
    with pytest.raises(ValueError, match="of another model"):
        score("measured", subject, tried(other))


def test_what_cannot_be_is_said():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    layers = find(net).layers
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"no sensitivity named 'x'\. There are: hawq"):
        get("x")
    with pytest.raises(ValueError, match="layers and formats"):
        candidates(net, [], FORMATS)
    with pytest.raises(ValueError, match="each format once"):
        candidates(net, layers, [Choice("int4"), Choice("int4", "gptq")], [x])
    with pytest.raises(ValueError, match="needs calibration data"):
        candidates(net, layers, [Choice("int4", "gptq")])
    with pytest.raises(ValueError, match="at least one calibration batch"):
        candidates(net, layers, FORMATS, [])
    with pytest.raises(ValueError, match="squared gradients"):
        candidates(net, layers, [Choice("table3", "squeezellm")], [x])
    unused = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})
    unused.forward = lambda x: unused["used"](x)
    with pytest.raises(NoAnswer, match="no calibration data came to unused"):
        candidates(unused, find(unused).layers, [Choice("int4", "gptq")], [x])
    some = candidates(unused, find(unused).layers, [Choice("int4", "gptq")], [x], unreached="nearest")
    assert len(some.notes) == 1
    with torch.no_grad():
        net[1].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="weight of 1 holds NaN"):
        candidates(net, layers, FORMATS, [x])
