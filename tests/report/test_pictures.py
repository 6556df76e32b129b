"""Every result has its picture, which holds the right numbers and leaves matplotlib as it was."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from io import BytesIO

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

import isoloss
from isoloss import Budget
from isoloss.fitting.curves import Curve
from isoloss.fitting.schedules import fit_schedules
from isoloss.laws.schedules import get
from isoloss.laws.schedules.schedule import Schedule
from isoloss.planning.curves import isoflop_curve, isoloss_curve
from isoloss.report.canvas import ACCENT, BLUE, LABELS, SMALL, new_axes
from isoloss.report.fits import large_residuals
from isoloss.report.pictures import plot
from isoloss.report.schedules import draw_schedules
from tests.conftest import ROOT

LADDER = ROOT / "examples" / "stdlib_ladder.csv"


def table(rows=6, noise=0.004, seed=3):
    rng = np.random.default_rng(seed)
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 5e9, rows), np.geomspace(1e9, 1e11, rows)))
    loss = (1.82 + 480 * n**-0.35 + 2100 * d**-0.37) * np.exp(rng.normal(0, noise, n.shape))
    return {"params": n, "tokens": d, "loss": loss}


def one_axis_table():
    d = np.geomspace(1e6, 1e9, 10)
    scatter = np.exp(np.random.default_rng(1).normal(0, 0.01, 10))
    return {"tokens": d, "loss": (0.4 + 800 * d**-0.5) * scatter}


def isoflop_table():
    best = np.repeat([1e8, 1e9, 1e10], 5)
    n = best * np.tile([0.25, 0.5, 1, 2, 4], 3)
    return {"params": n, "tokens": best**2 / n, "loss": 2 + 1e3 / best**0.5 + 0.1 * np.log(n / best) ** 2}


@pytest.fixture(scope="module")
def fit():
    return isoloss.fit("hoffmann", table(), draws=200)


@pytest.fixture(scope="module")
def line():
    return isoloss.fit("hestness", one_axis_table(), draws=200)


def drawn(axes):
    """The axes, rendered: layout and text can fail as well."""
    axes.figure.savefig(BytesIO(), format="png")
    return axes


def markers(axes, marker):
    """Points of all lines with that marker, (n, 2)."""
    lines = [entry for entry in axes.lines if entry.get_marker() == marker]
    return np.concatenate([entry.get_xydata() for entry in lines])


def band_at(band, x):
    """Lowest and highest point of a filled band at ``x``."""
    corners = band.get_paths()[0].vertices
    heights = corners[np.isclose(corners[:, 0], x, rtol=1e-9), 1]
    return heights.min(), heights.max()


def texts(axes):
    return [entry.get_text() for entry in axes.texts]


# Runs


def test_the_design_holds_every_run_and_lines_of_equal_flops():
    runs = isoloss.read(table())
    axes = drawn(plot(runs))
    points = axes.collections[0]
    shown = {tuple(row) for row in points.get_offsets().tolist()}
    assert shown == set(zip(runs["params"].tolist(), runs["tokens"].tolist(), strict=True))
    assert sorted(points.get_array()) == sorted(runs["loss"])
    for entry in axes.lines:
        size, tokens = entry.get_data()
        assert np.log10(6 * size * tokens) == pytest.approx(round(np.log10(6 * size[0] * tokens[0])))
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_title(loc="left") == "36 runs"


def test_a_run_without_a_loss_is_a_cross_and_one_without_tokens_is_counted():
    rows = {"params": [1e7, 2e7, 4e7, 8e7], "tokens": [1e9, 2e9, 1e9, None], "loss": [3, np.inf, 2.8, 2.5]}
    axes = drawn(plot(isoloss.read(rows)))
    assert markers(axes, "x").tolist() == [[2e7, 2e9]]
    assert "×: no finite loss (1)" in texts(axes)[-1]
    assert "not drawn for lack of size or tokens: 1" in texts(axes)[-1].replace("\n", " ")


def test_a_diverged_run_does_not_take_all_colours():
    rows = table()
    rows["loss"][0] = 40.0
    points = drawn(plot(isoloss.read(rows))).collections[0]
    assert points.norm.vmax < 10


@pytest.mark.parametrize("name", ["tokens", "params", "flops", "warmth"])
def test_one_axis_that_varies(name):
    rows = {name: [1.0, 10.0, 100.0], "loss": [4.0, 3.0, 2.5]}
    axes = drawn(plot(isoloss.read(rows)))
    assert markers(axes, "o").tolist() == [[1.0, 4.0], [10.0, 3.0], [100.0, 2.5]]
    assert axes.get_ylabel() == "loss (nats/token)"


def test_losses_and_errors_alone():
    axes = drawn(plot(isoloss.read({"loss": [2.0, 3.0, 4.0], "error": [0.3, 0.5, 0.6]})))
    assert axes.get_xlabel().startswith("loss")
    assert axes.get_ylabel() == "error (share wrong)"


def test_a_table_of_curves_is_a_line_a_run():
    steps = np.arange(1, 6) * 100.0
    rows = [
        {"run": name, "params": size, "step": step, "loss": 5 - np.log10(step * size)}
        for name, size in (("b", 10.0), ("a", 1.0))
        for step in steps[::-1]
    ]
    axes = drawn(plot(isoloss.read(rows)))
    assert [entry.get_xdata().tolist() for entry in axes.lines] == [steps.tolist()] * 2
    assert axes.lines[0].get_ydata()[0] == pytest.approx(3.0)
    assert {"1", "10"} <= set(texts(axes))


def test_many_curves_without_a_size_have_no_names():
    rows = [{"run": f"r{i}", "step": step, "loss": 3 + i / step} for i in range(30) for step in (1.0, 2.0)]
    assert not texts(drawn(plot(isoloss.read(rows))))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"params": [1e6, 2e6]}, "needed a loss"),
        ({"params": [1e6, 1e6], "loss": [3.0, 3.1]}, "needed a quantity that varies"),
    ],
)
def test_a_table_without_a_picture_says_what_is_missing(rows, message):
    with pytest.raises(ValueError, match=message) as caught:
        plot(isoloss.read(rows))
    assert "Do: isoloss.read" in str(caught.value)


# Fit


def test_a_fit_shows_its_runs_its_curves_and_the_band_of_one_new_run(fit):
    axes = drawn(plot(fit))
    points = axes.collections[-1].get_offsets()
    assert sorted(map(tuple, points.tolist())) == sorted(
        zip(fit.x["tokens"].tolist(), fit.y.tolist(), strict=True)
    )
    curve, band = axes.lines[0], axes.collections[0]
    tokens = curve.get_xdata()[10]
    smallest = float(fit.x["params"].min())
    assert curve.get_ydata()[10] == pytest.approx(
        float(fit.law.evaluate(fit.theta, params=smallest, tokens=tokens))
    )
    # the scatter of a new run is drawn once for all points of a curve
    held = fit.predict(of="run", params=np.full(60, smallest), tokens=curve.get_xdata())
    assert band_at(band, tokens) == pytest.approx((held.low[10], held.high[10]))
    assert axes.get_title(loc="left") == "hoffmann: loss = E + A/N^alpha + B/D^beta"
    assert "90% for one new run" in " ".join(texts(axes))


def test_many_sizes_have_few_curves_and_the_rest_is_grey():
    rows = table(rows=12)
    axes = drawn(plot(isoloss.fit("hoffmann", rows, draws=50)))
    assert len([entry for entry in axes.lines if entry.get_linestyle() == "-"]) == LABELS
    assert len(markers(axes, "o")) + len(axes.collections[-1].get_offsets()) == 144


def test_names_of_curves_never_lie_over_each_other(fit):
    for thing in (fit, isoloss.fit("hoffmann", LADDER, draws=20)):
        axes = drawn(plot(thing))
        sizes = [entry for entry in axes.texts if entry.get_text()[-1] in "KMB" and entry.xy[0] == 1.0]
        assert len(sizes) == min(len(np.unique(thing.x["params"])), LABELS)
        boxes = sorted((entry.get_window_extent() for entry in sizes), key=lambda box: box.y0)
        for lower, upper in itertools.pairwise(boxes):
            assert upper.y0 - lower.y0 >= 0.9 * SMALL * axes.figure.dpi / 72


def test_large_residuals_are_ringed():
    rows = table()
    rows["loss"][7] *= 1.2
    found = isoloss.fit("hoffmann", rows, draws=50)
    assert found.rows[large_residuals(found)].tolist() == [8]
    axes = drawn(plot(found))
    rings = [entry for entry in axes.lines if to_rgba(entry.get_markeredgecolor()) == to_rgba(ACCENT)]
    assert rings[0].get_xydata().tolist() == [[rows["tokens"][7], rows["loss"][7]]]


def test_one_axis_shows_the_floor_with_its_interval(line):
    axes = drawn(plot(line))
    assert markers(axes, "o")[: len(line.y)].tolist() == np.stack([line.x["tokens"], line.y], axis=1).tolist()
    floor = line.parameters["gamma"]
    assert any(np.allclose(entry.get_ydata(), floor.value) for entry in axes.lines)
    assert f"floor {floor.value:.4g} ({floor.low:.3g} to {floor.high:.3g})" in texts(axes)


def test_a_law_without_a_floor_shows_none():
    axes = drawn(plot(isoloss.fit("power", one_axis_table(), draws=50)))
    assert not [text for text in texts(axes) if "floor" in text]


def test_a_link_is_drawn_over_linear_axes():
    loss = np.linspace(2, 4, 12)
    error = 0.85 - 2.0 * np.exp(-0.75 * loss) + np.random.default_rng(0).normal(0, 0.003, 12)
    axes = drawn(plot(isoloss.fit("loss-to-error", {"loss": loss, "error": error}, draws=50)))
    assert axes.get_xscale() == axes.get_yscale() == "linear"
    assert axes.get_xlabel() == "loss (nats/token)"


def test_more_than_two_axes_are_predicted_against_measured():
    rows = table()
    rows["tokens_unique"] = rows["tokens"] / np.tile([1, 2, 4], 12)
    found = isoloss.fit("muennighoff", rows, draws=30)
    axes = drawn(plot(found))
    levels = found.law.evaluate(found.theta, **found.x)
    points = next(entry for entry in axes.lines if entry.get_marker() == "o" and len(entry.get_xdata()) == 36)
    assert np.allclose(points.get_xydata(), np.stack([found.y, levels], axis=1))


def test_a_fit_without_an_answer_says_so_and_one_without_draws_has_no_band(fit):
    lost = dataclasses.replace(fit, result="not-identified")
    assert any(text.startswith("not identified: read no number") for text in texts(drawn(plot(lost))))
    bare = drawn(plot(dataclasses.replace(fit, draws=fit.draws[:0])))
    assert "36 runs; no draws, so no band" in texts(bare)
    assert len(bare.collections) == 1


# Prediction


@pytest.mark.parametrize("of", ["mean", "run"])
def test_a_prediction_is_a_bar_a_point_in_order_of_the_first_axis(fit, of):
    found = fit.predict(of=of, params=[1e10, 1e8, 1e9], tokens=[1e11, 1e9, 1e10])
    axes = drawn(plot(found))
    bars = next(entry for entry in axes.collections if isinstance(entry, LineCollection))
    order = [1, 2, 0]
    ends = np.array([segment[:, 0] for segment in bars.get_segments()])
    assert np.allclose(ends, np.stack([found.low, found.high], axis=1)[order])
    dots = markers(axes, "o")
    assert np.allclose(dots[np.argsort(dots[:, 1]), 0], found.median[order])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["100M, 1B", "1B, 10B", "10B, 100B"]
    assert "× 2" in texts(axes)
    assert axes.get_title(loc="left") == f"Prediction for {'one new run' if of == 'run' else 'the mean'}"


def test_many_points_have_no_names(fit):
    axes = drawn(plot(fit.predict(params=np.geomspace(1e8, 1e9, 40), tokens=1e10)))
    assert not axes.get_yticklabels()
    assert axes.get_ylabel() == "40 points in order of params, tokens"


# Plan


def curve(axes):
    return next(entry for entry in axes.lines if entry.get_color() == BLUE and entry.get_marker() == "None")


def test_a_plan_lies_on_the_curve_of_its_budget(fit):
    found = isoloss.plan(fit, Budget(flops=1e22))
    axes = drawn(plot(found))
    assert markers(axes, "*").tolist() == [[found.params.value, found.loss.value]]
    assert markers(axes, "D").tolist() == [[found.regret_choice.params, found.regret_choice.loss]]
    held = isoflop_curve(fit, 1e22, 4001)
    x, y = curve(axes).get_data()
    assert y == pytest.approx(np.interp(np.log(x), np.log(held.params), held.loss.value), rel=1e-6)
    low, high = band_at(axes.collections[0], x[60])
    at = np.log(held.params)
    assert low == pytest.approx(np.interp(np.log(x[60]), at, held.loss.low), rel=1e-5)
    assert high == pytest.approx(np.interp(np.log(x[60]), at, held.loss.high), rel=1e-5)
    near = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (near.x0, near.x1) == pytest.approx(
        (found.near_optimal.params_low, found.near_optimal.params_high)
    )


def test_a_limit_on_the_size_ends_the_curve(fit):
    found = isoloss.plan(fit, Budget(flops=1e22, bytes=4e9))
    axes = drawn(plot(found))
    assert curve(axes).get_xdata()[-1] == pytest.approx(2e9)
    assert axes.get_xlim()[1] > 2e9


def test_a_wanted_loss_is_a_curve_over_size_and_tokens(fit):
    found = isoloss.plan(fit, Budget(loss=2.15))
    axes = drawn(plot(found))
    assert markers(axes, "*").tolist() == [[found.params.value, found.tokens.value]]
    x, tokens = curve(axes).get_data()
    some = np.isfinite(tokens)
    assert fit.law.evaluate(fit.theta, params=x[some], tokens=tokens[some]) == pytest.approx(2.15)
    held = isoloss_curve(fit, 2.15, 4001)
    low, _ = band_at(axes.collections[0], x[60])
    assert low == pytest.approx(np.interp(np.log(x[60]), np.log(held.params), held.tokens.low), rel=1e-4)
    bars = [entry.get_segments()[0] for entry in axes.collections if isinstance(entry, LineCollection)]
    assert bars[0][:, 0].tolist() == [found.params.low, found.params.high]
    assert bars[1][:, 1].tolist() == [found.tokens.low, found.tokens.high]


@pytest.mark.parametrize("budget", [{"flops": 1e22}, {"loss": 2.15, "serve_tokens": 1e12}, {"loss": 2.0}])
def test_a_plan_by_a_published_law_has_no_bands(budget):
    axes = drawn(plot(isoloss.plan("hoffmann", Budget(**budget), theta="besiroglu-2024")))
    assert len(markers(axes, "*")) == 1
    assert not axes.collections
    assert not [text for text in texts(axes) if "%:" in text]


@pytest.mark.parametrize("budget", [{"tokens": 1e10}, {"loss": 0.5}])
def test_a_plan_by_a_law_of_one_axis(line, budget):
    found = isoloss.plan(line, Budget(**budget))
    axes = drawn(plot(found))
    assert markers(axes, "*").tolist() == [[found.tokens.value, found.loss.value]]
    assert len(markers(axes, "o")) == 10


def test_a_plan_over_flops_alone():
    rows = one_axis_table()
    found = isoloss.plan(
        isoloss.fit("hestness(flops)", {"flops": rows["tokens"], "loss": rows["loss"]}, draws=50),
        Budget(flops=1e10),
    )
    assert markers(drawn(plot(found)), "*")[0].tolist() == [pytest.approx(1e10), found.loss.value]


def test_a_plan_with_repeated_tokens():
    budget = Budget(flops=1e22, tokens=2e10)
    found = isoloss.plan("muennighoff", budget, theta="muennighoff-2023")
    axes = drawn(plot(found))
    x, y = curve(axes).get_data()
    assert np.min(y) == pytest.approx(found.loss.value, rel=1e-4)
    assert np.min(x) < found.params.value < np.max(x)


# Allocation


def test_schedules_are_dots_as_measured_and_lines_of_the_law():
    steps = np.arange(50.0, 1001.0, 50.0)
    law, theta = get("multi-power"), [2.0, 1.0, 0.5, 20.0, 2.0, 0.5, 0.5]
    shape = {"steps": 1000, "peak": 0.01}
    made = {
        "cosine": Schedule.cosine(end=0.001, **shape),
        "stages": Schedule.two_stage(end=0.003, at=500, **shape),
        "wsd": Schedule.wsd(end=0.001, decay=200, **shape),
    }
    curves = [Curve(name, s, steps, law.value(theta, s, steps)) for name, s in made.items()]
    found = fit_schedules(law, curves[:2], draws=5, starts=4)
    axes = new_axes()
    draw_schedules(axes, found, curves[2:])
    drawn(axes)
    dots = [line for line in axes.lines if line.get_marker() == "."]
    lines = [line for line in axes.lines if line.get_marker() != "."]
    for dot, curve in zip(dots, curves, strict=True):
        np.testing.assert_array_equal(dot.get_xydata(), np.stack([curve.steps, curve.loss], axis=1))
    for line, curve in zip(lines, curves, strict=True):
        np.testing.assert_allclose(
            line.get_ydata(), law.value(theta, curve.schedule, line.get_xdata()), atol=1e-3
        )
    assert len(axes.collections) == 1  # a band for the one that was not fitted
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["fitted", "wsd"]
    assert axes.get_title(loc="left") == "multi-power of 2 curves predicts 1 more"
    alone = drawn(plot(found))
    assert [text.get_text() for text in alone.get_legend().get_texts()] == ["cosine", "stages"]


def test_parabolas_go_through_their_optima():
    found = isoloss.isoflop(isoflop_table(), draws=50)
    axes = drawn(plot(found))
    assert len(markers(axes, "o")) == 15
    optima = [[optimum.params, optimum.loss] for optimum in found.optima]
    assert markers(axes, "*").tolist() == optima
    dashed = next(entry for entry in axes.lines if entry.get_linestyle() == "--")
    assert dashed.get_xdata() == pytest.approx([found.at(optimum.flops)[0] for optimum in found.optima])
    assert axes.get_title(loc="left").startswith("isoflop: N ∝ C^0.500 (0.500 to 0.500)")


def test_an_envelope_is_a_line_over_flops():
    found = isoloss.envelope(table(rows=10, noise=0.0), draws=20)
    axes = drawn(plot(found))
    assert len(markers(axes, ".")) == len(found.optima)
    assert axes.get_xlabel() == "training FLOPs"


# All


def things(fit):
    return {
        "runs": isoloss.read(table()),
        "fit": fit,
        "prediction": fit.predict(params=1e9, tokens=1e10),
        "plan": isoloss.plan(fit, Budget(flops=1e22)),
        "wanted": isoloss.plan(fit, Budget(loss=2.15)),
        "allocation": isoloss.isoflop(isoflop_table(), draws=20),
    }


@pytest.mark.parametrize("name", ["runs", "fit", "prediction", "plan", "wanted", "allocation"])
def test_given_axes_are_used_and_settings_are_left_alone(fit, name):
    before = dict(matplotlib.rcParams)
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    assert plot(things(fit)[name], right) is right
    drawn(right)
    assert not left.lines
    assert right.get_xlabel()
    assert right.get_title(loc="left")
    assert dict(matplotlib.rcParams) == before


def test_new_axes_are_a_picture_in_a_notebook_and_not_pyplots(fit):
    axes = plot(fit)
    assert axes._repr_png_().startswith(b"\x89PNG")
    import matplotlib.pyplot as plt

    assert not plt.get_fignums()


@pytest.mark.parametrize("thing", [None, [1, 2], {"loss": [3.0]}, Budget(flops=1e21), "runs.csv"])
def test_of_anything_else_there_is_no_picture(thing):
    with pytest.raises(TypeError, match=r"plot needs a Runs, Fit, Prediction, Plan, Allocation, .*got"):
        plot(thing)


def test_ax_must_be_axes(fit):
    with pytest.raises(TypeError, match="needs ax as matplotlib Axes, got Figure"):
        plot(fit, Figure())


def test_importing_loads_no_matplotlib():
    code = (
        "import sys, isoloss, isoloss.report.pictures, isoloss.report.canvas, isoloss.report.fits, "
        "isoloss.report.plans, isoloss.report.tables, isoloss.report.allocations, isoloss.report.predictions; "
        "sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("law", ["hoffmann", "gadre", "kaplan-nd"])
def test_published_tables(table, law):
    rows = [row for row in table("laws/gadre_overtraining/runs.csv") if row["train_dataset"] == "c4_original"]
    runs = isoloss.read(rows, columns="loss=loss_nats_c4")
    drawn(plot(runs))
    drawn(plot(isoloss.fit(law, runs, draws=50)))
