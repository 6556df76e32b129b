"""takes a Subject, gives findings about rows that are not what they seem: repeated, unfinished, untuned."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from isoloss.runs.clean import not_final
from isoloss.runs.columns import CANONICAL, listed
from isoloss.runs.finding import Finding, Floats, Subject, share
from isoloss.runs.groups import group_ids, members

__all__ = ["lr_not_tuned", "repeated_points", "unfinished"]

_UNFINISHED = frozenset(
    {"failed", "crashed", "killed", "running", "preempted", "preempting", "pending", "scheduled"}
)


def repeated_points(s: Subject) -> Iterator[Finding]:
    """``duplicate-rows`` and ``replicates``: rows at one point, with the same target or another."""
    used = np.flatnonzero(s.good)
    if len(used) < 2:
        return
    point = group_ids([s.values[axis][used] for axis in s.axes], len(used))
    target = s.values[s.target][used]
    same = _same_measurement(s, used, point, target)
    order = np.lexsort((s.runs.rows[used], same))
    repeats = np.concatenate([[False], np.diff(same[order]) == 0])
    copies = used[np.sort(order[repeats])]
    if len(copies):
        yield Finding(
            "duplicate-rows",
            "warning",
            s.rows(copies),
            None,
            f"{share(len(copies), len(used))} repeat an earlier row in {', '.join(s.axes)} and {s.target}.",
            "a fit takes a copy as independent evidence: intervals come out too narrow, and the "
            "bootstrap draws the same run twice",
            "--drop duplicate-rows keeps the first of each; if they are runs that agree to the last"
            " digit, name them apart in a column run",
        )
    several = [group for group in members(point) if len(np.unique(same[group])) > 1]
    if several and not s.signed:  # their noise is told in per cent
        yield _replicates(s, used, several, np.log(target))


def _same_measurement(
    s: Subject, used: npt.NDArray[np.intp], point: npt.NDArray[np.intp], target: Floats
) -> npt.NDArray[np.intp]:
    """Groups of rows that are one measurement, written down more than once.

    Equal axes and target are not enough where the target has few digits: two seeds agree in three
    decimals by chance. So the rows agree in more than 6 digits, or in all other columns as well,
    or most of the table repeats itself, as a long table with one row per task and run does.
    """
    pair = group_ids([point.astype(np.float64), target], len(used))
    if 2 * len(np.unique(pair)) <= len(used):
        return pair
    digits = np.array([float(f"{value:.6g}") for value in target.tolist()])
    exact = target != digits
    others = [s.runs[name][used] for name in s.runs.columns if name not in s.runs.derived]
    others = [column for column in others if len(np.unique(column)) < len(used)]
    if "run" in s.runs:
        others.append(s.runs["run"][used])
    every = group_ids(others, len(used))
    return group_ids([pair.astype(np.float64), np.where(exact, -1.0, every)], len(used))


def _replicates(
    s: Subject, used: npt.NDArray[np.intp], several: list[npt.NDArray[np.intp]], log_target: Floats
) -> Finding:
    spread = float(np.median([np.std(np.sort(log_target[group]), ddof=1) for group in several]))
    rows = used[np.sort(np.concatenate(several))]
    differ = [
        name
        for name in (*_identity(s), *_rates(), "epochs", "tokens_unique", "seq_len")
        if name in s.runs
        and name not in ("run", "seed", *s.axes)
        and len(np.unique(s.runs[name])) < len(s.runs)
        and any(len(np.unique(s.runs[name][used[group]])) > 1 for group in several)
    ]
    differ = list(dict.fromkeys(differ))
    text = (
        f"{len(several)} points were measured more than once ({len(rows)} rows); their {s.target} "
        f"differs by {100 * spread:.2g} % (median standard deviation)."
    )
    do = "keep them: they give the noise; resample them together where they share data or a start"
    if differ:
        text += f" They differ in {listed(differ, 4)}."
        apart = [name for name in differ if name not in _rates()]
        swept = [name for name in differ if name in _rates()]
        ways = [f"fit each apart with --by {apart[0]}", "choose with --where"] if apart else []
        ways += [f"keep the best rate with {_best_of_sweep(swept[0])}"] if swept else []
        do = ", or ".join(ways)
    return Finding(
        "replicates",
        "note",
        s.rows(rows),
        None,
        text,
        "seeds of one recipe show the noise of a run without any law; rows of different recipes at"
        " one point are no replicates, and a fit takes their difference for noise",
        do,
    )


def unfinished(s: Subject) -> Iterator[Finding]:
    """``unfinished-run`` and ``mixed-checkpoints``: rows from before the end of their run."""
    stopped = np.zeros(len(s.runs), dtype=bool)
    said = []
    if "state" in s.runs:
        states = np.char.lower(s.runs["state"].astype(np.str_))
        bad = np.isin(states, list(_UNFINISHED))
        said += [f"state {state} ({int((states == state).sum())})" for state in np.unique(states[bad])]
        stopped |= bad
    completed = s.numbers("completed")
    if completed is not None and np.isin(completed[~np.isnan(completed)], (0, 1)).all():
        stopped |= completed == 0
        said += [f"completed = 0 ({int((completed == 0).sum())})"] if (completed == 0).any() else []
    earlier = _earlier_checkpoints(s)
    fraction = s.numbers("fraction_of_run")
    if fraction is not None:
        short = (fraction < 0.999) & ~np.isin(s.runs.rows, earlier)
        stopped |= short
        said += [f"fraction_of_run below 1 ({int(short.sum())})"] if short.any() else []
    if stopped.any():
        yield Finding(
            "unfinished-run",
            "warning",
            s.rows(stopped),
            "state" if "state" in s.runs else None,
            f"{share(int(stopped.sum()), len(stopped))} did not finish: {', '.join(said)}.",
            "a run cut off before its learning rate has decayed has a higher loss than a run"
            " planned for that many tokens, and a fit takes the difference for an effect of tokens",
            "--drop unfinished-run",
        )
    if earlier:
        yield Finding(
            "mixed-checkpoints",
            "warning",
            tuple(sorted(earlier)),
            next(name for name in ("run", "step", "fraction_of_run") if name in s.runs),
            f"{share(len(earlier), len(s.runs))} are checkpoints of a run that goes on.",
            "checkpoints of one run are not independent, and under a decaying learning rate an "
            "intermediate loss lies above that of a finished run of the same length",
            "--drop mixed-checkpoints keeps the last of each run, as runs.final_checkpoints() does;"
            " under a constant learning rate keep them and resample whole runs",
        )


def _earlier_checkpoints(s: Subject) -> list[int]:
    """Rows that a later row of the same run follows."""
    by = ("run",) if "run" in s.runs else _identity(s)
    if not by or not any(name in s.runs for name in ("step", "fraction_of_run", "tokens")):
        return []
    if "run" not in s.runs and "step" not in s.runs and "fraction_of_run" not in s.runs:
        return []  # tokens alone vary between runs too
    try:
        return list(not_final(s.runs, by))
    except ValueError:
        return []  # a missing step; which row is last is unknown


def _identity(s: Subject) -> tuple[str, ...]:
    """Columns that stand for a run's name: settings, not measurements, and not what grows along a run."""
    text = [name for name, values in s.runs.columns.items() if values.dtype.kind == "U" and name != "state"]
    settings = ["params", "params_nonembedding", "lr", "lr_peak", "batch_tokens", "steps", "seed"]
    settings += ["run_steps", "run_tokens"]
    return (*text, *(name for name in settings if name in s.runs))


