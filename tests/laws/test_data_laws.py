"""Laws of data: vocabulary, mixtures, filtering, noisy samples; axes that may be 0, targets below 0."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

import isoloss
from isoloss.cli import run
from isoloss.comparing.candidates import named
from isoloss.laws import Law, get, positive
from isoloss.laws.data_filtering import DataFiltering
from isoloss.laws.mixing import Mixing
from isoloss.laws.vocabulary import Vocabulary, tokens_per_character
from isoloss.planning.price import noisy_price
from isoloss.planning.vocabulary import best_vocabulary
from tests.oracles.formulas import FORMULAS, PLANTED

# --- vocabulary -------------------------------------------------------------------------------------

TIED = isoloss.Constraints(tie=(("beta", "alpha_1"),))


def quadratic(v):
    return 0.00639222 * np.log(v) ** 2 - 0.15811069 * np.log(v) + 1.20470122


@pytest.fixture(scope="module")
def tao(table):
    rows = table("laws/vocabulary/runs.csv")
    names = (
        "vocab_size",
        "d_model",
        "characters",
        "params_nonvocab",
        "flops",
        "loss_unigram_normalized_nats",
    )
    return {name: np.array([float(row[name]) for row in rows]) for name in names}


def as_fitted(tao, tokens):
    """The points of the published fit, with a count of tokens."""
    used = tao["flops"] >= 2.18e17
    x = {
        "params_nonembedding": tao["params_nonvocab"],
        "vocab_params": tao["vocab_size"] * tao["d_model"],
        "tokens": tokens,
    }
    return {axis: values[used] for axis, values in x.items()}, tao["loss_unigram_normalized_nats"][used]


def misfit(law, theta, x, y):
    e = y - law.evaluate(theta, **x)
    return 1 - e @ e / np.sum((y - y.mean()) ** 2), float(np.sqrt(np.mean(e**2))), float(np.mean(e))


def test_tokens_per_character_is_what_the_table_was_made_with(tao):
    v, d, n = tao["vocab_size"], tao["d_model"], tao["params_nonvocab"]
    flops = 6 * (n + v * d) * tao["characters"] * tokens_per_character(v)
    np.testing.assert_allclose(flops, tao["flops"], rtol=1e-8)
    np.testing.assert_allclose(tokens_per_character(v), quadratic(v), rtol=1e-14)
    assert tokens_per_character(1e6) == tokens_per_character(2e5)
    with pytest.raises(ValueError, match="1,000 entries"):
        tokens_per_character([32000, 300])


def test_published_constants_describe_their_table(tao):
    law = Vocabulary()
    x, y = as_fitted(tao, tao["characters"] * quadratic(tao["vocab_size"] / 1000))
    assert len(y) == 1054
    r2, rms, bias = misfit(law, law.theta("tao-2024"), x, y)
    assert r2 == pytest.approx(0.97165, abs=5e-5)
    assert rms == pytest.approx(0.0908, abs=5e-5)
    assert abs(bias) < 0.007
    x, y = as_fitted(tao, tao["characters"] * tokens_per_character(tao["vocab_size"]))
    r2, rms, bias = misfit(law, law.theta("tao-2024-tokens"), x, y)
    assert r2 > 0.968
    assert rms < 0.0965
    assert abs(bias) < 0.003
    # As printed they are not for real tokens, though their decision uses them so.
    assert misfit(law, law.theta("tao-2024"), x, y)[2] < -0.4


def test_approach_3_is_reproduced(tao):
    x, y = as_fitted(tao, tao["characters"] * quadratic(tao["vocab_size"] / 1000))
    law = Vocabulary()
    table = {**x, "loss_unigram_normalized": y}
    fit = isoloss.fit(law, table, constraints=TIED, draws=0, starts=8, sensitivity=False)
    assert fit.objective == isoloss.Huber(residual="linear")
    size = np.abs(y - law.evaluate(law.theta("tao-2024"), **x))
    printed = float(np.sum(np.where(size < 1e-3, size**2 / 2, 1e-3 * (size - 5e-4))))
    assert fit.value <= printed
    assert fit.value == pytest.approx(printed, rel=1e-5)
    for name, value in law.published["tao-2024"].values.items():
        in_millions = {"A_1": 1e6, "A_2": 1e6, "B": 1e9}.get(name, 1.0)
        exponent = {"A_1": "alpha_1", "A_2": "alpha_2", "B": "beta"}.get(name, "beta")
        ours = fit.values[name] / in_millions ** fit.values[exponent]
        theirs = value / in_millions ** law.published["tao-2024"].values[exponent]
        assert ours == pytest.approx(theirs, rel=0.03), name


def test_approach_2_is_a_property_of_tokens_per_character():
    # The vocabulary at which the same characters cost least: dC/dV = 0 for C = 6 (N + V d) H f(V).
    sizes = [
        (33e6, 512),
        (85e6, 768),
        (151e6, 768),
        (302e6, 1024),
        (631e6, 1536),
        (1.13e9, 2048),
        (2.87e9, 3200),
    ]

    def slope(v, n, d):
        bend = (2 * 0.00639222 * math.log(v) - 0.15811069) / v
        return d * float(tokens_per_character(v)) + (n + d * v) * bend

    best = np.array([d * brentq(slope, 1500, 150_000, args=(n, d)) for n, d in sizes])
    x, y = np.log([n / 33e6 for n, _ in sizes[1:]]), np.log(best[1:] / best[0])

    def huber(gamma):
        r = np.abs(y - gamma * x)
        return float(np.sum(np.where(r < 1e-3, r**2 / 2, 1e-3 * (r - 5e-4))))

    gamma = minimize_scalar(huber, bounds=(0.5, 1.0), method="bounded", options={"xatol": 1e-9}).x
    assert gamma == pytest.approx(0.8353974, abs=2e-4)


@pytest.mark.parametrize(("size", "flops"), [(3.3e7, 1e17), (3e9, 1.3e21), (7e10, 1e24), (1e9, 1e25)])
@pytest.mark.parametrize("name", ["tao-2024", "tao-2024-tokens"])
def test_best_vocabulary_is_the_minimum_along_the_budget(name, size, flops):
    law = Vocabulary()
    theta = law.theta(name)

    def loss(log_v):
        v = math.exp(log_v)
        at = {"params_nonembedding": size, "vocab_params": v, "tokens": flops / 6 / (size + v)}
        return float(law.evaluate(theta, **at))

    found = best_vocabulary(name, params_nonembedding=size, flops=flops)
    near = minimize_scalar(loss, bounds=(5.0, 30.0), method="bounded", options={"xatol": 1e-10})
    assert math.log(found.vocab_params.value) == pytest.approx(near.x, abs=1e-5)
    assert found.loss.value == pytest.approx(near.fun, rel=1e-12)
    spent = 6 * (size + found.vocab_params.value) * found.tokens.value
    assert spent == pytest.approx(flops, rel=1e-12)
    assert math.isnan(found.vocab_params.low)


def test_best_vocabulary_in_the_authors_units():
    # Their equation in millions of parameters and billions of tokens, as their code solves it.
    size, flops, width = 2.87e9, (2.87e9 / math.exp(-2.4846510161625193)) ** 2, 3200

    def slope(v):
        n, d, c = size / 1e6, width / 1e3, flops / 1e15
        u = c / (6 * (n + v * d))
        fall = -0.6707374679896795 * 0.19584238398665638 * d / (v * d) ** 1.6707374679896795
        rise = (
            0.44660634152009615 * 2.1241123120064955 * c * d / (6 * (n + v * d) ** 2) / u**1.44660634152009615
        )
        return fall + rise

    theirs = brentq(slope, 1, 1000) * 1e3 * width
    ours = best_vocabulary("tao-2024", params_nonembedding=size, flops=flops).vocab_params.value
    assert ours == pytest.approx(theirs, rel=1e-9)


def planted_vocabulary(seed, noise=0.01):
    rng = np.random.default_rng(seed)
    n, v, d = (g.ravel() for g in np.meshgrid([3e7, 1e8, 3e8, 1e9], [2e6, 1e7, 5e7, 2e8], [3e8, 3e9, 3e10]))
    x = {"params_nonembedding": n, "vocab_params": v, "tokens": d}
    return {
        **x,
        "loss_unigram_normalized": FORMULAS["vocabulary"](PLANTED["vocabulary"], x)
        + noise * rng.normal(size=len(n)),
    }


def test_a_target_below_zero_is_fitted_saved_and_predicted(tmp_path):
    runs = planted_vocabulary(0)
    assert runs["loss_unigram_normalized"].max() < 0
    fit = isoloss.fit("vocabulary", runs, constraints=TIED, draws=200, uncertainty="laplace", seed=1)
    assert fit.result == "identified"
    assert not any(w.code in ("nonpositive-loss", "few-rows", "diverged") for w in fit.warnings)
    truth = best_vocabulary(PLANTED["vocabulary"], params_nonembedding=1e9, flops=1e21).vocab_params.value
    found = best_vocabulary(fit, params_nonembedding=1e9, flops=1e21, coverage=0.99)
    assert found.vocab_params.low < truth < found.vocab_params.high
    assert found.vocab_params.low < found.vocab_params.value < found.vocab_params.high
    assert found.loss.value < 0
    for of in ("mean", "run"):
        at = {"params_nonembedding": 1e9, "vocab_params": 5e7, "tokens": 1e10}
        told = fit.predict(of=of, coverage=0.999, **at)
        assert told.low[0] < FORMULAS["vocabulary"](PLANTED["vocabulary"], at) < told.high[0]
    # A choice on log residuals has no meaning here, and says so.
    logs = [v for v in fit.sensitivity if v.setting.startswith("log")]
    assert logs
    assert all("plain residuals" in v.why for v in logs)
    fit.save(tmp_path / "fit.json")
    back = isoloss.load(tmp_path / "fit.json")
    assert np.array_equal(back.draws, fit.draws)


def test_log_residuals_of_a_signed_target_are_refused():
    with pytest.raises(ValueError, match=r"plain residuals.*--residual linear"):
        isoloss.fit("vocabulary", planted_vocabulary(0), objective=isoloss.Huber(), sensitivity=False)


def test_a_loss_below_zero_is_refused_by_other_laws():
    with pytest.raises(ValueError, match="loss above 0"):
        isoloss.fit("power", {"tokens": [1, 2, 3, 4], "loss": [3, 2, 1, -1.0]}, sensitivity=False)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_best_vocabulary_refuses(bad):
    with pytest.raises(ValueError, match="finite and above 0"):
        best_vocabulary("tao-2024", params_nonembedding=bad, flops=1e20)
    with pytest.raises(ValueError, match="no published fit"):
        best_vocabulary("nobody", params_nonembedding=1e9, flops=1e20)
    power = isoloss.fit(
        "power", {"tokens": [1, 2, 4, 8], "loss": [8, 4, 2, 1.0]}, draws=20, sensitivity=False
    )
    with pytest.raises(ValueError, match="needs a fit of vocabulary"):
        best_vocabulary(power, params_nonembedding=1e9, flops=1e20)


# --- mixtures ---------------------------------------------------------------------------------------

# The authors' notebook (mix_5_domains.ipynb): mean Huber loss (delta 0.05) of their fits of log c, log k, t.
PRINTED = {
    "academic": (0.0005682876217179, [0.9750, -2.1391, -10.0864, 2.7140, 2.7106, 2.6083, 1.5866]),
    "prose": (0.00012334295024629682, [1.2624, -2.1656, 1.3930, -4.6811, 0.7855, 1.8719, 0.5734]),
    "dialogue": (0.0005513424403034151, [1.1375, -7.1017, 6.7135, 6.2643, -31.8621, 6.6423, 6.2053]),
    "symbolic": (0.0001428198884241283, [0.4750, -3.6546, 3.3289, 3.6705, 3.1127, -16.4217, 3.1591]),
    "internet": (8.165960753103718e-05, [1.2402, -1.9510, 1.1897, 0.8697, -0.5184, 1.7122, -3.0870]),
}
# Their weights (valid_weight.json) of the Pile's parts, and which belong together.
PARTS = {
    "academic": {
        "ArXiv": 0.10185185, "PubMed_Abstracts": 0.02391975, "PhilPapers": 0.00501543, "NIH_ExPorter": 0.00192901,
        "FreeLaw": 0.05439815, "USPTO_Backgrounds": 0.02854938, "PubMed_Central": 0.125,
    },
    "prose": {"PG19": 0.01851852, "Books3": 0.12654321, "BookCorpus2": 0.00694444},
    "dialogue": {
        "Ubuntu_IRC": 0.00810185, "OpenSubtitles": 0.0158179, "EuroParl": 0.00810185, "Enron_Emails": 0.00115741,
        "HackerNews": 0.00733025, "YoutubeSubtitles": 0.00964506,
    },
    "symbolic": {"DM_Mathematics": 0.02160494, "Github": 0.09529321},
    "internet": {
        "Pile-CC": 0.15702160, "OpenWebText2": 0.09066358, "StackExchange": 0.05516975, "Wikipedia_en": 0.03742284,
    },
}  # fmt: skip
FIVE = tuple(f"share_{name}" for name in PRINTED)


@pytest.fixture(scope="module")
def five(table):
    """Mixtures (26, 5) and the loss on each group of the Pile: 70M models after 30,000 steps."""
    runs: dict[str, dict[str, float]] = {}
    for row in table("laws/data_mixing/curves.csv.gz"):
        if (row["experiment"], row["model_size"], row["step"]) == ("5Mix", "70M", "30000"):
            runs.setdefault(row["run"], {})[row["validation_domain"]] = float(row["loss_nats"])
    shares = np.array([[float(share) for share in name.split("-")[1:]] for name in runs])
    losses = {
        group: np.array(
            [sum(w * run[part] for part, w in own.items()) / sum(own.values()) for run in runs.values()]
        )
        for group, own in PARTS.items()
    }
    return shares, losses


@pytest.mark.parametrize("group", list(PRINTED))
def test_the_authors_fits_of_five_domains_are_reproduced(group, five):
    shares, losses = five
    assert shares.shape == (26, 5)
    y, (printed, theta) = losses[group], PRINTED[group]
    runs = {**dict(zip(FIVE, shares.T, strict=True)), "loss": y}
    objective = isoloss.Huber(residual="linear", delta=0.05, reduction="mean")
    fit = isoloss.fit(Mixing(FIVE), runs, objective=objective, draws=0, starts=24, sensitivity=False)
    assert fit.value <= printed * (1 + 1e-6)
    assert fit.value == pytest.approx(printed, rel=2e-5)
    pure = np.exp(theta[1] + np.array(theta[2:]))  # k exp(t): what can be told
    theirs = {"c": math.exp(theta[0]), **{f"K_{n}": k for n, k in zip(PRINTED, pure, strict=True)}}
    # Of a pure domain far from the mixtures only the order of magnitude is told.
    seen = {"c", *(f"K_{n}" for n in PRINTED if theirs[f"K_{n}"] > 1e-3)}
    for name in seen:
        assert fit.values[name] == pytest.approx(theirs[name], rel=0.03), name


def test_k_and_t_are_told_up_to_a_shift_only():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(3), 20)
    law = get("mixing(share_a, share_b, share_c)")
    for shift in (-2.0, 0.0, 3.0):
        k, t = 0.7 * math.exp(-shift), np.array([1.0, -2.0, 0.3]) + shift
        paper = 1.5 + k * np.exp(shares @ t)
        ours = law.evaluate([1.5, *(k * np.exp(t))], **dict(zip(law.axes, shares.T, strict=True)))
        np.testing.assert_allclose(ours, paper, rtol=1e-13)


def test_mixing_spec_and_names():
    law = get("mixing( share_a ,share_b,other)")
    assert law.spec == "mixing(share_a, share_b, other)"
    assert law.names == ("c", "K_a", "K_b", "K_other")
    assert get(law.spec) == law
    for wrong in ("mixing(share_a)", "mixing(share_a, share_a)"):
        with pytest.raises(ValueError, match="two domains or more, each once"):
            get(wrong)


def three_domains(seed=0, noise=0.003, n=24):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([0.6, 0.6, 0.6], n)
    shares[: n // 2][shares[: n // 2] < 0.1] = 0.0
    shares /= shares.sum(axis=1, keepdims=True)
    law, theta = get("mixing(share_a, share_b, share_c)"), np.array([2.0, 0.05, 1.5, 0.8])
    x = dict(zip(law.axes, shares.T, strict=True))
    return law, theta, {**x, "loss": law.evaluate(theta, **x) * np.exp(noise * rng.normal(size=n))}


def test_mixtures_with_absent_domains_are_fitted_saved_and_predicted(tmp_path):
    law, theta, runs = three_domains()
    assert (np.array([runs[a] for a in law.axes]) == 0).any()
    fit = isoloss.fit(law, runs, draws=300, seed=2, sensitivity=False)
    assert fit.result == "identified"
    assert not [w for w in fit.warnings if w.level == "error"]
    for name, truth in zip(law.names, theta, strict=True):
        found = fit.parameters[name]
        assert found.low - 3 * found.stderr < truth < found.high + 3 * found.stderr, name
    told = fit.predict(coverage=0.99, share_a=0.0, share_b=0.5, share_c=0.5)
    assert told.low[0] < 2.0 + math.sqrt(1.5 * 0.8) < told.high[0]
    assert told.reach[0] == 1.0  # some rows have none of a, too
    fit.save(tmp_path / "fit.json")
    assert np.array_equal(isoloss.load(tmp_path / "fit.json").x["share_a"], fit.x["share_a"])


def test_reach_of_an_axis_that_may_be_zero():
    law = get("mixing(share_a, share_b)")
    a = np.array([0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    runs = {"share_a": a, "share_b": 1 - a, "loss": law.evaluate([1.0, 0.5, 2.0], share_a=a, share_b=1 - a)}
    fit = isoloss.fit(law, runs, draws=20, sensitivity=False)
    reach = fit.reach({"share_a": np.array([0.0, 0.1, 0.5]), "share_b": np.array([1.0, 0.9, 0.5])})
    assert reach.tolist() == [math.inf, pytest.approx(2.0), 1.0]


def test_a_table_with_shares_of_zero_is_checked_and_drawn(tmp_path, capsys):
    """Zero is a share like others: no error of the table, and a picture without a grid between the rows."""
    from matplotlib.figure import Figure

    from isoloss.report.fits import draw_fit

    a = np.linspace(0, 1, 9)
    runs = {"share_code": a, "share_web": 1 - a, "loss": 2 + 0.5**a * 2.0 ** (1 - a)}
    lines = [",".join(runs), *(",".join(f"{v:.6g}" for v in row) for row in zip(*runs.values(), strict=True))]
    (tmp_path / "mix.csv").write_text("\n".join(lines) + "\n")
    assert run(["check", str(tmp_path / "mix.csv"), "--law", "mixing"]) == 0
    assert "0 errors" in capsys.readouterr().out
    draw_fit(Figure().subplots(), isoloss.fit("mixing", runs, draws=20, starts=8, sensitivity=False))


def test_shares_that_do_not_sum_to_one_are_refused():
    law = get("mixing(share_a, share_b)")
    with pytest.raises(ValueError, match=r"share_a \+ share_b = 1"):
        law.evaluate([1, 1, 1], share_a=0.5, share_b=0.4)
    good = np.linspace(0.1, 0.9, 8)
    runs = {"share_a": good, "share_b": 1 - good, "loss": 2 + good}
    runs["share_b"] = np.where(np.arange(8) == 4, 0.2, runs["share_b"])
    with pytest.raises(ValueError, match=r"= 1 .*in row 5 \(1 such rows\)"):
        isoloss.fit(law, runs, sensitivity=False)
    runs["share_b"] = np.where(np.arange(8) == 4, -0.2, 1 - good)
    with pytest.raises(ValueError, match=r"share_b at or above 0, got -0\.2 in row 5"):
        isoloss.fit(law, runs, sensitivity=False)
    with pytest.raises(ValueError, match="finite and at or above 0"):
        law.evaluate([1, 1, 1], share_a=-0.1, share_b=1.1)


def test_zero_is_refused_where_a_law_cannot_mean_it():
    with pytest.raises(ValueError, match="finite and above 0, got 0"):
        get("power").evaluate([1, 1], tokens=0)
    with pytest.raises(ValueError, match="needs tokens above 0"):
        isoloss.fit("power", {"tokens": [0, 1, 2, 4], "loss": [3, 2, 1, 0.5]}, sensitivity=False)


def test_a_law_of_ones_own_may_have_zeros():
    class Dose(Law):
        axes = ("dose",)
        may_be_zero = ("dose",)
        parameters = (positive("a", 1e-3, 1e3), positive("b", 1e-3, 1e3))

        def value(self, theta, x):
            a, b = theta
            return a / (1 + b * x["dose"])

    dose = np.array([0.0, 0.0, 0.5, 1, 2, 4])
    runs = {"dose": dose, "loss": Dose().evaluate([3.0, 0.7], dose=dose)}
    fit = isoloss.fit(Dose(), runs, draws=0, sensitivity=False)
    np.testing.assert_allclose(fit.theta, [3.0, 0.7], rtol=1e-6)
    value, slopes = Dose().elasticities(fit.theta, {"dose": np.array([0.0, 2.0])})
    assert slopes["dose"][0] == 0
    assert value[0] == pytest.approx(3.0)


def test_auto_leaves_laws_of_named_columns_out():
    rng = np.random.default_rng(0)
    code = rng.uniform(0.1, 0.9, 40)
    tokens = np.geomspace(1e8, 1e11, 40)
    runs = {"tokens": tokens, "loss": 2 + 400 * tokens**-0.3 + 1e-3 * rng.normal(size=40),
            "share_code": code, "share_web": 0.5 * (1 - code)}  # fmt: skip
    _, added, left = named("auto", isoloss.read(runs).derive())
    assert "by name" in left["mixing(share_code, share_web)"]
    assert not any(law.may_be_zero for law in added)


# --- filtering --------------------------------------------------------------------------------------


def union(p, samples, sizes):
    """The paper's mixture of equal pools, epoch by epoch: mean exponents, p times the half-lives."""
    chosen = [(p[f"b_{n}"], p[f"tau_{n}"]) for n, size in sizes.items() if size > 0]
    total, many = sum(sizes.values()), len(chosen)
    before = min(samples, total)
    left, epoch = (before / p["n_0"]) ** np.mean([b for b, _ in chosen]), 1
    while before < samples:
        epoch += 1
        now = min(samples, epoch * total)
        worth = np.mean([b * 0.5 ** ((epoch - 1) / (many * tau)) for b, tau in chosen])
        left *= (now / before) ** worth
        before = now
    return p["d"] + left


