"""Timings: distribution-free intervals by enumeration and simulation, the order of calls, the saturating batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.errors import NoAnswer  # noqa: E402
from isoloss.measure import latency as module  # noqa: E402
from isoloss.measure.criteria import CrossEntropy  # noqa: E402
from isoloss.measure.latency import Timing, latency, median, ratio, saturating_batch, times  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def line(name="line") -> Subject:
    return Subject(nn.Linear(8, 2), [(torch.ones(4, 8), torch.zeros(4).long())], CrossEntropy(), name)


@pytest.mark.parametrize("n", [1, 2, 4, 5, 6, 11, 20, 101])
@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.99])
def test_the_interval_is_the_narrowest_that_covers(n, coverage):
    found = median(list(range(1, n + 1)), coverage)
    low, high = int(found.low), int(found.high)
    assert high == n + 1 - low
    assert found.value == (n + 1) / 2

    def held(k):
        return 1 - 2 * stats.binom.cdf(k - 1, n, 0.5)

    if np.isnan(found.coverage):  # not even the extremes do
        assert held(1) < coverage
        assert low == 1
    else:
        assert found.coverage == pytest.approx(held(low))
        assert found.coverage >= coverage
        assert low == (n + 1) // 2 or held(low + 1) < coverage


def test_the_interval_covers_whatever_the_distribution():
    rng = np.random.default_rng(0)
    inside = 0
    for values in rng.lognormal(1.0, 1.5, (2000, 11)):
        found = median(values.tolist(), 0.9)
        inside += found.low <= np.exp(1.0) <= found.high
    expected = median(list(range(11)), 0.9).coverage
    assert abs(inside / 2000 - expected) < 4 * np.sqrt(expected * (1 - expected) / 2000)


def test_a_standard_error_from_the_interval():
    rng = np.random.default_rng(1)
    spread = np.std([np.median(rng.normal(0, 1, 101)) for _ in range(2000)])
    errors = [median(rng.normal(0, 1, 101).tolist()).se for _ in range(200)]
    assert np.mean(errors) == pytest.approx(spread, rel=0.1)
    assert np.isnan(median([1.0, 2.0]).se)


def test_calls_are_made_in_turn_and_back():
    made = []
    ticks = itertools.count()
    calls = {name: (lambda name=name: made.append(name)) for name in "abc"}
    clock = (lambda: float(next(ticks)), lambda: 2.0 * next(ticks))
    found = times(calls, repeats=3, warm=1, clocks=clock)
    assert "".join(made) == "abc" + "abc" + "cba" + "abc"
    assert found["a"].wall == (2.0, 2.0, 2.0)  # wall, CPU, wall, CPU: two ticks later
    assert found["a"].cpu == (4.0, 4.0, 4.0)
    for keywords in ({"calls": {}}, {"calls": calls, "repeats": 0}):
        with pytest.raises(ValueError, match="at least one repeat"):
            times(**keywords)


def test_ratios_are_of_one_turn():
    a = Timing("a", (2.0, 20.0, 4.0), (1.0,) * 3, (0, 0), 1)
    b = Timing("b", (1.0, 10.0, 2.0), (2.0,) * 3, (0, 0), 1)
    found = ratio(a, b)
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)
    assert ratio(a, b, "cpu").value == 0.5
    with pytest.raises(ValueError, match="as many calls"):
        ratio(a, Timing("c", (1.0,), (1.0,), (0, 0), 1))


def test_several_subjects():
    found = latency([line("a"), line("b")], repeats=3)
    assert all(len(timing.wall) == len(timing.cpu) == 3 for timing in found.values())
    assert found["a"].threads == 1
    with pytest.raises(ValueError, match="different names"):
        latency([line(), line()])


def fake_times(seconds):
    """A clock on which a forward pass of n examples takes seconds(n)."""
    sizes = iter(2**k for k in range(30))

    def made(calls, repeats, warm):
        size = next(sizes)
        return {name: Timing(name, (seconds(size),) * repeats, (0.0,) * repeats, (0, 0), 1) for name in calls}

    return made


def test_the_batch_at_which_throughput_no_longer_gains(monkeypatch):
    monkeypatch.setattr(module, "times", fake_times(lambda n: max(1.0, n / 64)))
    found = saturating_batch(line())
    assert (found.batch, found.settled) == (64, True)
    assert found.batches == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert found.rate(64).value == 64
    # The seconds of a linear layer: each batch costs a fixed 1 and 0.01 an example.
    monkeypatch.setattr(module, "times", fake_times(lambda n: 1 + 0.01 * n))
    found = saturating_batch(line(), most=1024)
    assert not found.settled
    assert "1024" in found.stopped
    assert found.rate(found.batch).value * 1.05 >= found.rate(1024).value


def test_memory_bounds_the_search(monkeypatch):
    monkeypatch.setattr(module, "times", fake_times(lambda n: 1.0))
    each = 4 * (8 + 2)
    found = saturating_batch(line(), bytes_free=each * 20)
    assert found.batches == (1, 2, 4, 8, 16)
    assert "a batch of 32" in found.stopped
    with pytest.raises(NoAnswer, match="one example takes"):
        saturating_batch(line(), bytes_free=each / 2)


def test_the_probe_says_under_what_load():
    found = {each.name: each for each in module.probe(line(), repeats=5)}
    assert set(found) == {"latency", "latency_cpu", "throughput", "batch_saturating"}
    assert "load" in found["latency"].how
    assert "1x8" in found["latency"].how
    assert found["throughput"].value > 0
    with pytest.raises(ValueError, match="at least one value"):
        median([])
    with pytest.raises(ValueError, match="coverage"):
        median([1.0], 1.0)
