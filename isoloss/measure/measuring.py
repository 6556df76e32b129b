"""Takes a loaded model and the names of probes, runs them, and says of each what it gave or why it could not."""

from __future__ import annotations

import inspect
import math
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from isoloss.errors import NoAnswer
from isoloss.measure import PROBES, WHAT, probe
from isoloss.measure.energy import Carbon, PowerModel
from isoloss.measure.latency import Timing
from isoloss.measure.load import Loaded
from isoloss.measure.measurement import Measurement
from isoloss.measure.products import weights
from isoloss.measure.roofline import Roofline
from isoloss.measure.subject import Subject
from isoloss.measure.zero import moments_of
from isoloss.runs.finding import Finding

OF_GRADIENTS = (
    "effective_dimension",
    "noise_scale",
    "noise_scale_curved",
)  # of the loss, which may be at its least
# What a probe may raise because of the model in front of it. Anything else, raised by a line of this package, is a
# mistake of it; raised by the model's own code or by torch, it is the model's.
CANNOT = (NoAnswer, TypeError, ValueError, NotImplementedError, RuntimeError, MemoryError)
OWN = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Settings:
    """What probes are given, each what it names among its arguments.

    Attributes:
        seed: of random vectors.
        accuracy: relative standard error at which estimates stop.
        optimiser: of a training step: a key of :data:`isoloss.measure.zero.MOMENTS`.
        roof: of the machine.
        power, carbon: for energy where no counter can be read, and for emissions.
        longest_prompt, longest_output: of timings of generation [token].
        limit: seconds by the clock, after which a probe is given up, where the system has a timer for it.
    """

    seed: int = 0
    accuracy: float = 0.05
    optimiser: str = "adamw"
    roof: Roofline | None = None
    power: PowerModel | None = None
    carbon: Carbon | None = None
    longest_prompt: int = 256
    longest_output: int = 32
    limit: float = 600.0

    def __post_init__(self) -> None:
        moments_of(self.optimiser)  # before anything is measured


@dataclass(frozen=True)
class Failed:
    """A probe that could not run, and why, in a line."""

    probe: str
    why: str


