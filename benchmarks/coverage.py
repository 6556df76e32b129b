"""Do 90 % intervals hold the truth 90 % of the time, and how wide must they be for it? Twelve simulated cells.

python -m benchmarks.coverage [--sims 150] [--jobs 2] [--out docs/intervals.md]

Three laws times 9, 30, 100 and 300 runs. In every simulation the runs get fresh noise, the law is fitted, and
a run of ten times the dearest run's compute is predicted: the level of the law there, and one new run with
the same noise, outliers included. The oracle knows the form of the law and the exact density of the noise, and
samples the posterior of the parameters alone; nobody can expect to be sharper.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import isoloss
from benchmarks import page
from isoloss.comparing.scores import coverage_band, crps
from isoloss.files import write_atomically
from isoloss.fitting.constraints import Constraints
from isoloss.fitting.coordinates import coordinates
from isoloss.fitting.data import prepare
from isoloss.fitting.minimise import Problem, minimise
from isoloss.fitting.model import model_of
from isoloss.fitting.posterior import SETTLE, walk
from isoloss.laws import get

Array = np.ndarray[Any, np.dtype[Any]]

COVERAGE = 0.9
STARTS, DRAWS = 16, 400
MANY = 300  # runs: the slow cells get two fifths of the simulations

TRUTHS: dict[str, dict[str, float]] = {
    "hoffmann": {"E": 1.8172, "A": 477.84, "B": 2143.86, "alpha": 0.34731, "beta": 0.36718},
    "kaplan-nd": {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095},
    "hestness": {"alpha": 120.0, "beta": 0.25, "gamma": 1.5},
}
"""Besiroglu et al.'s refit; Kaplan et al.'s size and data law as rounded; a learning curve with a floor."""


@dataclass(frozen=True)
class Noise:
    """Log residuals: their density, and how they are drawn."""

    says: str
    draw: Callable[[np.random.Generator, Array], Array]
    log_density: Callable[[Array, Array], Array]


def _normal(r: Array, sd: Any) -> Array:
    return -0.5 * (r / sd) ** 2 - np.log(sd * math.sqrt(2 * math.pi))


def _with_outliers(says: str, sd: Callable[[Array], Array], share: float) -> Noise:
    """Normal, with a share of runs 2 to 10 % too high (stopped early, a bad rate)."""

    def draw(rng: np.random.Generator, place: Array) -> Array:
        noise = sd(place) * rng.normal(size=place.shape)
        return np.where(rng.random(place.shape) < share, rng.uniform(0.02, 0.1, place.shape), noise)

    def log_density(r: Array, place: Array) -> Array:
        off = np.where((r > 0.02) & (r < 0.1), share / 0.08, 1e-12)
        return np.log((1 - share) * np.exp(_normal(r, sd(place))) + off)

    return Noise(says, draw, log_density)


SD = 0.005


def _student(r: Array, _: Array) -> Array:
    norm = math.lgamma(2.5) - math.lgamma(2.0) - 0.5 * math.log(4 * math.pi) - math.log(SD)
    return norm - 2.5 * np.log1p((r / SD) ** 2 / 4)


NOISES: dict[int, Noise] = {
    9: Noise(
        "normal, 0.5 %", lambda rng, place: SD * rng.normal(size=place.shape), lambda r, _: _normal(r, SD)
    ),
    30: Noise(
        "Student-t with 4 degrees of freedom, scale 0.5 %",
        lambda rng, place: SD * rng.standard_t(4, size=place.shape),
        _student,
    ),
    100: _with_outliers(
        "normal, 0.5 %; 5 % of the runs 2 to 10 % too high", lambda place: SD * np.ones_like(place), 0.05
    ),
    300: _with_outliers(
        "normal, 1 % for the cheapest down to 0.25 % for the dearest; 2 % of the runs 2 to 10 % too high",
        lambda place: 0.01 * 4.0 ** -np.clip(place, 0.0, 1.0),
        0.02,
    ),
}
GRID = {9: (3, 3), 30: (6, 5), 100: (10, 10), 300: (20, 15)}

PROCEDURES: dict[str, dict[str, Any]] = {
    "default": {},
    "student-t": {"objective": isoloss.StudentT()},
}
NINE: dict[str, dict[str, Any]] = {
    f"least squares, {how}": {"objective": isoloss.LeastSquares(), "uncertainty": how}
    for how in ("posterior", "laplace", "wild", "residual", "bootstrap")
} | {"Huber 1e-3, bootstrap": {"uncertainty": "bootstrap"}}
"""The hard case, nine clean runs for five parameters, in every way."""


def design(law: str, n: int, rng: np.random.Generator) -> tuple[dict[str, Array], Array]:
    """Runs on a jittered grid, and their place between the cheapest (0) and the dearest (1) in log compute."""
    if law == "hestness":
        tokens = np.geomspace(1e8, 4e10, n) * np.exp(rng.uniform(-0.2, 0.2, n))
        cost = np.log(tokens)
        return {"tokens": tokens}, (cost - cost.min()) / np.ptp(cost)
    n_sizes, n_tokens = GRID[n]
    params, tokens = np.meshgrid(np.geomspace(5e7, 2e9, n_sizes), np.geomspace(1e9, 4e10, n_tokens))
    params = params.ravel() * np.exp(rng.uniform(-0.2, 0.2, n))
    tokens = tokens.ravel() * np.exp(rng.uniform(-0.2, 0.2, n))
    cost = np.log(params * tokens)
    return {get(law).axes[0]: params, "tokens": tokens}, (cost - cost.min()) / np.ptp(cost)


def target(law: str) -> dict[str, float]:
    """Ten times the dearest run's compute."""
    if law == "hestness":
        return {"tokens": 4e11}
    return {get(law).axes[0]: 2e9 * 10**0.5, "tokens": 4e10 * 10**0.5}