POOLS = {"n_0": 4e6, "d": 0.1, "b_best": -0.25, "tau_best": 2.0, "b_good": -0.20, "tau_good": 4.0,
         "b_rest": -0.15, "tau_rest": 6.0}  # fmt: skip
SIZE = 12.8e6
THREE = DataFiltering(("pool_best", "pool_good", "pool_rest"))


@pytest.mark.parametrize("taken", [(1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1)])
@pytest.mark.parametrize("samples", [1e6, 12.8e6, 20e6, 38.4e6, 1e8, 6.4e8])
def test_mixtures_of_equal_pools_are_the_paper_s(taken, samples):
    sizes = {name: SIZE * on for name, on in zip(THREE.names_of_pools, taken, strict=True)}
    x = {f"pool_{name}": size for name, size in sizes.items()}
    got = float(THREE.evaluate(THREE.theta(POOLS), samples=samples, **x))
    assert got == pytest.approx(union(POOLS, samples, sizes), rel=1e-13)


def test_a_pool_left_out_is_not_there():
    one = DataFiltering()
    theta = [POOLS["n_0"], POOLS["d"], POOLS["b_good"], POOLS["tau_good"]]
    n = np.geomspace(1e6, 1e9, 30)
    several = THREE.evaluate(THREE.theta(POOLS), samples=n, pool_best=0, pool_good=SIZE, pool_rest=0)
    np.testing.assert_allclose(several, one.evaluate(theta, samples=n, pool=SIZE), rtol=1e-13)


