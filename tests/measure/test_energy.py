"""Energy: synthetic traces with wraps, counters in a made-up folder, the model, Welch's test against SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isoloss.errors import NoAnswer  # noqa: E402
from isoloss.measure import energy as module  # noqa: E402
from isoloss.measure.criteria import CrossEntropy  # noqa: E402
from isoloss.measure.energy import Carbon, Meter, PowerModel, domains, probe, unwrapped  # noqa: E402
from isoloss.measure.energy_compare import compare_energy, welch  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402

SPAN = 262143328850.0  # microjoules, of a real package


def counter(root, name, said, start=0.0, span=SPAN):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{said}\n")
    (folder / "max_energy_range_uj").write_text(f"{span:.0f}\n")
    (folder / "energy_uj").write_text(f"{start:.0f}\n")
    return folder


def count(folder, joules, span=SPAN):
    file, beside = folder / "energy_uj", folder / "new"
    beside.write_text(f"{(float(file.read_text()) + 1e6 * joules) % span:.0f}")
    beside.replace(file)  # never half written


def test_a_trace_with_known_integral():
    """Power between 40 and 200 W over an hour, read every 20 s; the counter begins anew every 1,000 J."""
    rng = np.random.default_rng(0)
    seconds = np.arange(0.0, 3600.0, 0.5)
    watts = 120 + 80 * np.sin(seconds / 7) * rng.uniform(0.5, 1.0, len(seconds))
    joules = np.concatenate([[0.0], np.cumsum(watts * 0.5)])
    span = 1e9
    start = 0.9e9
    readings = ((start + 1e6 * joules[:: int(2.5 / 0.5)]) % span).tolist()
    wraps = sum(b < a for a, b in itertools.pairwise(readings))
    assert wraps > 300
    last = 5 * ((len(joules) - 1) // 5)
    assert unwrapped(readings, span) == pytest.approx(1e6 * joules[last], rel=1e-9)
    assert unwrapped([5.0], span) == 0
    with pytest.raises(ValueError, match="between 0 and"):
        unwrapped([2e9, 0.0], span)


def test_counters_that_would_count_twice_are_left_out(tmp_path):
    counter(tmp_path, "intel-rapl:0", "package-0")
    counter(tmp_path, "intel-rapl:0:0", "core")
    counter(tmp_path, "intel-rapl:0:1", "dram")
    counter(tmp_path, "intel-rapl:1", "psys")
    (tmp_path / "intel-rapl:2").mkdir()  # cannot be read
    assert [domain.name for domain in domains(tmp_path)] == ["package-0", "dram"]


def test_a_meter_reads_through_a_wrap(tmp_path, monkeypatch):
    package = counter(tmp_path, "intel-rapl:0", "package-0", start=SPAN - 3e6)
    memory = counter(tmp_path, "intel-rapl:0:1", "dram")
    meter = Meter(root=tmp_path)

    def work():
        count(package, 10.0)
        count(memory, 1.5)

    found = meter.measure(work)
    assert found.joules == pytest.approx(11.5)
    assert not found.estimate
    assert "package-0, dram" in found.how
    # Two wraps within one piece of work are seen where it is read often enough.
    monkeypatch.setattr(module, "READ_EVERY", 0.002)
    small = counter(tmp_path / "other", "intel-rapl:0", "package-0", span=1e6)

    def long():
        import time

        for _ in range(25):
            count(small, 0.1, span=1e6)
            time.sleep(0.02)

    assert Meter(root=tmp_path / "other").measure(long).joules == pytest.approx(2.5, rel=0.05)


def test_the_model_is_linear_between_what_is_stated():
    power = PowerModel(20.0, 100.0, cores=4)
    assert power.joules(10.0, 0.0) == 200
    assert power.joules(10.0, 40.0) == 1000
    assert power.joules(10.0, 20.0) == 600
    assert power.joules(10.0, 80.0) == 1000  # no more than all cores
    for wrong in ((100.0, 20.0, 4), (-1.0, 20.0, 4), (1.0, 20.0, 0)):
        with pytest.raises(ValueError, match="idle_watts"):
            PowerModel(*wrong)


def test_without_counter_and_model_there_is_no_answer(tmp_path):
    with pytest.raises(NoAnswer, match="no energy counter"):
        Meter(root=tmp_path)
    found = Meter(PowerModel(20.0, 100.0, 2), root=tmp_path).measure(lambda: sum(range(10**5)))
    assert found.estimate
    assert "estimate" in found.how
    assert 20 <= found.watts <= 100


def test_carbon_is_all_stated():
    assert Carbon(300.0, 1.2, "somewhere").grams(3.6e6) == pytest.approx(360)
    with pytest.raises(ValueError, match="PUE of at least 1"):
        Carbon(300.0, 0.9, "somewhere")


def test_the_probe_is_labelled():
    subject = Subject(nn.Linear(8, 2), [(torch.ones(4, 8), torch.zeros(4).long())], CrossEntropy())
    values = probe(subject, PowerModel(10.0, 50.0, 2), Carbon(100.0, 1.0, "here"), repeats=3, seconds=0.01)
    energy, carbon = values
    assert (energy.unit, carbon.unit) == ("J/example", "g/example")
    assert carbon.value == pytest.approx(100 * energy.value / 3.6e6)
    assert "estimate" in energy.how or "RAPL" in energy.how
    assert "here" in carbon.how


@pytest.mark.parametrize("seed", range(5))
def test_welch_is_scipys(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(10, 1, 6 + seed), rng.normal(10 + 0.5 * seed, 2, 9)
    found, theirs = welch(a.tolist(), b.tolist()), stats.ttest_ind(b, a, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert found.t == pytest.approx(theirs.statistic)
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.freedom == pytest.approx(theirs.df)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.significant == (theirs.pvalue < 0.05)


def test_equal_works_differ_one_time_in_twenty():
    rng = np.random.default_rng(7)
    rejected = sum(welch(*rng.normal(50, 3, (2, 8)).tolist()).significant for _ in range(600))
    assert abs(rejected / 600 - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 600)


def test_the_detectable_difference_is_detected_four_times_in_five():
    rng = np.random.default_rng(8)
    size = np.mean([welch(*rng.normal(50, 3, (2, 8)).tolist()).detectable for _ in range(150)])
    found = 0
    for _ in range(1000):
        a, b = rng.normal(50, 3, (2, 8))
        found += welch(a.tolist(), (b + size).tolist()).significant
    assert found / 1000 == pytest.approx(0.8, abs=0.06)


def test_two_works_are_interleaved(tmp_path):
    package = counter(tmp_path, "intel-rapl:0", "package-0")
    made = []
    joules = {"a": iter([1.0, 1.0, 1.1, 0.9, 1.0, 1.05]), "b": iter([1.0, 2.0, 2.1, 1.9, 2.0, 2.05])}

    def work(name):
        def run():
            made.append(name)
            count(package, next(joules[name]))

        return run

    found = compare_energy({name: work(name) for name in "ab"}, Meter(root=tmp_path), 5, idle_seconds=0.01)
    assert "".join(made) == "ab" + "abbaabbaab"
    assert found.total.difference == pytest.approx(1.0)
    assert found.total.significant
    assert found.sentence().startswith("b takes +99 % energy against a (p = ")
    assert found.idle_watts == (0.0, 0.0)
    same = compare_energy(
        {"a": lambda: count(package, 1.0 + np.random.default_rng().normal(0, 0.01)), "b": lambda: count(package, 1.0)},
        Meter(root=tmp_path), 5, idle_seconds=0.001,
    )  # fmt: skip
    assert same.total.p > 0.001
    for wrong in (
        {"works": {"a": lambda: None}},
        {"works": {"a": lambda: None, "b": lambda: None}, "repeats": 4},
    ):
        with pytest.raises(ValueError, match="two works and at least five"):
            compare_energy(**{"meter": Meter(root=tmp_path), **wrong})
    with pytest.raises(ValueError, match="two values"):
        welch([1.0], [1.0, 2.0])
    flat = welch([1.0, 1.0], [1.0, 1.0])
    assert (flat.p, flat.significant) == (1.0, False)
    assert welch([1.0, 1.0], [2.0, 2.0]).significant
