"""Plans from fits: intervals, regret, warnings, and the questions that have no answer."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

import isoloss
from isoloss import Budget, NoAnswer, plan
from isoloss.planning.curves import frontier, isoflop_curve, isoloss_curve


@pytest.fixture(scope="module")
def fit():
    rng = np.random.default_rng(3)
    n, d = np.meshgrid(np.geomspace(5e7, 5e9, 6), np.geomspace(1e9, 1e11, 6))
    loss = 1.82 + 480 * n**-0.35 + 2100 * d**-0.37
    table = {
        "params": n.ravel(),
        "tokens": d.ravel(),
        "loss": (loss * np.exp(rng.normal(0, 0.004, n.shape))).ravel(),
    }
    return isoloss.fit("hoffmann", table, draws=200)


def codes(found):
    return [entry.code for entry in found.warnings]


def test_intervals_are_quantiles_of_the_draws_own_optima(fit):
    fit = dataclasses.replace(fit, draws=fit.draws[:50], scales=fit.scales[:50])
    found = plan(fit, Budget(flops=1e22))
    own = [plan(fit.law, Budget(flops=1e22), theta=theta) for theta in fit.draws]
    for name in ("params", "tokens", "tokens_per_param"):
        low, high = np.quantile([getattr(one, name).value for one in own], [0.05, 0.95])
        assert getattr(found, name).low == pytest.approx(low, rel=1e-9)
        assert getattr(found, name).high == pytest.approx(high, rel=1e-9)
    levels = fit.law.evaluate(fit.draws, params=found.params.value, tokens=found.tokens.value)
    assert (found.loss.low, found.loss.high) == pytest.approx(tuple(np.quantile(levels, [0.05, 0.95])))
    assert found.loss_run.low < found.loss.low < found.loss.high < found.loss_run.high


@pytest.mark.parametrize(
    "budget", [{"flops": 1e22}, {"flops": 1e22, "bytes": 8e9}, {"loss": 2.15, "serve_tokens": 1e12}]
)
def test_regret_of_the_choice_is_least_and_not_negative(fit, budget):
    found = plan(fit, Budget(**budget))
    choice = found.regret_choice
    assert 0 <= choice.expected_regret <= choice.expected_regret_of_plug_in
    spend = found.costs["total_flops"]
    served = budget.get("serve_tokens", 0.0)

    def mean_loss(n):
        d = (spend / n - 2 * served) / 6
        return float(np.mean(fit.law.evaluate(fit.draws, params=n, tokens=d)))

    here = mean_loss(choice.params)
    if "bytes" not in budget:
        assert here <= min(mean_loss(choice.params * 1.02), mean_loss(choice.params / 1.02))
    gap = mean_loss(found.params.value) - here
    assert choice.expected_regret_of_plug_in - choice.expected_regret == pytest.approx(gap, abs=1e-12)


def test_coverage_widens(fit):
    narrow, wide = (plan(fit, Budget(flops=1e22), coverage=c) for c in (0.5, 0.95))
    assert wide.params.low < narrow.params.low < narrow.params.high < wide.params.high
    assert plan(fit, Budget(flops=1e22)).coverage == fit.coverage


def test_json_is_complete_and_finite(fit):
    for source, options in ((fit, {}), ("hoffmann", {"theta": "besiroglu-2024"})):
        document = json.loads(
            json.dumps(plan(source, Budget(flops=1e22, bytes=8e9), **options).to_json(), allow_nan=False)
        )
        assert document["schema"] == "isoloss/plan/1"
        assert set(document) == {
            "schema", "law", "size", "coverage", "objective", "params", "tokens", "loss", "loss_run",
            "tokens_per_param", "regret_choice", "near_optimal", "costs", "binding", "exchange_rates", "budget",
            "warnings", "axes", "epochs", "rates_between", "steps", "slots", "assumed_separable", "tuned",
        }  # fmt: skip
        for name in ("params", "tokens", "loss", "loss_run", "tokens_per_param"):
            assert set(document[name]) == {"value", "low", "high"}
        for rate in document["exchange_rates"].values():
            assert set(rate) == {"value", "low", "high", "unit", "reading"}
        assert document["budget"] == {"flops": 1e22, "bytes": 8e9, "bits": 16.0}


def test_text_and_html(fit):
    found = plan(fit, Budget(flops=1e22))
    assert repr(found).startswith("Plan(hoffmann: params ")
    assert "binding: flops" in str(found)
    assert found._repr_html_().count("<tr>") == len(found.rows()) + 1


def test_a_saved_fit_plans_alike(fit, tmp_path):
    fit.save(tmp_path / "fit.json")
    again = plan(isoloss.load(tmp_path / "fit.json"), Budget(flops=1e22))
    assert again.to_json() == plan(fit, Budget(flops=1e22)).to_json()


def test_leaving_the_data_is_said(fit):
    inside = plan(fit, Budget(flops=1e20))
    assert "extrapolation" not in codes(inside)
    far = plan(fit, Budget(flops=1e24))
    assert codes(far).count("extrapolation") == 2
    assert "times beyond the largest (5B)" in next(w.text for w in far.warnings if w.code == "extrapolation")
    served = plan(fit, Budget(loss=2.3, serve_tokens=1e15))
    assert "ratio-outside-data" in codes(served)
    assert all(entry.why and entry.do for entry in far.warnings)


def test_serving_that_nothing_counts_is_said(fit):
    assert "serving-not-counted" in codes(plan(fit, Budget(flops=1e22, serve_tokens=1e12)))
    assert "serving-not-counted" not in codes(plan(fit, Budget(total_flops=1e22, serve_tokens=1e12)))


def test_a_fit_without_draws_gives_no_intervals(fit):
    bare = dataclasses.replace(fit, draws=fit.draws[:0], scales=fit.scales[:0])
    found = plan(bare, Budget(flops=1e22))
    assert math.isnan(found.params.low)
    assert math.isnan(found.loss_run.high)
    assert "no-draws" in codes(found)


# --- no answer -------------------------------------------------------------------------------------------------


def test_a_loss_below_the_floor(fit):
    with pytest.raises(
        NoAnswer, match=r"loss 1\.5 is below the irreducible loss 1\.\d+ \(1\.\d+ to 1\.\d+\)"
    ) as caught:
        plan(fit, Budget(loss=1.5))
    assert "above" in caught.value.needed


def test_a_loss_that_only_some_draws_reach(fit):
    floors = np.sort(fit.draws[:, 0])
    wanted = float(floors[len(floors) * 4 // 5])
    if wanted <= fit.values["E"]:
        pytest.skip("the plug-in floor is above most draws'")
    found = plan(fit, Budget(loss=wanted), within=0.001)
    share = next(w.text for w in found.warnings if w.code == "infeasible-draws")
    assert share.startswith(f"{np.mean(fit.draws[:, 0] >= wanted):.0%}") or "%" in share
    assert math.isinf(found.tokens.high)
    assert found.to_json()["tokens"]["high"] is None


def test_the_least_that_would_be_needed(fit):
    with pytest.raises(NoAnswer, match="loss 2 is not reached within flops: the best there is") as caught:
        plan(fit, Budget(loss=2.0, flops=1e22))
    needed = plan(fit, Budget(loss=2.0)).objective.value
    amount = float(caught.value.needed.split()[1])
    assert amount == pytest.approx(needed, rel=0.01)
    with pytest.raises(NoAnswer, match="not reached within bytes") as caught:
        plan(fit, Budget(loss=2.3, bytes=1e8))
    assert caught.value.needed.startswith("bytes ")
    with pytest.raises(NoAnswer, match="not reached within") as caught:
        plan(fit, Budget(loss=2.0, tokens=1e9, params=1e8))
    assert "more of several limits at once" in caught.value.needed


def test_nothing_fits():
    with pytest.raises(NoAnswer, match="one parameter on one token") as caught:
        plan("hoffmann", Budget(flops=5), theta="besiroglu-2024")
    assert "flops 6" in caught.value.needed


def test_a_design_that_separates_nothing():
    n = np.geomspace(1e7, 1e10, 12)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.003, 12))
    table = {"params": n, "tokens": 20 * n, "loss": (1.8 + 480 * n**-0.35 + 2100 * (20 * n) ** -0.37) * noise}
    found = isoloss.fit("hoffmann", table, draws=50)
    assert found.result == "not-identified"
    with pytest.raises(NoAnswer, match="do not determine hoffmann") as caught:
        plan(found, Budget(flops=1e22))
    assert caught.value.needed


def test_a_best_size_that_is_anywhere(fit):
    wild = fit.draws.copy()
    wild[:, 3] = np.linspace(0.02, 1.5, len(wild))
    with pytest.raises(NoAnswer, match="leave the best size open from"):
        plan(dataclasses.replace(fit, draws=wild, scales=np.empty(0)), Budget(flops=1e22))


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "at least one limit"),
        ({"flops": -1}, "finite and above 0"),
        ({"flops": math.inf}, "finite and above 0"),
        ({"flops": math.nan}, "finite and above 0"),
        ({"flops": "1e21"}, "as a number, got '1e21'"),
        ({"flops": True}, "as a number"),
        ({"device_hours": 10}, "needs peak and utilisation too"),
        ({"money": 10, "peak": 1e15, "utilisation": 0.4}, "needs price_per_device_hour too"),
        ({"flops": 1e21, "utilisation": 40}, "share of the peak"),
        ({"flops": 1e21, "minimise": "bytes"}, "needs a wanted loss"),
        ({"loss": 2, "minimise": "joy"}, "minimise must be one of"),
        ({"loss": 2, "minimise": "money"}, "needs peak and utilisation and price_per_device_hour too"),
    ],
)
def test_budgets_that_mean_nothing(given, message):
    with pytest.raises(ValueError, match=message):
        Budget(**given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda fit: plan(fit, Budget(tokens=1e11)), "endless params: add flops="),
        (lambda fit: plan(fit, Budget(bytes=1e9)), "endless tokens: add flops="),
        (lambda fit: plan(fit, Budget(flops=1e21), coverage=90), "coverage must lie between 0 and 1"),
        (lambda fit: plan(fit, Budget(flops=1e21), within=5), "within must be a share"),
        (lambda fit: plan(fit, Budget(flops=1e21), theta="x"), "a fit has its own theta"),
        (lambda fit: plan("hoffmann", Budget(flops=1e21)), "needs theta: a published fit"),
        (lambda fit: plan("hoffmann", Budget(flops=1e21), theta=[1, 2]), "needs theta as 5 numbers"),
        (
            lambda fit: plan("loss-to-error", Budget(flops=1e21), theta="c4-2024"),
            "plan needs a law of params and tokens",
        ),
        (lambda fit: isoflop_curve(fit, 1e21, 1), "points >= 2"),
        (lambda fit: frontier(fit, [1.0]), "above 6"),
        (lambda fit: isoflop_curve("kaplan-d", 1e21, theta="kaplan-2020"), "a law of params and tokens"),
    ],
)
def test_questions_that_mean_nothing(fit, call, message):
    with pytest.raises(ValueError, match=message):
        call(fit)


def test_types(fit):
    with pytest.raises(TypeError, match="plan needs a Budget"):
        plan(fit, 1e21)
    with pytest.raises(TypeError, match="plan needs a Fit, a Law"):
        plan(3.0, Budget(flops=1e21))


# --- curves --------------------------------------------------------------------------------------------------------


def test_bands(fit):
    line = frontier(fit, [1e20, 1e21, 1e22])
    found = plan(fit, Budget(flops=1e21))
    assert line.params.low[1] == pytest.approx(found.params.low)
    assert line.tokens.high[1] == pytest.approx(found.tokens.high)
    assert np.all(np.diff(line.loss.value) < 0)
    flat = isoflop_curve(fit, 1e21, 7)
    assert np.all(flat.loss.low <= flat.loss.median)
    assert np.all(flat.loss.median <= flat.loss.high)
    level = isoloss_curve(fit, 2.3, 7)
    assert np.all(level.tokens.low <= level.tokens.high)
