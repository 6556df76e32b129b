"""The parts of composed laws as their papers print them, and what the suite over their registries needs to know.

A new part is tested by existing: its formula goes into ``PART_FORMULAS``, its example into ``PLANTED_PARTS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Values = Mapping[str, Any]

BASES: Mapping[str, Mapping[str, float]] = {
    "hoffmann": {"E": 2.0, "A": 400.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37},
}
"""Planted values of the bases."""

LEVELS: Mapping[str, Sequence[float]] = {"params": (3e7, 1.1e8, 4e8), "tokens": (1.5e9, 6e9, 2.6e10)}
"""The base's axes of a planted table: a grid over these and the part's own levels."""


@dataclass(frozen=True)
class Planted:
    """One part with a known truth.

    Attributes:
        values: its own parameters, under its own names (without the piece in front).
        levels: column -> its levels in a planted table, at which the part is defined; random points lie between
            the extremes.
        shares: columns whose levels are shares of an axis of the base: ``{"tokens_unique": "tokens"}``.
        reference: columns and the level at which the part changes nothing (a share where it is in ``shares``);
            all of them together; empty where only an absent column does.
        falls, rises: columns along which the target is claimed never to rise, never to fall.
        held: own parameters fixed at their planted values when the others are recovered.
        base: whose planted values are in ``BASES``.
        units: whether a fit means the same when `params` are counted in thousands.
    """

    values: Mapping[str, float]
    levels: Mapping[str, Sequence[float]]
    shares: Mapping[str, str] = field(default_factory=dict)
    reference: Mapping[str, float] = field(default_factory=dict)
    falls: Sequence[str] = ()
    rises: Sequence[str] = ()
    held: Sequence[str] = ()
    base: str = "hoffmann"
    units: bool = True


def data_constrained(p: Values, x: Values) -> Any:
    """Muennighoff et al. 2023: D'/D."""
    seen = np.minimum(x["tokens_unique"], x["tokens"])
    repeats = x["tokens"] / seen - 1
    return (seen + seen * p["R_D"] * (1 - np.exp(-repeats / p["R_D"]))) / x["tokens"]


def excess_params(p: Values, x: Values) -> Any:
    """Muennighoff et al. 2023: N'/N; U_N solves alpha A N^-alpha = beta B U^-beta."""
    seen = np.minimum(x["tokens_unique"], x["tokens"])
    best = (p["alpha"] * p["A"] / (p["beta"] * p["B"]) * seen ** p["beta"]) ** (1 / p["alpha"])
    base = np.minimum(x["params"], best)
    repeats = x["params"] / base - 1
    return (base + base * p["R_N"] * (1 - np.exp(-repeats / p["R_N"]))) / x["params"]


def float_quantisation(p: Values, x: Values) -> Any:
    """Sun et al. 2025: the joint term."""
    bits = (x["exponent_bits"] + 0.5) ** p["delta"] * (x["mantissa_bits"] + 0.5) ** p["nu"]
    return (
        x["tokens"] ** p["beta"] / x["params"] ** p["alpha"] * np.log2(x["scale_block"]) / (p["gamma"] * bits)
    )


def lr_batch(p: Values, x: Values) -> Any:
    """Rate and batch off their best: two bowls of exp in logs."""

    def bowl(z, g):
        return 2 * (np.exp(g * z) - 1 - g * z) / g**2

    size, tokens = np.log(x["params"] / 1e9), np.log(x["tokens"] / 1e10)
    best_lr = p["eta_1"] * np.exp(p["a_N"] * size + p["a_D"] * tokens)
    best_batch = p["batch_1"] * np.exp(p["b_N"] * size + p["b_D"] * tokens)
    u, v = np.log(x["lr"] / best_lr), np.log(x["batch_tokens"] / best_batch)
    return p["k_lr"] * bowl(u - p["s"] * v, p["g_lr"]) + p["k_batch"] * bowl(v, p["g_batch"])


def parscale(p: Values, x: Values) -> Any:
    """Chen et al. 2025, eq. 5: N_eff/N."""
    return p["k"] * np.log(x["streams"]) + 1


def parscale_theory(p: Values, x: Values) -> Any:
    """Chen et al. 2025, eq. 4: P^(1/alpha) DIVERSITY."""
    diversity = ((x["streams"] - 1) * p["rho"] + 1) ** (-1 / p["alpha"])
    return x["streams"] ** (1 / p["alpha"]) * diversity


def precision(p: Values, x: Values) -> Any:
    """Kumar et al. 2024: N_eff/N."""
    out = 1.0
    for column, symbol in (("bits_weights", "w"), ("bits_activations", "a"), ("bits_kv", "kv")):
        if column in x:
            out = out * (1 - np.exp(p[f"n_{symbol}"] - x[column] / p[f"gamma_{symbol}"]))
    return out


def ptq(p: Values, x: Values) -> Any:
    """Kumar et al. 2024: delta_PTQ."""
    out = p["C_T"] * x["tokens"] ** p["gamma_D"] / x["params"] ** p["gamma_N"]
    out = out * np.exp(-x["bits_post"] / p["gamma_post"])
    for column, symbol in (("bits_weights", "C_w"), ("bits_activations", "C_a"), ("bits_kv", "C_kv")):
        if column in x:
            left = 1 - np.exp(-p[symbol] * (x[column] - x["bits_post"]))
            out = out * np.where(x[column] > x["bits_post"], left, 0.0)
    return out


