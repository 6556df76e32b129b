"""Published fits, from the published tables: objectives, parameters, standard errors, predictions."""

from __future__ import annotations

import numpy as np
import pytest

import isoloss
from isoloss import laws

LINEAR = isoloss.LeastSquares(residual="linear")


def floats(rows, *names):
    return tuple(np.array([float(row[name]) for row in rows]) for name in names)


# --- Besiroglu et al. 2024, arXiv:2404.10102 --------------------------------------------------------


@pytest.fixture(scope="module")
def points(table):
    rows = [row for row in table("laws/chinchilla/points.csv") if row["outlier_excluded"] == "0"]
    params, tokens, loss = floats(rows, "params", "tokens", "loss_nats")
    assert len(loss) == 240
    return isoloss.read({"params": params, "tokens": tokens, "loss": loss})


@pytest.fixture(scope="module")
def replication(points):
    return isoloss.fit("hoffmann", points, draws=4000)


def test_replication_objective_and_parameters(replication):
    assert abs(replication.value - 0.00101827402) < 5e-12
    values = replication.values
    assert round(values["E"], 4) == 1.8172
    assert round(values["alpha"], 4) == 0.3473
    assert round(values["beta"], 4) == 0.3672
    # Their grid stores A 477.84, B 2143.86 at the same objective: the valley is flat in both.
    assert values["A"] == pytest.approx(477.84, rel=1e-3)
    assert values["B"] == pytest.approx(2143.86, rel=1e-3)
    assert replication.result == "identified"
    assert replication.agreeing_starts > 0.9


def test_replication_standard_errors(replication):
    printed = {"A": 124.52, "B": 1293.28, "E": 0.0257, "alpha": 0.0154, "beta": 0.0206}
    for name, stderr in printed.items():
        assert replication.parameters[name].stderr == pytest.approx(stderr, rel=0.1), name


def test_replication_intervals_and_correlations(replication):
    printed = {
        "A": (285, 744),
        "B": (1042, 5810),
        "E": (1.769, 1.871),
        "alpha": (0.317, 0.373),
        "beta": (0.331, 0.415),
    }
    for name, ends in printed.items():
        got = np.quantile(replication.draws[:, replication.law.names.index(name)], [0.025, 0.975])
        np.testing.assert_allclose(got, ends, atol=0.1 * (ends[1] - ends[0]), err_msg=name)
    assert replication.correlation("A", "alpha") > 0.99
    assert replication.correlation("B", "beta") > 0.99


def test_the_averaged_objective_has_the_same_minimum(points, replication):
    mean = isoloss.fit("hoffmann", points, objective=isoloss.Huber(reduction="mean"), draws=0)
    assert np.array_equal(mean.theta, replication.theta)
    assert mean.value == pytest.approx(replication.value / 240, rel=1e-15)


def test_the_published_parameters_score_what_the_sheet_says(points):
    # "Hoffmann's unrounded parameters score 0.00124."
    law = laws.get("hoffmann")
    x = {axis: points[axis] for axis in law.axes}
    r = np.log(points["loss"]) - np.log(law.evaluate(law.theta("hoffmann-2022"), **x))
    assert float(np.sum(isoloss.Huber().rho(r))) == pytest.approx(0.00124, abs=5e-6)


def test_the_five_outliers_move_beta(table):
    rows = table("laws/chinchilla/points.csv")
    params, tokens, loss = floats(rows, "params", "tokens", "loss_nats")
    found = isoloss.fit("hoffmann", {"params": params, "tokens": tokens, "loss": loss}, draws=0)
    printed = {"E": 1.89, "A": 463.3, "B": 12530.0, "alpha": 0.345, "beta": 0.452}
    for name, within in {"E": 0.006, "alpha": 0.006, "beta": 0.004}.items():
        assert found.values[name] == pytest.approx(printed[name], abs=within), name
    r = np.log(loss) - np.log(found.law.evaluate(found.law.theta(printed), params=params, tokens=tokens))
    assert found.value <= np.sum(isoloss.Huber().rho(r))


# --- Gadre et al. 2024, arXiv:2403.08540 ------------------------------------------------------------

FIVE = {(10_569_312, 1), (78_914_048, 1), (153_677_376, 1), (411_616_256, 1), (10_569_312, 16)}
TABLE_2 = {
    # corpus: (E, a, b, eta), (epsilon, k, gamma), {(params, multiplier): relative error of the loss in %}
    "c4_original": (
        (1.51, 141, 190, 0.121),
        (0.850, 2.08, 0.756),
        {(6_889_410_560, 1): -4.3, (1_439_795_200, 4): 1.5},
    ),
    "rpj": (
        (1.84, 212, 367, 0.136),
        (0.857, 2.21, 0.715),
        {(1_439_795_200, 32): 0.710, (6_889_410_560, 1): 0.732},
    ),
    "rw_original": ((1.73, 157, 246, 0.127), (0.865, 2.21, 0.707), {(6_889_410_560, 1): -1.6}),
}
each_corpus = pytest.mark.parametrize("corpus", TABLE_2)


