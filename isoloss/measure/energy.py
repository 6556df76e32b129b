r"""Energy of work: read from the processor's counters where they can be read, else a stated model, an estimate.

Counters (RAPL) count microjoules of a package and wrap around; they are read often enough that none wraps twice.
The model is :math:`P = P_{idle} + u\,(P_{TDP} - P_{idle})` with u the CPU time over wall time and cores; both powers
are the user's to state. Carbon is energy times the data centre's overhead (PUE) times the grid's intensity, which are
the user's too: nothing is assumed silently.

Two ways of doing a work are compared in :mod:`isoloss.measure.energy_compare`. Source of the counters: the Linux
kernel's documentation of powercap.
"""

from __future__ import annotations

import itertools
import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from isoloss.errors import NoAnswer
from isoloss.measure.latency import forward
from isoloss.measure.measurement import Measurement, Spent, timed
from isoloss.measure.storages import shapes
from isoloss.measure.subject import Subject, examples_of

POWERCAP = Path("/sys/class/powercap")
JOULES_PER_KWH = 3.6e6
READ_EVERY = 20.0  # seconds; counters of large packages wrap after some minutes at full power


def unwrapped(readings: Sequence[float], span: float) -> float:
    """What a counter counted from the first of its readings to the last, where it begins again at 0 after ``span``.

    Raises:
        ValueError: a reading beyond the span.

    Example:
        >>> unwrapped([900.0, 990.0, 50.0, 120.0], 1000.0)
        220.0
    """
    if any(not 0 <= reading <= span for reading in readings):
        raise ValueError(
            f"needed readings between 0 and {span:g}, got {min(readings):g} to {max(readings):g}"
        )
    return sum((b - a) % span for a, b in itertools.pairwise(readings))


@dataclass(frozen=True)
class Domain:
    """One counter of the processor.

    Attributes:
        name: ``package-0``, ``dram``.
        path: of its folder.
        span: microjoules after which it begins again.
    """

    name: str
    path: Path
    span: float

    def read(self) -> float:
        """Microjoules now."""
        return float((self.path / "energy_uj").read_text())