def oracle(law: str, x: dict[str, Array], y: Array, place: Array, noise: Noise, seed: int) -> Array:
    """Draws of theta for somebody who knows the law and the density of the noise."""
    form = get(law)
    data = prepare(form, isoloss.read({**x, "loss": y}))
    objective = isoloss.StudentT()
    held = coordinates(form, data.x, data.y, Constraints().resolve(form), objective)
    model = model_of(form, data.x, held.base, held.spread)
    problem = Problem(model, data.y, objective, held.low, held.high)
    ones = np.ones(len(y))
    found = minimise(problem, held.starts(STARTS), ones, caution=0.3)
    p = len(held.names)
    best = found.psi[np.argmin(found.value)][:p]
    spot = place[[int(np.flatnonzero(y == value)[0]) for value in data.y]]

    def log_posterior(psi: Array) -> Array:
        padded = np.column_stack([psi, np.zeros(len(psi))])
        outside = ((psi < held.low[:p]) | (psi > held.high[:p])).any(axis=1)
        with np.errstate(all="ignore"):
            r, state = problem.residuals(padded)
            nothing = np.zeros_like(r)
            h = model.accumulate(state, nothing, nothing + 1.0, log=True)[1]
            trace = np.trace(h, axis1=1, axis2=2)[:, None, None]
            h = np.nan_to_num(h) + (1e-12 * np.nan_to_num(trace) + 1e-290) * np.eye(p)
            out = noise.log_density(r, spot).sum(axis=1) + 0.5 * np.linalg.slogdet(h)[1]
        return np.where(outside | ~np.isfinite(out), -np.inf, out)

    rng = np.random.default_rng([seed, 7])
    jacobian = model.jacobian(best, log=True)
    spread = SD**2 * np.linalg.pinv(jacobian.T @ jacobian, rcond=1e-10)
    first = best + 0.7 * rng.multivariate_normal(np.zeros(p), spread, size=80, method="eigh")
    first = np.clip(first, held.low[:p] + 1e-9, held.high[:p] - 1e-9).reshape(2, 40, p)
    kept, _ = walk(log_posterior, first, SETTLE, 300, rng, None)
    flat = kept.reshape(-1, p)
    return held.theta(flat[np.linspace(0, len(flat) - 1, 2000).astype(int)])


@dataclass(frozen=True)
class Score:
    """One procedure in one simulation; NaN where it gave no answer."""

    resolved: bool
    held_mean: bool
    held_run: bool
    crps_mean: float
    crps_run: float


LOST = Score(False, False, False, math.nan, math.nan)


def _scored(mean: Array, run: Array, level: float, new: Array) -> Score:
    low, high = (1 - COVERAGE) / 2, (1 + COVERAGE) / 2
    a, b = np.quantile(mean, [low, high])
    c, d = np.quantile(run, [low, high])
    inside = bool(c <= new[0] <= d)
    return Score(
        True, bool(a <= level <= b), inside, float(crps(mean, np.array(level))),
        float(np.mean([crps(run, np.array(value)) for value in new])),
    )  # fmt: skip


