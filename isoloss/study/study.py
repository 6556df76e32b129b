"""takes a study file, gives the declared loop: which runs, in which order, by which laws they are predicted."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from isoloss.files import write_atomically
from isoloss.study.jobs import Planned, expand

if TYPE_CHECKING:
    from collections.abc import Callable

    from isoloss.study.steps import Step, Told

Name = Annotated[str, Field(min_length=1)]
Settings = dict[str, Any]


class _Part(BaseModel):
    """A table of the study file; a name that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Objective(_Part):
    """What is predicted, and by which laws.

    Args:
        target: name of the measurement that the runs end with.
        unit: of it.
        laws: each fits the runs and writes its own predictions down; the first leads. ``auto`` stacks all
            laws that the table allows.
        coverage: of the intervals.
        draws: joint parameter draws of each fit.
    """

    target: Name = "loss"
    unit: str = "nats/token"
    laws: tuple[Name, ...] = Field(default=("hoffmann",), min_length=1)
    coverage: float = Field(default=0.9, gt=0, le=0.99)
    draws: int = Field(default=1000, ge=100)


class Trainer(_Part):
    """How one run is made.

    Args:
        run: entry point of a generator function, ``package.module:train`` or ``file.py:train``.
        axes: entry point of a function from settings to what is known before the run: params, tokens, flops.
            Default the function ``axes`` beside the trainer; without one, the numbers among a run's settings.
        horizon: name of the setting whose values one training serves, as a trunk with several ends.
        settings: of every run.
    """

    run: Name
    axes: str | None = None
    horizon: str | None = None
    settings: Settings = {}