def domains(root: Path = POWERCAP) -> list[Domain]:
    """Counters that can be read and do not count the same twice: packages and memory.

    Cores and graphics are parts of a package, and a platform counter would hold it again.
    """
    found = []
    for path in sorted(root.glob("intel-rapl:*")):
        with suppress(OSError, ValueError):
            name = (path / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                domain = Domain(name, path, float((path / "max_energy_range_uj").read_text()))
                domain.read()
                found.append(domain)
    return found


@dataclass(frozen=True)
class PowerModel:
    """A stated model of power, where there is no counter.

    Attributes:
        idle_watts: of the machine, or the share of it that is counted, at rest.
        full_watts: the same with all cores at work: the TDP, or a measured power.
        cores: that make it full.

    Raises:
        ValueError: powers that are not 0 <= idle <= full, or less than one core.
    """

    idle_watts: float
    full_watts: float
    cores: int

    def __post_init__(self) -> None:
        if not 0 <= self.idle_watts <= self.full_watts < math.inf or self.cores < 1:
            raise ValueError(f"needed 0 <= idle_watts <= full_watts and at least one core, got {self}")

    def joules(self, wall: float, cpu: float) -> float:
        """Of so many seconds by the wall clock with so much CPU time.

        Example:
            >>> PowerModel(20.0, 100.0, cores=4).joules(wall=10.0, cpu=20.0)  # half the cores
            600.0
        """
        share = min(1.0, cpu / (wall * self.cores)) if wall > 0 else 0.0
        return wall * (self.idle_watts + share * (self.full_watts - self.idle_watts))


@dataclass(frozen=True)
class Carbon:
    """What turns energy into emissions; all of it is stated by the user.

    Attributes:
        grams_per_kwh: of carbon dioxide equivalent, of the grid where and when the work is done.
        pue: power that the data centre draws, over that of its machines.
        region: for the text.

    Raises:
        ValueError: a negative intensity, or a PUE below 1.
    """

    grams_per_kwh: float
    pue: float
    region: str

    def __post_init__(self) -> None:
        if not (self.grams_per_kwh >= 0 and self.pue >= 1):
            raise ValueError(f"needed an intensity of 0 or more and a PUE of at least 1, got {self}")

    def grams(self, joules: float) -> float:
        """Of so much energy.

        Example:
            >>> Carbon(400.0, 1.5, "example").grams(3.6e6)
            600.0
        """
        return joules / JOULES_PER_KWH * self.pue * self.grams_per_kwh


@dataclass(frozen=True)
class Energy:
    """The energy of one stretch of work.

    Attributes:
        joules: of all that the counters or the model hold, others' work included.
        wall, cpu: seconds.
        how: counter or model, with what it assumes.
        estimate: whether it is a model's.
    """

    joules: float
    wall: float
    cpu: float
    how: str
    estimate: bool

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.wall


@dataclass
class Meter:
    """Measures the energy of work.

    Args:
        model: used where no counter can be read.
        root: of the counters.
        clock: of seconds.

    Raises:
        NoAnswer: neither a counter nor a model.

    Example:
        >>> meter = Meter(PowerModel(10.0, 50.0, cores=2), root=Path("/nowhere"))
        >>> found = meter.measure(lambda: sum(range(10000)))
        >>> found.estimate, 10 <= found.watts <= 50
        (True, True)
    """

    model: PowerModel | None = None
    root: Path = POWERCAP
    clock: Callable[[], float] = time.perf_counter
    counters: list[Domain] = field(init=False)

    def __post_init__(self) -> None:
        self.counters = domains(self.root)
        if not self.counters and self.model is None:
            raise NoAnswer(
                f"no energy counter can be read below {self.root}",
                "the power of the machine at rest and at full work, for an estimate (--idle-watts, --full-watts); or permission "
                "to read the counters",
            )

    def measure(self, work: Callable[[], object]) -> Energy:
        """The energy while ``work`` runs once."""
        if not self.counters:
            began, busy = self.clock(), time.process_time()
            work()
            wall, cpu = self.clock() - began, time.process_time() - busy
            assert self.model is not None
            m = self.model
            how = (
                f"estimate: {m.idle_watts:g} W idle to {m.full_watts:g} W with {m.cores} cores busy, stated by the user, "
                f"times this process's CPU time"
            )
            return Energy(m.joules(wall, cpu), wall, cpu, how, True)
        readings: list[list[float]] = [[domain.read()] for domain in self.counters]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(READ_EVERY):
                for domain, seen in zip(self.counters, readings, strict=True):
                    with suppress(OSError, ValueError):  # a reading that fails is one less
                        seen.append(domain.read())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        began, busy = self.clock(), time.process_time()
        try:
            work()
        finally:
            wall, cpu = self.clock() - began, time.process_time() - busy
            done.set()
            watcher.join()
        for domain, seen in zip(self.counters, readings, strict=True):
            seen.append(domain.read())
        joules = 1e-6 * sum(unwrapped(s, d.span) for d, s in zip(self.counters, readings, strict=True))
        how = f"RAPL {', '.join(d.name for d in self.counters)}, all that ran on them"
        return Energy(joules, wall, cpu, how, False)


def probe(
    subject: Subject,
    power: PowerModel | None = None,
    carbon: Carbon | None = None,
    repeats: int = 5,
    seconds: float = 1.0,
) -> list[Measurement]:
    """Energy of a forward pass of one example of the first batch, over stretches of at least ``seconds``.

    Raises:
        NoAnswer: neither a counter that can be read nor a stated model of power.
    """
    meter = Meter(power)
    batch = subject.batches[0]
    examples = examples_of(batch)
    with subject.measuring(), timed() as watch:
        run = forward(subject, examples)
        run()
        began = time.perf_counter()
        run()
        passes = max(1, math.ceil(seconds / max(time.perf_counter() - began, 1e-6)))

        def work() -> None:
            for _ in range(passes):
                run()

        found = [meter.measure(work) for _ in range(repeats)]
    each = [one.joules / (passes * examples) for one in found]
    how = f"{found[0].how}; {repeats} stretches of {passes} passes, batch {shapes(batch[0])}, {torch.get_num_threads()} threads"
    return _measurements(each, how, carbon, watch.spent())


def _measurements(each: Sequence[float], how: str, carbon: Carbon | None, spent: Spent) -> list[Measurement]:
    mean, se = statistics.fmean(each), statistics.stdev(each) / math.sqrt(len(each))
    out = [Measurement("energy", mean, se, "J/example", how=how, spent=spent)]
    if carbon is not None:
        why = (
            f"{carbon.grams_per_kwh:g} g/kWh ({carbon.region}), PUE {carbon.pue:g}, stated by the user; {how}"
        )
        out.append(
            Measurement("co2e", carbon.grams(mean), carbon.grams(se), "g/example", how=why, spent=spent)
        )
    return out
