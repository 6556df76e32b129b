"""Every probe on trained networks: its value, standard error and cost, or why it cannot run.

    python -m benchmarks.real_models [--only resnet20,...] [--probes params,...] [--seconds 60] [--out docs/measure-models.md]

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

SHOWN = 3  # measurements of the whole model that a line of the table shows
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
    limit = began + 4 * seconds  # other work on the machine shall not end it
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
    why = f"ended with code {process.exitcode}" if ended else f"not done after {seconds:g} s of CPU time"
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


def told(outcome: Outcome) -> str:
    """What a probe found, in a line."""
    if outcome.why:
        return f"no: {outcome.why}"
    whole = [each for each in outcome.found if not each.of]
    parts = [f"{each.name} {number(each)}" for each in whole[:SHOWN]]
    if len(whole) > SHOWN:
        parts.append(f"and {len(whole) - SHOWN} more")
    layers = [each for each in outcome.found if each.of]
    if layers:
        most = max(layers, key=lambda each: each.value)
        parts.append(f"{len(layers)} of parts, largest {most.name} {most.of} {number(most)}")
    return ", ".join(parts) or "nothing"


def number(each: Measurement) -> str:
    sure = f" ± {each.se:.2g}"
    if not 0 < each.se < math.inf:
        sure = "" if each.se == 0 else " (error unknown)" if math.isnan(each.se) else " (error without bound)"
    return f"{each.value:.4g}{sure} {each.unit}"


def table(name: str, probes: list[str], settings: Settings, seconds: float) -> str:
    """Of one network."""
    try:
        with quiet():
            loaded = NETWORKS[name]()
    except Absent as error:
        return f"### {name}\n\nnot here: {error}"
    unit = gradient_seconds(loaded)
    subject = loaded.subject
    size = sum(p.numel() for p in subject.parameters().values())
    rows = []
    for probe in probes:
        outcome = run(loaded, probe, settings, seconds)
        gradients = f"{outcome.cpu / unit:.3g}"
        peak = "" if math.isnan(outcome.peak) else f"{outcome.peak / 2**20:.0f}"
        rows.append([f"`{probe}`", told(outcome).replace("|", "\\|"), f"{outcome.cpu:.2f}", gradients, peak])
        print(name, *rows[-1], sep="  ", flush=True)
    said = f"{size:,} parameters, {subject.examples} examples, one gradient {unit:.3g} CPU s."
    head = ["probe", "found", "CPU s", "gradients", "peak MiB"]
    return "\n\n".join(
        [f"### {name}", " ".join([said, *(f"{n}." for n in loaded.notes)]), page.table(head, rows, (2, 3, 4))]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks")
    parser.add_argument("--probes", default=",".join(PROBES), help="probes")
    parser.add_argument("--seconds", type=float, default=60, help="CPU time that a probe may take")
    parser.add_argument("--out", type=Path, help="page to write the tables to; else they are printed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(longest_prompt=64, longest_output=8)
    with quiet():  # what probes import when they first run is no cost of theirs
        small = Subject(torch.nn.Linear(3, 2), [(torch.ones(4, 3), torch.zeros(4).long())], CrossEntropy())
        measure(Loaded(small), options.probes.split(","), settings)
    parts = [
        table(name, options.probes.split(","), settings, options.seconds) for name in options.only.split(",")
    ]
    text = "\n\n".join([f"{page.machine()} torch {torch.__version__}.", *parts])
    if options.out:
        page.put(options.out, "models", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
