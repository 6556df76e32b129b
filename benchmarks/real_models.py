"""Every probe on trained networks: its value, standard error and cost, or why it cannot run.

    python -m benchmarks.real_models [--only resnet20,...] [--probes params,...] [--seconds 20] [--out docs/measure-models.md]

The networks and their data are in `benchmarks/networks.py`; one that is not here is said to be so. Each probe runs in a
process of its own, one thread, that ends after `--seconds` of CPU time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import math
import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import page
from benchmarks.networks import NETWORKS, Absent
from isoloss.measure import PROBES
from isoloss.measure.criteria import CrossEntropy
from isoloss.measure.load import Loaded
from isoloss.measure.measurement import Measurement
from isoloss.measure.measuring import Settings, measure
from isoloss.measure.subject import Subject
from isoloss.report import words

FIRST = (
    "flops_forward",
    "memory_peak_measured",
    "intensity",
    "latency_cpu",
)  # what stands for a probe that gives several
LEFT = 12 << 30  # bytes of memory that a probe may take


@dataclass(frozen=True)
class Outcome:
    """One probe on one network.

    Attributes:
        found: measurements.
        why: it could not; empty if it could.
        cpu, wall: of the probe [s].
        peak: resident memory of its process at the most [byte].
    """

    found: tuple[Measurement, ...]
    why: str
    cpu: float
    wall: float
    peak: float


def run(loaded: Loaded, name: str, settings: Settings, seconds: float) -> Outcome:
    """One probe in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (LEFT, LEFT))
        began = time.process_time(), time.perf_counter()
        with quiet():
            told = measure(loaded, [name], settings)
        spent = time.process_time() - began[0], time.perf_counter() - began[1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        why = told.failed[0].why if told.failed else ""
        sender.send((told.measurements, why, *spent, peak))

    process = context.Process(target=work)
    began = time.perf_counter()
    process.start()
    sender.close()
    got: Any = None
    limit = began + 100 * seconds  # other work on the machine shall not end it
    while process.is_alive() and time.perf_counter() < limit and cpu_of(process.pid) < seconds:
        if receiver.poll(0.2):
            break
    with contextlib.suppress(EOFError):
        got = receiver.recv() if receiver.poll(0) else None
    spent = cpu_of(process.pid)
    ended = got is not None or not process.is_alive()
    process.kill()
    process.join()
    if got is not None:
        return Outcome(tuple(got[0]), *got[1:])
    why = f"ended with code {process.exitcode}" if ended else f"not done within {seconds:g} s of CPU time"
    return Outcome((), why, spent, time.perf_counter() - began, math.nan)


def cpu_of(pid: int | None) -> float:
    """CPU seconds of a process so far; 0 where nobody knows."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def quiet() -> Any:
    """Without what libraries print."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        yield


def gradient_seconds(loaded: Loaded) -> float:
    """CPU time of one gradient over all batches, the least of three [s]: what the costs are told in."""
    subject = loaded.subject
    held = list(subject.parameters().values())
    times = []
    with subject.measuring():
        for _ in range(3):
            began = time.process_time()
            for batch in subject.batches:
                torch.autograd.grad(subject.loss(batch), held, allow_unused=True)
            times.append(time.process_time() - began)
    return min(times)


@dataclass(frozen=True)
class Column:
    """Of one network.

    Attributes:
        said: its size and data, or why it is not here.
        gradient: CPU time of one gradient over all its batches [s].
        outcomes: probe -> outcome; empty where it is not here.
    """

    said: str
    gradient: float
    outcomes: Mapping[str, Outcome]


def column(name: str, probes: Sequence[str], settings: Settings, seconds: float) -> Column:
    try:
        with quiet():
            loaded = NETWORKS[name]()
    except Absent as error:
        return Column(f"not here: {error}", math.nan, {})
    unit, subject, outcomes = gradient_seconds(loaded), loaded.subject, {}
    for probe in probes:
        one = outcomes[probe] = run(loaded, probe, settings, seconds)
        print(
            name,
            probe,
            one.why or headline(one),
            f"{one.cpu:.2f} CPU s",
            f"{one.wall:.1f} s",
            sep="  ",
            flush=True,
        )
    size = sum(p.numel() for p in subject.parameters().values())
    notes = "".join(f"; {note}" for note in loaded.notes)
    return Column(
        f"{size:,} parameters that take a gradient, {subject.examples} examples, one gradient {unit:.2g} CPU s{notes}",
        unit, outcomes,
    )  # fmt: skip


def headline(outcome: Outcome) -> str:
    """Of what was found the first value of the whole model, else the largest of its parts."""
    chosen = next((e for name in FIRST for e in outcome.found if e.name == name), None)
    whole = [each for each in outcome.found if not each.of]
    if chosen or whole:
        return number(chosen or whole[0])
    if not outcome.found:
        return "nothing"
    most = max(outcome.found, key=lambda each: -math.inf if math.isnan(each.value) else each.value)
    return f"{len(outcome.found)} parts, largest `{most.of}` {number(most)}"


def number(each: Measurement) -> str:
    if math.isnan(each.value):
        return "not resolved"
    sure = f" ± {words.number(each.se, 2)}"
    if not 0 < each.se < math.inf:
        sure = "" if each.se == 0 else " (error unknown)" if math.isnan(each.se) else " (error without bound)"
    return f"{words.amount(each.value, 4)}{sure} {each.unit}"


def told(columns: Mapping[str, Column], probes: Sequence[str]) -> str:
    """A probe per row, a network per column; reasons below."""
    here = {name: one for name, one in columns.items() if one.outcomes}
    reasons: list[str] = []
    rows = []
    for probe in probes:
        cells = []
        for one in here.values():
            outcome = one.outcomes[probe]
            if outcome.why:
                if outcome.why not in reasons:
                    reasons.append(outcome.why)
                cells.append(f"no ({reasons.index(outcome.why) + 1})")
            else:
                cells.append(f"{headline(outcome)}; {words.number(outcome.cpu / one.gradient, 2)} g")
        rows.append([f"`{probe}`", *cells])
    said = "\n".join(f"- {name}: {one.said}." for name, one in columns.items())
    why = "\n".join(f"{at}. {reason.rstrip('.')}." for at, reason in enumerate(reasons, start=1))
    return "\n\n".join(part for part in (said, page.table(["probe", *here], rows), why) if part)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks")
    parser.add_argument("--probes", default=",".join(PROBES), help="probes")
    parser.add_argument("--seconds", type=float, default=20, help="CPU time that a probe may take")
    parser.add_argument("--out", type=Path, help="page to write the tables to; else they are printed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(accuracy=0.1, longest_prompt=16, longest_output=4)
    with quiet():  # what probes import when they first run is no cost of theirs
        small = Subject(torch.nn.Linear(3, 2), [(torch.ones(4, 3), torch.zeros(4).long())], CrossEntropy())
        measure(Loaded(small), options.probes.split(","), settings)
    names, began = options.probes.split(","), time.process_time()
    columns: dict[str, Column] = {}
    text = ""
    for one in options.only.split(","):
        columns[one] = column(one, names, settings, options.seconds)
        spent = (
            time.process_time() - began + sum(o.cpu for c in columns.values() for o in c.outcomes.values())
        )
        head = f"{page.machine()} torch {torch.__version__}. The table took {spent / 60:.1f} CPU minutes."
        text = f"{head}\n\n{told(columns, names)}"
        if options.out:  # what is measured so far
            page.put(options.out, "models", text)
    if not options.out:
        print(text)


if __name__ == "__main__":
    main()
