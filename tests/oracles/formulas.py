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


def clark(p: Values, x: Values) -> Any:
    grown = x["experts"] - 1 + 1 / (1 / p["E_start"] - 1 / p["E_max"])
    experts = np.log10(1 / (1 / grown + 1 / p["E_max"]))
    size = np.log10(x["params_active"])
    return 10 ** (p["a"] * size + p["b"] * experts + p["c"] * size * experts + p["d"])


def moe_sparsity(p: Values, x: Values) -> Any:
    size, density = x["params"], x["expert_density"]
    plain = p["a"] / size ** p["alpha"] + p["b"] / x["tokens"] ** p["beta"]
    joint = p["d"] / (density ** p["delta"] * size ** p["gamma"])
    return plain + p["c"] / density ** p["lambda"] + joint + p["e"]


def critical_batch(p: Values, x: Values) -> Any:
    return p["a"] + p["b"] / x["batch_tokens"]


def critical_batch_free(p: Values, x: Values) -> Any:
    return p["a"] + p["b"] / x["batch_tokens"] ** p["alpha"]


def critical_batch_growth(p: Values, x: Values) -> Any:
    return p["b"] * x["params"] ** p["c"]


def steps_examples(p: Values, x: Values) -> Any:
    return p["S_min"] * (1 + p["B_crit"] / x["batch_tokens"])


def gradient_noise(p: Values, x: Values) -> Any:
    return p["eps_max"] / (1 + p["B_noise"] / x["batch_tokens"]) ** p["a"]


def time_transfer(p: Values, x: Values) -> Any:
    share = x["batch_tokens"] / (p["c"] * x["tokens"] ** p["q"])
    return p["eta_max"] * x["tokens"] ** p["r"] / (0.5 * (share**0.5 + share**-0.5))


def logit_growth(p: Values, x: Values) -> Any:
    u = np.log(x["params"] / 1e8)
    return np.exp(np.log(p["z"]) + p["b"] * u + p["c"] * u**2)


def step_law(p: Values, x: Values) -> Any:
    return p["c"] * x["params_nonembedding"] ** p["a"] * x["tokens"] ** p["b"]


def step_law_batch(p: Values, x: Values) -> Any:
    return p["c"] * x["tokens"] ** p["d"]


def step_law_batch_nd(p: Values, x: Values) -> Any:
    return p["c"] * x["params_nonembedding"] ** p["e"] * x["tokens"] ** p["d"]


def token_horizon(p: Values, x: Values) -> Any:
    return p["C"] * x["params"] ** -p["alpha"] * x["tokens"] ** -p["beta"]


def deepseek(p: Values, x: Values) -> Any:
    return p["c"] * x["flops"] ** -p["a"]


def deepseek_batch(p: Values, x: Values) -> Any:
    return p["c"] * x["flops"] ** p["b"]


def porian(p: Values, x: Values) -> Any:
    return p["c"] * x["params"] ** -p["a"]


def porian_batch(p: Values, x: Values) -> Any:
    return p["c"] * x["params"] ** p["b"]


def kaplan_ns(p: Values, x: Values) -> Any:
    size = (p["N_c"] / x["params_nonembedding"]) ** p["alpha_N"]
    return size + (p["S_c"] / x["steps_min"]) ** p["alpha_S"]


def kaplan_bcrit(p: Values, x: Values) -> Any:
    return p["B_star"] / x["loss"] ** (1 / p["alpha_B"])


def su_unraveling(p: Values, x: Values) -> Any:
    """Bisection on the real parts, then Newton on the equation as it stands."""

    def right(loss: Any, q: Any, y: Any) -> Any:
        lag = 1 + q["B_star"] / loss ** (1 / q["alpha_B"]) / y["batch_tokens"]
        size = (q["N_c"] / y["params_nonembedding"]) ** q["alpha_N"]
        return size + (q["S_c"] * lag / y["step"]) ** q["alpha_S"]

    real, points = ({name: np.real(value) for name, value in entry.items()} for entry in (p, x))
    low = kaplan_ns(real, {**points, "steps_min": points["step"]})
    high = right(low, real, points)  # the right side falls: the root is below its value at the lower end
    for _ in range(200):
        middle = (low + high) / 2
        above = middle > right(middle, real, points)
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    loss = (low + high) / 2 + 0j
    for _ in range(4):
        slope = np.imag(right(np.real(loss) + 1j * STEP, real, points)) / STEP
        loss = loss - (loss - right(loss, p, x)) / (1 - slope)
    return loss if np.any(np.imag(loss)) else np.real(loss)


