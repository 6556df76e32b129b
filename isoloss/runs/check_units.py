"""takes a Subject, gives findings about units: of the loss, of counts, of FLOPs, of what a parameter is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from isoloss.runs.derive import is_measured, unit_was_stated
from isoloss.runs.finding import Bools, Finding, Floats, Subject, share
from isoloss.runs.units import PF_DAY, format_count

__all__ = ["beyond_gap", "count_unit", "flops_not_6nd", "loss_unit", "mixed_param_counts", "mixed_units"]

_HIGHEST_NATS = 13.0  # a uniform guess over 442,000 tokens; no tokenizer in use has more
_NAMED = (
    (r"ppl|perplexity", "perplexity", "loss=perplexity"),
    (r"bpb|bits_?per_?byte", "bits per byte", "loss=bits/byte"),
    (r"bpc|bits_?per_?char", "bits per character", "loss=bits/char"),
    (r"(?<![a-z0-9])bits?(?![a-z])", "bits", "loss=bits/token or loss=bits/byte"),
    (r"acc(?![a-z])|accuracy", "accuracy", ""),
    (r"percent|pct", "per cent", ""),
)
_WHY_LOSS = (
    "a law in nats has its irreducible loss and its exponents in nats: a power law of the"
    " perplexity is another law, and published values do not compare"
)


def loss_unit(s: Subject) -> Iterator[Finding]:
    """``loss-unit``: by the name of the source's column, by size, and by whether it falls with compute."""
    if not s.target_is_loss or unit_was_stated(s.runs, s.target):
        return
    values = s.values[s.target][s.good]
    named = _unit_in_name(s)
    if named is not None:
        what, unit = named
        text = f"{s.target} was read from {s.runs.names.get(s.target, s.target)!r} as "
        text += f"{s.runs.units[s.target]}; the name says {what}."
    elif len(values) >= 2 and np.median(values) > _HIGHEST_NATS:
        what, unit = "perplexity", "loss=perplexity"
        text = f"the median {s.target} is {np.median(values):.4g}; a uniform guess over 100,000 "
        text += "tokens has 11.5 nats."
    elif _rises(s):
        what, unit = "accuracy or per cent", ""
        text = f"{s.target} rises with {' and '.join(s.axes)}, from about {values.min():.3g} to "
        text += f"{values.max():.3g}."
    elif s.runs.units[s.target] == "nats/token" and _too_low(s):
        what, unit = "nats or bits per byte", "loss=nats/byte or loss=bits/byte"
        text = f"the median {s.target} of models above 100M parameters is {np.median(values):.3g}, "
        text += "below what web text reaches per token."
    else:
        return
    do = (
        f"if it is {what}, say --units {unit}"
        if unit
        else (
            f"if it is {what}, choose a loss with --columns loss=COLUMN; an accuracy is not a loss, "
            "but 1 - accuracy has laws of its own"
        )
    )
    yield Finding("loss-unit", "warning", (), s.target, text, _WHY_LOSS, do)


def _unit_in_name(s: Subject) -> tuple[str, str] | None:
    """What the source's name of the column says, where that is another unit than nats."""
    name = s.runs.names.get(s.target, s.target).lower()
    for pattern, what, unit in _NAMED:
        if re.search(pattern, name):
            return what, unit
    return None


def _rises(s: Subject) -> bool:
    """Whether the target rises with every axis that it depends on: no loss does."""
    if s.good.sum() < 6:
        return False
    target = s.values[s.target][s.good]
    correlations = [
        _rank_correlation(s.values[axis][s.good], target)
        for axis in s.axes
        if axis not in s.may_be_zero  # a share of data that does not help the target
    ]
    found = [c for c in correlations if math.isfinite(c)]
    return bool(found) and max(found) > 0.5 and min(found) > -0.1