def _learning_rate(s: Subject) -> str | None:
    return next((n for n in _rates() if s.numbers(n) is not None), None)


# Columns of which a law gives the best value. Losses of one point that differ by more are not all of best ones.
SETTINGS = ("lr", "batch_tokens")
_TRIED = 1.005


def _rates() -> tuple[str, ...]:
    return ("lr", *CANONICAL["lr"].also.split())


def lr_not_tuned(s: Subject) -> Iterator[Finding]:
    """``lr-not-tuned``: one learning rate for all sizes, or a sweep whose best was not chosen."""
    if s.target in SETTINGS:
        yield from _sweep_for_optima(s)
        return
    name = _learning_rate(s)
    if name is None or "params" not in s.values or name in s.axes or s.signed:
        return
    lr = s.numbers(name)
    assert lr is not None
    good = s.good & np.isfinite(lr)
    n = s.values["params"][good]
    if good.sum() < 2:
        return
    span = float(n.max() / n.min())
    if span >= 10 and np.unique(lr[good]).size == 1:
        yield Finding(
            "lr-not-tuned",
            "warning",
            (),
            name,
            f"{name} is {lr[good][0]:.4g} in every row while params spans a factor {span:.3g}.",
            "the best learning rate falls with size: at one rate for all, part of the loss of the "
            "largest or smallest models is mistuning, and the exponent of params takes it in",
            "tune the rate at two sizes at least, or say that the law is for this rate only",
        )
        return
    yield from _unchosen_sweep(s, name, lr, np.flatnonzero(good))


def _sweep_for_optima(s: Subject) -> Iterator[Finding]:
    """Settings that were tried, where a law of the best setting wants the best ones: their losses differ."""
    loss = s.numbers("loss")
    if loss is None:
        return
    used = np.flatnonzero(s.good & np.isfinite(loss) & (loss > 0))
    point = group_ids([s.values[axis][used] for axis in s.axes], len(used))
    swept = [used[g] for g in members(point) if np.unique(s.values[s.target][used[g]]).size > 2]
    swept = [g for g in swept if loss[g].max() > _TRIED * loss[g].min()]
    if swept:
        yield Finding(
            "lr-not-tuned",
            "warning",
            s.rows(np.sort(np.concatenate(swept))),
            s.target,
            f"{len(swept)} points have three or more values of {s.target} and losses that differ: the rows are those"
            " of a sweep, not its best ones.",
            f"a law of the best {s.target} takes every value that was tried for a best one",
            f"isoloss optimum TABLE --by {','.join(s.axes)} --out FILE, and fit to that file",
        )


def _unchosen_sweep(s: Subject, name: str, lr: Floats, used: npt.NDArray[np.intp]) -> Iterator[Finding]:
    point = group_ids([s.values[axis][used] for axis in s.axes], len(used))
    swept = [g for g in members(point) if np.unique(lr[used[g]]).size > 1]
    if not swept:
        return
    target = s.values[s.target][used]
    worse = [float(np.log(target[g]).max() - np.log(target[g]).min()) for g in swept]
    rates = [int(np.unique(lr[used[g]]).size) for g in swept]
    rows = used[np.sort(np.concatenate(swept))]
    yield Finding(
        "lr-not-tuned",
        "warning",
        s.rows(rows),
        name,
        f"{len(swept)} points were run at {_from_to(min(rates), max(rates))} values of {name}; the"
        f" worst {s.target} there lies up to {100 * max(worse):.3g} % above the best.",
        "a law of the best reachable loss is bent upwards by runs at a poor rate, and more at some "
        "sizes than at others",
        f"{_best_of_sweep(name)}, or runs.best_of_sweep({name!r}, at={s.axes!r})",
    )


def _best_of_sweep(name: str) -> str:
    return "--best-of-sweep" if name == "lr" else f"--columns lr={name} --best-of-sweep"


def _from_to(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"