@pytest.fixture(scope="module")
def gadre(table):
    runs = table("laws/gadre_overtraining/runs.csv")
    return {
        corpus: {
            (int(r["params"]), float(r["chinchilla_multiplier"])): r
            for r in runs
            if r["train_dataset"] == corpus
        }
        for corpus in TABLE_2
    }


@pytest.fixture(scope="module")
def errors(table, gadre):
    """Run -> mean error over the 17 tasks where some 0.154B model beats chance by 10 points."""
    scores: dict[str, dict[str, tuple[float, float]]] = {}
    for row in table("laws/gadre_overtraining/downstream.csv"):
        scores.setdefault(row["run"], {})[row["task"]] = (
            float(row["accuracy"]),
            float(row["random_baseline"]),
        )
    small = [r["run"] for runs in gadre.values() for (n, _), r in runs.items() if n == 153_677_376]
    tasks = {task for run in small for task, (got, chance) in scores[run].items() if got - chance >= 0.1}
    assert len(tasks) == 17
    return {
        run: 1 - float(np.mean([entry[t][0] for t in tasks]))
        for run, entry in scores.items()
        if tasks <= set(entry)
    }


def five_run_fit(runs, draws=0):
    rows = [row for key, row in runs.items() if key in FIVE]
    assert len(rows) == 5
    params, tokens, loss = floats(rows, "params", "tokens", "loss_nats_c4")
    return isoloss.fit(
        "gadre", {"params": params, "tokens": tokens, "loss": loss}, objective=LINEAR, draws=draws
    )


def to_digits(values, like):
    """Values rounded to as many decimals as the printed ones have."""
    return [round(v, len(str(p).partition(".")[2])) for v, p in zip(values, like, strict=True)]


@each_corpus
def test_five_runs_give_the_printed_law(corpus, gadre):
    printed = TABLE_2[corpus][0]
    found = five_run_fit(gadre[corpus])
    assert to_digits(found.theta, printed) == list(printed)
    published = found.law.theta(
        {"c4_original": "c4-2024", "rpj": "redpajama-2024", "rw_original": "refinedweb-2024"}[corpus]
    )
    assert to_digits(published, printed) == list(printed)


@each_corpus
def test_five_runs_predict_the_printed_losses(corpus, gadre):
    found = five_run_fit(gadre[corpus])
    for key, percent in TABLE_2[corpus][2].items():
        params, tokens, loss = (float(gadre[corpus][key][k]) for k in ("params", "tokens", "loss_nats_c4"))
        got = 100 * (float(found.law.evaluate(found.theta, params=params, tokens=tokens)) / loss - 1)
        assert got == pytest.approx(percent, abs=0.001 if corpus == "rpj" else 0.05), key


@each_corpus
def test_error_law(corpus, gadre, errors):
    printed = TABLE_2[corpus][1]
    runs = gadre[corpus]
    rows = [row for key, row in runs.items() if key in FIVE | {(1_439_795_200, 1)}]
    (loss,) = floats(rows, "loss_nats_c4")
    link = isoloss.fit(
        "loss-to-error", {"loss": loss, "error": [errors[r["run"]] for r in rows]}, objective=LINEAR, draws=0
    )
    assert to_digits(link.theta, printed) == list(printed)
    if corpus == "rpj":
        law = five_run_fit(runs)
        for key, percent in {(1_439_795_200, 32): 3.6365, (6_889_410_560, 1): 0.0464}.items():
            row = runs[key]
            predicted = law.law.evaluate(law.theta, params=float(row["params"]), tokens=float(row["tokens"]))
            error = float(link.law.evaluate(link.theta, loss=predicted))
            assert abs(100 * (error / errors[row["run"]] - 1)) == pytest.approx(percent, abs=0.001)


def test_five_runs_are_called_a_small_sample(gadre):
    found = five_run_fit(gadre["rpj"], draws=50)
    assert "small-sample" in {w.code for w in found.warnings}


# --- Muennighoff et al. 2023, arXiv:2305.16264 ------------------------------------------------------


@pytest.fixture(scope="module")
def repeated(table):
    rows = [row for row in table("laws/data_constrained/runs.csv") if row["in_published_fit"] == "1"]
    assert len(rows) == 182
    params, tokens, unique, loss = floats(rows, "params", "tokens", "tokens_unique", "loss_nats")
    return {"params": params, "tokens": tokens, "tokens_unique": unique}, loss


