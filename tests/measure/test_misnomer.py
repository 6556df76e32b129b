"""Contradictions between costs: planted ones are found, noise is not taken for one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from isoloss.measure.measurement import Measurement
from isoloss.measure.misnomer import compare, kendall, missing
from isoloss.runs import from_rows

COSTS = ("params", "flops_forward", "memory_peak", "latency", "throughput")


def model(*values, errors=(0.0,) * 5):
    return [Measurement(name, v, e, "u") for name, v, e in zip(COSTS, values, errors, strict=True)]


def test_kendall_is_scipys():
    draw = np.random.default_rng(0)
    for _ in range(20):
        x, y = draw.integers(0, 5, 12).astype(float), draw.normal(size=12).round(1)
        assert kendall(x, y) == pytest.approx(scipy.stats.kendalltau(x, y).statistic, abs=1e-12)
    assert math.isnan(kendall(np.ones(3), np.arange(3.0)))


def test_one_planted_inversion_is_found_and_no_other():
    found = compare(
        {
            "small": model(1, 10, 100, 1.0, 90),
            "middle": model(2, 20, 200, 4.0, 60),  # the slowest
            "large": model(3, 30, 300, 3.0, 30),
        }
    )
    at = found.costs.index("latency")
    assert {(c.first, c.second, c.by, c.against) for c in found.contradictions} == {
        ("middle", "large", cost, "latency") for cost in COSTS if cost != "latency"
    }
    for i in range(5):
        for j in range(5):
            assert found.tau[i, j] == pytest.approx(1 / 3 if (i == at) != (j == at) else 1)
    params = next(c for c in found.contradictions if c.by == "params")
    assert (params.saved, params.paid) == (1.5, pytest.approx(4 / 3))
    throughput = next(c for c in found.contradictions if c.by == "throughput")
    assert throughput.saved == 2  # more of it is cheaper
    assert [f.code for f in found.findings] == ["costs-contradict"]
    assert str(found.contradictions[0]) in found.findings[0].text


def test_costs_that_agree_are_no_finding():
    found = compare({"a": model(1, 1, 1, 1, 9), "b": model(2, 2, 2, 2, 3)})
    assert not found.contradictions
    assert not found.findings
    assert np.all(found.tau == 1)


def test_equal_costs_contradict_nothing():
    # Shared layers: fewer parameters, the same FLOPs.
    found = compare({"shared": model(1, 5, 5, 5, 5), "own": model(4, 5, 5, 5, 5)})
    assert not found.contradictions
    assert np.isnan(found.tau[0, 1])


@pytest.mark.parametrize(("error", "real"), [(0.0, True), (0.1, True), (0.5, False), (math.nan, False)])
def test_what_noise_could_do_is_no_contradiction(error, real):
    errors = (0, 0, 0, error, 0)
    found = compare({"a": model(1, 1, 1, 4.0, 9, errors=errors), "b": model(2, 2, 2, 3.0, 3, errors=errors)})
    assert bool(found.contradictions) == real
    assert found.unsure == (() if real else (("a", "b", "latency"),))


def test_false_contradictions_are_as_rare_as_said():
    # All models cost the same; only noise differs. Each comparison holds 15 differences with noise.
    draw = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        models = {}
        for i in range(6):
            values = draw.normal(1.0, 0.1, 2)
            models[str(i)] = model(1, 1, 1, values[0], 1, errors=(0, 0, 0, 0.1, 0))
        wrong += bool(len(compare(models).unsure) < 15)
    assert wrong <= scipy.stats.binom.ppf(0.999, 400, 0.05)


def test_quality_says_which_of_the_two_is_better():
    models = {"a": model(1, 1, 1, 4.0, 1), "b": model(2, 1, 1, 3.0, 1)}
    (first,) = compare(models, quality={"a": 0.1, "b": 0.2}).contradictions
    assert (first.first, first.by, first.against) == ("b", "latency", "params")
    (first,) = compare(models, quality={"a": 0.2, "b": 0.1}).contradictions
    assert (first.first, first.by, first.against) == ("a", "params", "latency")


def test_costs_left_out_are_named():
    only = [Measurement("params", 1.0, 0.0, "count"), Measurement("flops_forward", 1.0, 0.0, "F", of="layer")]
    assert missing(only) == ("FLOPs", "memory or bytes moved", "latency", "throughput")
    found = compare({"a": only, "b": model(1, 1, 1, 1, 1)})
    assert found.costs == ("params",)
    assert [f.code for f in found.findings] == ["costs-incomplete"]
    assert "a: FLOPs" in found.findings[0].text


def test_all_costs_stand_in_the_table_and_in_the_rows():
    found = compare({"a": model(1, 1, 1, 4.0, 1, errors=(0, 0, 0, 0.25, 0)), "b": model(2, 1, 1, 3.0, 1)})
    head, first, _ = found.table().splitlines()
    assert all(cost in head for cost in COSTS)
    assert "4 ± 0.25" in first
    runs = from_rows(found.rows())
    assert runs["latency_se"].tolist() == [0.25, 0.0]


def test_bad_comparisons_are_refused():
    with pytest.raises(ValueError, match="at least two"):
        compare({"a": model(1, 1, 1, 1, 1)})
    with pytest.raises(ValueError, match="no measurement 'energy'"):
        compare({"a": model(1, 1, 1, 1, 1), "b": model(1, 1, 1, 1, 1)}, costs=["energy"])
    with pytest.raises(ValueError, match="no cost in common"):
        compare({"a": [Measurement("params", 1, 0, "")], "b": [Measurement("latency", 1, 0, "")]})
