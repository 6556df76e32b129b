"""takes the settings of a rung, gives its runs, each with a key that only its own settings decide."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isoloss.study.local import Task

ALTERNATIVES = "runs"  # in a rung: tables that are crossed with the rest, one after the other
MOST = 10_000
LONGEST = 200  # letters of a key before its hash: a name of a folder
TAKEN = ("folder", "facts", "trainer", "trainer_sha256", "why")  # what the loop itself tells of a run


@dataclass(frozen=True)
class Run:
    """One run as it is declared.

    Attributes:
        key: the settings that its rung names, and a hash of all of them.
        settings: all that the trainer gets.
    """

    key: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Planned:
    """A rung: runs that are predicted together and made in any order."""

    name: str
    runs: tuple[Run, ...]


def expand(common: Mapping[str, Any], rung: Mapping[str, Any], where: str) -> tuple[Run, ...]:
    """The runs of a rung: lists are crossed, ``runs`` gives alternatives, ``common`` is in each.

    A key depends on the run's settings alone: adding rungs to a study renames nothing.

    Raises:
        ValueError: an empty list, too many runs, a name that is taken, or a setting that JSON does not hold.

    Example:
        >>> [run.key for run in expand({}, {"width": [32, 64], "seed": 0}, "rungs[1]")]
        ['seed=0,width=32@de2cebc2', 'seed=0,width=64@1cec23ad']
    """
    rest = {name: value for name, value in rung.items() if name != ALTERNATIVES}
    tables = rung.get(ALTERNATIVES, [{}])
    if not isinstance(tables, Sequence) or not tables or not all(isinstance(t, Mapping) for t in tables):
        raise ValueError(f"{where}.{ALTERNATIVES} must be a list of tables, got {tables!r}")
    found = []
    for table in tables:
        named = {**rest, **table}
        if not named:
            raise ValueError(f"{where} names no setting. Do: say what its runs are, e.g. width = [32, 64]")
        for name in TAKEN:
            if name in named or name in common:
                raise ValueError(f"{where}: a setting cannot be called {name!r}. Do: give it another name")
        names = sorted(named)
        choices = [list(v) if isinstance(v, list | tuple) else [v] for v in (named[name] for name in names)]
        for name, choice in zip(names, choices, strict=True):
            if not choice:
                raise ValueError(f"{where}.{name} is an empty list")
        if math.prod(map(len, choices)) > MOST:
            raise ValueError(f"{where} crosses to more than {MOST} runs. Do: split it")
        for values in itertools.product(*choices):
            own = {name: _plain(value) for name, value in zip(names, values, strict=True)}
            settings = {**{name: _plain(value) for name, value in common.items()}, **own}
            found.append(Run(_key(own, settings, where), settings))
    return tuple(found)


def tasks_of(
    runs: Sequence[Run],
    axes: Mapping[str, Mapping[str, float]],
    target: str,
    horizon: str | None,
    until: float | None,
) -> dict[str, tuple[Task, tuple[Run, ...]]]:
    """What the workers do for these runs: one task each, or one for all that share a trunk.

    A trunk's key does not name its horizons, so that its checkpoint serves whichever are still missing.

    Args:
        axes: key of a run -> what is known of it.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if horizon is None:
            groups[run.key] = [run]
            continue
        if horizon not in run.settings:
            raise ValueError(f"run {run.key} has no setting {horizon!r}, which trainer.horizon names")
        shared = {name: value for name, value in run.settings.items() if name != horizon}
        groups.setdefault(f"trunk@{_hash(shared)}", []).append(run)
    found = {}
    for key, members in groups.items():
        cost = max(axes[run.key].get("flops", 0.0) for run in members)
        config, ends = dict(members[0].settings), None
        if horizon is not None:
            members = sorted(members, key=lambda run: run.settings[horizon])
            ends = tuple(float(run.settings[horizon]) for run in members)
            config[horizon] = [run.settings[horizon] for run in members]
        found[key] = (Task(key, config, target, ends, until, cost), tuple(members))
    return found


def _plain(value: Any) -> Any:
    """Whole floats as integers, so that ``1e6`` and ``1000000`` are one setting."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value


def _hash(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _key(own: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> str:
    try:
        digest = _hash(settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: settings must be what JSON can hold: {error}") from None
    shown = ",".join(f"{_short(name)}={_short(own[name])}" for name in sorted(own))
    return f"{'_' if shown.startswith('.') else ''}{shown[:LONGEST]}@{digest}"


def _short(value: Any) -> str:
    """A value as a part of a key, which is also the name of a folder."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = re.sub(r"[^A-Za-z0-9_.+-]+", "_", text)
    return text if len(text) <= 24 else f"{text[:21]}..."
