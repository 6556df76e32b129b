"""How good predictions are that were written down before their runs: real studies, scored and clustered by study.

``python -m benchmarks.studies --folder studies [--workers 2] [--out docs/ledger.md]``: about 50 minutes on two cores

Texts: the standard library of the running Python, and tinyshakespeare, WikiText-2 and Penn Treebank from
``../shared/data/sets`` where they are (validation and test parts of the latter two, as one text). Tables:
scikit-learn's. Each study climbs from small to dear: every rung after the first is predicted from those before.
It goes on where it was cut off; ``--only NAME`` runs one. With ``--score`` nothing is run.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import isoloss
from benchmarks.page import machine, put, table
from isoloss.errors import NoAnswer
from isoloss.study import steps
from isoloss.study.ledger import Ledger
from isoloss.study.promise import promise
from isoloss.study.records import LEVELS
from isoloss.study.scoring import crps_of_quantiles, interval_of_quantiles
from isoloss.study.store import Store
from isoloss.study.study import Study

Array = np.ndarray[Any, np.dtype[Any]]

SETS = Path(__file__).resolve().parents[2] / "shared" / "data" / "sets"
TEXTS = {
    "shakespeare": ("tinyshakespeare/input.txt.gz",),
    "wikitext2": ("wikitext2/valid.txt.gz", "wikitext2/test.txt.gz"),
    "ptb": ("ptb/valid.txt.gz", "ptb/test.txt.gz"),
}
LAWS = ("hoffmann", "auto")
NAMES = {"hoffmann": "hoffmann, posterior", "stack": "auto (a stack)"}
PLAIN = "plain fit"
NOW = "hoffmann, rows drawn anew"  # what a study does since: Student-t errors, and a bootstrap for the draws
COVERAGE = 0.9
RESAMPLES = 4000
GPT = {"run": "isoloss.trainers.gpt:train", "axes": "isoloss.trainers.gpt:axes", "horizon": "tokens"}
GPT_SETTINGS = {"batch_tokens": 512, "seq_len": 64, "head_size": 16}
MOST = 1.2e6  # bytes of the longest run; less where a text has not so many
MLP = {"run": "isoloss.trainers.mlp:train", "axes": "isoloss.trainers.mlp:axes"}


def text_study(name: str, folder: Path, data: str, most: float, settings: Mapping[str, Any]) -> Study:
    """Four widths crossed with lengths up to ``most`` bytes, then a larger model on all of them."""
    ends = [round(most * share) for share in (0.15, 0.25, 0.4, 0.63, 1.0)]
    widths = [32, 48, 64, 96]
    return Study(
        name=name, root=folder, workers={"count": WORKERS[0]},
        trainer={**GPT, "settings": {"data": data, **settings}},
        rungs=[{"width": widths, "tokens": ends[:3]}, {"width": widths, "tokens": ends[3]}, {"width": widths, "tokens": ends[4]}],
        target={"width": 128, "tokens": ends[4]},
        objective={"unit": "nats/byte", "laws": LAWS, "coverage": COVERAGE},
    )  # fmt: skip


def table_study(
    name: str, folder: Path, sizes: Sequence[int], widths: Sequence[int], settings: Mapping[str, Any]
) -> Study:
    """Widths crossed with numbers of examples; the last two numbers, and a wider network, are predicted."""
    return Study(
        name=name, root=folder, workers={"count": WORKERS[0]}, trainer={**MLP, "settings": dict(settings)},
        rungs=[
            {"width": list(widths), "examples": list(sizes[:-2])},
            {"width": list(widths), "examples": sizes[-2]},
            {"width": list(widths), "examples": sizes[-1]},
        ],
        target={"width": 2 * widths[-1], "examples": sizes[-1]},
        objective={"unit": "nats", "laws": LAWS, "coverage": COVERAGE},
    )  # fmt: skip


WORKERS = [2]


def declared(folder: Path) -> list[Study]:
    """Every study whose data are there."""
    texts = {"stdlib": ("stdlib", MOST)}
    for name, parts in TEXTS.items():
        if all((SETS / part).is_file() for part in parts):
            path = folder / f"{name}.txt"
            whole = b"".join(gzip.decompress((SETS / part).read_bytes()) for part in parts)
            if not path.is_file() or path.read_bytes() != whole:
                path.write_bytes(whole)
            texts[name] = (str(path), min(MOST, 0.9 * len(whole)))
    found = []
    for name, (data, most) in texts.items():
        for kind, own in {
            "adamw": {"seed": 0}, "again": {"seed": 1}, "muon": {"optimizer": "muon", "seed": 2},
        }.items():  # fmt: skip
            found.append(text_study(f"{name}-{kind}", folder, data, most, {**GPT_SETTINGS, **own}))
    for seed in (0, 1, 2):
        for name, sizes, widths in (
            ("digits", (70, 120, 210, 360, 620, 1100), (8, 12, 16, 24)),
            ("friedman1", (128, 256, 512, 1024, 2048, 4096), (4, 8, 12, 16)),
            ("classification", (256, 512, 1024, 2048, 4096, 8192), (4, 8, 12, 16)),
            ("moons", (64, 128, 256, 512, 1024, 2048), (4, 6, 8, 12)),
        ):
            settings = {"table": name, "seed": seed, "layers": 1 + seed % 2}
            found.append(table_study(f"{name}-{seed}", folder, sizes, widths, settings))
    return found


@dataclass(frozen=True)
class Scored:
    """One prediction of one run: which study and law, how far, whether it held, how far off."""

    study: str
    law: str
    distance: float
    inside: bool
    crps: float  # a share of the measured value, as studies have different units
    error: float
    width: float


def scores_of(study: Study) -> list[Scored]:
    """What the ledger says, and for each run the same from the plain fit to the rows its prediction was made from."""
    store = Store(study.store_path, read_only=True)
    ledger = Ledger.read(store, coverage=COVERAGE)
    found, fits = [], {}
    runs = store.runs(study.name)
    for p, fate in zip(ledger.predictions, ledger.fates, strict=True):
        if fate.status != "scored" or fate.value is None:
            continue
        found.append(_scored(study.name, p["law"], p["distance"], np.array(p["quantiles"]), fate.value))
        if p["law"] != "hoffmann":
            continue
        # the rows that were there: a rung's runs follow its predictions in the store
        known = np.asarray(runs.rows) < p["id"]
        for name, objective in ((PLAIN, None), (NOW, isoloss.StudentT())):
            key = (name, int(known.sum()))
            if key not in fits:
                try:
                    fits[key] = isoloss.fit(
                        "hoffmann",
                        runs.take(known),
                        objective=objective,
                        uncertainty="bootstrap",
                        sensitivity=False,
                    )
                except NoAnswer:
                    fits[key] = None
            if fits[key] is not None:
                (again,) = promise(fits[key], p["at"], coverage=COVERAGE)
                found.append(_scored(study.name, name, p["distance"], np.array(again.quantiles), fate.value))
    return found


def _scored(study: str, law: str, distance: float, quantiles: Array, value: float) -> Scored:
    low, high = interval_of_quantiles(quantiles[:, None], LEVELS, COVERAGE)
    middle = float(quantiles[len(LEVELS) // 2])
    crps = float(crps_of_quantiles(quantiles[:, None], LEVELS, np.array([value]))[0])
    return Scored(
        study, law, distance, bool(low[0] <= value <= high[0]), crps / value, abs(middle - value) / value,
        float(high[0] - low[0]) / middle,
    )  # fmt: skip


def summary(found: Sequence[Scored]) -> str:
    """One line a law and kind of study; bands by drawing studies anew."""
    kinds = {"all": lambda s: True, "texts": lambda s: not _of_table(s.study), "tables": lambda s: _of_table(s.study),
             "3x and further": lambda s: s.distance > 3}  # fmt: skip
    rows = []
    for kind, keep in kinds.items():
        for law in ("hoffmann", "stack", NOW, PLAIN):
            own = [s for s in found if s.law == law and keep(s)]
            if not own:
                continue
            share = clustered(own, lambda s: float(s.inside))
            ratio = ratio_to_plain(found, law, keep) if law != PLAIN else (1.0, 1.0, 1.0)
            rows.append([
                kind, NAMES.get(law, law), str(len(own)), str(len({s.study for s in own})),
                f"{100 * share[0]:.0f} % ({100 * share[1]:.0f} to {100 * share[2]:.0f})",
                f"{100 * np.mean([s.error for s in own]):.2f} %", f"{100 * np.mean([s.width for s in own]):.1f} %",
                f"{100 * np.mean([s.crps for s in own]):.2f} %",
                "1" if law == PLAIN else f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})",
            ])  # fmt: skip
    head = [
        "predictions",
        "by",
        "n",
        "studies",
        f"in {100 * COVERAGE:g} % interval (95 % band)",
        "error",
        "width",
        "CRPS",
        "CRPS over the plain fit's",
    ]
    return table(head, rows)


def _of_table(name: str) -> bool:
    return name.split("-")[0] in ("digits", "friedman1", "classification", "moons")


def clustered(own: Sequence[Scored], value: Any) -> tuple[float, float, float]:
    """Mean, and its 95 % band from studies drawn anew."""
    by_study: dict[str, list[float]] = {}
    for s in own:
        by_study.setdefault(s.study, []).append(value(s))
    sums = np.array([(sum(v), len(v)) for v in by_study.values()])
    draws = sums[np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))].sum(axis=1)
    low, high = np.quantile(draws[:, 0] / draws[:, 1], [0.025, 0.975])
    return float(sums[:, 0].sum() / sums[:, 1].sum()), float(low), float(high)


def ratio_to_plain(found: Sequence[Scored], law: str, keep: Any) -> tuple[float, float, float]:
    """Total CRPS over the plain fit's on the same runs, and its 95 % band from studies drawn anew."""
    names = sorted(
        {s.study for s in found if s.law == law and keep(s)} & {s.study for s in found if s.law == PLAIN}
    )
    sums = np.array([
        [sum(s.crps for s in found if s.study == n and s.law == which and keep(s)) for which in (law, PLAIN)] for n in names
    ])  # fmt: skip
    draws = sums[np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))].sum(axis=1)
    low, high = np.quantile(draws[:, 0] / draws[:, 1], [0.025, 0.975])
    return float(sums[:, 0].sum() / sums[:, 1].sum()), float(low), float(high)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--folder", type=Path, required=True, help="of the studies' stores; kept")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", action="append", help="name of a study; may be repeated")
    parser.add_argument("--score", action="store_true", help="only score what is there")
    parser.add_argument("--out", type=Path, help="page to put the table into")
    args = parser.parse_args()
    WORKERS[0] = args.workers
    args.folder.mkdir(parents=True, exist_ok=True)
    began, scored, core = time.perf_counter(), [], 0.0
    for study in declared(args.folder.absolute()):
        if args.only and study.name not in args.only:
            continue
        if not args.score:
            print(study.name, end=" ", file=sys.stderr, flush=True)
            told = study.run(
                lambda step: print(
                    "." if isinstance(step, steps.Ended) else "", end="", file=sys.stderr, flush=True
                )
            )
            print(
                f" {list(told.statuses.values()).count('done')} done, {time.perf_counter() - began:.0f} s",
                file=sys.stderr,
            )
        if study.store_path.is_file():
            core += sum(
                e["costs"]["cpu_seconds"]
                for e in Store(study.store_path, read_only=True).run_entries(study.name)
            )
            scored += scores_of(study)
    runs = len({(s.study, s.distance, s.crps) for s in scored if s.law == "hoffmann"})
    text = "\n".join([
        f"{runs} runs of {len({s.study for s in scored})} studies, each predicted before it was begun; training took {core / 60:.0f} core-minutes. {machine()}",
        "", summary(scored),
    ])  # fmt: skip
    print(text)
    if args.out:
        put(args.out, "studies", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
