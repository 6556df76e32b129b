"""What we believe: a fitted law with its draws, and the file it lives in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.files import json_text, write_atomically
from isoloss.fitting.checklist import Item, read_item
from isoloss.fitting.constraints import Constraints
from isoloss.fitting.noise import trend
from isoloss.fitting.objective import Objective, objective_from_json
from isoloss.fitting.prediction import Prediction, quantiles
from isoloss.fitting.sensitivity import Variant, read_variant
from isoloss.laws import get
from isoloss.laws.law import Law
from isoloss.laws.parts.composed import Composed
from isoloss.runs import Finding, Removed

Array = np.ndarray[Any, np.dtype[Any]]
Result = Literal["identified", "not-identified", "not-converged", "interrupted"]

Status = Literal["fitted", "tied", "fixed", "borrowed", "at-bound"]

SCHEMA = "isoloss/fit/1"


@dataclass(frozen=True)
class Estimate:
    """One parameter: value, standard error and interval from the draws, and how it came about.

    ``status`` is ``fitted``, ``tied``, ``fixed``, ``borrowed`` or ``at-bound``.
    """

    value: float
    stderr: float
    low: float
    high: float
    status: str


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """A law, its parameters with joint draws, the rows behind it and every choice that made it.

    Attributes:
        law: the law.
        theta: best parameters, natural units, (P,).
        draws: joint draws, (K, P): one row is one world the data allow.
        scales: scale of a new run's noise in each draw, (K,); empty where the residuals stand for the noise.
        status: per parameter, see :class:`Estimate`.
        objective, value: what was minimised, and the minimum.
        agreeing_starts: share of the starts that reached the same minimum.
        result: whether the question has an answer, see :func:`isoloss.fit`.
        warnings: findings about table and fit, each with a why.
        removed: rows of the table that are not in the fit.
        x, y, rows, residuals, weights: the rows in the fit.
        condition: condition number of the Jacobian in units of the parameter box.
        sensitivity: the fit with one choice changed at a time, see :class:`isoloss.fitting.sensitivity.Variant`.
        checklist: what a reader must know to judge it, see :class:`isoloss.fitting.checklist.Item`.

    Example:
        >>> import isoloss
        >>> isoloss.fit("power", {"tokens": [1, 2, 4, 8], "loss": [8, 4, 2, 1.0]}, draws=0)
        Fit(power(tokens): b=8, c=1; 4 rows, identified)
    """

    law: Law
    theta: Array
    draws: Array
    scales: Array
    status: tuple[str, ...]
    objective: Objective
    value: float
    agreeing_starts: float
    starts: int
    result: Result
    warnings: tuple[Finding, ...]
    removed: tuple[Removed, ...]
    x: Mapping[str, Array]
    y: Array
    rows: Array
    residuals: Array
    weights: Array
    uncertainty: str
    condition: float
    constraints: Constraints
    coverage: float
    seed: int
    source: str
    fingerprint: str
    units: Mapping[str, str]
    derived: Mapping[str, str]
    sensitivity: tuple[Variant, ...] = ()
    checklist: tuple[Item, ...] = ()

    @property
    def values(self) -> dict[str, float]:
        """Best parameters by name."""
        return {name: float(v) for name, v in zip(self.law.names, self.theta, strict=True)}

    @property
    def parameters(self) -> dict[str, Estimate]:
        """Every parameter with standard error and interval at ``coverage``."""
        out = {}
        for p, name in enumerate(self.law.names):
            value = float(self.theta[p])
            drawn = len(self.draws) > 1 and np.ptp(self.draws[:, p]) > 0
            if self.status[p] in ("fixed", "borrowed") and not drawn:
                stderr, low, high = 0.0, value, value
            elif len(self.draws) < 2:
                stderr, low, high = float("nan"), float("nan"), float("nan")
            else:
                stderr = float(np.std(self.draws[:, p], ddof=1))
                low, high = quantiles(self.draws[:, p], self.coverage)
            out[name] = Estimate(value, stderr, low, high, self.status[p])
        return out

    @property
    def free(self) -> int:
        """Number of parameters the data had to determine."""
        followers = {name for group in self.constraints.tie for name in group[1:]}
        return sum(
            status in ("fitted", "at-bound") and name not in followers
            for name, status in zip(self.law.names, self.status, strict=True)
        )

    @property
    def r2(self) -> float:
        """Share of the variance of the target explained, in the target's unit; NaN if there is none."""
        predicted = self.law.evaluate(self.theta, **self.x)
        w = self.weights
        mean = np.sum(w * self.y) / np.sum(w)
        total = float(np.sum(w * (self.y - mean) ** 2))
        return 1 - float(np.sum(w * (self.y - predicted) ** 2)) / total if total > 0 else float("nan")

    def correlation(self, first: str, second: str) -> float:
        """Correlation of two parameters over the draws, positive ones as logs."""
        columns = []
        for name in (first, second):
            p = self.law.names.index(name)
            column = self.draws[:, p]
            columns.append(np.log(column) if self.law.parameters[p].scale == "log" else column)
        return float(np.corrcoef(columns)[0, 1])

    def predict(
        self,
        *,
        of: Literal["mean", "run"] = "mean",
        coverage: float | None = None,
        **axes: Any,
    ) -> Prediction:
        """The distribution of the target at a point that may not have been measured.

        Args:
            of: ``"mean"``, the level the law gives: parameter uncertainty only; or ``"run"``, what one
                new run would show: with the scatter of the runs in the fit.
            coverage: of the interval; default the fit's.
            axes: one number or array per axis of the law (``params=7e9, tokens=2e12``).

        Raises:
            ValueError: an axis is missing or not positive. NoAnswer: the fit has no draws.

        Example:
            >>> import isoloss
            >>> found = isoloss.fit("power", {"tokens": [1, 2, 4, 8], "loss": [8, 4, 2, 1.0]}, draws=50)
            >>> found.predict(tokens=16).median.round(6).tolist()
            [0.5]
        """
        if of not in ("mean", "run"):
            raise ValueError(f"of must be 'mean' or 'run', got {of!r}")
        if len(self.draws) == 0:
            raise NoAnswer("this fit has no draws, so no interval", "fit with draws=1000")
        if any(entry.code == "too-few-rows" for entry in self.warnings):
            raise NoAnswer(
                f"{len(self.y)} rows leave no residual to judge {self.free} parameters by",
                f"at least {self.free + 3} rows, or fixed, tied or borrowed parameters",
            )
        x = {name: np.atleast_1d(value) for name, value in self.law.inputs(axes).items()}
        level = self.law.evaluate(self.draws, **x)
        undefined = np.isnan(level).any(axis=tuple(range(1, level.ndim)))
        # only a factor of a composed law has no value; what else is NaN is shown as it is
        if undefined.any() and self.law.given(()) is not self.law:
            raise NoAnswer(
                f"{self.law.spec} is not defined at {_where(x, np.asarray(np.isnan(level).any(axis=0)))} in "
                f"{int(undefined.sum())} of {len(level)} draws",
                "a point nearer to the rows: a factor is at or below 0 there",
            )
        if of == "run":
            rng = np.random.default_rng([self.seed, 1])
            repeats = max(1, 8000 // len(self.draws))
            draw = np.repeat(np.arange(len(self.draws)), repeats)
            level = self.scattered(level[draw], self.reach(x) > 1, rng, draw)
        return Prediction(of, self.coverage if coverage is None else coverage, x, level, self.reach(x))

    def scattered(self, level: Array, outside: Array, rng: np.random.Generator, draw: Array) -> Array:
        """What new runs would show around the levels of the law.

        Args:
            level: (K, *X).
            outside: which points (*X) lie outside the fitted rows.
            rng: of the scatter.
            draw: of each level, which of the draws made it, (K,).
        """
        if len(self.scales):
            sd = self.scales[draw].reshape(-1, *[1] * (level.ndim - 1))
            scatter = sd * self.objective.noise(rng, level.shape)
        else:
            scatter = self._scatter(rng, level, outside)
        return np.asarray(level * np.exp(scatter) if self.objective.residual == "log" else level + scatter)

    def _scatter(self, rng: np.random.Generator, level: Array, outside: Array) -> Array:
        """Residuals dealt anew, larger or smaller where the scatter follows the target.

        Outside the rows never smaller than theirs: what a law misses there looks like scatter, and on published
        tables intervals that followed the scatter down held far less often than they said.
        """
        fitted = self.law.evaluate(self.theta, **self.x)
        size = trend(self.residuals, fitted, self.weights)
        n = len(self.residuals)
        alike = self.residuals / size.size(fitted) * np.sqrt(n / max(n - self.free, 1))
        dealt = rng.choice(alike, size=level.shape, p=self.weights / np.sum(self.weights))
        here = size.size(level)
        return np.asarray(dealt * np.where(outside, np.maximum(here, size.pooled), here))

    def reach(self, x: Mapping[str, Array]) -> Array:
        """How far each point lies outside the fitted rows: the largest factor over the axes, 1 inside.

        Infinite where a point has 0 of an axis that no row has 0 of, or some of one that every row has 0 of.
        """
        factors = [
            _beyond(x[axis], float(np.min(values)), float(np.max(values)))
            for axis, values in self.x.items()
            if axis in x  # a column of a composed law that is absent is at its reference
        ]
        return np.asarray(np.max(factors, axis=0))

    def save(self, path: str | Path) -> None:
        """Write the fit as JSON (``docs/json.md``), atomically."""
        write_atomically(Path(path), json_text(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """The document that ``isoloss fit --json`` writes; schema in ``docs/json.md``.

        Raises:
            ValueError: the law is a class without a file, so no reader could find it again.
        """
        try:
            found = _kinds(get(self.law.spec)) == _kinds(self.law)
        except ValueError:
            found = False
        if not found:
            lost = next((kind for kind in _kinds(self.law) if not kind.startswith("isoloss.")), self.law.spec)
            name = lost.rpartition(".")[2]
            raise ValueError(
                f"law {self.law.spec} has no address to save: put the class {name} into a file and name it "
                f"'FILE.py:{name}'"
            )
        return {
            "schema": SCHEMA,
            "law": self.law.spec,
            "formula": self.law.formula,
            "target": self.law.target,
            "parameters": {name: _finite(vars(e)) for name, e in self.parameters.items()},
            "objective": {**self.objective.to_json(), "value": self.value},
            "agreeing_starts": self.agreeing_starts,
            "starts": self.starts,
            "rows_used": len(self.y),
            "rows_removed": [vars(entry) for entry in self.removed],
            "warnings": [_finding_json(entry) for entry in self.warnings],
            "result": self.result,
            **_finite({"condition": self.condition, "r2": self.r2}),
            "coverage": self.coverage,
            "uncertainty": self.uncertainty,
            "seed": self.seed,
            "constraints": _constraints_json(self.constraints),
            "data": {
                "source": self.source,
                "fingerprint": self.fingerprint,
                "units": dict(self.units),
                "derived": dict(self.derived),
                "rows": self.rows.tolist(),
                "weights": self.weights.tolist(),
                "x": {axis: values.tolist() for axis, values in self.x.items()},
                "y": self.y.tolist(),
            },
            "draws": {name: self.draws[:, p].tolist() for p, name in enumerate(self.law.names)},
            "noise": {
                "residual": self.objective.residual,
                "residuals": self.residuals.tolist(),
                "scales": self.scales.tolist(),
            },
            "sensitivity": [variant.to_json() for variant in self.sensitivity],
            "checklist": [vars(item) for item in self.checklist],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Fit:
        """The fit that :meth:`to_json` wrote.

        Raises:
            ValueError: not a fit of this schema, or a part is missing or of the wrong kind.
        """
        if document.get("schema") != SCHEMA:
            raise ValueError(
                f"needed a fit of schema {SCHEMA!r}, got {document.get('schema')!r}. Make it with "
                "`isoloss fit LAW TABLE --json FILE`"
            )
        try:
            return _read_fit(document)
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"the fit file is incomplete or damaged: {error!r}") from error

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value:.5g}" for name, value in self.values.items())
        return f"Fit({self.law.spec}: {inner}; {len(self.y)} rows, {self.result})"

    def _repr_html_(self) -> str:
        head = f"{100 * self.coverage:g}% interval"
        rows = "".join(
            f"<tr><td>{name}</td><td>{e.value:.5g}</td><td>{e.stderr:.2g}</td>"
            f"<td>{e.low:.5g} to {e.high:.5g}</td><td>{e.status}</td></tr>"
            for name, e in self.parameters.items()
        )
        notes = "".join(f"<li><b>{w.code}</b>: {w.text}</li>" for w in self.warnings)
        return (
            f"<p><b>{self.law.spec}</b>: {self.law.formula}; {len(self.y)} rows, "
            f"{len(self.removed)} removed, {self.result}</p><table><tr><th></th><th>value</th>"
            f"<th>s.e.</th><th>{head}</th><th></th></tr>{rows}</table><ul>{notes}</ul>"
        )


def load(path: str | Path, *, group: str | None = None) -> Fit:
    """Read a fit that :meth:`Fit.save` or ``isoloss fit --json`` wrote.

    Args:
        path: the file.
        group: which one, if the file holds a fit for each value of a column (``isoloss fit --by``).

    Raises:
        ValueError: no such file, not JSON, not a fit, or no such group.

    Example:
        >>> import isoloss
        >>> isoloss.fit("power", {"tokens": [1, 2, 4, 8], "loss": [8, 4, 2, 1.0]}).save("power.json")
        >>> load("power.json").result
        'identified'
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the fit {path}: {error}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Make it with `isoloss fit --json`") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} is not a fit: needed a JSON object, got {type(document).__name__}")
    groups = document.get("groups") if document.get("schema") == "isoloss/fits/1" else None
    if isinstance(groups, dict):
        if group not in groups:
            known = ", ".join(map(str, groups))
            raise ValueError(f"{path} holds fits by {document.get('by')}: choose --group from {known}")
        document = groups[group]
    elif group is not None:
        raise ValueError(f"{path} holds one fit, so there is no group {group!r}. Leave --group out")
    return Fit.from_json(document)


def _kinds(law: Law) -> list[str]:
    """The classes that a law is made of."""
    pieces = law.pieces if isinstance(law, Composed) else (law,)
    return [f"{type(piece).__module__}.{type(piece).__name__}" for piece in pieces]


def _where(x: Mapping[str, Array], bad: Array) -> str:
    """The first of the points that ``bad`` marks, in words."""
    return ", ".join(f"{axis} {np.broadcast_to(v, bad.shape)[bad][0]:g}" for axis, v in x.items())


def _read_fit(document: Mapping[str, Any]) -> Fit:
    law = get(document["law"])
    data, parameters, held = document["data"], document["parameters"], document["constraints"]
    y = _numbers(data["y"], "y")
    n = len(y)
    count = len(document["draws"][law.names[0]])
    return Fit(
        law=law,
        theta=_numbers([parameters[name]["value"] for name in law.names], "parameters"),
        scales=_scales(document["noise"].get("scales", []), count),
        draws=np.column_stack([_numbers(document["draws"][name], "draws", count) for name in law.names]),
        status=tuple(_one_of(parameters[name]["status"], get_args(Status)) for name in law.names),
        objective=objective_from_json(document["objective"]),
        value=_number(document["objective"]["value"], "value"),
        agreeing_starts=_number(document["agreeing_starts"], "agreeing_starts"),
        starts=int(_number(document["starts"], "starts")),
        result=_one_of(document["result"], get_args(Result)),
        warnings=tuple(_finding(entry) for entry in document["warnings"]),
        removed=tuple(
            Removed(int(r["row"]), _text(r["code"]), _text(r["why"])) for r in document["rows_removed"]
        ),
        x={
            axis: _numbers(data["x"][axis], axis, n, "at least 0" if axis in law.may_be_zero else "above 0")
            for axis in law.axes
            # a borrowed piece reads columns that the rows do not have
            if axis in data["x"] or axis in law.given(()).axes
        },
        y=y,
        rows=_numbers(data["rows"], "rows", n).astype(int),
        residuals=_numbers(document["noise"]["residuals"], "residuals", n),
        weights=_weights(data["weights"], n),
        uncertainty=_text(document["uncertainty"]),
        condition=_number(document["condition"], "condition"),
        constraints=Constraints(
            dict(held["fix"]), tuple(map(tuple, held["tie"])),
            {k: tuple(v) for k, v in held["bounds"].items()},
            {k: tuple(v) for k, v in held["priors"].items()}, dict(held["borrow"]),
        ).resolve(law),
        coverage=_number(document["coverage"], "coverage", 0, 1),
        seed=int(_number(document["seed"], "seed", -1)),
        source=_text(data["source"]),
        fingerprint=_text(data["fingerprint"]),
        units={_text(k): _text(v) for k, v in data["units"].items()},
        derived={_text(k): _text(v) for k, v in data["derived"].items()},
        sensitivity=tuple(map(read_variant, document.get("sensitivity", ()))),
        checklist=tuple(map(read_item, document.get("checklist", ()))),
    )  # fmt: skip


def _number(value: Any, what: str, above: float = -np.inf, below: float = np.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < float(value) < below:
        raise ValueError(f"the fit file is damaged: {what} is {value!r}")
    return float(value)


def _beyond(values: Array, low: float, high: float) -> Array:
    """Factor by which values lie below low or above high, 1 between them."""
    with np.errstate(divide="ignore", invalid="ignore"):
        below, above = low / values, values / high
    return np.where(values < low, below, np.where(values > high, above, 1.0))


def _numbers(
    values: Any, what: str, n: int | None = None, sign: Literal["any", "above 0", "at least 0"] = "any"
) -> Array:
    if not isinstance(values, list) or (n is not None and len(values) != n):
        raise ValueError(f"the fit file is damaged: {what} needs a list of {n or 'some'} numbers")
    out = np.array([_number(value, what) for value in values], dtype=float)
    if (sign == "above 0" and (out <= 0).any()) or (sign == "at least 0" and (out < 0).any()):
        raise ValueError(f"the fit file is damaged: {what} holds values that are not {sign}")
    return out


def _scales(values: Any, draws: int) -> Array:
    """One per draw, or none where the residuals stand for the noise."""
    return _numbers(values, "scales", draws, "above 0") if len(values) else np.empty(0)


def _weights(values: Any, n: int) -> Array:
    out = _numbers(values, "weights", n)
    if (out < 0).any() or abs(out.mean() - 1) > 1e-6:
        raise ValueError("the fit file is damaged: weights are not of mean 1")
    return out


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the fit file is damaged: needed text, got {value!r}")
    return value


def _one_of(value: Any, known: tuple[Any, ...]) -> Any:
    if value not in known:
        raise ValueError(f"the fit file is damaged: needed one of {', '.join(known)}, got {value!r}")
    return value


def _finding(w: Mapping[str, Any]) -> Finding:
    column = w["column"] if w["column"] is None else _text(w["column"])
    rows = tuple(int(row) for row in w["rows"])
    level = _one_of(w["level"], ("error", "warning", "note"))
    return Finding(_text(w["code"]), level, rows, column, _text(w["text"]), _text(w["why"]), _text(w["do"]))


def _constraints_json(held: Constraints) -> dict[str, Any]:
    return {
        "fix": dict(held.fix),
        "tie": [list(group) for group in held.tie],
        "bounds": {name: list(ends) for name, ends in held.bounds.items()},
        "priors": {name: list(pair) for name, pair in held.priors.items()},
        "borrow": dict(held.borrow),
    }


def _finding_json(entry: Finding) -> dict[str, Any]:
    return {
        "code": entry.code,
        "level": entry.level,
        "text": entry.text,
        "why": entry.why,
        "do": entry.do,
        "rows": list(entry.rows),
        "column": entry.column,
    }


def _finite(entry: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: an interval that does not exist is null."""
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in entry.items()}