def test_error_is_continuous_and_bends_at_the_end_of_an_epoch():
    law = DataFiltering()
    theta = [4e6, 0.1, -0.16, 3.0]
    for epochs in (1, 2, 5):
        sides = law.evaluate(theta, samples=epochs * SIZE * (1 + np.array([-1e-9, 0, 1e-9])), pool=SIZE)
        np.testing.assert_allclose(sides, sides[1], rtol=1e-8)
        near = {"samples": epochs * SIZE * np.array([1 - 1e-6, 1 + 1e-6]), "pool": np.full(2, SIZE)}
        value, slopes = law.elasticities(theta, near)
        exponents = slopes["samples"] / (value - 0.1)
        want = [-0.16 * 0.5 ** ((epochs - 1) / 3.0), -0.16 * 0.5 ** (epochs / 3.0)]
        np.testing.assert_allclose(exponents, want, rtol=1e-9)


def test_filtering_refuses_no_pool_and_endless_repetition():
    with pytest.raises(ValueError, match="above 0 and at most 10,000 epochs"):
        THREE.evaluate(THREE.theta(POOLS), samples=1e6, pool_best=0, pool_good=0, pool_rest=0)
    with pytest.raises(ValueError, match="at most 10,000 epochs"):
        DataFiltering().evaluate([1e6, 0.1, -0.2, 2], samples=1e9, pool=1e4)
    with pytest.raises(ValueError, match="finite and above 0"):
        DataFiltering().evaluate([1e6, 0.1, -0.2, 2], samples=1e9, pool=0)
    with pytest.raises(ValueError, match="each once"):
        get("data-filtering(pool_a, pool_a)")