def task_law(p: Values, x: Values) -> Any:
    return np.exp(-p["c"] * x["params"] ** -p["alpha"])


def vocabulary(p: Values, x: Values) -> Any:
    size = p["A_1"] / x["params_nonembedding"] ** p["alpha_1"] + p["A_2"] / x["vocab_params"] ** p["alpha_2"]
    return -p["E"] + size + p["B"] / x["tokens"] ** p["beta"]


def mixing(p: Values, x: Values) -> Any:
    code, web = (np.log(p[f"K_{name}"]) * x[f"share_{name}"] for name in ("code", "web"))
    return p["c"] + np.exp(code) * np.exp(web)


def data_filtering(p: Values, x: Values) -> Any:
    """Epoch by epoch, row by row, as the paper's product."""
    out = []
    for seen, pool in zip(*np.broadcast_arrays(x["samples"], x["pool"]), strict=True):
        before = min(seen, pool, key=np.real)
        left, epoch = (before / p["n_0"]) ** p["b"], 1
        while np.real(before) < np.real(seen):
            epoch += 1
            now = min(seen, epoch * pool, key=np.real)
            left = left * (now / before) ** (p["b"] * 0.5 ** ((epoch - 1) / p["tau"]))
            before = now
        out.append(p["d"] + left)
    return np.array(out)


def ambient(p: Values, x: Values) -> Any:
    return p["E"] + p["B"] / (x["samples_clean"] + x["samples_noisy"] / p["price"]) ** p["beta"]


FORMULAS: dict[str, Callable[[Values, Values], Any]] = {
    "ambient": ambient,
    "broken1": lambda p, x: broken(p, x, 1),
    "broken2": lambda p, x: broken(p, x, 2),
    "clark": clark,
    "critical-batch": critical_batch,
    "critical-batch-free": critical_batch_free,
    "critical-batch-growth": critical_batch_growth,
    "data-filtering": data_filtering,
    "deepseek": deepseek,
    "deepseek-batch": deepseek_batch,
    "gadre": gadre,
    "gadre-untied": gadre_untied,
    "gradient-noise": gradient_noise,
    "henighan": henighan,
    "hestness": hestness,
    "hoffmann": hoffmann,
    "kaplan-bcrit": kaplan_bcrit,
    "kaplan-d": kaplan_d,
    "kaplan-n": kaplan_n,
    "kaplan-nd": kaplan_nd,
    "kaplan-ns": kaplan_ns,
    "logit-growth": logit_growth,
    "loss-to-error": loss_to_error,
    "m3": m3,
    "m4": m4,
    "mixing": mixing,
    "moe-sparsity": moe_sparsity,
    "muennighoff": muennighoff,
    "nezhurina": nezhurina,
    "porian": porian,
    "porian-batch": porian_batch,
    "power": power,
    "step-law": step_law,
    "step-law-batch": step_law_batch,
    "step-law-batch-nd": step_law_batch_nd,
    "steps-examples": steps_examples,
    "su-unraveling": su_unraveling,
    "task-law": task_law,
    "time-transfer": time_transfer,
    "token-horizon": token_horizon,
    "vocabulary": vocabulary,
}

