"""What ``isoloss compress`` does where nothing is to be compressed: variants measured, rival claims settled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from isoloss.cli import compress_mixed, compress_ways
from isoloss.cli.show import Style, Table, number, plural, say, show

if TYPE_CHECKING:
    from isoloss.cli.compress_ways import Job
    from isoloss.compress.candidates import Candidates
    from isoloss.compress.claims import Claim, Claims, Probed
    from isoloss.compress.layers import Layer
    from isoloss.compress.sensitivity.scores import Scores
    from isoloss.compress.variants import Variant
    from isoloss.runs import Runs

    Tell = Callable[[str, int, int], None]


FEATURES = 8  # that are printed


@dataclass(frozen=True)
class Found:
    """A document, and what prints it."""

    document: dict[str, Any]
    print: Callable[[Style], None]


def measured(
    job: Job,
    claims: bool,
    format: str | None,
    keep: list[str],
    sensitivity: str | None,
    frontier: str | None,
    unreached: str,
    out: str | None,
    tell: Tell,
) -> Found:
    """Variants for a table, or claims; the model stays as it is.

    Raises:
        ValueError: an option that has no part in it; a model without a loss.
    """
    option = "--claims" if claims else "--frontier without a limit"
    if out is not None:
        raise ValueError(
            f"{option} measures and compresses nothing. Leave --out away, or give a limit: --bits 4"
        )
    ways = {
        "--blockwise": job.ways.blockwise,
        "--tune": job.ways.tuning,
        "--activations": job.ways.activations,
    }
    for name, way in ways.items():
        if way is not None:
            raise ValueError(f"{option} does not know {name}. Leave it out")
    if job.made.loaded.costs_only or job.made.batches is None:
        why = job.made.loaded.costs_only or "no calibration data were given"
        raise ValueError(f"{option} measures a loss, and {why}")
    layers = job.layers(keep)
    if not claims:
        assert frontier is not None
        return _variants(job, layers, format, sensitivity, frontier, unreached, tell)
    for name, given in (("--format", format), ("--sensitivity", sensitivity), ("--frontier", frontier)):
        if given is not None:
            raise ValueError(f"--claims has formats and methods of its own. Leave {name} out")
    return _claims(job, layers, unreached, tell)


def _variants(
    job: Job,
    layers: list[Layer],
    format: str | None,
    sensitivity: str | None,
    path: str,
    unreached: str,
    tell: Tell,
) -> Found:
    from isoloss.compress.candidates import ladder
    from isoloss.compress.recipe import Choice
    from isoloss.compress.variants import choices

    method = compress_mixed.usual(job.made, sensitivity)
    named = choices(format, job.solver) if format is not None else list(ladder(job.solver))
    sets: list[dict[str, Choice]] = []  # each format once
    for choice in named:
        free = next((own for own in sets if choice.format not in own), None)
        if free is None:
            sets.append(free := {})
        free[choice.format] = choice
    rows: list[Variant] = []
    for own in sets:
        found = compress_mixed.tried(job, layers, list(own.values()), unreached, tell)
        scores, _ = compress_mixed.scored(job.made, found, method, job.seed, tell)
        rows += rows_of(found, scores)
    runs, added = write(job, rows, path, tell)
    document = {
        "schema": "isoloss/variants/1",
        "model": job.made.loaded.subject.name,
        "file": path,
        "added": added,
        "rows": [_row(runs, i) for i in range(len(runs))],
    }
    return Found(document, lambda style: _print_variants(document, style))


def rows_of(found: Candidates, scores: Scores) -> list[Variant]:
    """Every format for all layers, and the mixed choices of all sizes that are not one of these."""
    from isoloss.compress.mixed import by_size, variants
    from isoloss.compress.variants import uniforms

    rows = uniforms(found, scores.together if scores.unit else None)
    if len(rows) > 1:
        rows += [one for one in variants(by_size(found, scores), found) if len(set(one.plan.values())) > 1]
    return rows


def write(job: Job, rows: list[Variant], path: str, tell: Tell) -> tuple[Runs, int]:
    """Measure the rows and add them to the file; how many were new."""
    from isoloss.compress.variants import append, fingerprint, table

    subject = job.made.loaded.subject
    runs = table(subject, rows, f"{job.made.loss_on} {fingerprint(subject)}", tell)
    return runs, append(path, runs)


def _row(runs: Runs, i: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in runs.columns:
        value = runs[name][i].item()
        out[name] = None if isinstance(value, float) and math.isnan(value) else value
    return out


def _print_variants(document: dict[str, Any], style: Style) -> None:
    rows = [
        [
            row["variant"], row["solver"], f"{row['bits_post']:.4g}", f"{row['bytes']:,.0f}", f"{row['loss']:.5g}",
            _with_error(row["rise"], row["rise_se"]), number(row["difference"], 3),
        ]
        for row in document["rows"]
    ]  # fmt: skip
    heads = ["variant", "by", "bits", "bytes", "loss", "rise", "moved"]
    show(Table(heads, rows, document["model"], words=["variant", "by", "rise"]), style)
    say(
        f"{document['file']}: {plural(document['added'], 'row')} added. isoloss worth says what they are worth",
        style,
    )


def _with_error(value: float, se: float | None) -> str:
    shown = "0" if value == 0 else f"{value:+.3g}"
    return shown if se is None or value == se == 0 else f"{shown} ± {number(se, 2)}"


def _claims(job: Job, layers: list[Layer], unreached: str, tell: Tell) -> Found:
    from isoloss.compress.activations import samples
    from isoloss.compress.claims import probe, settle

    loaded = job.made.loaded
    assert job.made.batches is not None
    taken = samples(loaded.subject.model, layers, job.made.batches, job.seed)
    found = settle(
        loaded.subject, layers, job.made.batches, job.solver or compress_ways.ALONE, curvature=loaded.flat or "", unreached=unreached,
        seed=job.seed, taken=taken, progress=tell,
    )  # fmt: skip
    probed = probe(loaded.subject.model, layers, job.made.batches, job.seed, taken, tell)
    return Found(_document(job, found, probed), lambda style: _print_claims(job, found, probed, style))


def _document(job: Job, found: Claims, probed: Probed) -> dict[str, Any]:
    def known(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    layers = []
    for name, advice in probed.advice.items():
        far = probed.outliers.get(name)
        layers.append(
            {
                "name": name,
                "sqnr": [
                    {"format": format, "weights": known(w), "inputs": known(x), "products": known(both)}
                    for format, (w, x, both) in advice.table.items()
                ],
                "best": advice.best,
                "gain": known(advice.gain),
                "max_over_rms": None if far is None else known(far.inputs),
                "kurtosis": None if far is None else known(far.kurtosis),
                "weights_max_over_rms": None if far is None else known(far.weights),
                "outlier_features": None if far is None else len(far.features),
            }
        )
    return {
        "schema": "isoloss/claims/1",
        "model": job.made.loaded.subject.name,
        "loss_on": job.made.loss_on,
        "coverage": found.coverage,
        "claims": [{key: known(value) for key, value in asdict(claim).items()} for claim in found.claims],
        "left": [{"name": name, "why": why} for name, why in found.left.items()],
        "layers": layers,
        "features": [{"width": width, "features": list(own)} for width, own in probed.features.items()],
    }


def _print_claims(job: Job, found: Claims, probed: Probed, style: Style) -> None:
    from isoloss.compress.activations import EIGHT_BITS

    percent = f"{100 * found.coverage:g}%"
    for claim in found.claims:
        say(f"{claim.name}: {claim.says} ({claim.source})", style)
    show(
        Table(
            ["claim", "first", "second", f"gain, {percent}", "verdict", "by the loss"],
            [_claim_row(claim) for claim in found.claims],
            f"claims on {job.made.loaded.subject.name}, {job.made.loss_on}: gain of the first over the second",
            words=["claim", "first", "second", f"gain, {percent}", "verdict", "by the loss"],
        ),
        style,
    )
    say(
        "gain: of the KL divergence from the model's own predictions (half the squared distance of outputs without "
        "classes), or of the rank correlation with it; intervals hold one by one, not all together",
        style,
    )
    for name, why in found.left.items():
        say(f"{name}: not tested: {why}", style)
    rows = [
        [
            name,
            *(f"{advice.table[kind][2]:.1f}" for kind in EIGHT_BITS),
            advice.best,
            *_far(probed, name),
        ]
        for name, advice in probed.advice.items()
    ]
    if rows:
        show(
            Table(
                ["layer", *EIGHT_BITS, "best", "max/RMS", "kurtosis", "features"],
                rows,
                "signal over rounding noise of the products in dB, each type at its best range; outliers of the inputs",
                words=["layer", "best"],
            ),
            style,
        )
    for width, own in probed.features.items():
        say(
            f"features above 6 in a quarter of the layers of {width} inputs: {_some(own)}",
            style,
        )


def _some(own: tuple[int, ...]) -> str:
    text = ", ".join(map(str, own[:FEATURES]))
    return text if len(own) <= FEATURES else f"{text} and {len(own) - FEATURES} more"


def _far(probed: Probed, name: str) -> list[str]:
    far = probed.outliers.get(name)
    return ["—"] * 3 if far is None else [f"{far.inputs:.3g}", f"{far.kurtosis:.3g}", str(len(far.features))]


def _claim_row(claim: Claim) -> list[str]:
    return [
        claim.name, claim.one, claim.other, f"{claim.gain:+.2g} ({claim.low:+.2g} to {claim.high:+.2g})",
        claim.verdict, claim.verdict_loss or "—",
    ]  # fmt: skip