def test_single_pools_tell_the_parameters_of_all():
    rng = np.random.default_rng(3)
    seen = np.geomspace(3e6, 3e8, 10)
    x = {
        "samples": np.tile(seen, 3),
        **{f"pool_{n}": np.where(np.repeat(np.arange(3), 10) == j, SIZE, 0.0)
           for j, n in enumerate(THREE.names_of_pools)},
    }  # fmt: skip
    error = THREE.evaluate(THREE.theta(POOLS), **x) * np.exp(1e-3 * rng.normal(size=30))
    fit = isoloss.fit(
        THREE, {**x, "error": error}, objective=isoloss.LeastSquares(residual="log"), draws=200,
        uncertainty="laplace", sensitivity=False, constraints=isoloss.Constraints(fix={"d": 0.1}),
    )  # fmt: skip
    assert fit.law.spec == "data-filtering(pool_best, pool_good, pool_rest)"
    for name, truth in POOLS.items():
        if name != "d":
            found = fit.parameters[name]
            assert abs(math.log(abs(found.value / truth))) < 4 * found.stderr / abs(truth) + 1e-3, name


# --- noisy samples ----------------------------------------------------------------------------------


def mean_of_normals(noise=0.0, seed=0, repeats=4000):
    """Squared error of the best weighted mean of clean and noisy normals: closed form, or simulated."""
    s2, sigma2 = 1.5, 6.0
    clean, noisy = (
        g.ravel().astype(float) for g in np.meshgrid([0, 20, 60, 200, 600], [0, 30, 100, 300, 1000])
    )
    clean, noisy = clean[1:], noisy[1:]  # not both 0
    variance = 1 / (clean / s2 + noisy / (s2 + sigma2))
    if noise:
        rng = np.random.default_rng(seed)
        # The squared error of the estimate is its variance times chi-squared of one degree of freedom.
        variance = variance * rng.chisquare(repeats, len(variance)) / repeats
    return {"samples_clean": clean, "samples_noisy": noisy, "error": variance}, s2, sigma2