@dataclass(frozen=True, eq=False)
class Measured:
    """What is known of one model.

    Attributes:
        name: of the model.
        measurements: of all probes, in their order.
        failed: probes that could not run.
        findings: of all probes.
        notes: on the model.
        results: probe -> what it gave, for pictures.
    """

    name: str
    measurements: tuple[Measurement, ...]
    failed: tuple[Failed, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    results: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Of the whole model, as a row of :class:`isoloss.runs.Runs`: values, and ``_se`` of those that have one."""
        out: dict[str, Any] = {"run": self.name}
        for each in self.measurements:
            if not each.of:
                out[each.name] = each.value
                if 0 < each.se < math.inf:
                    out[f"{each.name}_se"] = each.se
        return out

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "name": self.name,
            "notes": list(self.notes),
            "measurements": [_json(each) for each in self.measurements],
            "failed": [{"probe": each.probe, "why": each.why} for each in self.failed],
            "findings": [
                {"code": f.code, "level": f.level, "text": f.text, "why": f.why, "do": f.do}
                for f in self.findings
            ],
        }


def _json(each: Measurement) -> dict[str, Any]:
    return {
        "name": each.name,
        "of": each.of,
        "value": _known(each.value),
        "se": _known(each.se),
        "unit": each.unit,
        "how": each.how,
        "cpu_seconds": _known(each.spent.cpu_seconds),
        "wall_seconds": _known(each.spent.wall_seconds),
        "gradients": _known(each.spent.gradients),
    }


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def probes(what: str) -> list[str]:
    """The probes that a list of groups and probes names, each once, in the order of the list.

    Raises:
        ValueError: something is neither; the message lists what there is.

    Example:
        >>> probes("params,memory,params")
        ['params', 'memory']
    """
    found: dict[str, None] = {}
    for name in filter(None, (part.strip() for part in what.split(","))):
        if name in WHAT:
            found |= dict.fromkeys(WHAT[name])
        elif name in PROBES:
            found[name] = None
        else:
            raise ValueError(
                f"nothing named {name!r} to measure. There are: {', '.join(WHAT)}; or one by one {', '.join(PROBES)}"
            )
    if not found:
        raise ValueError(f"needed something to measure, got {what!r}. Give --what {','.join(WHAT)}")
    return list(found)


def measure(
    loaded: Loaded,
    names: Sequence[str],
    settings: Settings | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    timing: Timing | None = None,
) -> Measured:
    """Run probes on a model.

    Args:
        loaded: the model.
        names: of probes.
        settings: for those that take any.
        progress: called with (probe, how many are done, how many there are) before each.
        timing: of one example, from :func:`in_turn`.

    Example:
        >>> from isoloss.measure.load import costs_of
        >>> found = measure(costs_of(torch.nn.Linear(3, 2), torch.ones(4, 3), "line"), ["params"])
        >>> found.row()["params"], found.failed
        (8, ())
    """
    settings = settings or Settings()
    # The limit is this function's own: an argument of a probe that happens to be called so is another matter.
    pool = {name: getattr(settings, name) for name in Settings.__dataclass_fields__ if name != "limit"}
    # Prompt and output together must fit the model.
    prompt = min(settings.longest_prompt, loaded.context - settings.longest_output)
    pool |= {
        "subject": loaded.subject,
        "generate": loaded.generate,
        "longest_prompt": prompt,
        "timing": timing,
    }
    measurements: list[Measurement] = []
    failed: list[Failed] = []
    findings: list[Finding] = []
    results: dict[str, Any] = {}
    blocked: str | None = None  # not asked yet
    for done, name in enumerate(names):
        if progress is not None:
            progress(name, done, len(names))
        if loaded.costs_only and name not in WHAT["costs"]:
            failed.append(Failed(name, loaded.costs_only))
            continue
        if loaded.flat and name in OF_GRADIENTS:
            failed.append(Failed(name, loaded.flat))
            continue
        function = probe(name)
        if name not in WHAT["costs"]:
            if blocked is None:
                blocked = _blocked(loaded.subject)
            if blocked:
                failed.append(Failed(name, blocked))
                continue
        try:
            with _at_most(settings.limit):
                found = function(
                    **{key: pool[key] for key in inspect.signature(function).parameters if key in pool}
                )
        except _Late:
            why = f"not done within {settings.limit:g} s. Needed: more (--seconds), or fewer or shorter examples"
            failed.append(Failed(name, why))
            continue
        except Exception as error:
            if not _of_the_model(error):
                raise
            failed.append(Failed(name, _why(error)))
            continue
        results[name] = found
        measurements += found if isinstance(found, list) else found.measurements()
        findings += getattr(found, "findings", ())
    subject = loaded.subject
    return Measured(subject.name, tuple(measurements), tuple(failed), tuple(findings), loaded.notes, results)


def in_turn(loaded: Sequence[Loaded], repeats: int = 20) -> dict[str, Timing]:
    """Forward passes of one example of several models, called in turn; empty for one model, or where one fails."""
    from isoloss.measure.latency import latency

    if len(loaded) < 2:
        return {}
    try:
        return latency([one.subject for one in loaded], repeats=repeats)
    except Exception as error:  # each model's own probe will say why
        if not _of_the_model(error):
            raise
        return {}


def state() -> dict[str, Any]:
    """The machine as it is now: what times and energies mean nothing without."""
    from isoloss.measure.latency import load
    from isoloss.measure.roofline import machine

    return {
        "machine": machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": _known(load()),
    }


class _Late(BaseException):
    """The time of a probe is over. No Exception, which probes may take for one of the model's."""


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """End the block after so many seconds by the clock; without a timer, and off the main thread, never."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _of_the_model(error: Exception) -> bool:
    """Whether it is the model in front of a probe that is at fault."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, CANNOT) or not (frames and Path(frames[-1].filename).is_relative_to(OWN))


def _blocked(subject: Subject) -> str:
    """Why no probe of derivatives can run on the subject: said once, and in its terms; empty if nothing is known."""
    if not subject.parameters():
        return "no parameter takes a gradient. Needed: a model that trains"
    try:
        with subject.measuring(), torch.no_grad():
            losses = [float(subject.loss(batch)) for batch, _ in weights(subject)]
    except Exception as error:
        if not _of_the_model(error):
            raise
        return _why(error)
    if all(map(math.isfinite, losses)):
        return ""
    return f"the loss is {next(x for x in losses if not math.isfinite(x))}. Needed: weights and data on which it is finite"


def _why(error: BaseException) -> str:
    """In a line; what is no sentence for a user is named by its kind."""
    said = " ".join(str(error).split()) or "no message"
    said = said if len(said) <= 300 else f"{said[:300]} ..."
    return said if isinstance(error, NoAnswer | TypeError | ValueError) else f"{type(error).__name__}: {said}"
