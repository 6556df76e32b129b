"""Besiroglu et al. 2024: the replication of Hoffmann's approach 3, and how narrow its intervals can be."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from scipy import stats

import isoloss
from benchmarks import tables
from benchmarks.published.line import Array, Line, Section, arxiv, ends, line
from benchmarks.published.optima import closed_form

PAPER = "2404.10102"
HOFFMANN = "2203.15556"
NAMES = {"params": "params", "tokens": "tokens", "loss": "loss_nats"}
DRAWS = 4000
TAILS = [0.025, 0.975]
TENTH_TO_NINETIETH = float(2 * stats.norm.ppf(0.9))
IMPLIED = 0.001 / TENTH_TO_NINETIETH  # standard error of ``a`` behind Hoffmann et al.'s 0.454 to 0.455
SUBSAMPLES, KEPT = 100, 0.8  # Hoffmann et al.'s intervals


def sections() -> list[Section]:
    """The fit, and the rule that flags an interval."""
    about = (
        f"{arxiv(PAPER)}: 240 points read off Hoffmann et al.'s figure 4. Law `hoffmann`, the default objective "
        "(summed Huber, delta 1e-3, log residuals), 4,000 bootstraps."
    )
    fair = np.sqrt(240 / 400) * np.sqrt(1 / KEPT - 1)
    least, most = sorted(sd / IMPLIED * fair for sd in bounds())
    bound = (
        f"{arxiv(HOFFMANN)}, section 3.3, gives 0.454 to 0.455 for `a` (10th to 90th percentile). No unbiased estimate "
        "can have an interval narrower than the Cramér-Rao bound of its design and scatter; this one does. The bound "
        "here is of the 240 points, the log residuals of our fit taken as independent errors. Allowing for their more "
        f"than 400 runs and for subsamples that share most of them, the published interval is still {least:.0f} to "
        f"{most:.0f} times too narrow."
    )
    return [
        Section("Besiroglu et al. 2024", about, list(replication())),
        Section("How narrow the interval of approach 3 can be", bound, list(narrowest())),
    ]


@functools.cache
def points(outliers: bool = False) -> dict[str, Array]:
    """The 240 points, or all 245."""
    return tables.needed("chinchilla/points.csv", NAMES, None if outliers else {"outlier_excluded": "0"})


@functools.cache
def refit() -> isoloss.Fit:
    """The fit with 4,000 bootstraps."""
    return isoloss.fit("hoffmann", points(), draws=DRAWS, uncertainty="bootstrap", sensitivity=False)


def exponent(theta: Array) -> Array:
    """a = beta / (alpha + beta); theta (..., 5)."""
    found: Array = theta[..., 4] / (theta[..., 3] + theta[..., 4])
    return found


def score(theta: Array, table: dict[str, Array]) -> float:
    """The objective at given parameters."""
    law = refit().law
    mean = law.evaluate(theta, params=table["params"], tokens=table["tokens"])
    return float(np.sum(isoloss.Huber().rho(np.log(table["loss"]) - np.log(mean))))


def replication() -> Iterator[Line]:
    """Minimum, parameters, errors, intervals, outliers, tests."""
    found, law = refit(), refit().law
    stored = {"E": "1.8172", "A": "477.84", "B": "2143.86", "alpha": "0.34731", "beta": "0.36718"}
    printed = {"E": "1.8172", "A": "482.01", "B": "2085.43", "alpha": "0.3478", "beta": "0.3658"}
    yield line("objective, their best of 4,500 starts", f"{PAPER}, code", "0.00101827", found.value)
    at_stored = score(law.theta({k: float(v) for k, v in stored.items()}), points())
    at_printed = score(law.theta({k: float(v) for k, v in printed.items()}), points())
    flat = "flat valley, digits rounded: their point scores {:.2g} % above ours"
    for name, value in stored.items():
        why = flat.format(100 * (at_stored / found.value - 1))
        yield line(f"{name}, their best of 4,500 starts", f"{PAPER}, code", value, found.values[name], why)
    for name, value in printed.items():
        why = flat.format(100 * (at_printed / found.value - 1))
        yield line(name, PAPER, value, found.values[name], why)
    a, at = exponent(found.draws), float(exponent(found.theta))
    apart = abs(at - 0.5126) / float(a.std(ddof=1))
    yield line(
        "a = beta/(alpha+beta)", PAPER, "0.5126", at, f"the same valley: {apart:.2f} standard errors apart",
        tuple(np.quantile(a, [0.025, 0.975])),
    )  # fmt: skip
    yield from spread()
    yield from rejected()
    yield from with_outliers()


def spread() -> Iterator[Line]:
    """Standard errors and intervals; why: what other seeds of ours give."""
    found = refit()
    seeds = [
        found,
        *(
            isoloss.fit(
                "hoffmann", points(), draws=DRAWS, seed=seed, uncertainty="bootstrap", sensitivity=False
            )
            for seed in (1, 2)
        ),
    ]
    errors = {"E": "0.0257", "A": "124.52", "B": "1293.28", "alpha": "0.0154", "beta": "0.0206"}
    for name, value in errors.items():
        each = [one.parameters[name].stderr for one in seeds]
        why = f"another 4,000 resamples: our seeds 0 to 2 give {min(each):.4g} to {max(each):.4g}"
        yield line(f"standard error of {name}", PAPER, value, each[0], why)
    each = [float(exponent(one.draws).std(ddof=1)) for one in seeds]
    enough = len(found.y) * (0.018 / IMPLIED) ** 2
    why = f"our seeds give {min(each):.4f} to {max(each):.4f}; with 0.018 their 600,000 runs would be {enough:,.0f}"
    yield line("standard error of a", PAPER, "0.018", each[0], why)
    intervals = {
        "A": ("285", "744"),
        "B": ("1042", "5810"),
        "E": ("1.769", "1.871"),
        "alpha": ("0.317", "0.373"),
        "beta": ("0.331", "0.415"),
    }
    for name, pair in intervals.items():
        where = found.law.names.index(name)
        each = [np.ptp(np.quantile(one.draws[:, where], TAILS)) for one in seeds]
        why = f"as its standard error: seeds 0 to 2 are {min(each):,.4g} to {max(each):,.4g} wide"
        yield ends(f"95 % interval of {name}", PAPER, pair, np.quantile(found.draws[:, where], TAILS), why)
    ratio = {
        flops: np.quantile((flops / 6) / closed_form(found.draws, flops) ** 2, [0.1, 0.9])
        for flops in (1e26, 1e30)
    }
    low, high = ratio[1e30]
    yield ends(
        "tokens per parameter at 1e26 FLOP, 80 % interval", PAPER, ("4", "40"), ratio[1e26],
        f"theirs is for all budgets from 1e26 on; ours at 1e30 is {low:.0f} to {high:.0f}",
    )  # fmt: skip


def rejected() -> Iterator[Line]:
    """Whether Hoffmann's parameters can be the truth, by our bootstrap covariance."""
    found, law = refit(), refit().law
    theirs = law.theta("hoffmann-2022")
    for name, value in {"E": "2.6e-6", "beta": "1.1e-4"}.items():
        at = law.names.index(name)
        t = abs(found.theta[at] - theirs[at]) / found.parameters[name].stderr
        yield line(
            f"p that {name} is Hoffmann et al.'s", PAPER, value, float(2 * stats.t.sf(t, len(found.y) - 5)),
            f"t test at {t:.2f} of our standard errors; so far out a few per cent of the error halve p",
        )  # fmt: skip