def test_the_price_of_a_noisy_sample_of_a_mean_is_exact():
    runs, s2, sigma2 = mean_of_normals()
    law = get("ambient")
    price = (s2 + sigma2) / s2
    x = {axis: runs[axis] for axis in law.axes}
    np.testing.assert_allclose(law.evaluate([1e-12, s2, 1.0, price], **x), runs["error"], rtol=1e-6)


def test_simulated_means_tell_the_price():
    rng = np.random.default_rng(5)
    s2, sigma2, clean, noisy = 1.5, 6.0, 40, 160
    # Straight from samples, for one point: the weighted mean of all.
    weight = np.concatenate([np.full(clean, 1 / s2), np.full(noisy, 1 / (s2 + sigma2))])
    sd = 1 / np.sqrt(weight)
    estimates = (rng.normal(size=(4000, clean + noisy)) * sd) @ weight / weight.sum()
    law = get("ambient")
    told = float(law.evaluate([1e-12, s2, 1.0, (s2 + sigma2) / s2], samples_clean=clean, samples_noisy=noisy))
    measured = float(np.mean(estimates**2))
    assert abs(measured - told) < 4 * told * math.sqrt(2 / 4000)

    runs, s2, sigma2 = mean_of_normals(noise=1.0, seed=6)
    fit = isoloss.fit(
        law, runs, objective=isoloss.LeastSquares(residual="log"), draws=400, sensitivity=False,
        constraints=isoloss.Constraints(fix={"E": 1e-9}),
    )  # fmt: skip
    found = fit.parameters["price"]
    assert found.low - found.stderr < (s2 + sigma2) / s2 < found.high + found.stderr
    assert found.high - found.low < 1.0
    for at in ({"samples_clean": 100.0, "samples_noisy": 0.0}, {"samples_clean": 0.0, "samples_noisy": 50.0}):
        margin = noisy_price(fit, **at)
        assert margin.value == pytest.approx(found.value, rel=1e-12)
        assert (margin.low, margin.high) == (pytest.approx(found.low), pytest.approx(found.high))


