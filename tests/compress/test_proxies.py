"""Plain and evolved proxies: closed forms, SciPy, and a planted one that must be found."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scipy.stats import rankdata, spearmanr  # noqa: E402
from torch import nn  # noqa: E402

from isoloss.compress import Choice, find  # noqa: E402
from isoloss.compress.candidates import candidates  # noqa: E402
from isoloss.compress.mixed import best  # noqa: E402
from isoloss.compress.sensitivity.emq import (  # noqa: E402
    BINARY,
    INPUTS,
    UNARY,
    Branch,
    Features,
    Program,
    Search,
    bits_of,
    errors_of,
    evolve,
    features,
    plan_scores,
    random_search,
    trial,
)
from isoloss.compress.sensitivity.plans import judge, partial  # noqa: E402
from isoloss.compress.sensitivity.proxies import (  # noqa: E402
    PROXIES,
    gradients,
    score,
    virtual_gradients,
)
from isoloss.compress.sensitivity.ranking import spearman  # noqa: E402
from isoloss.errors import NoAnswer  # noqa: E402
from isoloss.measure import Subject  # noqa: E402
from isoloss.measure.criteria import CrossEntropy, SquaredError  # noqa: E402
from tests.compress.models import Experts, Language, convolutions, filled  # noqa: E402

FORMATS = (Choice("int2/asym"), Choice("int4/asym"), Choice("int6/asym"))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tried(subject):
    model = subject.model
    return candidates(model, find(model).layers, FORMATS, [x for x, _ in subject.batches])


def two_layers():
    net = filled(nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False)))
    return Subject(
        net,
        [(drawn(20, 5), drawn(20, 3, seed=1)), (drawn(10, 5, seed=2), drawn(10, 3, seed=3))],
        SquaredError(),
    )


def test_gradients_and_virtual_gradients_are_those_by_hand():
    subject = two_layers()
    found, virtual = gradients(subject, tried(subject)), virtual_gradients(subject, tried(subject))
    a, b = (layer.weight.detach().double() for layer in subject.model)
    x, y = (torch.cat([batch[i] for batch in subject.batches]).double() for i in (0, 1))
    off = (x @ a.T @ b.T - y) / len(x)
    assert torch.allclose(found["1"].double(), off.T @ (x @ a.T), atol=1e-5)
    assert torch.allclose(found["0"].double(), b.T @ off.T @ x, atol=1e-5)
    # R = 1' |B| |A| 1: the gradients are outer products of column and row sums.
    first = b.abs().sum(0)[:, None].expand(4, 5)
    second = a.abs().sum(1)[None, :].expand(3, 4)
    top = max(float(first.max()), float(second.max()))
    assert torch.allclose(virtual["0"].double(), first / top, rtol=1e-5)
    assert torch.allclose(virtual["1"].double(), second / top, rtol=1e-5)
    snip, flow = score("bsnip", subject, tried(subject)), score("bsynflow", subject, tried(subject))
    stored = tried(subject).of["0"]["int2/asym"].encoded.bits / 20
    want = float((a * found["0"].double()).abs().sum())
    assert snip.table["0"]["int2/asym"] == pytest.approx((32 - stored) * want, rel=1e-5)
    assert flow.table["0"]["int2/asym"] == pytest.approx(
        (32 - stored) * float((a.abs() * first).sum()) / top, rel=1e-5
    )
    assert set(flow.table["1"].values()) == {0.0}  # the last layer


def test_traces_and_eigenvalues_are_those_of_the_dense_hessian():
    x = drawn(40, 3) @ torch.diag(torch.tensor([3.0, 1.0, 0.5]))
    subject = Subject(filled(nn.Linear(3, 2, bias=False)), [(x, drawn(40, 2, seed=1))], SquaredError())
    second = (x.T @ x / 40).double().numpy()
    found = tried(subject)
    own = {name: PROXIES[name](subject, found, 0)["model"] for name in ("bhawq", "bhawq-v2")}
    assert own["bhawq"] == pytest.approx(np.linalg.eigvalsh(second)[-1], rel=1e-2)
    assert own["bhawq-v2"] == pytest.approx(2 * np.trace(second), rel=1e-3)


def test_multiplications_are_counted_at_every_position():
    model = convolutions()
    subject = Subject(model, [(drawn(2, 3, 16, 16), torch.tensor([0, 1]))], CrossEntropy())
    found = PROXIES["bops"](subject, tried(subject), 0)
    assert [count / 8 for count in found.values()] == [
        16 * 16 * 8 * 27,
        7 * 7 * 8 * 9,
        7 * 7 * 12 * 36,
        12 * 5,
    ]


@pytest.mark.parametrize("kind", ["language", "convolutions", "experts"])
def test_all_kinds_of_layers_have_numbers_and_the_model_stays_as_it_is(kind):
    generator = torch.Generator().manual_seed(4)
    if kind == "language":
        model, x = filled(Language()), torch.randint(0, 13, (6, 5), generator=generator)
        y = torch.randint(0, 13, (6, 5), generator=generator)
    elif kind == "convolutions":
        model, x = filled(convolutions()), drawn(6, 3, 16, 16)
        y = torch.randint(0, 5, (6,), generator=generator)
    else:
        model, x = filled(Experts()), drawn(24, 6)
        y = torch.randint(0, 12, (24,), generator=generator)
    subject = Subject(model, [(x[:4], y[:4]), (x[4:], y[4:])], CrossEntropy())
    before = {name: p.clone() for name, p in model.state_dict().items()}
    found = tried(subject)
    for name in ("bparams", "bops", "bsnip", "bsynflow"):
        own = score(name, subject, found)
        assert set(own.table) == {layer.name for layer in found.layers}
        assert all(
            math.isfinite(value) and value >= 0 for row in own.table.values() for value in row.values()
        )
    if kind == "experts":
        with pytest.raises(ValueError, match="part of one"):
            score("bhawq", subject, found)
    given = features(subject, found)
    assert all(set(own) == set(INPUTS) for own in given.of.values())
    for layer in found.layers:
        own = given.of[layer.name]
        assert all(tuple(own[name].shape) == layer.shape for name in INPUTS if name != "activation")
        assert tuple(own["activation"].shape) == (1, layer.shape[1])
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_partial_correlation_is_that_of_the_residuals():
    rng = np.random.default_rng(0)
    c = rng.normal(size=30)
    a, b = c + rng.normal(size=30), -c + rng.normal(size=30)
    ranks = [rankdata(v) for v in (a, b, c)]
    line = np.vstack([ranks[2], np.ones(30)]).T
    rests = [r - line @ np.linalg.lstsq(line, r, rcond=None)[0] for r in ranks[:2]]
    assert partial(a, b, c) == pytest.approx(np.corrcoef(*rests)[0, 1], abs=1e-10)
    found = judge(a, b, c)
    assert found.rho == pytest.approx(spearmanr(a, b).statistic)
    assert found.low < found.rho < found.high
    # The draws one by one.
    at = np.random.default_rng(0).integers(0, 30, (1000, 30))
    slow = [spearman(a[i], b[i]) for i in at], [partial(a[i], b[i], c[i]) for i in at]
    assert (found.low, found.high) == pytest.approx(np.quantile(slow[0], [0.05, 0.95]))
    assert (found.partial_low, found.partial_high) == pytest.approx(np.quantile(slow[1], [0.05, 0.95]))
    assert found.partial_low < found.partial < found.partial_high
    with pytest.raises(ValueError, match="four plans"):
        judge([1, 2, 3], [1, 2, 3], [1, 2, 3])


def given(seed=0, layers=6):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp(torch.randn(layers, 4, generator=generator))
    return Features(
        {
            str(i): {
                n: scale[i, k] * torch.randn(1 if n == "activation" else 5, 7, generator=generator)
                for k, n in enumerate(INPUTS)
            }
            for i in range(layers)
        }
    )


@pytest.mark.parametrize(
    "planted",
    [
        Program(Branch("weight", "abs", "id"), Branch("gradient", "abs", "id"), "mul"),  # BSNIP
        Program(Branch("weight", "l2", "id"), Branch("virtual_gradient", "square", "id"), "div"),
    ],
)
def test_a_planted_proxy_is_recovered(planted):
    own = given()
    bits = np.random.default_rng(1).integers(2, 9, (60, 6)).astype(float)
    losses = plan_scores(planted.numbers(own), bits)
    done = trial(own, bits, losses, bits.sum(1), Search(evaluations=800))
    assert done.found.rho == pytest.approx(1)
    assert done.judged.rho == pytest.approx(1)
    assert set(done.train) & set(done.test) == set()
    assert sorted(done.train + done.test) == list(range(60))
    assert done.found.evaluations == done.random.evaluations == 800
    assert done.judged.rho >= done.random_judged.rho - 1e-12


def test_the_plans_held_out_do_not_matter_to_the_search():
    own = given(3)
    rng = np.random.default_rng(2)
    bits, losses = rng.integers(2, 9, (40, 6)).astype(float), rng.normal(size=40)
    one = trial(own, bits, losses, bits.sum(1), Search(evaluations=40))
    losses[list(one.test)] = rng.normal(size=len(one.test))
    other = trial(own, bits, losses, bits.sum(1), Search(evaluations=40))
    assert (one.found.program, one.random.program) == (other.found.program, other.random.program)
    assert one.judged.rho != other.judged.rho


def test_the_screen_keeps_out_what_fails_and_what_is_known():
    own = given()
    of = {name: {**parts, "gradient": torch.zeros(5, 7)} for name, parts in own.of.items()}
    bad = Program(Branch("gradient", "normalise", "id"), Branch("weight", "id", "id"), "mul")
    assert np.isnan(bad.numbers(Features(of))).all()
    bits = np.random.default_rng(1).integers(2, 9, (30, 6)).astype(float)
    found = evolve(Features(of), bits, bits @ np.arange(6.0), Search(evaluations=80))
    assert np.isfinite(found.program.numbers(Features(of))).all()
    assert found.rejected > 0
    with pytest.raises(NoAnswer, match="tell these plans apart"):
        random_search(own, np.full((10, 6), 4.0), np.arange(10.0), Search(evaluations=20))
    with pytest.raises(ValueError, match="needed bits of 5 plans"):
        evolve(own, bits, np.arange(5.0))
    with pytest.raises(ValueError, match="population"):
        Search(population=1)


def test_all_operations_give_a_number():
    own = given().of["0"]
    for name in UNARY:
        for join in BINARY:
            for inputs in (("weight", "activation"), ("activation", "virtual_gradient")):
                program = Program(Branch(inputs[0], name, "id"), Branch(inputs[1], "id", "mean"), join)
                assert np.isfinite(program.numbers(Features({"0": own}))).all(), program.words
    a, b = own["weight"].double(), own["gradient"].double()
    matmul = Program(Branch("weight", "id", "id"), Branch("gradient", "id", "id"), "matmul")
    assert matmul.numbers(Features({"0": own}))[0] == pytest.approx(float((a @ b.T).sum()), rel=1e-4)


def test_what_was_found_serves_as_a_sensitivity():
    subject = two_layers()
    found = tried(subject)
    own = features(subject, found)
    names = [choice.format for choice in FORMATS]
    plans = [{"0": a, "1": b} for a in names for b in names]
    bits = bits_of(found, plans)
    assert bits[0, 0] == found.of["0"]["int2/asym"].encoded.bits / 20
    errors = errors_of(found, plans)
    assert errors[0, 1] == pytest.approx(-found.of["1"]["int2/asym"].distance / 12)
    made = evolve(own, bits, -bits @ np.array([3.0, 1.0]), Search(evaluations=30, population=10))
    scores = made.scores(own, found)
    order = [scores.added(plan) for plan in plans]
    assert spearmanr(order, plan_scores(list(made.numbers(own).values()), bits)).statistic == pytest.approx(1)
    assert best(found, scores, bits=40.0).plan
    by_errors = made.scores(own, found, "errors")
    assert by_errors.added(plans[0]) == pytest.approx(
        -float(errors[0] @ np.array(list(made.numbers(own).values())))
    )
