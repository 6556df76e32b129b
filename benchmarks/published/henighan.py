"""Henighan et al. 2020: constants whose runs are not public: evaluated, planted, checked for consistency."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

import isoloss
from benchmarks.published.line import Line, Section, arxiv, line
from isoloss.laws.henighan import Henighan
from isoloss.laws.law import Law
from isoloss.laws.power import Power

PAPER = "2010.14701"
PF_DAY = 8.64e19
# Domain -> (L_inf, x_0, alpha) of L(N), of L(C) with C in PF-days, and the exponent of N_opt(C), as printed.
PRINTED = {
    "language": ((0.0, 1.47e14, 0.070), (0.0, 3.47e8, 0.048), "0.73"),
    "image-8x8": ((3.12, 8.0e1, 0.24), (3.13, 1.8e-8, 0.19), "0.64"),
    "image-16x16": ((2.64, 2.8e2, 0.22), (2.64, 1.6e-8, 0.16), "0.75"),
    "image-32x32": ((2.20, 6.3e1, 0.13), (2.21, 3.6e-9, 0.1), "0.65"),
    "image-vq-16x16": ((3.99, 2.7e4, 0.13), (4.09, 6.1e-7, 0.11), "0.64"),
    "image-vq-32x32": ((3.07, 1.9e4, 0.14), (3.17, 2.6e-6, 0.12), "0.7"),
    "video-vq": ((1.01, 3.7e4, 0.24), (0.95, 2.2e-5, 0.14), "0.71"),
    "math-extrapolate": ((0.28, 1.1e4, 0.16), (0.14, 1.4e-5, 0.17), "0.69"),
}
SIZES = np.geomspace(1e5, 1e9, 13)
NOISE = 0.002


def sections() -> list[Section]:
    """Evaluation, planted recovery, and whether the exponents agree with each other."""
    return [formula(), planted(), exponents()]


def formula() -> Section:
    """The law at the printed constants."""
    about = (
        f"{arxiv(PAPER)}. **No public table**, so nothing here is a refit. The middle column is the printed formula at "
        "the printed constants, worked out with plain arithmetic; ours is the law `henighan`, or `power` for language, "
        "which has no floor (compute in FLOPs)."
    )
    return Section("Henighan et al. 2020, the formula", about, list(evaluated()))


def planted() -> Section:
    """The printed constants found again in simulated runs."""
    about = (
        f"**Simulated**: the printed constants of {arxiv(PAPER)} planted in {len(SIZES)} sizes from 1e5 to 1e9 parameters "
        f"with {100 * NOISE:.1f} % scatter of the loss, and fitted back. In brackets the 90 % interval."
    )
    return Section("Henighan et al. 2020, planted constants", about, list(recovered()))


def exponents() -> Section:
    """The printed exponents against each other."""
    about = (
        f"{arxiv(PAPER)}. If the loss at the frontier falls as both `N_opt^-alpha_N` and `C^-alpha_C` above one floor, N_opt "
        "grows as `C^(alpha_C/alpha_N)`. The isoloss column is that ratio of printed exponents, not a fit; in brackets "
        "what their rounding allows."
    )
    return Section("Henighan et al. 2020, exponents against each other", about, list(ratios()))


def evaluated() -> Iterator[Line]:
    """The law at one size and one compute per domain."""
    source = "formula at the printed constants"
    for name, (size, compute, _) in PRINTED.items():
        for (floor, place, alpha), axis, at, unit, what in (
            (size, "params_nonembedding", 1e8, 1.0, "1e8 parameters"),
            (compute, "flops", PF_DAY, PF_DAY, "1 PF-day"),
        ):
            if floor:
                law: Law = Henighan(axis)
                theta = law.theta({"L_inf": floor, "x_0": place * unit, "alpha": alpha})
            else:
                law = Power(axis)
                theta = law.theta({"b": (place * unit) ** alpha, "c": alpha})
            said = floor + (at / unit / place) ** -alpha
            yield line(
                f"L at {what}, {name}", source, f"{said:.6f}", float(law.evaluate(theta, **{axis: at}))
            )


def recovered() -> Iterator[Line]:
    """Simulated runs at the printed constants."""
    law = Henighan()
    for name, ((floor, place, alpha), _, _) in PRINTED.items():
        if not floor:
            continue
        truth = {"L_inf": floor, "x_0": place, "alpha": alpha}
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        loss = law.evaluate(law.theta(truth), params_nonembedding=SIZES)
        loss = loss * np.exp(rng.normal(0.0, NOISE, len(SIZES)))
        found = isoloss.fit(
            law, {"params_nonembedding": SIZES, "loss": loss}, draws=200, sensitivity=False
        ).parameters
        for parameter in ("L_inf", "alpha"):
            got, value = found[parameter], truth[parameter]
            holds = "holds" if got.low <= value <= got.high else "does not hold"
            yield line(
                f"{parameter}, {name}", "simulated", f"{value:.2f}", got.value,
                f"scatter; the interval {holds} the planted value", (got.low, got.high),
            )  # fmt: skip


def ratios() -> Iterator[Line]:
    """alpha_C / alpha_N beside the printed exponent of N_opt."""
    for name, ((floor, _, alpha), (floor_c, _, alpha_c), printed) in PRINTED.items():
        low, high = (alpha_c - 0.005) / (alpha + 0.005), (alpha_c + 0.005) / (alpha - 0.005)
        inside = low <= float(printed) <= high
        why = (
            "the rounding of the two exponents allows it"
            if inside
            else "more than rounding: L(C) was forced below its frontier"
        )
        if floor != floor_c:
            why += f"; floors differ ({floor} and {floor_c})"
        yield line(f"exponent of N_opt(C), {name}", PAPER, printed, alpha_c / alpha, why, (low, high))