def simulate(job: tuple[str, int, int, tuple[str, ...]]) -> dict[str, Score]:
    """One simulation of a cell: every procedure's score."""
    law, n, seed, names = job
    rng = np.random.default_rng([seed, n, sum(map(ord, law))])
    form, noise = get(law), NOISES[n]
    theta = form.theta(TRUTHS[law])
    x, place = design(law, n, rng)
    y = form.evaluate(theta, **x) * np.exp(noise.draw(rng, place))
    at = target(law)
    level = float(form.evaluate(theta, **at))
    new = level * np.exp(noise.draw(rng, np.ones(8)))
    out = {}
    for name in names:
        if name == "oracle":
            thetas = oracle(law, x, y, place, noise, seed)
            mean = form.evaluate(thetas, **at)
            run = np.repeat(mean, 4)
            run = run * np.exp(noise.draw(rng, np.ones(len(run))))
            out[name] = _scored(mean, run, level, new)
            continue
        found = isoloss.fit(
            law,
            {**x, "loss": y},
            starts=STARTS,
            draws=DRAWS,
            seed=seed,
            sensitivity=False,
            **{**PROCEDURES, **NINE}[name],
        )
        if found.result == "not-identified":
            out[name] = LOST
            continue
        mean = found.predict(**at).draws[:, 0]
        run = found.predict(of="run", **at).draws[:, 0]
        out[name] = _scored(mean, run, level, new)
    return out


def cell(
    law: str, n: int, sims: int, names: tuple[str, ...], pool: ProcessPoolExecutor
) -> dict[str, list[Score]]:
    """All simulations of one cell."""
    jobs = [(law, n, seed, names) for seed in range(sims)]
    scores: dict[str, list[Score]] = {name: [] for name in names}
    for one in pool.map(simulate, jobs, chunksize=8):
        for name, score in one.items():
            scores[name].append(score)
    return scores


def row(name: str, scores: list[Score], best: list[Score]) -> list[str]:
    """Coverage with its exact binomial band, and sharpness beside the oracle's on the same simulations."""
    kept = [i for i, score in enumerate(scores) if score.resolved]
    out = [name, f"{len(scores) - len(kept)}"]
    for what in ("mean", "run"):
        hits = sum(getattr(scores[i], f"held_{what}") for i in kept)
        low, high = coverage_band(hits, len(kept))
        mark = "" if low <= COVERAGE <= high else " (!)"
        out.append(f"{100 * hits / max(len(kept), 1):.1f} ({100 * low:.1f} to {100 * high:.1f}){mark}")
    for what in ("mean", "run"):
        own = np.mean([getattr(scores[i], f"crps_{what}") for i in kept])
        least = np.mean([getattr(best[i], f"crps_{what}") for i in kept])
        out.append(f"{own / least:.3f}")
    return out


HEAD = """
| law | runs | noise | procedure | not resolved | level covered [%] | new run covered [%] | CRPS of the level / oracle's | CRPS of a new run / oracle's |
| --- | ---: | --- | --- | ---: | --- | --- | ---: | ---: |"""


def main() -> None:
    """Run the cells and print or write the tables; cells that the file holds already are not run again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sims", type=int, default=150)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", help="LAW:N, one cell")
    parser.add_argument("--done", type=Path, default=Path("out/coverage.json"), help="finished cells")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    done = json.loads(asked.done.read_text("utf-8")) if asked.done.is_file() else {}
    band = (
        f"{asked.sims} simulations per cell, {asked.sims * 2 // 5} of {MANY} runs; in brackets the exact binomial 95 % band of the coverage. (!) marks a "
        "band that does not hold 90."
    )
    tables = []
    with ProcessPoolExecutor(asked.jobs) as pool:

        def lines(law: str, n: int, procedures: Sequence[str]) -> list[str]:
            names = ("oracle", *procedures)
            sims = asked.sims if n < MANY else asked.sims * 2 // 5
            key = f"{law}:{n}:{sims}:{','.join(procedures)}"
            if key not in done:
                began = time.time()
                scores = cell(law, n, sims, names, pool)
                done[key] = [row(name, scores[name], scores["oracle"]) for name in names]
                write_atomically(asked.done, json.dumps(done, indent=1))
                print(f"{key}: {time.time() - began:.0f} s", flush=True)
            out = [f"| {law} | {n} | {NOISES[n].says} | " + " | ".join(cells) + " |" for cells in done[key]]
            print("\n".join(out), flush=True)
            return out

        for name, cells, procedures in (
            ("coverage", [(law, n) for law in TRUTHS for n in NOISES], PROCEDURES),
            ("nine", [("hoffmann", 9)], NINE),
        ):
            wanted = [one for one in cells if asked.only in (None, f"{one[0]}:{one[1]}")]
            rows = [line for law, n in wanted for line in lines(law, n, tuple(procedures))]
            tables.append((name, "\n".join([band, HEAD, *rows])))
    for name, text in tables if asked.out else ():
        page.put(asked.out, name, text)


if __name__ == "__main__":
    main()