def r_squared(y, predicted):
    return 1 - np.sum((y - predicted) ** 2) / np.sum((y - y.mean()) ** 2)


def test_repeated_data_r2_of_the_published_fit(repeated):
    x, y = repeated
    law = laws.get("muennighoff")
    theta = law.theta("muennighoff-2023")
    assert r_squared(y, law.evaluate(theta, **x)) == pytest.approx(0.77220, abs=6e-6)
    never = theta.copy()
    never[[law.names.index("R_N"), law.names.index("R_D")]] = 1e7  # repetition as good as fresh data
    assert r_squared(y, law.evaluate(never, **x)) == pytest.approx(0.44517, abs=6e-6)
    once = laws.get("hoffmann")
    same = once.evaluate(once.theta({n: dict(zip(law.names, theta, strict=True))[n] for n in once.names}),
                         params=x["params"], tokens=x["tokens"])  # fmt: skip
    assert r_squared(y, same) == pytest.approx(0.44517, abs=6e-6)


def test_our_decay_constants_fit_no_worse_than_the_published(repeated):
    x, y = repeated
    law = laws.get("muennighoff")
    published = law.published_fit("muennighoff-2023").values
    base = {name: published[name] for name in ("E", "A", "B", "alpha", "beta")}
    found = isoloss.fit(
        law,
        {**x, "loss": y},
        objective=LINEAR,
        constraints=isoloss.Constraints(borrow=dict.fromkeys(base, "muennighoff-2023")),
        draws=0,
    )
    assert found.r2 >= 0.77220
    assert [found.parameters[name].status for name in base] == ["borrowed"] * 5
    r = y - law.evaluate(law.theta("muennighoff-2023"), **x)
    assert found.value <= 0.5 * np.sum(r**2)


# --- Porian et al. 2024, arXiv:2406.19146 -----------------------------------------------------------

SETTING = ("dataset", "hparams", "warmup", "decay", "param_count", "val")


@pytest.fixture(scope="module")
def porian(table):
    """(published row, budgets, optimal sizes, their s.d. in ln N) of each of the fifteen settings."""
    optima = {}
    for row in table("laws/porian_discrepancies/optima.csv"):
        if row["params_opt"]:
            optima.setdefault(tuple(row[name] for name in SETTING), []).append(row)
    published = table("laws/porian_discrepancies/published_fits.csv")
    assert len(published) == 15
    names = ("flops", "params_opt", "log_params_opt_std")
    return [(row, *floats(optima[tuple(row[name] for name in SETTING)], *names)) for row in published]


def exponent(flops, size, sd=None):
    """``isoloss.fit`` of the size as a power of compute; unweighted without ``sd``."""
    runs = {"flops": flops, "loss": size, "weight": np.ones_like(size) if sd is None else sd**-2}
    objective = isoloss.LeastSquares(residual="log")
    found = isoloss.fit(
        "power(flops)", runs, objective=objective, weights="weight", draws=0, sensitivity=False
    )
    return -found.values["c"]


def test_fifteen_exponents_of_the_optimal_size(porian):
    for row, flops, size, _ in porian:
        assert exponent(flops, size) == pytest.approx(float(row["n_exponent"]), abs=1e-3), row


def test_fifteen_weighted_exponents_and_the_main_text(porian):
    found = [exponent(flops, size, sd) for _, flops, size, sd in porian]
    for (row, *_), got in zip(porian, found, strict=True):
        assert got == pytest.approx(float(row["n_exponent_weighted"]), abs=1e-3), row
    np.testing.assert_allclose(found[:5], [0.835, 0.706, 0.602, 0.571, 0.497], atol=1e-3)


def test_raw_isoflops_give_the_exponents_within_three_hundredths(porian, table):
    points = {}
    for row in table("laws/porian_discrepancies/isoflop_points.csv"):
        points.setdefault(tuple(row[name] for name in SETTING), []).append(row)
    gaps, held = [], 0
    for row, *_ in porian:
        rows = points[tuple(row[name] for name in SETTING)]
        params, tokens, flops, loss = floats(rows, "params", "tokens", "flops", "loss_nats")
        a = isoloss.isoflop({"params": params, "tokens": tokens, "flops": flops, "loss": loss}).a
        gaps.append(a.value - float(row["n_exponent"]))
        held += a.low <= float(row["n_exponent"]) <= a.high
    assert np.max(np.abs(gaps)) < 0.03
    assert held >= 12  # of 15 intervals at 0.9