def test_either_kind_may_be_absent_but_not_both():
    law = get("ambient")
    got = law.evaluate([1.0, 8.0, 0.5, 4.0], samples_clean=[4, 0], samples_noisy=[0, 16])
    np.testing.assert_allclose(got, 1 + 8 / 2, rtol=1e-14)
    with pytest.raises(ValueError, match="above 0"):
        law.evaluate([1.0, 8.0, 0.5, 4.0], samples_clean=0, samples_noisy=0)


class Wearing(Law):
    """Noisy samples saturate: n_eff = n_c + w n_0 (1 - exp(-n_n/n_0)), so their price grows as exp(n_n/n_0)."""

    axes = ("samples_noisy", "samples_clean")
    target = "error"
    may_be_zero = ("samples_clean", "samples_noisy")
    parameters = (positive("B", 1e-3, 1e6), positive("w", 1e-3, 1.0), positive("n_0", 1.0, 1e6))

    def value(self, theta, x):
        size, w, place = theta
        return size / (x["samples_clean"] + w * place * (1 - np.exp(-x["samples_noisy"] / place)))


def test_the_price_may_change_with_the_numbers():
    clean, noisy = (g.ravel() for g in np.meshgrid([10.0, 100, 400], [0.0, 50, 200, 800]))
    x = {"samples_clean": clean, "samples_noisy": noisy}
    runs = {**x, "error": Wearing().evaluate([5.0, 0.4, 300.0], **x)}
    fit = isoloss.fit(Wearing(), runs, draws=50, sensitivity=False)
    for at in (0.0, 150.0, 900.0):
        got = noisy_price(fit, samples_clean=20, samples_noisy=at).value
        assert got == pytest.approx(math.exp(at / 300.0) / 0.4, rel=1e-5)
    power = isoloss.fit(
        "power", {"tokens": [1, 2, 4, 8], "loss": [8, 4, 2, 1.0]}, draws=20, sensitivity=False
    )
    with pytest.raises(ValueError, match="samples_clean and samples_noisy"):
        noisy_price(power, samples_clean=1, samples_noisy=1)


# --- the check of a table ---------------------------------------------------------------------------


def test_the_check_knows_zeros_and_signs():
    a = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    runs = isoloss.read({"share_a": a, "share_b": 1 - a, "loss": 3 - a, "gain": a - 2})
    plain = {f.code for f in isoloss.check(runs, axes=["share_a", "share_b"])}
    assert {"nonpositive-count"} <= plain
    shares = ["share_a", "share_b"]
    assert isoloss.check(runs, axes=shares, may_be_zero=shares) == []
    signed = isoloss.check(runs, axes=shares, target="gain", may_be_zero=shares, signed=True)
    assert signed == []
    assert "nonpositive-loss" in {f.code for f in isoloss.check(runs, axes=shares, target="gain")}
