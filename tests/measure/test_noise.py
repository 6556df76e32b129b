"""The noise scale of quadratics, where it is known; the live meter against norms taken by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.errors import NoAnswer  # noqa: E402
from isoloss.measure.criteria import CrossEntropy, SquaredError  # noqa: E402
from isoloss.measure.noise import (  # noqa: E402
    Meter,
    noise_in_metric,
    noise_of_examples,
    probe,
    probe_curved,
    tradeoff,
)
from isoloss.measure.per_example import Gradients, loss_gradients  # noqa: E402
from isoloss.measure.products import hessian  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402
from isoloss.observing.measured import Measured  # noqa: E402
from isoloss.observing.noise_scale import gradient_noise_scale  # noqa: E402

WIDTH = 12
CURVATURE = torch.logspace(-1, 1, WIDTH).double()
SCATTER = torch.linspace(0.3, 1.5, WIDTH).double()  # standard deviation of the examples' centres
AT = torch.linspace(2.0, 0.5, WIDTH).double()
LIKE = {"theta": torch.zeros(WIDTH).double()}
SIGNAL = CURVATURE * AT  # gradient of 1/2 (theta - c)' H (theta - c), averaged over centres around 0
SIGMA = (CURVATURE * SCATTER).square()  # covariance of its examples' gradients, diagonal
SIMPLE = float(SIGMA.sum() / SIGNAL.square().sum())
CURVED = float((CURVATURE * SIGMA).sum() / (CURVATURE * SIGNAL.square()).sum())


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def gradients(n, generator=None):
    return SIGNAL + SIGMA.sqrt() * torch.randn(n, WIDTH, generator=generator, dtype=torch.float64)


class Bowl(nn.Module):
    """Outputs sqrt(H) theta, the same for every example."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(AT.clone())

    def forward(self, x):
        return (CURVATURE.sqrt() * self.theta).expand(len(x), WIDTH)


def bowl(n):
    centres = SCATTER * torch.randn(n, WIDTH, dtype=torch.float64)
    return Subject(Bowl(), [(torch.zeros(n, 1), CURVATURE.sqrt() * centres)], SquaredError())


def within(measured, truth, errors=4.0):
    """Ends of a 90% interval are 1.645 standard errors away."""
    reach = errors / 1.645
    value = measured.value
    return value - reach * (value - measured.low) <= truth <= value + reach * (measured.high - value)


def test_the_noise_scale_of_a_quadratic_is_what_it_is():
    subject = bowl(1500)
    rows = loss_gradients(subject)
    found = noise_of_examples(rows)
    assert within(found.signal, float(SIGNAL.square().sum()))
    assert within(found.spread, float(SIGMA.sum()))
    assert within(found.scale, SIMPLE)
    assert found.scale.high / found.scale.low < 1.3
    with hessian(subject) as h:
        curved = noise_in_metric(rows, h, blocks=40)
    assert within(curved.scale, CURVED)
    assert CURVED > 1.2 * SIMPLE  # or they could not be told apart


def test_estimates_are_the_textbook_ones():
    g = gradients(30)
    found = noise_of_examples(Gradients.of_rows(g, LIKE))
    spread = float(np.trace(np.cov(g.numpy().T)))
    assert found.spread.value == pytest.approx(spread)
    assert found.signal.value == pytest.approx(float(g.mean(0).square().sum()) - spread / 30)
    blocks = noise_in_metric(Gradients.of_rows(g, LIKE), lambda v: v, blocks=30)
    for ours, same in ((blocks.scale, found.scale), (blocks.signal, found.signal)):
        assert (ours.value, ours.low, ours.high) == pytest.approx((same.value, same.low, same.high))


def test_the_interval_is_that_of_leaving_out_each_example():
    g = gradients(25)
    rows = Gradients.of_rows(g, LIKE)
    found = noise_of_examples(rows, coverage=0.9)
    signals = np.array(
        [
            noise_of_examples(Gradients.of_rows(torch.cat([g[:i], g[i + 1 :]]), LIKE)).signal.value
            for i in range(25)
        ]
    )
    error = math.sqrt(24 / 25 * float(np.sum((signals - signals.mean()) ** 2)))
    assert found.signal.high - found.signal.value == pytest.approx(1.7108821 * error, rel=1e-6)  # t of 24


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = torch.Generator().manual_seed(5)
    held, simple = 0, 0
    for _ in range(200):
        rows = Gradients.of_rows(gradients(60, generator), LIKE)
        found = noise_of_examples(rows, coverage=0.9).scale
        held += found.low <= SIMPLE <= found.high
        blocks = noise_in_metric(rows, lambda v: v, blocks=20).scale
        simple += blocks.low <= SIMPLE <= blocks.high
    # 200 draws of 0.9: 180, three standard errors are 13. Wider than asked is allowed for.
    assert 167 <= held <= 199
    assert 167 <= simple <= 199


