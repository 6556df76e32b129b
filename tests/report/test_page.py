"""The page holds every section and every number, refers to nothing outside, and trusts no name it shows."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from statistics import NormalDist

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

import isoloss
from isoloss import Budget
from isoloss.cli import run
from isoloss.comparing.backtest import backtest
from isoloss.laws.law import Law, positive, real
from isoloss.planning.curves import frontier, isoflop_curve, isoloss_curve
from isoloss.report.about_fit import data_section, fit_command, parameter_section, residual_section
from isoloss.report.about_plan import answer, default_budget, plan_section, rates_section, surface_section
from isoloss.report.about_proof import back_tested, backtest_section
from isoloss.report.backtests import draw_backtest, draw_backtest_error, inside
from isoloss.report.joint import chosen_names, draw_joint, draw_pair, rank_correlation
from isoloss.report.page import command, report_html, write_report
from isoloss.report.residuals import draw_quantiles, draw_residuals, normality, robust_scale, thirds
from isoloss.report.surfaces import draw_frontier, draw_isoflops, draw_isolosses
from isoloss.report.svg import plain_style, svg
from tests.conftest import ROOT

LADDER = ROOT / "examples" / "stdlib_ladder.csv"
SECTIONS = ["data", "residuals", "parameters", "surface", "backtest", "checklist", "sensitivity", "plan",
            "rates", "making"]  # fmt: skip
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """The tree as lists: what was opened, every id, the words of each section, and what was not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: dict[str, str] = {}
        self.place = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        self.tags.append((tag, held))
        if tag == "section":
            self.place = held["id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words[self.place] = self.words.get(self.place, "") + data

    def all(self, tag):
        return [held for name, held in self.tags if name == tag]

    def said(self, section):
        return " ".join(self.words[section].split())


def table(n=6, noise=0.004, seed=3):
    rng = np.random.default_rng(seed)
    size, tokens = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 5e9, n), np.geomspace(1e9, 1e11, n)))
    loss = (1.82 + 480 * size**-0.35 + 2100 * tokens**-0.37) * np.exp(rng.normal(0, noise, size.shape))
    return {"params": size, "tokens": tokens, "loss": loss}


@pytest.fixture(scope="module")
def fit():
    rows = table()
    rows["loss"][7] *= 1.2
    return isoloss.fit("hoffmann", rows, draws=100, starts=16)


@pytest.fixture(scope="module")
def seen(fit):
    """The back-test of the fit: slow, so made once."""
    return backtest(fit, draws=50, starts=8)


@pytest.fixture(scope="module")
def text(fit, seen):
    return page_of(fit, seen)


