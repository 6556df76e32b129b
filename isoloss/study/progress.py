"""takes a study, says how far it is, from its store and the journals of runs that have begun; changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoloss.runs.units import format_count
from isoloss.study.events import Task
from isoloss.study.jobs import Run, tasks_of
from isoloss.study.journal import LOG, JournalError, read
from isoloss.study.ledger import Ledger
from isoloss.study.store import Store
from isoloss.study.study import Study

SCHEMA = "isoloss/study-status/1"


@dataclass(frozen=True)
class Rung:
    """How many of a rung's runs ended in which way; ``seconds`` of a core that they took."""

    name: str
    runs: int
    done: int
    diverged: int
    stopped: int
    failed: int
    begun: int
    seconds: float


@dataclass(frozen=True)
class UnderWay:
    """A run, or a trunk that several share, that has begun and not ended."""

    key: str
    done: float | None
    value: float | None


@dataclass(frozen=True)
class Bad:
    """A run that ended without a result; ``log`` is the file of what it printed, if it is kept."""

    key: str
    status: str
    why: str
    log: str | None


@dataclass(frozen=True, eq=False)
class Status:
    """A study as it stands.

    Attributes:
        study: its name.
        rungs: in order, the target last.
        under_way, ended_badly: see there.
        ledger: of this study; None where nothing is stored yet.
    """

    study: str
    rungs: tuple[Rung, ...]
    under_way: tuple[UnderWay, ...]
    ended_badly: tuple[Bad, ...]
    ledger: Ledger | None

    @property
    def left(self) -> int:
        """Runs that have not ended."""
        return sum(r.runs - r.done - r.diverged - r.stopped - r.failed for r in self.rungs)

    def sentence(self, path: str) -> str:
        """What there is to do."""
        if not self.left:
            failed = sum(r.failed for r in self.rungs)
            again = f". To try again what failed: isoloss study resume {path} --retry-failed"
            return f"complete{again if failed else ''}"
        begun = any(r.done or r.begun or r.diverged or r.stopped or r.failed for r in self.rungs)
        return f"{format_count(self.left)} of {sum(r.runs for r in self.rungs)} runs left. Do: isoloss study {'resume' if begun else 'run'} {path}"

    def to_json(self) -> dict[str, Any]:
        """As in ``docs/json.md``."""
        return {
            "schema": SCHEMA,
            "study": self.study,
            "rungs": [vars(rung) for rung in self.rungs],
            "under_way": [vars(run) for run in self.under_way],
            "ended_badly": [vars(run) for run in self.ended_badly],
            "ledger": None if self.ledger is None else self.ledger.to_json(),
        }


def read_status(study: Study) -> Status:
    """How far a study is, also while another process runs it.

    Raises:
        StoreError: the store is damaged.
    """
    path, ended, ledger = study.store_path, {}, None
    if path.exists():
        store = Store(path, read_only=True)
        for entry in store.run_entries(study.name):
            ended[entry["key"]] = entry
        ledger = Ledger.read(store, coverage=study.objective.coverage).of(study.name)
    rungs, under_way, bad = [], [], []
    plan = study.plan()
    for rung in plan:
        runs = rung.runs
        if study.target is not None and rung is plan[-1] and study.target.pick == "best":
            chosen = {p["key"] for p in ledger.predictions} if ledger is not None else set()
            runs = tuple(r for r in runs if r.key in chosen or r.key in ended) or runs[:1]
        entries = [ended[r.key] for r in runs if r.key in ended]
        counts = {
            s: sum(e["status"] == s for e in entries) for s in ("done", "diverged", "stopped", "failed")
        }
        ends = [r for r in runs if ended.get(r.key, {}).get("status", "done") != "done"]
        for key, (_, members) in _tasks(study, ends).items():
            log = study.folder_path / key / LOG
            for e in (ended[r.key] for r in members):
                why = e["config"].get("why", "")
                bad.append(Bad(e["key"], e["status"], why, str(log) if log.exists() else None))
        missing = [r for r in runs if r.key not in ended]
        begun = 0
        for key, (_, members) in _tasks(study, missing).items():
            points = _points(study.folder_path / key)
            if points:
                begun += len(members)
                values = [p[study.objective.target] for p in points if study.objective.target in p]
                done = points[-1].get("done")
                under_way.append(
                    UnderWay(
                        key, None if done is None else float(done), float(values[-1]) if values else None
                    )
                )
        seconds = sum(float(e["costs"].get("cpu_seconds") or 0.0) for e in entries)
        rungs.append(Rung(rung.name, len(runs), begun=begun, seconds=seconds, **counts))
    return Status(study.name, tuple(rungs), tuple(under_way), tuple(bad), ledger)


def _tasks(study: Study, runs: Sequence[Run]) -> dict[str, tuple[Task, tuple[Run, ...]]]:
    return tasks_of(runs, {r.key: {} for r in runs}, study.objective.target, study.trainer.horizon, None)


def _points(folder: Path) -> list[dict[str, Any]]:
    """What a run has measured so far; a journal that cannot be read is mended when the study goes on."""
    try:
        return [point["measured"] for point in read(folder).points]
    except JournalError:
        return []