def test_a_batch_of_the_noise_scale_gets_half_of_what_any_batch_could():
    """The best mean gain of one step from batches of B, over the noiseless step's, is 1 / (1 + B_noise / B)."""
    rates = torch.logspace(-3, 0, 400).double()
    generator = torch.Generator().manual_seed(1)

    def gain(batch):
        noise = torch.randn(20000, WIDTH, generator=generator, dtype=torch.float64)
        g = SIGNAL + noise * (SIGMA / batch).sqrt()
        down, curve = (g @ SIGNAL).mean(), (CURVATURE * g.square()).sum(1).mean()
        return float((rates * down - rates.square() / 2 * curve).max())

    full = float(SIGNAL.square().sum() ** 2 / (CURVATURE * SIGNAL.square()).sum() / 2)
    for batch in (CURVED / 4, CURVED, 4 * CURVED):
        assert gain(batch) / full == pytest.approx(1 / (1 + CURVED / batch), rel=0.02)
    cost = tradeoff(Measured(CURVED, CURVED / 2, 2 * CURVED, 0.9, "known"), CURVED)
    assert (cost.steps.value, cost.examples.value) == (2, 2)
    assert (cost.steps.low, cost.steps.high, cost.examples.low, cost.examples.high) == (1.5, 3, 1.5, 3)
    assert (cost.steps.value - 1) * (cost.examples.value - 1) == pytest.approx(1)


def test_noise_that_hides_the_gradient_is_no_answer_and_a_faint_one_has_no_upper_end():
    generator = torch.Generator().manual_seed(3)
    open_ends = refused = 0
    for _ in range(40):
        g = torch.randn(20, WIDTH, generator=generator, dtype=torch.float64) + 0.02
        try:
            open_ends += noise_of_examples(Gradients.of_rows(g, LIKE)).scale.high == math.inf
        except NoAnswer:
            refused += 1
    assert open_ends > 5
    assert refused > 5
    assert open_ends + refused > 35
    with pytest.raises(NoAnswer, match="3 gradients give no interval"):
        noise_of_examples(Gradients.of_rows(gradients(3), LIKE))


# the live meter


def net():
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).double()