def routed(p: Values, x: Values) -> Any:
    """Clark et al. 2022, eq. 11, of a law with alpha(E_start) = -1: N_eff = N^(alpha(E^)/alpha) (E^/E_start)^(b/alpha)."""
    grown = x["experts"] - 1 + 1 / (1 / p["E_start"] - 1 / p["E_max"])
    experts = 1 / (1 / grown + 1 / p["E_max"])
    b, c = -p["b_E"], -p["c_E"]
    a = -1 - c * np.log10(p["E_start"])
    power = (a + c * np.log10(experts)) / -1
    return x["params"] ** power * (experts / p["E_start"]) ** (b / -1) / x["params"]


def trainable_params(p: Values, x: Values) -> Any:
    """Chatelain et al. 2021: at w = 1 only what is trained counts."""
    return x["params_trainable"] ** p["w"] * x["params"] ** (1 - p["w"]) / x["params"]


PART_FORMULAS: Mapping[str, Callable[[Values, Values], Any]] = {
    "data-constrained": data_constrained,
    "excess-params": excess_params,
    "float-quantisation": float_quantisation,
    "lr-batch": lr_batch,
    "parscale": parscale,
    "parscale-theory": parscale_theory,
    "precision": precision,
    "ptq": ptq,
    "routed": routed,
    "trainable-params": trainable_params,
}
"""Slug -> formula of theta (own parameters, and the shared ones of the base) and x (its columns, and the base's axes)."""

PLANTED_PARTS: Mapping[str, Planted] = {
    "data-constrained": Planted(
        {"R_D": 8.0},
        {"tokens_unique": (0.02, 0.1, 0.5, 1.0)},
        shares={"tokens_unique": "tokens"},
        reference={"tokens_unique": 1.0},
        falls=("tokens_unique",),
    ),
    "excess-params": Planted(
        {"R_N": 4.0},
        {"tokens_unique": (0.002, 0.02, 0.2)},
        shares={"tokens_unique": "tokens"},
        falls=("tokens_unique",),
    ),
    "float-quantisation": Planted(
        {"gamma": 2e4, "delta": 3.0, "nu": 2.5},
        {"exponent_bits": (1, 2, 4), "mantissa_bits": (1, 2, 3), "scale_block": (32, 512)},
        reference={"exponent_bits": 2, "mantissa_bits": 1, "scale_block": 1},
        falls=("exponent_bits", "mantissa_bits"),
        rises=("scale_block",),
    ),
    "lr-batch": Planted(
        {
            "eta_1": 8e-4, "a_N": -0.7, "a_D": 0.3, "k_lr": 0.015, "g_lr": 0.4,
            "batch_1": 3e5, "b_N": -0.2, "b_D": 0.57, "k_batch": 0.012, "g_batch": 0.2, "s": 0.4,
        },
        {"lr": (5e-4, 1e-3, 2e-3, 4e-3), "batch_tokens": (6e4, 2e5, 6e5, 2e6)},
        units=False,
    ),
    "parscale": Planted({"k": 0.39}, {"streams": (1, 2, 4, 8)}, reference={"streams": 1}, falls=("streams",)),
    "parscale-theory": Planted({"rho": 0.9}, {"streams": (1, 2, 4, 8)}, reference={"streams": 1}, falls=("streams",)),
    "precision": Planted(
        {"gamma_w": 2.6745, "n_w": 0.3037, "gamma_a": 2.2102, "n_a": 1.4072, "gamma_kv": 0.9578, "n_kv": 2.4185},
        {"bits_weights": (4, 6, 16), "bits_activations": (4, 6, 16), "bits_kv": (4, 6, 16)},
        falls=("bits_weights", "bits_activations", "bits_kv"),
    ),
    "ptq": Planted(
        {"C_T": 0.0598, "gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_post": 0.5907, "C_w": 0.4, "C_a": 0.6, "C_kv": 0.8},
        {"bits_post": (3, 4, 6), "bits_weights": (5, 8, 16), "bits_activations": (5, 8, 16), "bits_kv": (5, 8, 16)},
        reference={"bits_post": 8, "bits_weights": 8, "bits_activations": 8, "bits_kv": 8},
        falls=("bits_post",),
        rises=("bits_weights", "bits_activations", "bits_kv"),
    ),
    "routed": Planted(
        {"b_E": 1.36, "c_E": -0.11, "E_start": 1.85, "E_max": 314.0},
        {"experts": (1, 2, 4, 16, 64, 512)},
        reference={"experts": 1},
        falls=("experts",),
        units=False,
    ),
    "trainable-params": Planted(
        {"w": 0.9},
        {"params_trainable": (0.1, 0.4, 0.7, 1.0)},
        shares={"params_trainable": "params"},
        reference={"params_trainable": 1.0},
        falls=("params_trainable",),
        units=False,
    ),
}  # fmt: skip
"""Slug -> its example, sorted."""