def page_of(fit, seen):
    """The page with a back-test that is already there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isoloss.report.page.back_tested", lambda fit: seen)
        return report_html(fit)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


@pytest.fixture(scope="module")
def line():
    d = np.geomspace(1e6, 1e9, 12)
    scatter = np.exp(np.random.default_rng(1).normal(0, 0.01, 12))
    return isoloss.fit("power", {"tokens": d, "loss": 30 * d**-0.12 * scatter}, draws=50, starts=8)


@pytest.fixture(scope="module")
def line_seen(line):
    return backtest(line, draws=50, starts=8)


@pytest.fixture(scope="module")
def line_text(line, line_seen):
    return page_of(line, line_seen)


# The page


def test_every_section_is_there_in_order_with_headings_in_order(page):
    assert [held["id"] for held in page.all("section")] == ["short", "findings", *SECTIONS]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels == [1] + [2] * (len(SECTIONS) + 2)
    links = [held["href"] for held in page.all("a")]
    assert links == [f"#{slug}" for slug in SECTIONS]


def test_ids_are_unique_and_every_reference_inside_exists(text, page):
    ids = [held["id"] for _, held in page.tags if "id" in held]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text)) <= set(ids)


def test_nothing_outside_is_referred_to(text, page):
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert not page.all("script")
    assert not page.all("link")
    for _, held in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (held.get(name) or "#").startswith(("#", "data:image/png;base64,"))


def test_it_says_its_language_and_pictures_and_tables_can_be_read_aloud(page):
    assert page.all("html")[0]["lang"] == "en"
    pictures = [held for held in page.all("svg") if held.get("role") == "img"]
    assert len(pictures) == len(page.all("figure")) == len(page.all("figcaption")) == 13
    assert all(len(held["aria-label"]) > 10 for held in pictures)
    assert all(held.get("scope") in ("col", "row") for held in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_numbers_on_the_page_are_those_of_the_fit_and_the_plan(page, fit):
    for name, entry in fit.parameters.items():
        assert f"{name}{entry.value:.{3 - int(np.floor(np.log10(entry.value)))}f}" in page.words["parameters"]
    assert f"{len(fit.y)} runs used, 0 removed" in page.said("short")
    plan = isoloss.plan(fit, default_budget(fit))
    budget = 10 * 6 * np.max(fit.x["params"] * fit.x["tokens"])
    assert plan.budget.flops == pytest.approx(budget)
    assert f"loss {plan.loss.value:.3f}" in page.said("plan")
    for rate in plan.exchange_rates.values():
        assert rate.reading[1:].replace(" %", "\u00a0%") in page.words["rates"]
    assert fit.fingerprint in page.said("making")
    assert isoloss.__version__ in page.said("making")


def test_the_large_residual_stands_first_in_its_table(page, fit):
    worst = int(fit.rows[np.argmax(np.abs(fit.residuals))])
    assert worst == 8
    assert re.search(r"robust s\.d\.\s+8126M", page.said("residuals"))


def test_the_back_test_is_on_the_page_with_every_run_and_fold(page, seen):
    for section in ("backtest", "short"):
        assert f"{seen.hits} of {len(seen)} dearer runs held back" in page.said(section)
    for fold in seen.folds:
        assert f"{fold.fitted}{fold.held}" in page.words["backtest"]
    for row, y in zip(seen.row, seen.y, strict=True):
        assert re.search(rf"{row}\d\.\d\de\+\d\d[\d.]+×{y:.3f}", page.words["backtest"])


def test_the_checklist_and_the_sensitivity_table_are_complete(page, fit):
    for item in fit.checklist:
        assert " ".join(item.question.split()) in page.said("checklist")
    for variant in fit.sensitivity:
        assert variant.setting.replace(" %", "\u00a0%") in page.words["sensitivity"]


def test_findings_come_with_why_and_what_to_do(page, fit):
    assert fit.warnings
    for entry in fit.warnings:
        assert entry.code in page.said("findings")
        for words in (entry.text, entry.why, entry.do):
            assert words.rstrip(".").replace(" %", "\u00a0%") in page.words["findings"]


def test_the_same_fit_gives_the_same_bytes_whatever_matplotlib_is_set_to(
    line, line_seen, line_text, tmp_path, monkeypatch
):
    monkeypatch.setattr("isoloss.report.page.back_tested", lambda fit: line_seen)
    line.save(tmp_path / "fit.json")
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        path = write_report(isoloss.load(tmp_path / "fit.json"), tmp_path / "page.html")
        assert dict(matplotlib.rcParams) == before
    assert path.read_text(encoding="utf-8") == line_text
    assert path.stat().st_size < 3e6


def words(section):
    return " ".join(section.said)


def test_another_budget_is_another_plan(fit):
    wanted = Budget(loss=2.3)
    found = answer(fit, wanted)
    assert "For a loss of 2.3 for the least train flops" in words(plan_section(fit, found))
    assert found.plan.loss.value == pytest.approx(2.3)
    assert command(wanted) == "isoloss report FIT --loss 2.3"


@pytest.mark.parametrize("budget", [Budget(loss=0.1), Budget(tokens=1e9)])
def test_a_budget_without_an_answer_is_said_with_its_reason(fit, budget):
    found = answer(fit, budget)
    assert found.plan is None
    assert words(plan_section(fit, found)).startswith("No plan: ")
    assert len(found.why) > 30
    assert words(rates_section(found)).startswith("Without a plan")


# Other fits


def test_a_law_of_one_axis_has_no_surface_and_says_why(line_text):
    seen = Page(line_text)
    assert "does not trade parameters against tokens" in seen.said("surface")
    assert "For 10B training tokens" in seen.said("plan")
    assert [held["id"] for held in seen.all("section")][2:] == SECTIONS


def test_a_link_is_not_planned():
    loss = np.linspace(2, 4, 12)
    error = 0.85 - 2.0 * np.exp(-0.75 * loss) + np.random.default_rng(0).normal(0, 0.003, 12)
    found = isoloss.fit(
        "loss-to-error", {"loss": loss, "error": error}, draws=30, starts=8, sensitivity=False
    )
    assert "whose cost is not known" in words(plan_section(found, answer(found, None)))
    assert "2.000" in data_section(found).parts[1].rows[0]


def test_a_fit_that_is_not_identified_says_so_before_anything_else(monkeypatch):
    monkeypatch.setattr("isoloss.report.page.back_tested", lambda fit: "not in this test.")
    size = np.geomspace(5e7, 5e9, 10)
    ray = {"params": size, "tokens": 20 * size, "loss": 2 + 500 * size**-0.35}
    found = isoloss.fit("hoffmann", ray, draws=40, starts=8, sensitivity=False)
    assert found.result == "not-identified"
    seen = Page(report_html(found))
    assert seen.words[""].split("Result: ")[1].startswith("not identified")
    assert "No plan" in seen.said("plan")
    assert "do not determine this law" in seen.said("surface")
    assert "No back-test: not in this test." in seen.said("backtest")


@pytest.mark.parametrize("draws", [0, 3])
def test_without_draws_the_parameters_have_no_joint_picture(draws, fit):
    bare = dataclasses.replace(fit, draws=fit.draws[:draws], scales=fit.scales[:draws])
    section = parameter_section(bare)
    assert words(section).startswith("There are no draws")
    assert [part.kind for part in section.parts] == ["table"]


def test_without_draws_there_are_curves_without_bands(fit):
    bare = dataclasses.replace(fit, draws=fit.draws[:0], scales=fit.scales[:0])
    found = answer(bare, None)
    assert "training FLOPs" in words(plan_section(bare, found))
    assert len(surface_section(bare, found).parts) == 2
    assert len(data_section(bare).parts) == 2


@pytest.mark.parametrize("law", ["hoffmann", "power(tokens)"])
def test_equal_losses_have_a_page_that_says_there_is_no_scatter(law):
    d, n = (a.ravel() for a in np.meshgrid(np.geomspace(1e8, 1e9, 3), np.geomspace(1e6, 1e7, 3)))
    same = isoloss.fit(law, {"params": n, "tokens": d, "loss": np.full(9, 2.0)}, draws=20, starts=4)
    seen = Page(report_html(same))
    assert "Result: not identified" in seen.words[""]
    assert "all have the same loss, so there is no scatter" in seen.said("short")
    assert "no variance for the law to explain" in seen.said("data")


@pytest.mark.parametrize("given", ["fit.json", None])
def test_only_a_fit_has_a_page(given, tmp_path):
    with pytest.raises(TypeError, match=r"write_report needs a Fit, got (str|NoneType)"):
        isoloss.write_report(given, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_refused_before_the_page_is_made(fit, tmp_path, monkeypatch):
    monkeypatch.setattr("isoloss.report.page.report_html", lambda *_: pytest.fail("made"))
    with pytest.raises(ValueError, match="it is a folder"):
        isoloss.write_report(fit, tmp_path)


def test_too_few_rows_are_shown_and_not_tested():
    rows = {name: values[[0, 7, 14, 21]] for name, values in table().items()}
    found = isoloss.fit("hoffmann", rows, draws=20, starts=8, sensitivity=False)
    assert words(backtest_section(found, back_tested(found))).startswith("No back-test: 4 rows leave none")
    assert len(data_section(found).parts) == 2
    assert residual_section(found).said


class Hostile(Law):
    """A law whose axis carries markup and formulas of TeX."""

    axes = ("<script>alert('x')</script>$\\frac{",)
    parameters = (positive("A", 0.1, 1e4), real("alpha", 0.01, 2))
    formula = "A / <img src=x onerror=alert(1)>^alpha"

    def value(self, theta, x):
        scale, alpha = theta
        return scale * x[self.axes[0]] ** -alpha


def test_names_are_text_wherever_they_come_from(monkeypatch):
    monkeypatch.setattr("isoloss.report.page.back_tested", lambda fit: "<b>no</b>")
    x = np.geomspace(1, 1e4, 14)
    y = 5 * x**-0.2 * np.exp(np.random.default_rng(2).normal(0, 0.01, 14))
    found = isoloss.fit(Hostile(), {Hostile.axes[0]: x, "loss": y}, draws=30, starts=8, sensitivity=False)
    source = "</title><script src=//evil.example></script>\"'&.csv where a == '<b>'"
    seen = Page(report_html(dataclasses.replace(found, source=source)))
    assert not seen.all("script")
    assert not seen.all("img")
    assert "<b>no</b>" in seen.said("backtest")
    assert Hostile.axes[0] in " ".join(seen.words.values())
    assert "evil.example" in seen.said("making")


# Pictures: the same functions on axes of one's own


def axes_of(size=(4.4, 3.3)):
    return Figure(figsize=size, layout="constrained").subplots()


def points(axes, marker="o"):
    return np.concatenate([line.get_xydata() for line in axes.lines if line.get_marker() == marker])


@pytest.mark.parametrize("along", ["fitted", "params", "tokens"])
def test_residuals_are_drawn_in_per_cent_with_the_row_number_of_the_large_one(fit, along):
    axes = axes_of()
    draw_residuals(axes, fit, along)
    level = fit.law.evaluate(fit.theta, **fit.x)
    x = level if along == "fitted" else fit.x[along]
    expected = np.stack([x, 100 * np.log(fit.y / level)], axis=1)
    assert np.allclose(axes.lines[1].get_xydata(), expected)
    assert [entry.get_text() for entry in axes.texts if entry.get_text()] == ["8"]


def test_medians_of_thirds_are_those_of_the_rows(fit):
    order = np.argsort(fit.x["tokens"], kind="stable")
    r = 100 * fit.residuals[order]  # six values of tokens, six runs each: thirds of twelve
    expected = [np.median(part) for part in np.split(r, 3)]
    assert [middle for _, middle, _ in thirds(fit, "tokens")] == pytest.approx(expected)
    assert robust_scale(fit) == pytest.approx(
        stats.median_abs_deviation(fit.residuals, scale="normal"), rel=1e-4
    )


def test_quantiles_are_the_normals(fit):
    axes = axes_of()
    draw_quantiles(axes, fit)
    shown = next(line for line in axes.lines if line.get_marker() == "o")
    n = len(fit.y)
    q = [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]
    assert np.allclose(shown.get_xydata(), np.stack([q, np.sort(100 * fit.residuals)], axis=1))


def scattered(fit, r):
    return dataclasses.replace(fit, residuals=r)


def test_normal_noise_is_called_normal_as_often_as_it_should(fit):
    rng = np.random.default_rng(5)
    shares = [normality(scattered(fit, rng.normal(0, 0.01, 60))).share for _ in range(60)]
    rejected = sum(share < 0.05 for share in shares)
    assert rejected <= stats.binom.ppf(0.999, 60, 0.05)
    assert 0.3 < np.mean(shares) < 0.85


def rng_normal(n):
    return np.random.default_rng(7).normal(size=n)


def test_heavy_tails_are_seen(fit):
    r = stats.t(2).rvs(size=150, random_state=np.random.default_rng(6))
    assert normality(scattered(fit, r)).share < 0.05
    r = rng_normal(240)
    r[:3] = 8.0
    found = normality(scattered(fit, r))
    assert found.share < 0.05
    assert found.farthest == pytest.approx(
        (8 - np.median(r)) / stats.median_abs_deviation(r, scale="normal"), rel=1e-4
    )


def test_many_points_become_a_picture_inside_the_picture(line):
    rng = np.random.default_rng(0)
    cloud = dataclasses.replace(line, draws=np.exp(rng.normal(size=(2500, 2))), scales=np.ones(2500))
    few = dataclasses.replace(line, draws=cloud.draws[:200], scales=cloud.scales[:200])
    with plain_style():
        many, plain = (svg(drawn(f), "p", "a cloud") for f in (cloud, few))
    assert "<image" in many
    assert "<image" not in plain
    assert many.count("<use") < 200


def drawn(fit):
    figure = Figure(figsize=(3, 3), layout="constrained")
    draw_pair(figure.subplots(), fit, "b", "c")
    return figure


def test_the_clouds_are_the_draws_and_the_correlations_are_spearmans(fit):
    axes = axes_of()
    draw_pair(axes, fit, "A", "alpha")
    names = fit.law.names
    cloud = fit.draws[:, [names.index("A"), names.index("alpha")]]
    assert np.array_equal(points(axes, "."), cloud)
    assert rank_correlation(fit, "A", "alpha") == pytest.approx(stats.spearmanr(*cloud.T).statistic)
    figure = Figure(figsize=(6, 5), layout="constrained")
    draw_joint(figure, fit)
    assert len(figure.axes) == len(chosen_names(fit)) ** 2 == 25


def test_held_parameters_are_not_in_the_joint_picture():
    held = isoloss.Constraints(fix={"E": 1.82}, tie=[("alpha", "beta")])
    found = isoloss.fit("hoffmann", table(), draws=40, starts=8, constraints=held, sensitivity=False)
    assert chosen_names(found) == ["A", "B", "alpha"]


def test_surfaces_draw_the_curves_they_are_given(fit):
    equal = {c: isoflop_curve(fit, c, 21, span=10) for c in (1e20, 1e21)}
    axes = axes_of()
    draw_isoflops(axes, fit, equal)
    curves = [line for line in axes.lines if len(line.get_xdata()) == 21]
    for drawn, curve in zip(curves, equal.values(), strict=True):
        assert np.array_equal(drawn.get_ydata(), curve.loss.value)
    line = frontier(fit, np.geomspace(1e20, 1e22, 5))
    lines = {loss: isoloss_curve(fit, loss, 21) for loss in (2.2, 2.4)}
    axes = axes_of()
    draw_isolosses(axes, fit, lines, line)
    assert np.allclose(points(axes), np.stack([fit.x["params"], fit.x["tokens"]], axis=1))
    axes = axes_of()
    draw_frontier(axes, line, asked=1e21)
    assert np.array_equal(axes.lines[0].get_ydata(), line.params.value)
    assert np.array_equal(axes.lines[1].get_ydata(), line.tokens.value)


def test_back_test_pictures_hold_every_run_held_back(seen):
    axes = axes_of()
    draw_backtest(axes, seen)
    shown = points(axes)
    assert sorted(map(tuple, shown)) == sorted(zip(seen.y, seen.median, strict=True))
    axes = axes_of()
    draw_backtest_error(axes, seen)
    assert sorted(points(axes)[:, 1]) == pytest.approx(sorted(100 * (seen.y / seen.median - 1)))
    assert inside(seen).sum() == seen.hits


# The command


def test_the_command_repeats_the_fit(fit):
    held = isoloss.Constraints(bounds={"alpha": (0.1, 1.0)}, borrow={"beta": "besiroglu-2024"})
    found = isoloss.fit(
        "hoffmann", str(LADDER), draws=20, starts=8, seed=3, constraints=held, sensitivity=False,
        objective=isoloss.StudentT(df=5),
    )  # fmt: skip
    command = fit_command(dataclasses.replace(found, source="my runs.csv where a == 1"))
    assert command == (
        "isoloss fit hoffmann 'my runs.csv' --where 'a == 1' --objective student-t --df 5 --borrow "
        "beta=besiroglu-2024 --bound alpha=0.1:1.0 --uncertainty posterior --draws 20 --starts 8 --seed 3 --json FIT"
    ).replace("--df 5 ", f"--df {found.objective.to_json()['df']} ")


def test_the_verb_writes_the_page_and_prints_its_place(line, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("isoloss.report.page.back_tested", lambda fit: "not in this test.")
    line.save(tmp_path / "fit.json")
    out = str(tmp_path / "page.html")
    assert run(["report", str(tmp_path / "fit.json"), "--out", out, "--tokens", "5B"]) == 0
    assert capsys.readouterr().out.strip() == out
    assert "For 5B training tokens" in Page((tmp_path / "page.html").read_text(encoding="utf-8")).said(
        "short"
    )
    assert run(["report", str(tmp_path / "fit.json"), "--out", str(tmp_path / "no" / "page.html")]) == 2
    capsys.readouterr()
    for words in (
        "--minimise money",
        "--utilisation 0.4",
        "--serve-utilisation 0.2",
        "--bits 16",
        "--peak 1e15",
    ):
        assert run(["report", str(tmp_path / "fit.json"), "--out", out, *words.split()]) == 2
        assert f"{words.split()[0]} belongs to a budget" in capsys.readouterr().err