def _rank_correlation(a: Floats, b: Floats) -> float:
    ranks = [np.unique(x, return_inverse=True)[1].reshape(-1).astype(np.float64) for x in (a, b)]
    if any(np.ptp(r) == 0 for r in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _too_low(s: Subject) -> bool:
    if "params" not in s.values:
        return False
    large = s.values[s.target][s.good & (s.values["params"] >= 1e8)]
    return len(large) >= 3 and float(np.median(large)) < 1.2


def count_unit(s: Subject) -> Iterator[Finding]:
    """``count-unit``: parameters or tokens so few, or so unlike each other, that they are millions or so."""
    for name, other in (("params", "tokens"), ("tokens", "params")):
        if not s.used(name) or unit_was_stated(s.runs, name):
            continue
        good = s.values[name][s.good]
        if len(good) == 0:
            continue
        high = float(good.max())
        ratio = float(np.median(good / s.values[other][s.good])) if s.used(other) else math.nan
        fraction = bool(np.any(good != np.rint(good)))
        limit = 1e3 if name == "params" else 1e5
        # tiny models of 10,000 parameters exist: what is small must be odd in another way too
        odd = high < limit or (high < 10 * limit and (fraction or ratio < 1e-5))
        if not odd and not (ratio < 1e-4 and high < 1e6):
            continue
        yield Finding(
            "count-unit",
            "warning",
            (),
            name,
            f"{name} reaches only {high:.6g}" + (", with fractions." if fraction else "."),
            f"published laws, FLOPs and costs are in plain counts; with {name} in millions every "
            "derived number is off by a power of ten",
            f"say what they are: --units {name}=millions (or thousands, billions, trillions)",
        )


def mixed_units(s: Subject) -> Iterator[Finding]:
    """``mixed-units``: a gap of 1000-fold or more between neighbouring values of one column."""
    for name in dict.fromkeys((*s.axes, "params", "tokens", "flops")):
        values = s.values[name] if name in s.values else s.numbers(name)
        if values is None:
            continue
        good = np.isfinite(values) & (values > 0)
        few = beyond_gap(values, good)
        if not few.any():
            continue
        rest = good & ~few
        below, above = (few, rest) if values[few].max() < values[rest].min() else (rest, few)
        yield Finding(
            "mixed-units",
            "warning",
            s.rows(few),
            name,
            f"{name} has nothing between {format_count(float(values[below].max()))} and"
            f" {format_count(float(values[above].min()))}; {share(int(few.sum()), int(good.sum()))} lie on"
            " the smaller side of that gap.",
            "two units in one column move points by a power of ten, and the far ones decide the exponent",
            "bring the rows named to one unit in the file (70B and 7e10 may stand side by side)",
        )


def beyond_gap(values: Floats, good: Bools) -> Bools:
    """The rows on the smaller side of the widest gap between neighbours, where that is 1000-fold.

    Example:
        >>> beyond_gap(np.array([70.0, 7e9, 8e9]), np.array([True, True, True]))
        array([ True, False, False])
    """
    ordered = np.unique(values[good])
    if good.sum() < 3 or len(ordered) < 2:
        return np.zeros_like(good)
    gaps = ordered[1:] / ordered[:-1]
    low = ordered[gaps.argmax()]
    below, above = good & (values <= low), good & (values > low)
    few = below if below.sum() <= above.sum() else above
    return few if gaps.max() >= 1e3 else np.zeros_like(good)


_FACTORS = (
    (1 / 3, 0.02, "they count the forward pass alone (2 per parameter and token)"),
    (4 / 3, 0.02, "they count recomputed activations (8 per parameter and token)"),
    (1 / PF_DAY, 0.35, "they are in PF-days: --units flops=PF-days"),
    (1e-9, 0.35, "they are in GFLOP (or a count is in billions): --units flops=1e9"),
    (1e-12, 0.35, "they are in TFLOP: --units flops=1e12"),
    (1e-15, 0.35, "they are in PFLOP: --units flops=1e15"),
    (1e-18, 0.35, "they are in EFLOP: --units flops=1e18"),
    (1e-21, 0.35, "they are in ZFLOP: --units flops=1e21"),
    (1e3, 0.35, "params or tokens are in thousands: --units params=thousands"),
    (1e6, 0.35, "params or tokens are in millions: --units params=millions"),
    (1e9, 0.35, "params or tokens are in billions: --units params=billions"),
    (1e12, 0.35, "tokens are in trillions, or params and tokens both in millions: --units"),
    (1e18, 0.35, "params and tokens are both in billions: --units params=billions,tokens=billions"),
)


def _flops_ratio(s: Subject) -> tuple[str, Floats] | None:
    """flops / (6 params tokens) where all three were measured, NaN elsewhere."""
    size = "params_active" if "params_active" in s.runs else "params"
    if not all(is_measured(s.runs, name) for name in (size, "tokens", "flops")):
        return None
    columns = [s.numbers(name) for name in (size, "tokens", "flops")]
    if any(column is None for column in columns):
        return None
    n, d, flops = (np.where(c > 0, c, np.nan) for c in columns if c is not None)
    with np.errstate(all="ignore"):
        ratio = flops / (6 * n * d)
    return size, np.where(np.isfinite(ratio) & (ratio > 0), ratio, np.nan)


def flops_not_6nd(s: Subject) -> Iterator[Finding]:
    """``flops-not-6nd``: measured FLOPs outside [1/2, 2] of 6 * params * tokens."""
    found = _flops_ratio(s)
    if found is None:
        return
    size, ratio = found
    with np.errstate(invalid="ignore"):
        off = (ratio < 0.5) | (ratio > 2)
    if not off.any():
        return
    median = float(np.median(ratio[off]))
    hint = next(
        (h for f, tolerance, h in _FACTORS if abs(math.log10(median / f)) < tolerance),
        "the budget, the parameter count (embeddings? active experts?) or the tokens are another run's",
    )
    body = s.numbers("params_nonembedding")
    if body is not None and size == "params":
        with np.errstate(all="ignore"):
            without = float(np.nanmedian((ratio * s.runs["params"] / body)[off]))
        if abs(math.log(without)) < 0.05:
            hint = "they count parameters without embeddings"
    yield Finding(
        "flops-not-6nd",
        "warning",
        s.rows(off),
        "flops",
        f"flops are {median:.3g} times 6 * {size} * tokens (median) in "
        f"{share(int(off.sum()), int(np.isfinite(ratio).sum()))}; perhaps {hint}.",
        "a plan turns a budget of FLOPs into params and tokens by 6 * params * tokens: a factor "
        "between the two moves the optimum by as much",
        "correct the column or its unit, or leave flops out and let runs.derive() compute them",
    )


def mixed_param_counts(s: Subject) -> Iterator[Finding]:
    """``mixed-param-counts``: embeddings counted in some rows only."""
    why = (
        "below 100M parameters embeddings are a large share: whether they count changes the"
        " exponent of params by 0.1 to 0.3"
    )
    do = "count all rows the same way; params_nonembedding is the place for the other count"
    n, body = s.numbers("params"), s.numbers("params_nonembedding")
    if n is not None and body is not None:
        same = n == body
        both = np.isfinite(n) & np.isfinite(body)
        if same.any() and (both & ~same).any():
            text = f"params equals params_nonembedding in {share(int(same.sum()), int(both.sum()))}."
            yield Finding("mixed-param-counts", "warning", s.rows(same), "params", text, why, do)
            return
    found = _flops_ratio(s)
    if found is None:
        return
    ratio = found[1]
    known = np.isfinite(ratio)
    split = _two_groups(np.log(ratio[known]))
    if split is None:
        return
    low = known & (np.log(np.where(known, ratio, 1.0)) <= split)
    few = low if low.sum() * 2 <= known.sum() else known & ~low
    text = (
        f"flops / (6 * params * tokens) falls into two groups, {np.median(ratio[low]):.3g} and"
        f" {np.median(ratio[known & ~low]):.3g}; {share(int(few.sum()), int(known.sum()))} are in"
        " the smaller."
    )
    yield Finding("mixed-param-counts", "warning", s.rows(few), "params", text, why, do)


def _two_groups(values: Floats) -> float | None:
    """The top of the lower group where values fall into two tight groups with a gap, else None."""
    ordered = np.sort(values)
    if len(ordered) < 6:
        return None
    gaps = np.diff(ordered)
    at = int(gaps.argmax()) + 1
    low, high = ordered[:at], ordered[at:]
    enough = min(len(low), len(high)) >= max(2, 0.1 * len(ordered))
    # 5 %: closer than that, attention scores or rounding explain it; a factor is another finding
    tight = gaps[at - 1] > max(0.05, 3 * max(low.std(), high.std()))
    return float(low[-1]) if enough and tight and gaps[at - 1] < 1.5 else None
