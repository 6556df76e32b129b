"""The laws as their papers print them, on complex numbers, so that a complex step differentiates them.

Squire & Trapp 1998, SIAM Review 40(1): ``f'(x) = Im f(x + ih)/h`` has no cancellation, so h = 1e-30 gives
every digit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Values = Mapping[str, Any]
STEP = 1e-30


def power(p: Values, x: Values) -> Any:
    return p["b"] * x["tokens"] ** -p["c"]


def hestness(p: Values, x: Values) -> Any:
    return p["gamma"] + p["alpha"] * x["tokens"] ** -p["beta"]


def henighan(p: Values, x: Values) -> Any:
    return p["L_inf"] + (p["x_0"] / x["params_nonembedding"]) ** p["alpha"]


def hoffmann(p: Values, x: Values) -> Any:
    return p["E"] + p["A"] / x["params"] ** p["alpha"] + p["B"] / x["tokens"] ** p["beta"]


def gadre(p: Values, x: Values) -> Any:
    compute, ratio = 6 * x["params"] * x["tokens"], x["tokens"] / x["params"]
    eta = p["eta"]
    return p["E"] + (p["a"] * ratio**eta + p["b"] * ratio**-eta) * compute**-eta


def gadre_untied(p: Values, x: Values) -> Any:
    compute, ratio = 6 * x["params"] * x["tokens"], x["tokens"] / x["params"]
    return p["E"] + p["a"] * (compute / ratio) ** -p["eta_1"] + p["b"] * (compute * ratio) ** -p["eta_2"]


def kaplan_n(p: Values, x: Values) -> Any:
    return (p["N_c"] / x["params_nonembedding"]) ** p["alpha_N"]


def kaplan_d(p: Values, x: Values) -> Any:
    return (p["D_c"] / x["tokens"]) ** p["alpha_D"]


def kaplan_nd(p: Values, x: Values) -> Any:
    size = (p["N_c"] / x["params_nonembedding"]) ** (p["alpha_N"] / p["alpha_D"])
    return (size + p["D_c"] / x["tokens"]) ** p["alpha_D"]


def broken(p: Values, x: Values, breaks: int) -> Any:
    out = p["b"] * x["tokens"] ** -p["c_0"]
    for i in range(1, breaks + 1):
        bend = 1 + (x["tokens"] / p[f"d_{i}"]) ** (1 / p[f"f_{i}"])
        out = out * bend ** (-p[f"c_{i}"] * p[f"f_{i}"])
    return p["a"] + out


def m3(p: Values, x: Values) -> Any:
    return p["b"] * (1 / x["tokens"] + p["g"]) ** p["c"]


def m4(p: Values, x: Values) -> Any:
    """Bisection between e_inf and e_0 on the real parts, then Newton on the equation as it stands."""

    def gap(loss: Any, q: Any, tokens: Any) -> Any:
        return (loss - q["e_inf"]) / (q["e_0"] - loss) ** q["alpha"] - q["b"] * tokens ** -q["c"]

    real = {name: np.real(value) for name, value in p.items()}
    tokens = np.real(x["tokens"])
    low, high = np.full_like(tokens, real["e_inf"]), np.full_like(tokens, real["e_0"])
    with np.errstate(divide="ignore"):
        for _ in range(200):
            middle = (low + high) / 2
            above = gap(middle, real, tokens) > 0
            low, high = np.where(above, low, middle), np.where(above, middle, high)
    loss = (low + high) / 2 + 0j
    for _ in range(4):
        left = (p["e_0"] - loss) ** -p["alpha"]
        slope = left + p["alpha"] * (loss - p["e_inf"]) * left / (p["e_0"] - loss)
        loss = loss - gap(loss, p, x["tokens"]) / slope
    return loss if np.any(np.imag(loss)) else np.real(loss)


def nezhurina(p: Values, x: Values) -> Any:
    return p["A"] * (x["flops"] + p["B"]) ** -p["alpha"] + p["E"]


def loss_to_error(p: Values, x: Values) -> Any:
    return p["epsilon"] - p["k"] * np.exp(-p["gamma"] * x["loss"])


def muennighoff(p: Values, x: Values) -> Any:
    n, d, unique = x["params"], x["tokens"], x["tokens_unique"]
    repeats = d / unique - 1
    data = unique + unique * p["R_D"] * (1 - np.exp(-repeats / p["R_D"]))
    # U_N: alpha A N^-alpha = beta B U_D^-beta.
    best = (p["alpha"] * p["A"] / (p["beta"] * p["B"]) * unique ** p["beta"]) ** (1 / p["alpha"])
    base = np.where(np.real(n) <= np.real(best), n, best)
    size = base + base * p["R_N"] * (1 - np.exp(-(n / base - 1) / p["R_N"]))
    return p["E"] + p["A"] / size ** p["alpha"] + p["B"] / data ** p["beta"]


FORMULAS: dict[str, Callable[[Values, Values], Any]] = {
    "broken1": lambda p, x: broken(p, x, 1),
    "broken2": lambda p, x: broken(p, x, 2),
    "gadre": gadre,
    "gadre-untied": gadre_untied,
    "henighan": henighan,
    "hestness": hestness,
    "hoffmann": hoffmann,
    "kaplan-d": kaplan_d,
    "kaplan-n": kaplan_n,
    "kaplan-nd": kaplan_nd,
    "loss-to-error": loss_to_error,
    "m3": m3,
    "m4": m4,
    "muennighoff": muennighoff,
    "nezhurina": nezhurina,
    "power": power,
}

# An interior theta of each law, near what its paper finds, and the exponents' or sizes' natural spread.
PLANTED: dict[str, dict[str, float]] = {
    "broken1": {"a": 0.4, "b": 8.0, "c_0": 0.1, "c_1": 0.3, "d_1": 3e9, "f_1": 0.3},
    "broken2": {
        "a": 0.3, "b": 20.0, "c_0": 0.12, "c_1": -0.15, "d_1": 7e8, "f_1": 0.2,
        "c_2": 0.4, "d_2": 3e10, "f_2": 0.25,
    },
    "gadre": {"E": 1.84, "a": 212.0, "b": 367.0, "eta": 0.136},
    "gadre-untied": {"E": 1.8, "a": 180.0, "b": 400.0, "eta_1": 0.15, "eta_2": 0.13},
    "henighan": {"L_inf": 2.2, "x_0": 6.3e4, "alpha": 0.2},
    "hestness": {"gamma": 1.4, "alpha": 400.0, "beta": 0.28},
    "hoffmann": {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37},
    "kaplan-d": {"D_c": 5.4e13, "alpha_D": 0.095},
    "kaplan-n": {"N_c": 8.8e13, "alpha_N": 0.076},
    "kaplan-nd": {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
    "loss-to-error": {"epsilon": 0.86, "k": 2.2, "gamma": 0.71},
    "m3": {"b": 60.0, "g": 1e-10, "c": 0.15},
    "m4": {"e_inf": 1.6, "e_0": 9.0, "alpha": 0.8, "b": 500.0, "c": 0.3},
    "muennighoff": {
        "E": 1.87, "A": 520.0, "B": 1490.0, "alpha": 0.35, "beta": 0.36, "R_N": 5.3, "R_D": 15.4,
    },
    "nezhurina": {"A": 4e6, "B": 3e18, "alpha": 0.35, "E": 0.2},
    "power": {"b": 30.0, "c": 0.11},
}  # fmt: skip

RANGES = {
    "params": (1e7, 1e10),
    "params_nonembedding": (1e6, 1e10),
    "tokens": (1e8, 3e11),
    "flops": (1e17, 1e22),
    "loss": (2.0, 6.0),
}


def points(axes: Sequence[str], n: int, seed: int) -> dict[str, np.ndarray]:
    """Log-uniform points in :data:`RANGES`; unique tokens are tokens over 1 to 30 epochs."""
    rng = np.random.default_rng(seed)
    x = {
        axis: np.exp(rng.uniform(np.log(RANGES[axis][0]), np.log(RANGES[axis][1]), n))
        for axis in axes
        if axis in RANGES
    }
    if "tokens_unique" in axes:
        x["tokens_unique"] = x["tokens"] / np.exp(rng.uniform(0, np.log(30), n))
    return x


def jitter(values: Mapping[str, float], rng: np.random.Generator, spread: float = 0.1) -> dict[str, float]:
    """Every value times a log-normal factor."""
    return {name: value * float(np.exp(spread * rng.normal())) for name, value in values.items()}


def theta_slopes(slug: str, p: Mapping[str, float], x: Values) -> dict[str, np.ndarray]:
    """``d target / d parameter`` by complex step."""
    formula = FORMULAS[slug]
    return {name: np.imag(formula({**p, name: p[name] + 1j * STEP}, x)) / STEP for name in p}


def axis_elasticities(slug: str, p: Mapping[str, float], x: Values) -> dict[str, np.ndarray]:
    """``d target / d ln axis`` by complex step."""
    formula = FORMULAS[slug]
    return {axis: np.imag(formula(p, {**x, axis: x[axis] * (1 + 1j * STEP)})) / STEP for axis in x}
