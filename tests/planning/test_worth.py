"""Exchange rates between all axes, steps of choices, hyper-parameters by their own laws, and borrowed pieces in a plan."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

import isoloss
from isoloss import Budget, laws, plan
from isoloss.fitting.borrow import borrow, fitted_part, loan_words

EPOCH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
SPEC = "hoffmann * data-constrained * parscale * precision(bits_weights) + ptq(bits_post)"
THETA = {
    "hoffmann": "besiroglu-2024", "data-constrained": "muennighoff-2023", "k": 0.4, "precision": "kumar-2024",
    "ptq": "kumar-2024", "C_T": 0.0598,
}  # fmt: skip
HOLD = {"streams": 2, "bits_weights": 8}


@pytest.fixture(scope="module")
def found():
    return plan(
        SPEC,
        Budget(flops=1e21, tokens=1e10, bytes=1e9),
        theta=THETA,
        hold=HOLD,
        choose={"bits_post": (3, 4, 6)},
    )


def at_plan(found):
    return {
        "params": found.params.value, "tokens": found.tokens.value, "tokens_unique": 1e10, **found.others,
    }  # fmt: skip


def test_rates_between_are_finite_differences(found):
    law, x = laws.get(SPEC), at_plan(found)
    theta = found.belief.theta
    assert found.tokens.value > 1e10
    slopes = {}
    for axis in x:
        h = 1e-5
        up, down = (float(law.evaluate(theta, **{**x, axis: x[axis] * math.exp(s)})) for s in (h, -h))
        slopes[axis] = (up - down) / (2 * h)
    assert len(found.rates_between) == 6 * 5
    for rate in found.rates_between:
        assert rate.rate.value == pytest.approx(-slopes[rate.per] / slopes[rate.of], rel=1e-4)
    by_name = {(r.of, r.per): r.rate.value for r in found.rates_between}
    assert by_name["tokens", "params"] == pytest.approx(found.exchange_rates["tokens_for_params"].value)
    assert by_name["tokens", "params"] * by_name["params", "tokens"] == pytest.approx(1)


def test_steps_are_worth_what_brentq_finds(found):
    law, x, theta = laws.get(SPEC), at_plan(found), found.belief.theta
    here = found.others["bits_post"]
    assert [s.to for s in found.steps] == [
        v for v in (3.0, 4.0, 6.0) if v != here and abs((3, 4, 6).index(v) - (3, 4, 6).index(here)) == 1
    ]
    before = float(law.evaluate(theta, **x))
    for step in found.steps:
        after = float(law.evaluate(theta, **{**x, "bits_post": step.to}))
        assert step.loss.value == pytest.approx(after - before, rel=1e-9)
        for axis, factor in (("params", step.params.value), ("tokens", step.tokens.value)):
            root = optimize.brentq(
                lambda s, axis=axis, after=after: (
                    float(law.evaluate(theta, **{**x, axis: x[axis] * math.exp(s)})) - after
                ),
                -6,
                1.5,
            )
            assert factor == pytest.approx(math.exp(root), rel=1e-6)
        assert step.reading.startswith(
            f"bits_post {here:g} to {step.to:g}: the loss {'rises' if step.loss.value > 0 else 'falls'}"
        )


def test_a_plain_law_has_the_two_rates_and_no_axes():
    found = plan("hoffmann", Budget(flops=1e21), theta="besiroglu-2024")
    assert [(r.of, r.per) for r in found.rates_between] == [("params", "tokens"), ("tokens", "params")]
    assert found.axes == found.steps == found.tuned == found.assumed_separable == ()
    assert found.epochs is None
    assert "borrowed" not in [w.code for w in found.warnings]


def test_json_and_text_say_all(found):
    document = found.to_json()
    assert document["slots"][0] == {"name": "E", "status": "borrowed", "origin": "besiroglu-2024"}
    assert {s["name"]: s["status"] for s in document["slots"]}["C_T"] == "fixed"
    assert ["data-constrained", "precision"] in document["assumed_separable"]
    assert [a["how"] for a in document["axes"]] == ["held", "held", "chosen"]
    text = str(found)
    for words in (
        "streams (held)",
        "bits_post (chosen)",
        "epochs",
        "note borrowed",
        "note assumed-separable",
        "R_D from muennighoff-2023",
    ):
        assert words in text
    assert found._repr_html_().count("<tr>") == len(found.rows()) + 1


# --- hyper-parameters -----------------------------------------------------------------------------------------


LRS = '''
from isoloss.laws import Law, positive, real

class Rate(Law):
    """lr = c N^-a D^b

    Valid for:
        Planted
        rows.
    """
    axes = ("params", "tokens")
    target = "lr"
    parameters = (positive("c", 1e-6, 1e6), real("a", 0, 2), real("b", -1, 1))
    def value(self, theta, x):
        c, a, b = theta
        return c * x["params"] ** -a * x["tokens"] ** b

class ByBatch(Law):
    axes = ("batch_tokens",)
    target = "lr"
    parameters = (positive("c", 1e-9, 1e6), real("a", 0, 2))
    def value(self, theta, x):
        c, a = theta
        return c * x["batch_tokens"] ** a

class Batch(Law):
    axes = ("flops",)
    target = "batch_tokens"
    parameters = (positive("c", 1e-9, 1e9), real("a", 0, 2))
    def value(self, theta, x):
        c, a = theta
        return c * x["flops"] ** a
'''


@pytest.fixture(scope="module")
def base():
    rng = np.random.default_rng(1)
    n, d = (g.ravel() for g in np.meshgrid([1e8, 4e8, 1.6e9, 6e9], [4e9, 2e10, 1e11]))
    loss = laws.get("hoffmann").evaluate([*EPOCH.values()], params=n, tokens=d) * np.exp(
        rng.normal(0, 0.003, 12)
    )
    return isoloss.fit("hoffmann", {"params": n, "tokens": d, "loss": loss}, draws=300, sensitivity=False)


@pytest.fixture(scope="module")
def rate(tmp_path_factory):
    path = tmp_path_factory.mktemp("laws") / "lrs.py"
    path.write_text(LRS, encoding="utf-8")
    rng = np.random.default_rng(2)
    n, d = (g.ravel() for g in np.meshgrid([1e8, 4e8, 1.6e9], [4e9, 2e10, 1e11]))
    lr = 1.79 * n**-0.713 * d**0.307 * np.exp(rng.normal(0, 0.05, 9))
    fit = isoloss.fit(f"{path}:Rate", {"params": n, "tokens": d, "lr": lr}, draws=300, sensitivity=False)
    return path, fit


def test_a_learning_rate_with_its_interval(base, rate):
    _, own = rate
    found = plan(base, Budget(flops=1e21), learning_rate=own)
    (tuned,) = found.tuned
    x = {"params": found.params.value, "tokens": found.tokens.value}
    levels = own.law.evaluate(own.draws, **x)
    assert tuned.value.value == pytest.approx(float(own.law.evaluate(own.theta, **x)))
    np.testing.assert_allclose([tuned.value.low, tuned.value.high], np.quantile(levels, [0.05, 0.95]))
    assert tuned.value.low < 1.79 * x["params"] ** -0.713 * x["tokens"] ** 0.307 < tuned.value.high
    # over both: as wide as the two spreads together, which are independent
    spread = lambda q: math.log(q.high / q.low)  # noqa: E731
    of_optima = spread(plan(base, Budget(flops=1e21), learning_rate="step-law@li-2025").tuned[0].over_optima)
    assert spread(tuned.over_optima) == pytest.approx(math.hypot(spread(tuned.value), of_optima), rel=0.15)
    assert tuned.reach == pytest.approx(max(1.0, x["params"] / 1.6e9))
    assert tuned.valid_for == "Planted rows."
    codes = [w.code for w in found.warnings if w.column == "lr"]
    assert codes == ["extrapolation"]
    assert "lr by" in str(found)


def test_published_rules_and_what_is_said_of_them(base):
    found = plan(base, Budget(flops=1e21), learning_rate="step-law@li-2025", batch="step-law-batch@li-2025")
    by_name = {entry.name: entry for entry in found.tuned}
    n, d = found.params.value, found.tokens.value
    assert by_name["lr"].value.value == pytest.approx(1.79 * n**-0.713 * d**0.307)
    assert by_name["batch_tokens"].value.value == pytest.approx(0.58 * d**0.571)
    assert math.isnan(by_name["lr"].value.low)
    assert by_name["lr"].over_optima.low < by_name["lr"].value.value < by_name["lr"].over_optima.high
    assert {w.code for w in found.warnings if w.column == "lr"} == {
        "size-counts-differ",
        "rule-without-draws",
    }
    assert "fixed final rate of 1e-5" in by_name["lr"].valid_for


def test_a_rate_may_read_the_batch_and_the_batch_the_flops(base, rate):
    path, _ = rate
    batches = {"flops": [1e18, 1e19, 1e20, 1e21, 1e22], "batch_tokens": [1e4, 3e4, 1e5, 3e5, 1e6]}
    batch = isoloss.fit(f"{path}:Batch", batches, draws=50, sensitivity=False)
    lrs = {"batch_tokens": [1e4, 4e4, 1.6e5, 6.4e5], "lr": [1e-3, 2e-3, 4e-3, 8e-3]}
    lr = isoloss.fit(f"{path}:ByBatch", lrs, draws=50, sensitivity=False)
    found = plan(base, Budget(flops=1e20), batch=batch, learning_rate=lr)
    assert [entry.name for entry in found.tuned] == ["batch_tokens", "lr"]
    assert found.tuned[0].value.value == pytest.approx(1e5, rel=0.05)
    assert found.tuned[1].value.value == pytest.approx(
        1e-3 * math.sqrt(found.tuned[0].value.value / 1e4), rel=1e-3
    )
    with pytest.raises(ValueError, match="give a law of it too, batch="):
        plan(base, Budget(flops=1e20), learning_rate=lr)


def test_a_rule_of_compute_reads_flops_at_any_number_of_bits(base):
    both = borrow(base, "* precision@kumar-2024")
    bits = {"bits_weights": 8, "bits_activations": 8, "bits_kv": 8}
    found = plan(both, Budget(flops=1e21, bits_cost=True), hold=bits, learning_rate="deepseek@deepseek-2024")
    spent = 6 * found.params.value * found.tokens.value
    assert found.costs["train_flops"] == pytest.approx(spent / 2)
    assert found.tuned[0].value.value == pytest.approx(0.3118 * spent**-0.125)


def test_rules_that_mean_nothing(base):
    with pytest.raises(ValueError, match="needs a law of lr, got hoffmann of loss"):
        plan(base, Budget(flops=1e21), learning_rate="hoffmann@besiroglu-2024")
    with pytest.raises(ValueError, match="needs a law of batch_tokens or critical_batch, got step-law of lr"):
        plan(base, Budget(flops=1e21), batch="step-law@li-2025")
    with pytest.raises(TypeError, match="learning_rate needs a Fit"):
        plan(base, Budget(flops=1e21), learning_rate=0.1)
    with pytest.raises(ValueError, match="nothing to learning"):
        plan("kaplan-d", Budget(tokens=1e9), theta="kaplan-2020", learning_rate="step-law@li-2025")


# --- borrowed pieces ------------------------------------------------------------------------------------------


def test_borrowed_pieces_stand_beside_the_draws_of_the_fit(base):
    both = borrow(
        base,
        "* precision(bits_weights)@kumar-2024 + ptq(bits_post)@kumar-2024",
        {"C_T": "0.0598:0.1847", "n_w": "0.3+-0.05"},
    )
    at = both.law.names.index
    np.testing.assert_array_equal(both.draws[:, :5], base.draws)
    np.testing.assert_array_equal(both.theta[:5], base.theta)
    assert both.theta[at("C_T")] == pytest.approx(math.sqrt(0.0598 * 0.1847))
    ct, nw = both.draws[:, at("C_T")], both.draws[:, at("n_w")]
    assert 0.0598 <= ct.min() < 0.075 < 0.15 < ct.max() <= 0.1847
    assert np.log(ct).std() == pytest.approx(math.log(0.1847 / 0.0598) / math.sqrt(12), rel=0.1)
    assert (nw.mean(), nw.std()) == (pytest.approx(0.3, abs=0.01), pytest.approx(0.05, rel=0.15))
    assert np.abs(np.corrcoef([ct, nw, base.draws[:, 0]])[np.triu_indices(3, 1)]).max() < 0.2
    assert np.ptp(both.draws[:, at("gamma_w")]) == 0
    assert both.parameters["C_T"].low < both.parameters["C_T"].value < both.parameters["C_T"].high
    assert both.parameters["gamma_w"].stderr == 0
    assert {name: e.status for name, e in both.parameters.items()}["gamma_post"] == "borrowed"
    assert both.free == base.free
    assert {w.code for w in both.warnings} >= {"borrowed"}
    x = {"params": 1e9, "tokens": 2e10}
    np.testing.assert_array_equal(
        both.predict(**x).draws, base.predict(**x).draws
    )  # absent: at the reference
    lower = both.predict(**x, bits_weights=4, bits_post=4).median
    assert float(lower[0]) > float(base.predict(**x).median[0])


def test_a_borrowed_fit_is_saved_and_plans_alike(base, tmp_path):
    both = borrow(
        base, "* data-constrained@muennighoff-2023 * precision(bits_weights)@kumar-2024", {"n_w": "0.2:0.4"}
    )
    both.save(tmp_path / "both.json")
    again = isoloss.load(tmp_path / "both.json")
    budget = Budget(flops=1e21, tokens=2e10, bytes=2e9)
    found = plan(both, budget)
    assert plan(again, budget).to_json() == found.to_json()
    origins = {slot.name: (slot.status, slot.origin) for slot in found.slots}
    assert origins["R_D"] == ("borrowed", "muennighoff-2023")
    assert origins["n_w"] == ("borrowed", "0.2 to 0.4")
    assert origins["alpha"] == ("fitted", "")
    assert found.assumed_separable == (("data-constrained", "precision"),)
    told = {w.code: w.text for w in found.warnings}
    assert "n_w from 0.2 to 0.4" in told["borrowed"]
    assert "data-constrained and precision" in told["assumed-separable"]


def test_a_positive_slot_is_drawn_above_zero(base):
    both = borrow(base, "+ ptq(bits_post)@kumar-2024", {"C_T": "0.1+-0.1"})
    drawn = both.draws[:, both.law.names.index("C_T")]
    assert drawn.min() > 1e-5
    cut = stats.truncnorm(-1.0, np.inf, 0.1, 0.1)
    assert stats.kstest(drawn, cut.cdf).pvalue > 0.01


def test_what_a_fit_borrowed_can_be_taken_off_and_written_down(base):
    pieces = (
        "* data-constrained@muennighoff-2023 * precision(bits_weights)@kumar-2024 + ptq(bits_post)@kumar-2024"
    )
    both = borrow(base, pieces, {"C_T": "0.06:0.18", "n_w": "0.3+-0.05", "gamma_post": 0.6})
    own = fitted_part(both)
    assert (own.law.spec, own.status, own.constraints) == ("hoffmann", base.status, base.constraints)
    np.testing.assert_array_equal(own.draws, base.draws)
    assert fitted_part(base) is base
    words = loan_words(both)
    assert words[:2] == ["--borrow", pieces]
    values = dict(word.split("=") for word in words[3::2])
    assert values == {"C_T": "0.06:0.18", "n_w": "0.3+-0.05", "gamma_post": "0.6"}
    np.testing.assert_array_equal(borrow(base, words[1], values).draws, both.draws)
    said = {item.key: item.answer for item in both.checklist}
    assert "C_T in 0.06:0.18" in said["held"]
    assert said["form"].startswith(both.law.spec)
    assert loan_words(base) == []


def test_a_part_of_ones_own_has_its_values_beside_published_ones(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from isoloss.laws import positive\nfrom isoloss.laws.parts import Factor\n"
        "class MyWidth(Factor):\n    columns, scales, reference = ('width',), 'params', 'absent'\n"
        "    formula = 'width^w'\n    parameters = (positive('w', 0.1, 3),)\n"
        "    def value(self, theta, x):\n        return x['width'] ** theta['w']\n",
        encoding="utf-8",
    )
    spec = f"hoffmann@besiroglu-2024 * {path}:MyWidth"
    found = plan(spec, Budget(flops=1e21), theta={"w": 1.0}, choose={"width": [1, 2]})
    assert found.others == {"width": 2.0}
    assert {slot.name: slot.status for slot in found.slots}["w"] == "fixed"


def test_a_second_loan(base):
    once = borrow(base, "* precision(bits_weights)@kumar-2024")
    twice = borrow(once, "* data-constrained@muennighoff-2023")
    direct = borrow(base, "* data-constrained@muennighoff-2023 * precision(bits_weights)@kumar-2024")
    assert twice.law.spec == direct.law.spec
    np.testing.assert_array_equal(twice.draws, direct.draws)
    assert twice.status == direct.status


@pytest.mark.parametrize(
    ("pieces", "values", "message"),
    [
        ("precision@kumar-2024", {}, "begin with their operator"),
        ("* precision@kumar-2023", {}, "no published fit 'kumar-2023'"),
        ("+ ptq(bits_post)@kumar-2024", {}, "nothing gives C_T"),
        ("+ ptq(bits_post)@kumar-2024", {"C_T": "x"}, "needs a number above 0, LOW:HIGH or MEAN"),
        ("+ ptq(bits_post)@kumar-2024", {"C_T": "2:1"}, "needs a number above 0"),
        ("+ ptq(bits_post)@kumar-2024", {"C_T": -1}, "needs a number above 0"),
        ("+ ptq(bits_post)@kumar-2024", {"C_T": 1, "E": 2}, "E is not a slot of the borrowed pieces"),
    ],
)
def test_loans_that_mean_nothing(base, pieces, values, message):
    with pytest.raises(ValueError, match=message):
        borrow(base, pieces, values)


def test_theta_by_piece():
    spec, budget = "hoffmann * precision(bits_weights)", Budget(flops=1e21)
    theta = {"hoffmann": "besiroglu-2024", "precision": "kumar-2024"}
    by_piece = plan(spec, budget, theta=theta)
    by_name = plan("hoffmann@besiroglu-2024 * precision(bits_weights)@kumar-2024", budget)
    assert by_piece.to_json() == by_name.to_json()
    moved = plan(spec, budget, theta={**theta, "n_w": 0.5})
    assert {s.name: s.status for s in moved.slots}["n_w"] == "fixed"
    for theta, message in (
        (
            {"hoffmann": "besiroglu-2024"},
            "no value for gamma_w, n_w. Add a published fit, precision@kumar-2024",
        ),
        ({"hoffmann": "none"}, "no published fit 'none'"),
        ({"kaplan": "x"}, "no piece 'kaplan'"),
        ({"E": 1.0, "zeta": 2.0}, "no parameter 'zeta'"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(spec, budget, theta=theta)


# --- command line and page ------------------------------------------------------------------------------------


def test_the_command_line_says_the_same(base, tmp_path, capsys):
    import json

    from isoloss.cli import run

    path, out = tmp_path / "base.json", tmp_path / "plan.json"
    base.save(path)
    pieces = (
        "* data-constrained@muennighoff-2023 * precision(bits_weights)@kumar-2024 + ptq(bits_post)@kumar-2024"
    )
    command = [
        "plan", str(path), "--borrow", pieces, "--value", "C_T=0.06:0.18", "--hold", "bits_weights=8", "--choose",
        "bits_post=3,4,8", "--flops", "1e21", "--tokens", "10B", "--bytes", "1GB", "--bits-cost", "--lr",
        "step-law@li-2025", "--json", str(out),
    ]  # fmt: skip
    assert run(command) == 0
    found = plan(
        borrow(base, pieces, {"C_T": "0.06:0.18"}), Budget(flops=1e21, tokens=1e10, bytes=1e9, bits_cost=True),
        hold={"bits_weights": 8}, choose={"bits_post": (3, 4, 8)}, learning_rate="step-law@li-2025",
    )  # fmt: skip
    assert json.loads(out.read_text()) == json.loads(json.dumps(found.to_json()))
    text = capsys.readouterr().out
    for words in (
        "bits_post (chosen)",
        "choice (* the plan's)",
        "Exchange at the same loss",
        "C_T",
        "0.06 to 0.18",
        "assumed separable",
    ):
        assert words in text
    assert (
        run(
            [
                "plan",
                "hoffmann@besiroglu-2024 + ptq(bits_post)@kumar-2024",
                "--value",
                "C_T=0.06",
                "--flops",
                "1e21",
            ]
        )
        == 0
    )
    for wrong, message in (
        (["hoffmann@besiroglu-2024 + ptq(bits_post)@kumar-2024"], "no value for C_T"),
        (
            ["hoffmann@besiroglu-2024 + ptq(bits_post)@kumar-2024", "--value", "C_T=1:2"],
            "needs a number beside published fits",
        ),
        (["hoffmann@besiroglu-2024", "--borrow", "* precision@kumar-2024"], "goes with a fit's file"),
        ([str(path), "--value", "C_T=1"], "belongs to --borrow"),
        (["hoffmann@besiroglu-2024", "--hold", "bits"], "--hold needs AXIS=VALUE"),
        (["hoffmann@besiroglu-2024", "--lr", "nothing.json"], "cannot read the fit"),
        (["hoffmann@besiroglu-2024", "--lr", "step-law"], "Write step-law@li-2025"),
        (["hoffmann * precision"], "Write each piece as LAW@PUBLISHED"),
    ):
        assert run(["plan", *wrong, "--flops", "1e21"]) != 0
        assert message in " ".join(capsys.readouterr().err.split())


def test_the_cost_of_a_wanted_loss_is_printed_with_its_interval(base, tmp_path, capsys):
    from isoloss.cli import run

    base.save(tmp_path / "base.json")
    assert run(["plan", str(tmp_path / "base.json"), "--loss", "2.4"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("train flops")]
    aim = plan(base, Budget(loss=2.4)).objective
    assert row.split()[2:] == [f"{v:.2e}" for v in (aim.value, aim.low)] + ["to", f"{aim.high:.2e}"]


def test_the_page_shows_choices_exchange_and_loans(base, tmp_path, monkeypatch, capsys):
    from isoloss.cli import run

    seen = []
    monkeypatch.setattr(
        "isoloss.report.about_proof.backtest", lambda fit: seen.append(fit.law.spec) or fail()
    )

    def fail():
        raise isoloss.NoAnswer("not in this test", "patience")

    base.save(tmp_path / "base.json")
    words = [
        "report", str(tmp_path / "base.json"), "--out", str(tmp_path / "page.html"), "--flops", "1e21", "--tokens",
        "10B", "--borrow", "* data-constrained@muennighoff-2023 * precision(bits_weights)@kumar-2024", "--value",
        "n_w=0.2:0.4", "--lr", "step-law@li-2025",
    ]  # fmt: skip
    assert run([*words, "--bytes", "1GB", "--choose", "bits_weights=3,4,8"]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert seen == ["hoffmann"]
    for sought in (
        "What could have been chosen", "Exchange between all axes", "What a step of a choice is worth",
        "R_D from muennighoff-2023; gamma_w from kumar-2024; n_w from 0.2 to 0.4",
        "Assumed separable: data-constrained and precision.", "10B distinct tokens", "--value n_w=0.2:0.4", "--lr FIT",
        "and lr ", "with these choices",
    ):  # fmt: skip
        assert sought in page
    assert "--choose bits_weights=3,4,8" in page
    assert "as planned" in page
    capsys.readouterr()
    # what was asked has no answer: the page says so, and plans nothing else
    assert run([*words, "--loss", "1.9", "--hold", "bits_weights=3"]) == 0
    assert "No plan: loss 1.9 is not reached" in (tmp_path / "page.html").read_text(encoding="utf-8")