def batches(steps, sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(sum(sizes), 6, generator=generator, dtype=torch.float64)
        y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
        yield list(zip(x.split(sizes), y.split(sizes), strict=True))


def train(model, meter, optimizer, steps, sizes, seed=0, loss_scale=1.0, before=lambda: None):
    for micros in batches(steps, sizes, seed):
        optimizer.zero_grad()
        before()
        for x, y in micros:
            loss = nn.functional.cross_entropy(model(x), y) * (len(x) / sum(sizes)) * loss_scale
            loss.backward()
        meter.step(sizes, loss_scale)
        optimizer.step()


def flat(parameters):
    return torch.cat([p.grad.flatten() for p in parameters])


def test_the_meter_gives_the_two_batch_estimate_of_norms_taken_by_hand():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    small, big = [], []
    for micros in batches(12, [8, 8, 8, 8]):
        each = []
        for x, y in micros:
            model.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            each.append(flat(model.parameters()))
        small.append(float(torch.stack([g.square().sum() for g in each]).mean()))
        big.append(float(torch.stack(each).mean(0).square().sum()))
    truth = gradient_noise_scale(small, big, 8, 32)
    for loss_scale in (1.0, 1024.0):
        with Meter(model.parameters()) as meter:
            train(model, meter, optimizer, 12, [8, 8, 8, 8], loss_scale=loss_scale)
        found = meter.noise()
        assert found.scale.value == pytest.approx(truth.scale.value, rel=1e-9)
        assert found.spread.value == pytest.approx(truth.spread.value, rel=1e-9)
        assert found.scale.low == pytest.approx(truth.scale.low, rel=1e-9)
        assert found.steps == 12


@pytest.mark.parametrize("sizes", [[8, 8, 8], [2, 12, 4]], ids=["equal", "unequal"])
def test_the_meter_is_unbiased_at_weights_that_stay(sizes):
    model = net()
    x, y = (torch.cat(parts) for parts in zip(*(m[0] for m in batches(1, [10000], seed=9)), strict=True))
    truth = noise_of_examples(loss_gradients(Subject(model, [(x, y)], CrossEntropy())))
    with Meter(model.parameters()) as meter:
        train(model, meter, torch.optim.SGD(model.parameters(), 0.0), 250, sizes, seed=2)
    assert within(meter.noise().spread, truth.spread.value)
    assert within(meter.noise().signal, truth.signal.value)


def test_for_adam_norms_are_of_the_steps_it_takes():
    """Against gradients times the preconditioner, taken apart by hand from Adam's own state."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.97))
    seen = []

    def look():  # before the backward passes: the state that the step before left
        if optimizer.state:
            seen.append([
                1 / ((s["exp_avg_sq"] / (1 - 0.97 ** float(s["step"]))).sqrt() + 1e-8)
                for s in (optimizer.state[p] for p in model.parameters())
            ])  # fmt: skip
            weights.append([p.detach().clone() for p in model.parameters()])

    weights: list = []
    with Meter(model.parameters(), optimizer) as meter:
        train(model, meter, optimizer, 12, [8, 8], before=look)
    assert len(seen) == 11  # nothing to go by at the first step
    signal, spread = [], []
    again = net()
    for scale, at, micros in zip(seen, weights, list(batches(12, [8, 8]))[1:], strict=True):
        for p, value in zip(again.parameters(), at, strict=True):
            p.data = value
        each = []
        for x, y in micros:
            again.zero_grad()
            nn.functional.cross_entropy(again(x), y).backward()
            each.append(
                torch.cat([(p.grad * s).flatten() for p, s in zip(again.parameters(), scale, strict=True)])
            )
        b, whole = float(sum(g.square().sum() for g in each)) / 2, float((sum(each) / 2).square().sum())
        spread.append((b - whole) * 16)
        signal.append(2 * whole - b)
    assert list(meter._spread) == pytest.approx(spread, rel=1e-9)
    assert list(meter._signal) == pytest.approx(signal, rel=1e-9)
    with pytest.raises(TypeError, match="Adam or AdamW, got SGD"):
        Meter(model.parameters(), torch.optim.SGD(model.parameters(), 0.1))


def test_parameters_that_a_micro_batch_does_not_use_do_not_shift_the_others():
    model = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)]).double()
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    small = []
    with Meter(model.parameters()) as meter:
        for _ in range(5):
            model.zero_grad()
            for i, expert in enumerate((0, 1, 0)):
                (model[expert](x[i]).square().mean() / 3).backward()
            meter.step([4, 4, 4])
    for i, expert in enumerate((0, 1, 0)):
        model.zero_grad()
        model[expert](x[i]).square().mean().backward()
        small.append(
            [
                g
                for p in model.parameters()
                for g in [torch.zeros_like(p) if p.grad is None else p.grad.clone()]
            ]
        )
    flatted = torch.stack([torch.cat([part.flatten() for part in each]) for each in small])
    spread = float(flatted.var(0).sum()) * 4
    assert list(meter._spread) == pytest.approx([spread] * 5, rel=1e-9)


def test_the_meter_measures_some_steps_of_a_window_and_leaves_no_trace():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Meter(model.parameters(), window=6, every=3) as meter:
        train(model, meter, optimizer, 30, [4, 4])
        assert meter.noise().steps == 6
        meter.clear()
        with pytest.raises(NoAnswer, match="0 steps"):
            meter.noise()
    assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())
    plain, watched = net(), net()
    watched.load_state_dict(plain.state_dict())
    for model in (plain, watched):
        with Meter(model.parameters() if model is watched else net().parameters(), every=10**9) as meter:
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for micros in batches(5, [4, 4]):
                optimizer.zero_grad()
                for x, y in micros:
                    nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
    for p, q in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(p, q)


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 6, sparse=True), nn.Linear(6, 3)

    def forward(self, ids):
        return self.head(self.embedding(ids).mean(1))


def tied():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    model[3].bias.requires_grad_(False)
    return model


@pytest.mark.parametrize("make", [tied, Sparse], ids=["tied and frozen", "sparse"])
def test_the_meter_reads_shared_frozen_and_sparse_gradients(make):
    model = make().double()
    held = [p for p in model.parameters() if p.requires_grad]
    sizes = [1, 4, 2]
    x = torch.randn(7, 6).double() if make is tied else torch.randint(0, 9, (7, 4))
    micros = list(zip(x.split(sizes), torch.randint(0, 3, (7,)).split(sizes), strict=True))
    with Meter([*held, *held]) as meter:
        for a, y in micros:
            # A pass that adds nothing to .grad is none of the step's.
            torch.autograd.grad(nn.functional.cross_entropy(model(a), y), [held[-1]])
            (nn.functional.cross_entropy(model(a), y) * len(a) / 7).backward()
        meter.step(sizes)
    each = []
    for a, y in micros:
        model.zero_grad()
        nn.functional.cross_entropy(model(a), y).backward()
        each.append(torch.cat([p.grad.to_dense().flatten() for p in held]))
    weight = torch.tensor(sizes).double()
    mean = (torch.stack(each) * weight[:, None]).sum(0) / 7
    spread = float((weight * (torch.stack(each) - mean).square().sum(1)).sum()) / 2
    assert list(meter._spread) == pytest.approx([spread], rel=1e-9)
    assert list(meter._signal) == pytest.approx([float(mean.square().sum()) - spread / 7], rel=1e-9)


def test_a_loop_without_accumulation_splits_the_steps_that_are_due():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    passes = []
    with Meter(model.parameters(), every=3) as meter:
        for ((x, y),) in batches(12, [8]):
            optimizer.zero_grad()
            parts = list(zip(x.chunk(2), y.chunk(2), strict=True)) if meter.due else [(x, y)]
            for a, b in parts:
                (nn.functional.cross_entropy(model(a), b) * len(a) / len(x)).backward()
            meter.step([len(a) for a, _ in parts])
            passes.append(len(parts))
            optimizer.step()
        assert len(meter._spread) == 4
    assert passes == [2, 1, 1] * 4


def test_the_meter_says_what_it_was_not_told_and_skips_overflow():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Meter(model.parameters()) as meter:
        for x, y in next(batches(1, [4, 4])):
            nn.functional.cross_entropy(model(x), y).backward()
        with pytest.raises(ValueError, match="got 3 sizes for 2 passes"):
            meter.step([4, 4, 4])
        with pytest.raises(ValueError, match="got 1 sizes for 1 passes"):
            train(model, meter, optimizer, 1, [8])
        for x, y in next(batches(1, [4, 4])):
            (nn.functional.cross_entropy(model(x), y) * math.inf).backward()
        meter.step([4, 4])
        assert meter.skipped == 1
    for settings in ({"window": 0}, {"every": 0}):
        with pytest.raises(ValueError, match="window and every of 1 or more"):
            Meter(model.parameters(), **settings)
    with pytest.raises(ValueError, match="got 0 parameters"):
        Meter(net().requires_grad_(False).parameters())


def test_the_probe_is_in_examples_with_its_interval():
    model = net()
    (((x, y),),) = batches(1, [200])
    x = x + 1  # the classes are then unequal: a gradient to be seen
    subject = Subject(model, [(x[:150], y[:150]), (x[150:], y[150:])], CrossEntropy())
    scale, signal, spread = probe(subject)
    truth = noise_of_examples(loss_gradients(subject))
    assert [m.name for m in (scale, signal, spread)] == ["noise_scale", "gradient_signal", "gradient_spread"]
    assert scale.value == pytest.approx(truth.scale.value)
    assert spread.interval(0.9)[0] == pytest.approx(truth.spread.low, rel=0.01)  # t against the normal
    assert "200 per-example gradients" in scale.how
    assert scale.unit == "examples"


def test_the_curved_probe_is_in_the_metric_of_gauss_newton():
    subject = bowl(200)
    (found,) = probe_curved(subject)
    rows = loss_gradients(subject).dense()
    metric = torch.diag(CURVATURE)
    means = rows[:192].view(32, 6, WIDTH).mean(1)
    mean = means.mean(0)
    covariance = torch.cov(means.T) * 6
    spread = float(torch.trace(metric @ covariance))
    signal = float(mean @ metric @ mean) - spread / 192
    assert found.value == pytest.approx(spread / signal)
    assert found.name == "noise_scale_curved"
    assert "Gauss-Newton" in found.how
    again = noise_in_metric(Gradients.of_rows(rows, LIKE), lambda v: CURVATURE * v).scale
    assert f"interval {again.low:.4g} to {again.high:.4g}" in found.how


def test_a_gradient_that_noise_hides_is_not_resolved_but_its_parts_are_told():
    """Averaged over many models the signal stays unbiased, which it would not if those below zero were left out."""
    signals, hidden = [], 0
    for seed in range(60):
        torch.manual_seed(seed)
        x, y = torch.randn(12, 6).double(), torch.randn(12, 1).double()
        model = nn.Linear(6, 1, bias=False).double()
        nn.init.zeros_(model.weight)  # gradients -y x: mean 0
        scale, signal, spread = probe(Subject(model, [(x, y)], SquaredError()))
        signals.append(signal.value)
        if math.isnan(scale.value):
            hidden += 1
            assert "not resolved: noise hides the gradient" in scale.how
            assert "to inf" in scale.how
        assert spread.value > 0
        assert spread.se > 0
    assert hidden > 45
    assert abs(np.mean(signals)) < 4 * np.std(signals) / math.sqrt(60)
    assert min(signals) < 0
    with pytest.raises(NoAnswer, match="are alike"):
        probe(Subject(model, [(x[:1].expand(5, 6), y[:1].expand(5, 1))], SquaredError()))
    broken = nn.Linear(6, 1, bias=False).double()
    nn.init.constant_(broken.weight, math.nan)
    with pytest.raises(NoAnswer, match="not finite"):
        probe(Subject(broken, [(x, y)], SquaredError()))
