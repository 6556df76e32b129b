"""takes a study, runs the loop: fit what is done, write down what comes next, make it, score it.

Everything that decides is a function of the store and the study file: which runs are done, what was promised,
what was stopped. So the loop has no state of its own to lose, and a study that was killed goes on by running
it again. Decisions wait for a whole rung, and rows are read in the order of the file, so that neither the
number of workers nor the order in which they finish changes a number.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from isoloss.comparing.stack import Stack, auto
from isoloss.errors import NoAnswer, StoreError
from isoloss.fitting.estimate import fit as fit_law
from isoloss.fitting.objective import StudentT
from isoloss.fitting.result import Fit
from isoloss.laws import get
from isoloss.runs import Runs
from isoloss.study import early
from isoloss.study import journal as journals
from isoloss.study.events import points_of
from isoloss.study.jobs import Planned, Run, tasks_of
from isoloss.study.ledger import Ledger
from isoloss.study.local import Event, Point, Task, Workers, by_horizon
from isoloss.study.promise import promise
from isoloss.study.records import Promise
from isoloss.study.rows import COSTS, check_axes, row_of
from isoloss.study.steps import Began, Ended, Fitted, Moved, Note, Promised, Step, Told
from isoloss.study.store import Store
from isoloss.study.study import Study

ENDED = ("done", "diverged", "stopped", "failed")
MARGIN = 2  # rows beyond the parameters of a law before it predicts


def run(
    study: Study,
    tell: Callable[[Step], None] | None = None,
    *,
    changed_trainer: bool = False,
    retry_failed: bool = False,
) -> Told:
    """Make what is missing of a study; see :meth:`isoloss.study.study.Study.run`."""
    folder = study.folder_path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    with _alone(folder), contextlib.ExitStack() as stack:
        loop = _Loop(study, Store(study.store_path), tell or _ignore, stack, changed_trainer)
        return loop.run(retry_failed)


class _Loop:
    """One pass over the rungs. What it holds can be read again from the store at any time."""

    def __init__(
        self,
        study: Study,
        store: Store,
        tell: Callable[[Step], None],
        stack: contextlib.ExitStack,
        changed: bool,
    ) -> None:
        self.study, self.store, self.tell, self.changed = study, store, tell, changed
        self.plan = study.plan()
        self.axes: dict[str, dict[str, float]] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self.fits: dict[str, Fit | Stack] = {}
        self._stack = stack
        self._workers: Workers | None = None

    def run(self, retry_failed: bool) -> Told:
        self._read()
        self._reopen(retry_failed)
        self._keep_choice()
        self._tidy()
        if any(run.key not in self.entries for rung in self.plan for run in rung.runs):
            self._refuse_another_trainer()
            self._learn_axes()
        why = ""
        for number, rung in enumerate(self.plan, start=1):
            last = number == len(self.plan)
            wanted = self.plan[-1].runs if self.study.target is not None else ()
            earlier = [run for done in self.plan[: number - 1] for run in done.runs]
            missing = any(run.key not in self.entries for run in rung.runs)
            if earlier and (missing or last):
                self.fits = self._fit(earlier, wanted)
            if last and missing and self.study.target is not None:
                rung = self._pick(rung)
                self.plan = (*self.plan[:-1], rung)
            todo = [run for run in rung.runs if run.key not in self.entries]
            if not todo:
                continue
            why = self._nothing_done(earlier) or self._beyond(todo)
            if why:
                why = f"{rung.name} {'is not begun' if len(todo) == len(rung.runs) else 'does not go on'}: {why}"
                self.tell(Note(why))
                break
            self._promise(rung, todo)
            self._begin(number, rung, todo)
            self._make(rung, todo)
        self._tidy()
        return self._told(why)

    # What is there

    def _read(self) -> None:
        """Every run of the plan that has ended, by key; a run that was done after it failed is done."""
        keys = {run.key for rung in self.plan for run in rung.runs}
        for entry in self.store.run_entries(self.study.name):
            if entry["key"] in keys and entry["status"] in ENDED:
                self.entries[entry["key"]] = entry
                known = entry["axes"] | {name: entry["costs"].get(name) for name in COSTS}
                self.axes[entry["key"]] = {name: float(v) for name, v in known.items() if v is not None}

    def _reopen(self, all_failed: bool) -> None:
        """Forget that runs failed which are to be tried again: all of them, or those of which a journal says so.

        Before it is tried again that is in its journal, so that a driver that is killed then goes on with it.
        """
        runs = [run for rung in self.plan for run in rung.runs]
        failed = [r for r in runs if self.entries.get(r.key, {}).get("status") == "failed"]
        if not failed:
            return
        given_up = Counter(
            e["key"] for e in self.store.run_entries(self.study.name) if e["status"] == "failed"
        )
        for key, (_, members) in self._tasks(failed).items():
            counts = {r.key: given_up[r.key] for r in members}
            if all_failed:
                journals.try_again(self.folder_of(key), counts)
            again = self._journal(key).again
            for name, count in counts.items():
                if again.get(name, 0) >= count:
                    del self.entries[name]

    def _tasks(self, runs: Sequence[Run]) -> dict[str, tuple[Task, tuple[Run, ...]]]:
        """What would be done for these runs, as far as their names go."""
        return tasks_of(runs, {r.key: {} for r in runs}, "", self.study.trainer.horizon, None)

    def _journal(self, key: str) -> journals.Contents:
        """What a run or trunk has written down; a damaged journal says nothing."""
        try:
            return journals.read(self.folder_of(key))
        except journals.Damaged:
            return journals.Contents()

    def _tidy(self) -> None:
        """Remove the folders of runs that the store has; a trunk's when all that it serves has ended."""
        if self.study.workers.keep:
            return
        runs = [run for rung in self.plan for run in rung.runs]
        for key, (_, members) in self._tasks(runs).items():
            ends = {self.entries[r.key]["status"] if r.key in self.entries else "" for r in members}
            if not ends & {"", "failed"}:
                shutil.rmtree(self.folder_of(key), ignore_errors=True)

    def folder_of(self, key: str) -> Path:
        return self.study.folder_path / key

    @property
    def workers(self) -> Workers:
        """Started when first needed: a finished study needs none."""
        if self._workers is None:
            s, w = self.study, self.study.workers
            self._workers = self._stack.enter_context(
                Workers(
                    s.trainer.run, s.trainer.axes, s.root, s.folder_path, count=w.count, threads=w.threads,
                    memory=None if w.memory is None else int(w.memory), retries=w.retries,
                )
            )  # fmt: skip
        return self._workers

    def _refuse_another_trainer(self) -> None:
        now = self.workers.sha256
        for entry in self.entries.values():
            was = entry["config"].get("trainer_sha256")
            if entry["status"] == "done" and was is not None and was != now and not self.changed:
                raise StoreError(
                    f"{self.study.trainer.run} is not the file that made run {entry['key']!r}: runs of two trainers "
                    "are no one ladder. Do: put it back, give the study a new name, or, if the change cannot "
                    "matter, `isoloss study resume --changed-trainer`"
                )

    def _learn_axes(self) -> None:
        missing = [r for rung in self.plan for r in rung.runs if r.key not in self.axes]
        found = self.workers.axes([dict(r.settings) for r in missing])
        for r, axes in zip(missing, found, strict=True):
            check_axes(r, axes, self.study.objective.target)
            self.axes[r.key] = axes
        limits = self.study.limits
        if limits.flops is not None or limits.core_hours is not None:
            unknown = next((r for r in missing if "flops" not in self.axes[r.key]), None)
            if unknown is not None:
                raise ValueError(
                    f"limits need the axis flops of every run before it is made, got {', '.join(self.axes[unknown.key])} "
                    f"for run {unknown.key}. Do: give trainer.axes a function that returns flops"
                )
        for spec in self.study.objective.laws:
            if spec == "auto":
                continue
            law = get(spec)
            for r in missing:
                lacks = [a for a in law.axes if a not in self.axes[r.key] and a not in law.defaults]
                if lacks:
                    raise ValueError(
                        f"{law.spec} reads {', '.join(lacks)}, got {', '.join(self.axes[r.key]) or 'nothing'} for run "
                        f"{r.key}. Do: give trainer.axes, or settings of these names"
                    )

    def _nothing_done(self, earlier: Sequence[Run]) -> str:
        """Why dearer runs would be a waste: nothing before them came to an end."""
        if not earlier or any(self.entries[r.key]["status"] == "done" for r in earlier):
            return ""
        return (
            "no run before it is done, see `isoloss study status`. Do: mend the cause, then `isoloss study resume "
            "--retry-failed`"
        )

    def _beyond(self, todo: Sequence[Run]) -> str:
        """Which limit these runs would cross."""
        limits = self.study.limits
        flops = sum(self.axes[r.key].get("flops", 0.0) for r in todo)
        spent = sum(_cost(e, "flops") for e in self.entries.values())
        if limits.flops is not None and spent + flops > limits.flops:
            return f"{spent + flops:.3g} FLOPs would be more than the {limits.flops:.3g} of limits.flops"
        if limits.core_hours is not None:
            hours = sum(_cost(e, "cpu_seconds") for e in self.entries.values()) / 3600
            whole = [e for e in self.entries.values() if e["status"] == "done" and _cost(e, "flops")]
            known = sum(_cost(e, "flops") for e in whole)
            ahead = flops * sum(_cost(e, "cpu_seconds") for e in whole) / 3600 / known if known else 0.0
            if hours + ahead > limits.core_hours:
                return f"{hours + ahead:.3g} core-hours would be more than the {limits.core_hours:.3g} of limits.core_hours"
        return ""

    # Fit and predict

    def _fit(self, runs: Sequence[Run], targets: Sequence[Run]) -> dict[str, Fit | Stack]:
        table = self._table(runs)
        found: dict[str, Fit | Stack] = {}
        for spec in self.study.objective.laws:
            why, rows = "", 0 if table is None else len(table)
            seen: tuple[Promise, ...] = ()
            try:
                believed = self._believe(spec, table)
                seen = self._seen(believed, targets)
                found[spec] = believed
            except (NoAnswer, ValueError) as reason:  # a law that is undefined here ends no study
                why = str(reason)
            self.tell(Fitted(spec, rows, found.get(spec), why, seen))
        return found

    def _table(self, runs: Sequence[Run]) -> Runs | None:
        """The rows of these runs that are done, in the order of the file; refuses rows of different data."""
        keys = {run.key for run in runs if self.entries.get(run.key, {}).get("status") == "done"}
        if not keys:
            return None
        table = self.store.runs(self.study.name)
        # numbered as in the file: the order in which runs were finished is nobody's business
        place = {str(key): i for i, key in enumerate(table["run"])}
        order = [key for key in dict.fromkeys(run.key for run in runs) if key in keys]
        table = table.take(np.array([place[key] for key in order]))
        table = replace(table, rows=np.arange(1, len(order) + 1), source=f"study {self.study.name}")
        hashes: dict[str, dict[str, str]] = {}
        for key in sorted(keys):
            for name, value in self.entries[key]["config"].get("facts", {}).items():
                if name.endswith("_sha256"):
                    hashes.setdefault(name, {})[value] = key
        for name, by_value in hashes.items():
            if len(by_value) > 1:
                raise ValueError(
                    f"runs {' and '.join(list(by_value.values())[:2])} differ in {name}: their losses cannot be compared. "
                    "Do: give the study with other data another name"
                )
        return table

    def _believe(self, spec: str, table: Runs | None) -> Fit | Stack:
        if table is None:
            raise NoAnswer("no run is done", "a finished run")
        o = self.study.objective
        if spec == "auto":
            return _whole(auto(table, draws=o.draws, coverage=o.coverage))
        law = get(spec)
        least = len(law.parameters) + MARGIN
        if len(table) < least:
            raise NoAnswer(
                f"{law.spec} has {len(law.parameters)} parameters and {len(table)} runs", f"{least} runs"
            )
        # rows drawn anew: where a law is not quite true a posterior is too narrow (docs/ledger.md)
        found = fit_law(
            law, table, objective=StudentT(), uncertainty="bootstrap", draws=o.draws, coverage=o.coverage,
            sensitivity=False,
        )  # fmt: skip
        return _whole(found)

    def _seen(
        self, found: Fit | Stack, runs: Sequence[Run], history: Ledger | None = None
    ) -> tuple[Promise, ...]:
        """What is predicted for these runs, in order."""
        if not runs:
            return ()
        names = found.axes if isinstance(found, Stack) else found.law.axes
        known = [self.axes[run.key] for run in runs]
        given = [n for n in names if all(n in axes for axes in known)]
        at = {name: np.array([axes[name] for axes in known]) for name in given}
        entries = promise(
            found, at, coverage=self.study.objective.coverage, history=history, study=self.study.name,
            source=self.study.name,
        )  # fmt: skip
        unit = self.study.objective.unit
        return tuple(replace(p, key=run.key, unit=unit) for p, run in zip(entries, runs, strict=True))

    def _promised(self, rung: Planned) -> set[tuple[str, str]]:
        """(key, law) of what is written down for the runs of a rung."""
        keys = {run.key for run in rung.runs}
        return {
            (p["key"], p["law"])
            for p in self.store.predictions()
            if p["study"] == self.study.name and p["key"] in keys
        }

    def _keep_choice(self) -> None:
        """Of several targets, the one that was chosen before: it was promised, or made."""
        target, last = self.study.target, self.plan[-1]
        if target is not None and target.pick == "best":
            before = {key for key, _ in self._promised(last)}
            chosen = tuple(r for r in last.runs if r.key in before or r.key in self.entries)
            if chosen:
                self.plan = (*self.plan[:-1], Planned(last.name, chosen))

    def _pick(self, rung: Planned) -> Planned:
        """The target that is run: all of them, or the one of least predicted loss among what may be spent."""
        target = self.study.target
        if target is None or target.pick == "all" or len(rung.runs) == 1:
            return rung
        cap = math.inf if target.flops is None else target.flops
        allowed = [r for r in rung.runs if self.axes[r.key].get("flops", 0.0) <= cap]
        if not allowed:
            raise NoAnswer(f"every target costs more than {cap:.3g} FLOPs", "a cheaper target, or more FLOPs")
        first = self.study.objective.laws[0]
        if first not in self.fits:
            raise NoAnswer(f"{first} has no fit to choose the target by", 'more runs, or pick = "all"')
        losses = [p.quantiles[len(p.quantiles) // 2] for p in self._seen(self.fits[first], allowed)]
        return Planned(rung.name, (allowed[int(np.argmin(losses))],))

    def _promise(self, rung: Planned, todo: Sequence[Run]) -> None:
        """Write down what every law says of the runs to come, unless it stands there."""
        history, promised = Ledger.read(self.store) if self.fits else None, self._promised(rung)
        unknown, fresh = self._unknown(todo), []
        for spec, found in self.fits.items():
            try:
                seen = self._seen(found, unknown, history)
            except (NoAnswer, ValueError) as reason:
                self.tell(Note(f"{spec} predicts nothing of {rung.name}: {reason}"))
                continue
            fresh += [p for p in seen if (p.key, p.law) not in promised]
        if fresh:
            self.store.add_predictions(fresh)
            self.tell(Promised(rung.name, tuple(fresh)))

    def _unknown(self, todo: Sequence[Run]) -> list[Run]:
        """Those of which nothing is known yet: what a run under way has shown, a new law may not predict."""
        known: set[str] = set()
        for key, (task, members) in self._tasks(todo).items():
            contents = self._journal(key)
            open_ = contents.missing(task.horizons)
            if task.horizons is not None:
                known |= {r.key for r, h in zip(members, task.horizons, strict=True) if h not in open_}
            elif contents.points:
                known.add(key)
        return [run for run in todo if run.key not in known]

    # Do it

    def _begin(self, number: int, rung: Planned, todo: Sequence[Run]) -> None:
        flops = [self.axes[r.key].get("flops", 0.0) for r in todo]
        total = sum(flops)
        shares = tuple(f / total if min(flops) > 0 else 1 / len(todo) for f in flops)
        keys = tuple(r.key for r in todo)
        self.tell(Began(rung.name, number, len(self.plan), len(rung.runs), keys, shares, total))

    def _make(self, rung: Planned, todo: Sequence[Run]) -> None:
        if self.study.early_stop is not None and len(rung.runs) > 1:
            todo = self._stop_early(rung, todo)
        self._work(todo, None)

    def _work(self, todo: Sequence[Run], until: float | None) -> dict[str, tuple[Point, ...]]:
        """Have the workers make these runs; gives the points of those that paused at ``until``."""
        paused: dict[str, tuple[Point, ...]] = {}
        if not todo:
            return paused
        o = self.study.objective
        tasks = tasks_of(todo, self.axes, o.target, self.study.trainer.horizon, until)
        for event in self.workers.run([task for task, _ in tasks.values()]):
            task, runs = tasks[event.key]
            if event.kind == "point":
                self._moved(event, runs)
            elif event.kind == "note":
                self.tell(Note(f"{event.key}: {event.why}"))
            elif event.kind == "paused":
                paused[event.key] = event.points
            else:
                self._ended(event, task, runs)
        return paused

    def _moved(self, event: Event, runs: tuple[Run, ...]) -> None:
        (point,) = event.points
        done, keys = point.measured.get("done"), tuple(run.key for run in runs)
        self.tell(Moved(event.key, keys, None if done is None else float(done), point.measured))

    def _ended(self, event: Event, task: Task, runs: tuple[Run, ...]) -> None:
        if task.horizons is None:
            self._keep(runs[0], event.kind, event.points, event)
            if event.kind != "failed" and not self.study.workers.keep:
                shutil.rmtree(self.folder_of(event.key), ignore_errors=True)
            return
        parts = by_horizon(event.points)
        for run, horizon in zip(runs, task.horizons, strict=True):
            if horizon in parts:
                # of the trunk, what this end has added
                before = max((part[-1].cpu for h, part in parts.items() if h < horizon), default=0.0)
                wall = max((part[-1].wall for h, part in parts.items() if h < horizon), default=0.0)
                last = parts[horizon][-1]
                own = replace(last, cpu=last.cpu - before, wall=last.wall - wall)
                self._keep(run, "done", (*parts[horizon][:-1], own), event)
            else:
                self._keep(run, event.kind, event.points, event)

    def _keep(self, run: Run, status: str, points: Sequence[Point], event: Event) -> None:
        """Add a run to the store."""
        o = self.study.objective
        made_by = {"trainer": self.study.trainer.run, "trainer_sha256": self.workers.sha256}
        if event.why:
            made_by["why"] = event.why
        row = row_of(run, status, points, self.axes[run.key], o, made_by)
        self.store.add_run(self.study.name, run.key, status=status, **vars(row))
        self.entries[run.key] = {"key": run.key, "status": status, **vars(row)}
        value = row.measured.get(o.target, math.nan)
        log = self.folder_of(event.key) / journals.LOG if status == "failed" else None
        cpu = row.costs["cpu_seconds"]
        self.tell(
            Ended(run.key, event.key, status, value if math.isfinite(value) else None, event.why, cpu, log)
        )

    # Early stop

    def _stop_early(self, rung: Planned, todo: Sequence[Run]) -> list[Run]:
        """Bring all to the chosen share, write down where each is heading, leave out the hopeless.

        What was decided is read from the store, so that a crash between two stops changes nothing.
        """
        rule, o = self.study.early_stop, self.study.objective
        assert rule is not None
        keys = {run.key for run in rung.runs}
        written = [p for p in self._outlooks() if p["key"] in keys]
        if not written:
            history = self._history(keys)
            if len(history) < rule.least:
                self.tell(
                    Note(f"no early stop in {rung.name}: {len(history)} finished runs, needed {rule.least}")
                )
                return list(todo)
            paused = self._work(todo, rule.at)
            watch = rule.watch or o.target
            looks = []
            for run in todo:
                value = early.seen_at(_watched(paused.get(run.key, ()), watch), rule.at)
                if value is not None:
                    at = {n: v for n, v in self.axes[run.key].items() if n not in COSTS}
                    looks.append(
                        early.outlook(
                            run.key, value, history, at=at, study=self.study.name, target=o.target, unit=o.unit,
                            coverage=o.coverage,
                        )
                    )  # fmt: skip
            if not looks:
                self.tell(
                    Note(f'no early stop in {rung.name}: no run measures "done" and {watch} by the way')
                )
            self.store.add_predictions(looks)
            written = [p for p in self._outlooks() if p["key"] in keys]
        stopped = set(early.hopeless(written))
        for run in todo:
            if run.key in stopped:
                look = next(p for p in written if p["key"] == run.key)
                why = f"at {rule.at:g} of its way it was heading for {look['low']:.4g} to {look['high']:.4g}"
                self._keep(
                    run, "stopped", points_of(self._journal(run.key)), Event(run.key, "paused", why=why)
                )
                shutil.rmtree(self.folder_of(run.key), ignore_errors=True)
        return [run for run in todo if run.key not in stopped and run.key not in self.entries]

    def _outlooks(self) -> list[dict[str, Any]]:
        return [
            p for p in self.store.predictions() if p["study"] == self.study.name and p["law"] == early.LAW
        ]

    def _history(self, without: set[str]) -> list[tuple[float, float]]:
        """(watched at the share, end) of every finished run of earlier rungs."""
        rule, o = self.study.early_stop, self.study.objective
        assert rule is not None
        watch = rule.watch or o.target
        ends = {
            k: float(e["measured"][o.target])
            for k, e in self.entries.items()
            if e["status"] == "done" and k not in without
        }
        if not ends:
            return []
        try:
            curves = self.store.curves(self.study.name)
        except StoreError:
            return []
        if "done" not in curves or watch not in curves:
            return []
        by_run: dict[str, list[tuple[float, float]]] = {}
        for key, done, value in zip(curves["run"], *curves.numeric("done", watch), strict=True):
            by_run.setdefault(str(key), []).append((float(done), float(value)))
        seen = {
            key: early.seen_at([p for p in by_run.get(key, []) if all(map(math.isfinite, p))], rule.at)
            for key in ends
        }
        return sorted((value, ends[key]) for key, value in seen.items() if value is not None)

    # What it has come to

    def _told(self, why: str) -> Told:
        ledger = Ledger.read(self.store, coverage=self.study.objective.coverage).of(self.study.name)
        chosen = [run for rung in self.plan for run in rung.runs]
        statuses = {
            run.key: self.entries[run.key]["status"] if run.key in self.entries else "missing"
            for run in chosen
        }
        targets = tuple(run.key for run in self.plan[-1].runs) if self.study.target is not None else ()
        return Told(ledger, dict(self.fits), statuses, targets, why)


def _watched(points: Sequence[Point], watch: str) -> list[tuple[float, float]]:
    return [
        (float(p.measured["done"]), float(p.measured[watch]))
        for p in points
        if "done" in p.measured and not isinstance(p.measured.get(watch, ""), str)
    ]


def _cost(entry: Mapping[str, Any], name: str) -> float:
    return float(entry["costs"].get(name) or 0.0)


def _whole(found: Fit | Stack) -> Fit | Stack:
    """A fit that was interrupted keeps fewer draws; what it would predict depends on when that was."""
    members = found.members if isinstance(found, Stack) else (found,)
    if any(fit.result == "interrupted" for fit in members):
        raise KeyboardInterrupt
    return found


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse a second driver of the same study; the lock goes with the process that holds it."""
    path = folder / "lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StoreError(f"cannot write in {folder}: {error.strerror or error}") from error
    try:
        if not journals.try_lock(handle):
            holder = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            raise StoreError(
                f"the study in {folder} is being run by process {holder}. Do: wait for it, or stop it first"
            )
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _ignore(_: Step) -> None:
    pass