class Target(BaseModel):
    """The run, or runs, that the ladder is for: settings as in a rung, and how they are chosen.

    Args:
        pick: ``all``, or ``best``: only the one of least predicted loss.
        flops: with ``best``, leave out what costs more.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    pick: Literal["all", "best"] = "all"
    flops: float | None = Field(default=None, gt=0)


class Workers(_Part):
    """Where runs are made.

    Args:
        count: worker processes; default one a core.
        threads: of each.
        memory: bytes that a worker may take; default its share of nine tenths of the machine.
        retries: how often a run that fails is tried again.
        keep: keep checkpoints and logs of finished runs.
    """

    count: int | None = Field(default=None, ge=1)
    threads: int = Field(default=1, ge=1)
    memory: float | None = Field(default=None, gt=0)
    retries: int = Field(default=1, ge=0)
    keep: bool = False


class Limits(_Part):
    """What the whole study may take: no rung is begun that would go beyond.

    Args:
        flops: by the runs' axis ``flops``.
        core_hours: measured, and for the rung to come by its FLOPs.
    """

    flops: float | None = Field(default=None, gt=0)
    core_hours: float | None = Field(default=None, gt=0)


class EarlyStop(_Part):
    """Stop runs that will not be the best at their point; see :mod:`isoloss.study.early`.

    Args:
        at: share of a run at which it is looked at.
        watch: measurement that is looked at there; default the target.
        least: finished runs of which the way from there to the end must be known.
    """

    at: float = Field(default=0.5, gt=0, lt=1)
    watch: str | None = None
    least: int = Field(default=5, ge=3)


class Study(_Part):
    """A declared loop: run a ladder, fit, predict, run what was predicted, score.

    Args:
        name: of the study, in its store.
        trainer: how one run is made.
        rungs: what is run, rung after rung; within a rung, lists are crossed. All runs of a rung are done
            before the next is predicted, so that no decision depends on who finished first.
        target: run last.
        objective, workers, limits, early_stop: see there.
        store: SQLite file of runs and predictions, relative to ``root``; default ``NAME.db``.
        folder: of checkpoints and logs, relative to ``root``; default ``NAME.runs``.
        root: folder that paths are relative to; of a file, its own.

    Raises:
        ValueError: a table or name is missing, unknown or of another type.

    Example:
        >>> study = Study(name="s", trainer={"run": "train.py:train"}, rungs=[{"params": [10, 20], "tokens": [100, 200]}])
        >>> [run.key for run in study.plan()[0].runs][:2]
        ['params=10,tokens=100@0348d560', 'params=10,tokens=200@a1e97d46']
    """

    name: Name
    trainer: Trainer
    rungs: tuple[Settings, ...] = Field(min_length=1)
    target: Target | None = None
    objective: Objective = Objective()
    workers: Workers = Workers()
    limits: Limits = Limits()
    early_stop: EarlyStop | None = None
    store: str | None = None
    folder: str | None = None
    root: Path = Path()

    def __init__(self, **tables: Any) -> None:
        try:
            super().__init__(**tables)
        except ValidationError as error:
            raise ValueError(_sentence(error)) from None

    @model_validator(mode="after")
    def _agrees(self) -> Study:
        horizon, target, laws = self.trainer.horizon, self.target, self.objective.laws
        if len(set(laws)) < len(laws):
            raise ValueError(f"objective.laws has one twice: {', '.join(laws)}. Do: leave it out")
        if horizon is not None and self.early_stop is not None:
            raise ValueError(
                "early_stop and trainer.horizon do not go together: a trunk has no one end. Do: leave one out"
            )
        if target is not None and target.pick == "all" and target.flops is not None:
            raise ValueError(
                'target.flops is the most that the target of pick = "best" may cost, got pick = "all". Do: add '
                'pick = "best"; a setting of that name goes into runs = [{flops = ...}]'
            )
        for planned in self.plan():
            for run in planned.runs if horizon is not None else ():
                value = run.settings.get(str(horizon))
                if not isinstance(value, int | float) or isinstance(value, bool):
                    got = "none" if value is None else repr(value)
                    raise ValueError(
                        f"trainer.horizon needs a number as the setting {horizon!r} of every run, got {got} for run "
                        f"{run.key} of {planned.name}"
                    )
        return self

    @classmethod
    def read(cls, path: str | Path) -> Study:
        """The study of a TOML file.

        Raises:
            ValueError: no such file, no TOML, or not a study; the message names the place.
        """
        path = Path(path).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise ValueError(
                f"cannot read the study {path}: {why}. Do: `isoloss study init {path}` writes one"
            ) from None
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is no TOML: {error}") from None
        try:
            return cls(**{**tables, "root": path.absolute().parent / str(tables.get("root", ""))})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def plan(self) -> tuple[Planned, ...]:
        """The rungs in order, the target last, each with its runs.

        Raises:
            ValueError: a run stands there twice, or a rung is empty.
        """
        found = []
        for number, rung in enumerate(self.rungs, start=1):
            found.append(Planned(f"rung {number}", expand(self.trainer.settings, rung, f"rungs[{number}]")))
        if self.target is not None:
            wanted = dict(self.target.model_extra or {})
            found.append(Planned("target", expand(self.trainer.settings, wanted, "target")))
        seen: dict[str, str] = {}
        for planned in found:
            for run in planned.runs:
                if run.key in seen:
                    raise ValueError(
                        f"the run {run.key} stands in {seen[run.key]} and in {planned.name}. Do: leave one out"
                    )
                seen[run.key] = planned.name
        return tuple(found)

    @property
    def store_path(self) -> Path:
        """Of the SQLite file."""
        return self.root / (self.store or f"{self.name}.db")

    @property
    def folder_path(self) -> Path:
        """Of checkpoints and logs."""
        return self.root / (self.folder or f"{self.name}.runs")

    def run(
        self,
        tell: Callable[[Step], None] | None = None,
        *,
        changed_trainer: bool = False,
        retry_failed: bool = False,
    ) -> Told:
        """Make every run that is not done yet, predicting each rung before it is begun.

        Interrupted at any moment, the same call goes on: finished runs are not made again.

        Args:
            tell: called with each :class:`isoloss.study.steps.Step`.
            changed_trainer: go on although the trainer's file is not the one that made the first runs.
            retry_failed: try the runs again that failed, each from its checkpoint. Without it they stay
                failed.

        Returns:
            Fits, predictions and how they came out.

        Raises:
            StoreError: the store or the folder cannot be used. ValueError: the trainer cannot be loaded, or
                an axis is missing.
        """
        from isoloss.study.loop import run

        return run(self, tell, changed_trainer=changed_trainer, retry_failed=retry_failed)


def write_template(path: Path) -> None:
    """Write a commented study file that runs as it is.

    Raises:
        ValueError: the file is there, or cannot be written.
    """
    if path.exists():
        raise ValueError(f"{path} exists. Do: name another file, or edit that one")
    write_atomically(path, (Path(__file__).parent / "template.toml").read_text(encoding="utf-8"))


def _sentence(error: ValidationError) -> str:
    """The first things wrong, each with its place in the file."""
    said = []
    for found in error.errors()[:3]:
        place = ".".join(str(part) for part in found["loc"]) or "study"
        if found["type"] == "extra_forbidden":
            said.append(f"{place} is no setting of a study")
        elif found["type"] == "missing":
            said.append(f"{place} is missing")
        elif found["type"] == "value_error":
            said.append(found["msg"].removeprefix("Value error, "))
        else:
            got = repr(found["input"])
            text = found["msg"].lower().replace("valid tuple", "list").replace("valid dictionary", "table")
            said.append(f"{place}: {text}, got {got[:60]}")
    return "; ".join(said)
