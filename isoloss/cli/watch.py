"""A study as it goes: lines for what has been decided and measured, bars for what is under way."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from isoloss.cli.show import interval, number, plural

if TYPE_CHECKING:
    from isoloss.study.steps import Began, Fitted, Moved, Step
    from isoloss.study.study import Study


class Watch:
    """Prints each :class:`isoloss.study.steps.Step`; bars only where a person watches."""

    def __init__(self, study: Study) -> None:
        from rich.console import Console

        self._study = study
        self._console = Console(
            width=None if sys.stdout.isatty() else 110, markup=False, highlight=False, soft_wrap=True
        )
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._shares: dict[str, float] = {}  # of runs that have not ended, in what is left of the rung
        self._done: dict[str, float] = {}  # key of a run or trunk -> how far it is, as a share of the rung
        self._ended = 0.0

    def __enter__(self) -> Watch:
        if sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            self._bars = Progress(
                TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[value]}"), console=self._console, transient=True,
            )  # fmt: skip
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def tell(self, step: Step) -> None:
        """Show one step."""
        from isoloss.study.steps import Began, Ended, Fitted, Moved, Note, Promised

        match step:
            case Began():
                self._began(step)
            case Moved():
                self._moved(step)
            case Ended():
                self._end(step.key, step.of)
                what = (
                    f"{self._study.objective.target} {number(step.value, 5)}"
                    if step.value is not None
                    else ""
                )
                log = "" if step.log is None else f"log: {step.log}"
                cost = f"{number(step.cpu, 3)} core-seconds"
                said = ", ".join(part for part in (what, step.why, log, cost) if part)
                self._line(f"  {step.status:<8} {step.key}  {said}")
            case Fitted():
                self._fitted(step)
            case Promised():
                n = len(step.promises)
                self._line(f"{plural(n, 'prediction')} of {step.rung} written down before it begins")
            case Note():
                self._line(f"note: {step.text}")

    def _began(self, step: Began) -> None:
        left = (
            f", {plural(step.runs - len(step.todo), 'run')} done before" if step.runs > len(step.todo) else ""
        )
        flops = f", {step.flops:.2g} FLOPs" if step.flops else ""
        self._line(
            f"{step.rung} ({step.number} of {step.rungs}): {plural(len(step.todo), 'run')}{flops}{left}"
        )
        self._shares = dict(zip(step.todo, step.shares, strict=True))
        self._done, self._ended = {}, 0.0
        if self._bars is not None:
            for task in self._tasks.values():
                self._bars.remove_task(task)
            self._tasks = {"": self._bars.add_task(step.rung, total=1.0, value="")}

    def _moved(self, step: Moved) -> None:
        if self._bars is None:
            return
        if step.key not in self._tasks:
            total = None if step.done is None else 1.0
            self._tasks[step.key] = self._bars.add_task(f"  {step.key}", total=total, value="")
        shown = next((n for n in (self._study.objective.target, "train_loss") if n in step.measured), None)
        value = "" if shown is None else f"{shown} {number(float(step.measured[shown]), 4)}"
        self._bars.update(self._tasks[step.key], completed=step.done, value=value)
        left = sum(self._shares.get(key, 0.0) for key in step.runs)
        self._done[step.key] = left * min(max(step.done or 0.0, 0.0), 1.0)
        self._whole()

    def _end(self, key: str, of: str) -> None:
        self._ended += self._shares.pop(key, 0.0)
        self._done.pop(of, None)
        if self._bars is not None and of in self._tasks:
            self._bars.remove_task(self._tasks.pop(of))
        self._whole()

    def _whole(self) -> None:
        if self._bars is not None and "" in self._tasks:
            self._bars.update(self._tasks[""], completed=self._ended + sum(self._done.values()))

    def _fitted(self, step: Fitted) -> None:
        if step.found is None:
            self._line(f"fit {step.law}: no answer: {step.why}")
            return
        ahead = ""
        if step.target:
            ahead = "; target: " + "; ".join(
                f"{number(p.quantiles[len(p.quantiles) // 2], 4)} in {interval(p.low, p.high, 4)}"
                for p in step.target[:3]
            )
        result = getattr(step.found, "result", "identified")  # a stack has none
        doubt = "" if result == "identified" else f" ({result})"
        self._line(f"fit {step.law} to {plural(step.rows, 'run')}{doubt}{ahead}")

    def _line(self, text: str) -> None:
        self._console.print(text)