def with_outliers() -> Iterator[Line]:
    """All 245 points."""
    table = points(outliers=True)
    found = isoloss.fit("hoffmann", table, draws=0, sensitivity=False)
    printed = {"E": "1.89", "A": "463.3", "B": "12530", "alpha": "0.345", "beta": "0.452"}
    theirs = score(found.law.theta({k: float(v) for k, v in printed.items()}), table)
    why = (
        f"ours is lower: objective {found.value:.7f}, at their printed digits {theirs:.7f}; B and beta trade"
    )
    for name, value in printed.items():
        yield line(f"{name}, with the 5 outliers", PAPER, value, found.values[name], why)


def narrowest() -> Iterator[Line]:
    """The published interval of ``a`` beside the bound, and beside its own procedure."""
    found = refit()
    centre = float(exponent(found.theta))
    gaussian, laplace = bounds()
    source = f"{HOFFMANN}, section 3.3"
    published = ("0.454", "0.455")
    half = 0.5 * TENTH_TO_NINETIETH
    for kind, sd in {"Gaussian": gaussian, "Laplace": laplace}.items():
        yield ends(
            f"a, narrowest 80 % interval, {kind} errors", source, published,
            (centre - half * sd, centre + half * sd),
            f"flagged: the bound's standard error of a is {sd:.4f}; theirs implies "
            f"{IMPLIED:.4f}",
        )  # fmt: skip
    yield ends(
        "a, by their procedure: 100 subsamples of 80 %", source, published, subsampled(),
        "their optimiser stopped early (losses averaged, Besiroglu et al. 2024); ours reaches each minimum",
    )  # fmt: skip
    yield line(
        "runs that an interval this narrow needs", f"{PAPER} (about)", "600,000",
        len(found.y) * (float(exponent(found.draws).std(ddof=1)) / IMPLIED) ** 2,
        "our bootstrap standard error, falling as 1/sqrt(runs); theirs is a round number",
    )  # fmt: skip


def bounds() -> tuple[float, float]:
    """Cramér-Rao standard errors of ``a``: Gaussian and Laplace errors of the residuals' own scale."""
    found = refit()
    _, a, b, alpha, beta = found.theta
    n, d = found.x["params"], found.x["tokens"]
    mean = found.law.evaluate(found.theta, params=n, tokens=d)
    size, data = n**-alpha, d**-beta
    slopes = np.stack([np.ones_like(n), size, data, -a * np.log(n) * size, -b * np.log(d) * data], axis=1)
    # Columns in units of the parameters: the determinant stays far from zero.
    jacobian = slopes * found.theta / mean[:, None]
    total = (alpha + beta) ** 2
    gradient = np.array([0, 0, 0, -beta / total, alpha / total]) * found.theta
    r = found.residuals
    per_unit = float(np.sqrt(gradient @ np.linalg.solve(jacobian.T @ jacobian, gradient)))
    return float(np.sqrt(np.sum(r**2) / (len(r) - 5))) * per_unit, float(np.mean(np.abs(r))) * per_unit


def subsampled() -> tuple[float, float]:
    """10th and 90th percentile of ``a`` over subsamples without replacement."""
    rng = np.random.default_rng(0)
    table = points()
    count = len(table["loss"])
    values = []
    for _ in range(SUBSAMPLES):
        kept = rng.choice(count, int(KEPT * count), replace=False)
        part = {name: column[kept] for name, column in table.items()}
        values.append(
            float(exponent(isoloss.fit("hoffmann", part, draws=0, starts=8, sensitivity=False).theta))
        )
    low, high = np.quantile(values, [0.1, 0.9])
    return float(low), float(high)