# An interior theta of each law, near what its paper finds, and the exponents' or sizes' natural spread.
PLANTED: dict[str, dict[str, float]] = {
    "ambient": {"E": 1.5, "B": 600.0, "beta": 0.45, "price": 1.6},
    "broken1": {"a": 0.4, "b": 8.0, "c_0": 0.1, "c_1": 0.3, "d_1": 3e9, "f_1": 0.3},
    "broken2": {
        "a": 0.3, "b": 20.0, "c_0": 0.12, "c_1": -0.15, "d_1": 7e8, "f_1": 0.2,
        "c_2": 0.4, "d_2": 3e10, "f_2": 0.25,
    },
    "clark": {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "E_start": 1.85, "E_max": 314.0},
    "critical-batch": {"a": 1500.0, "b": 2e9},
    "critical-batch-free": {"a": 1500.0, "b": 2e9, "alpha": 1.04},
    "critical-batch-growth": {"b": 72.0, "c": 0.47},
    "data-filtering": {"n_0": 4e6, "d": 0.1, "b": -0.16, "tau": 6.7},
    "deepseek": {"c": 0.3118, "a": 0.1250},
    "deepseek-batch": {"c": 0.2920, "b": 0.3271},
    "gadre": {"E": 1.84, "a": 212.0, "b": 367.0, "eta": 0.136},
    "gadre-untied": {"E": 1.8, "a": 180.0, "b": 400.0, "eta_1": 0.15, "eta_2": 0.13},
    "gradient-noise": {"eps_max": 3e-3, "B_noise": 6e5, "a": 0.8},
    "henighan": {"L_inf": 2.2, "x_0": 6.3e4, "alpha": 0.2},
    "hestness": {"gamma": 1.4, "alpha": 400.0, "beta": 0.28},
    "hoffmann": {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37},
    "kaplan-bcrit": {"B_star": 2e8, "alpha_B": 0.21},
    "kaplan-d": {"D_c": 5.4e13, "alpha_D": 0.095},
    "kaplan-n": {"N_c": 8.8e13, "alpha_N": 0.076},
    "kaplan-nd": {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
    "kaplan-ns": {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},
    "logit-growth": {"z": 60.0, "b": 0.6, "c": 0.05},
    "loss-to-error": {"epsilon": 0.86, "k": 2.2, "gamma": 0.71},
    "m3": {"b": 60.0, "g": 1e-10, "c": 0.15},
    "m4": {"e_inf": 1.6, "e_0": 9.0, "alpha": 0.8, "b": 500.0, "c": 0.3},
    "mixing": {"c": 2.6, "K_code": 0.06, "K_web": 1.8},
    "moe-sparsity": {
        "e": 0.94, "a": 16600.0, "b": 5460.0, "c": 0.46, "d": 17.3,
        "alpha": 0.596, "beta": 0.395, "lambda": -0.167, "delta": 0.160, "gamma": 0.160,
    },
    "muennighoff": {
        "E": 1.87, "A": 520.0, "B": 1490.0, "alpha": 0.35, "beta": 0.36, "R_N": 5.3, "R_D": 15.4,
    },
    "nezhurina": {"A": 4e6, "B": 3e18, "alpha": 0.35, "E": 0.2},
    "porian": {"c": 3.7, "a": 0.36},
    "porian-batch": {"c": 0.7576, "b": 0.703},
    "power": {"b": 30.0, "c": 0.11},
    "step-law": {"c": 1.79, "a": -0.713, "b": 0.307},
    "step-law-batch": {"c": 0.58, "d": 0.571},
    "step-law-batch-nd": {"c": 100.0, "e": -0.25, "d": 0.6},
    "steps-examples": {"S_min": 1500.0, "B_crit": 1.3e6},
    "su-unraveling": {
        "N_c": 6.5e13, "S_c": 2.1e3, "B_star": 2e8, "alpha_N": 0.077, "alpha_S": 0.76, "alpha_B": 0.21,
    },
    "task-law": {"c": 800.0, "alpha": 0.35},
    "time-transfer": {"eta_max": 4e-3, "r": -0.02, "c": 2e-5, "q": 1.03},
    "token-horizon": {"C": 400.0, "alpha": 0.23, "beta": 0.32},
    "vocabulary": {
        "E": 5.5, "A_1": 870.0, "A_2": 2000.0, "B": 1.4e4, "alpha_1": 0.45, "alpha_2": 0.67, "beta": 0.44,
    },
}  # fmt: skip

RANGES = {
    "params": (1e7, 1e10),
    "params_nonembedding": (1e6, 1e10),
    "params_active": (1e7, 1e10),
    "experts": (1, 512),
    "expert_density": (0.02, 1),
    "tokens": (1e8, 3e11),
    "flops": (1e17, 1e22),
    "loss": (2.0, 6.0),
    "batch_tokens": (2e4, 2e7),
    "step": (1e3, 1e5),
    "steps_min": (1e3, 1e5),
    "vocab_params": (1e6, 3e8),
    "samples": (1e6, 1e9),
    "samples_clean": (1e3, 1e6),
    "samples_noisy": (1e3, 1e6),
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
    if "pool" in axes:
        x["pool"] = x["samples"] / np.exp(rng.uniform(np.log(0.3), np.log(30), n))
    shares = [axis for axis in axes if axis.startswith("share_")]
    x |= dict(zip(shares, rng.dirichlet(np.ones(len(shares)), n).T, strict=True)) if shares else {}
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
