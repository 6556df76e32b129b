"""Speed and quality of robust fits beside named peers, measured in one run.

    python -m benchmarks.fit_speed [--quick] [--out docs/benchmarks.md] [--peer-python PYTHON]

Every peer gets the same points and runs in a process of its own with one BLAS thread. Process CPU seconds
after the imports are counted, start-up apart: wall time would measure what else the machine does.
``--quick`` measures a random part of the longest loops and extrapolates; such rows say so.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import page, tables
from benchmarks.judge import Verdict, judge, objective
from benchmarks.peers.report import DRAWS

ROOT = Path(__file__).parents[1]
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SIMPLE = "simple-scaling-laws==0.2.0"  # needs Python 3.12
PEERS = {
    "replication": "replication's procedure",
    "simple_scaling_laws": "simple-scaling-laws 0.2.0",
    "scipy_multistart": "SciPy multi-start",
}
PUBLISHED = ("124.5", "1293", "0.0257", "0.0154", "0.0206")  # A, B, E, alpha, beta


@dataclass(frozen=True)
class Peer:
    """One way of fitting, measured.

    Attributes:
        name: for the table.
        fit: what the peer's process reported of it.
        startup: CPU seconds of interpreter and imports.
        reached: the robust objective at its parameters, computed here.
        verdict: quality of its sampled replicates; None if they are not resamples of the rows.
    """

    name: str
    fit: dict[str, Any]
    startup: float
    reached: float
    verdict: Verdict | None


def environment() -> dict[str, str]:
    """One BLAS thread and this checkout first on the path."""
    return {**os.environ, **THREADS, "PYTHONPATH": str(ROOT)}


def call(module: str, points: Path, quick: bool, python: str = sys.executable) -> dict[str, Any]:
    """Run a peer in its own process; what it reported.

    Raises:
        RuntimeError: it did not run.
    """
    out = points.with_name(f"{module}.json")
    line = [python, "-m", f"benchmarks.peers.{module}", str(points), str(out)]
    line += ["--quick"] if quick else []
    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"did not run: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return report


def measured(
    module: str, label: str, points: dict[str, Any], file: Path, quick: bool, python: str = sys.executable
) -> list[Peer]:
    """Run and mark a peer."""
    report = call(module, file, quick, python)
    peers = []
    for fit in report["fits"]:
        sample, verdict = fit.pop("sample", None), None
        if sample:
            most = 10 if quick else 100
            starts = 20 if module == "ours" else 2
            verdict = judge(points, sample["counts"][:most], sample["theta"][:most], starts)
        name = f"{label}: {fit['what']}"
        peers.append(Peer(name, fit, report["startup_s"], objective(points, fit["theta"]), verdict))
    return peers


def peer_python(wanted: str | None) -> str:
    """A Python with the package, in ``.peer/`` (git-ignored): made on the first call.

    Raises:
        RuntimeError: no Python of at least 3.12, or the package cannot be installed.
    """
    home = ROOT / ".peer"
    python = home / "bin" / "python"
    if not _works(str(python), "import simple_scaling_laws"):
        base = next(filter(_is_new_enough, [wanted] if wanted else _candidates()), None)
        if base is None:
            raise RuntimeError("needs Python 3.12 or later: give one with --peer-python")
        for line in ([base, "-m", "venv", str(home)], [str(python), "-m", "pip", "install", "-q", SIMPLE]):
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{SIMPLE} could not be installed for {base}")
    return str(python)


def _candidates() -> list[str]:
    """Pythons by name, and those that pyenv keeps, whose names on the path may answer nothing."""
    names = ["python3.12", "python3.13", "python3.14", "python3", sys.executable]
    if shutil.which("pyenv"):
        listed = subprocess.run(["pyenv", "prefix", "3.12"], capture_output=True, text=True, check=False)
        if listed.returncode == 0:
            names.append(str(Path(listed.stdout.strip()) / "bin" / "python"))
    return names


def _works(python: str, code: str) -> bool:
    try:
        return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _is_new_enough(python: str | None) -> bool:
    return python is not None and _works(python, "import sys; sys.exit(sys.version_info < (3, 12))")


def processes(folder: Path) -> list[list[str]]:
    """Whole processes: CPU of start, imports, work and end; and here only, the median wall of five."""
    source = tables.LAWS / "chinchilla" / "points.csv"
    if source.is_file():
        given = [str(source), "--columns", "loss=loss_nats", "--where", "outlier_excluded == 0"]
    else:
        given = [str(folder / "points.csv")]
    ready = (ROOT / "isoloss" / "__main__.py").is_file()
    out = str(folder / "out.json")
    rows = []
    for name, arguments, needs in (
        ("`python -c pass`", ["-c", "pass"], False),
        ('`python -c "import numpy"`', ["-c", "import numpy"], False),
        ("`isoloss --help`", ["-m", "isoloss", "--help"], True),
        (
            "`isoloss fit hoffmann TABLE --json FILE`, 1,000 draws",
            ["-m", "isoloss", "fit", "hoffmann", *given, "--json", out],
            True,
        ),
    ):
        rows.append(["process", name, *(_process(arguments) if ready or not needs else _NOT_YET)])
    return rows


_NOT_YET = ("", "", "", "", "not yet")


def _process(arguments: Sequence[str]) -> tuple[str, str, str, str, str]:
    cpu, wall = [], []
    for _ in range(5):
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment(), capture_output=True, check=False
        )
        wall.append(time.perf_counter() - begin)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        if done.returncode != 0:
            return "", "", "", "", f"exit code {done.returncode}"
    return seconds(statistics.median(cpu)), "", "", "", f"wall {statistics.median(wall):.2f} s, median of 5"


def seconds(value: float) -> str:
    """Two or three digits, whatever the size."""
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def share(value: float) -> str:
    """A percentage that shows 99.97 % as such and 100 % only when it is."""
    return f"{100 * value:.3g} %"


def fit_row(peer: Peer, ours: Peer, best: float) -> list[str]:
    """One robust fit."""
    fit, notes = peer.fit, []
    if "agree" in fit:
        notes.append(f"{share(fit['agree'])} of starts within 1e-6 of its best")
    if "success" in fit:
        notes.append(f"{share(fit['success'])} report success")
    if "agree" not in fit:
        notes.append("least squares of the loss, not robust: another optimum")
    if fit.get("measured") != fit.get("starts"):
        notes.append(f"extrapolated from {fit['measured']} starts")
    gap = (peer.reached - best) / best
    reached = f"{peer.reached:.11f}" + (f" (+{100 * gap:.2g} %)" if gap > 1e-6 else "")
    cost, ratio = fit["cpu_s"], fit["cpu_s"] / ours.fit["cpu_s"]
    return ["fit", peer.name, seconds(cost), f"{ratio:.3g}", seconds(peer.startup), reached, "; ".join(notes)]


def boot_row(peer: Peer, ours: Peer) -> list[str]:
    """The fit and 4,000 bootstraps."""
    fit, notes = peer.fit, []
    if peer.verdict is None:
        notes.append("wild bootstrap of its own least squares")
    else:
        v = peer.verdict
        notes.append(
            f"of {v.replicates} sampled replicates {share(v.near)} within 1e-6 of their optimum, "
            f"worst gap {v.worst:.0e}"
        )
        if v.independent < 1:
            notes.append(f"(independent starts of the judge confirm {share(v.independent)} of the optima)")
    if fit["boot_measured"] != DRAWS:
        notes.append(f"extrapolated from {fit['boot_measured']} resamples")
    cost = fit["cpu_s"] + fit["boot_s"]
    ratio = cost / (ours.fit["cpu_s"] + ours.fit["boot_s"])
    return ["fit + 4,000 bootstraps", peer.name, seconds(cost), f"{ratio:.3g}", "", "", "; ".join(notes)]


def other_row(entry: dict[str, Any]) -> list[str]:
    """Our other laws and the long table."""
    head = ["fit + 1,000 bootstraps", f"isoloss: {entry['what']}"]
    if "skipped" in entry:
        return [*head, "", "", "", "", entry["skipped"]]
    note = (
        f"{entry['rows']} rows; fit alone {seconds(entry['fit_s'])} s; "
        f"{share(entry['agree'])} of starts agree; {entry['result']}"
    )
    return [*head, seconds(entry["cpu_s"]), "", "", f"{entry['value']:.5g}", note]


def errors_table(peers: Sequence[Peer]) -> str:
    """Bootstrap standard errors beside the published ones."""
    rows = [["Besiroglu et al. 2024, as published", *PUBLISHED]]
    for peer in peers:
        floor, a, b, alpha, beta = peer.fit["stderr"]
        rows.append([peer.name, f"{a:.1f}", f"{b:.0f}", f"{floor:.4f}", f"{alpha:.4f}", f"{beta:.4f}"])
    return page.table(["bootstrap standard error", "A", "B", "E", "alpha", "beta"], rows, range(1, 6))


def run(quick: bool, python: str | None) -> str:
    """Measure everything; the page's text."""
    points, what = tables.chinchilla()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "points.csv"
        np.savetxt(
            file, np.column_stack([points["params"], points["tokens"], points["loss"]]),
            delimiter=",", header="params,tokens,loss", comments="", fmt="%.17g",
        )  # fmt: skip
        # Ours first: it is quick, and without it there is nothing to compare.
        (ours,) = measured("ours", "isoloss", points, file, quick)
        others = json.loads((folder / "ours.json").read_text(encoding="utf-8"))["others"]
        whole = processes(folder)
        peers: list[Peer] = []
        absent: list[list[str]] = []
        for module, label in PEERS.items():
            print(f"{label} ...", file=sys.stderr, flush=True)
            try:
                own = peer_python(python) if module == "simple_scaling_laws" else sys.executable
                peers += measured(module, label, points, file, quick, own)
            except RuntimeError as error:
                absent.append(["fit", label, "", "", "", "", str(error)])
        peers.append(ours)
        best = min(peer.reached for peer in peers)
        rows = [
            *(fit_row(peer, ours, best) for peer in peers),
            *absent,
            *(boot_row(peer, ours) for peer in peers),
            *(other_row(entry) for entry in others),
            *whole,
        ]
    head = ["what", "how", "CPU s", "ratio to ours", "start-up CPU s", "robust objective reached", "note"]
    title = f"{what[0].upper()}{what[1:]}. {page.machine()}"
    return "\n\n".join([title, page.table(head, rows, (2, 3, 4, 5)), errors_table(peers)])


def main() -> None:
    """The command."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="sample the longest loops and extrapolate")
    parser.add_argument("--out", type=Path, help="page to write between its fit_speed markers")
    parser.add_argument("--peer-python", help="a Python of at least 3.12 for simple-scaling-laws")
    given = parser.parse_args()
    text = run(given.quick, given.peer_python)
    print(text)
    if given.out:
        page.put(given.out, "fit_speed", text)


if __name__ == "__main__":
    main()
