"""Options that say what may be spent, and the budget they describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isoloss.fitting.result import Fit
    from isoloss.planning.budget import Budget

Flops = Annotated[str | None, typer.Option("--flops", help="Training FLOPs, 6ND: 1e22.")]
TotalFlops = Annotated[str | None, typer.Option("--total-flops", help="Training and serving FLOPs.")]
Tokens = Annotated[str | None, typer.Option("--tokens", help="Unique tokens available: 300B.")]
Params = Annotated[str | None, typer.Option("--params", help="Largest size: 13B.")]
Bytes = Annotated[str | None, typer.Option("--bytes", help="Largest size of the stored weights: 8GB.")]
DeviceHours = Annotated[str | None, typer.Option("--device-hours", help="Needs --peak and --utilisation.")]
Money = Annotated[
    str | None, typer.Option("--money", help="Needs --price-per-device-hour too, in its currency.")
]
Loss = Annotated[float | None, typer.Option("--loss", help="The loss wanted: then the cheapest way to it.")]
Minimise = Annotated[str | None, typer.Option("--minimise", help="With --loss: which cost to make small.")]
ServeTokens = Annotated[
    str | None, typer.Option("--serve-tokens", help="Tokens that will be served in all: 2T.")
]
Bits = Annotated[float | None, typer.Option("--bits", help="Per stored parameter at serving; default 16.")]
Peak = Annotated[str | None, typer.Option("--peak", help="FLOP/s of one device: 989e12.")]
Utilisation = Annotated[
    float | None, typer.Option("--utilisation", help="Share of the peak in training: 0.4.")
]
ServeUtilisation = Annotated[float | None, typer.Option("--serve-utilisation", help="The same in serving.")]
Price = Annotated[float | None, typer.Option("--price-per-device-hour", help="In any currency.")]
BitsCost = Annotated[
    bool,
    typer.Option("--bits-cost", help="Count training FLOPs in 16-bit units, for a law of bits in training."),
]
Hold = Annotated[
    list[str] | None, typer.Option("--hold", help="A further axis of the law at a value: bits_weights=8.")
]
Choose = Annotated[
    list[str] | None,
    typer.Option(
        "--choose", help="Choose a further axis: bits_post=3,4,8, or expert_density=0.02:1 to search."
    ),
]

Borrow = Annotated[
    str | None,
    typer.Option(
        "--borrow", help='Pieces to put beside the fit\'s law: "* precision(bits_weights)@kumar-2024".'
    ),
]
Value = Annotated[
    list[str] | None,
    typer.Option(
        "--value", help="A slot that no published fit gives: C_T=0.1, C_T=0.06:0.18 or n_w=0.3+-0.1."
    ),
]
LearningRate = Annotated[
    str | None, typer.Option("--lr", help="Learning rate by this law: a fit's file, or LAW@PUBLISHED.")
]
Batch = Annotated[
    str | None, typer.Option("--batch", help="Batch by this law: a fit's file, or LAW@PUBLISHED.")
]


def budget_of(
    flops: str | None,
    total_flops: str | None,
    tokens: str | None,
    params: str | None,
    stored: str | None,
    device_hours: str | None,
    money: str | None,
    loss: float | None,
    minimise: str | None,
    serve_tokens: str | None,
    bits: float | None,
    peak: str | None,
    utilisation: float | None,
    serve_utilisation: float | None,
    price_per_device_hour: float | None,
    bits_cost: bool = False,
) -> Budget:
    """The budget that the options describe, counts and sizes as people write them.

    Raises:
        ValueError: as :class:`Budget`; or a rate or price that no cost of this budget uses.
    """
    from isoloss.planning.budget import Budget
    from isoloss.runs.units import parse_bytes, parse_count

    def count(text: str | None) -> float | None:
        return None if text is None else parse_count(text)

    budget = Budget(
        flops=count(flops),
        total_flops=count(total_flops),
        tokens=count(tokens),
        params=count(params),
        bytes=None if stored is None else parse_bytes(stored),
        device_hours=count(device_hours),
        money=count(money),
        loss=loss,
        minimise=minimise,
        serve_tokens=count(serve_tokens) or 0.0,
        bits=Budget.bits if bits is None else bits,
        peak=count(peak),
        utilisation=utilisation,
        serve_utilisation=serve_utilisation,
        price_per_device_hour=price_per_device_hour,
        bits_cost=bits_cost,
    )
    hours = ("--peak", peak), ("--utilisation", utilisation)
    _refuse_unused(hours[:1], hours[1:])
    _refuse_unused(hours[1:], hours[:1])
    _refuse_unused([("--price-per-device-hour", price_per_device_hour)], hours)
    priced = (*hours, ("--price-per-device-hour", price_per_device_hour), ("--serve-tokens", serve_tokens))
    _refuse_unused([("--serve-utilisation", serve_utilisation)], priced)
    return budget


def with_pieces(found: Fit, borrow: str | None, values: Sequence[str]) -> Fit:
    """The fit, with the pieces that it borrows."""
    given = values_of(values)
    if borrow is None:
        if given:
            raise ValueError(f"--value {next(iter(given))} belongs to --borrow: a fit has values of its own")
        return found
    from isoloss.fitting.borrow import borrow as put_beside

    return put_beside(found, borrow, given)


def values_of(texts: Sequence[str]) -> dict[str, float | str]:
    """``["n_w=0.2:0.4"]`` -> ``{"n_w": "0.2:0.4"}``."""
    out: dict[str, float | str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value) or name in out:
            raise ValueError(
                f"--value needs NAME=NUMBER, NAME=LOW:HIGH or NAME=MEAN+-SD, each name once, got {text!r}"
            )
        out[name] = value
    return out


def is_published(path: str) -> bool:
    """``hoffmann@besiroglu-2024``, and not a file that is named so.

    Raises:
        ValueError: a law without one of its published fits, which is no file either.
    """
    from pathlib import Path

    if Path(path).is_file():
        return False
    if "@" in path:
        return True
    from isoloss.laws import get

    try:
        law = get(path)
    except ValueError:
        return False  # a file that is missing
    first, *others = list(law.published) or [""]
    how = f"{path}@{first}" + (f" (or {', '.join(others)})" if others else "")
    if not first or "*" in path or "+" in path:
        how = "each piece as LAW@PUBLISHED"
    raise ValueError(f"needed a fit's file, got the law {path!r}. Write {how}, or fit it first")


def rule_of(text: str | None) -> Any:
    """The law of a hyper-parameter: a fit's file, or LAW@PUBLISHED as it stands."""
    if text is None or is_published(text):
        return text
    from isoloss.cli.options import leading_fit

    return leading_fit(text, None, "a learning rate or batch")[0]


def _refuse_unused(given: Sequence[tuple[str, object]], needed: Sequence[tuple[str, object]]) -> None:
    """An option that means nothing without others, some of which are not there."""
    missing = [option for option, value in needed if value is None]
    for option, value in given:
        if value is not None and missing:
            raise ValueError(
                f"{option} is used only with {' and '.join(o for o, _ in needed)}: add {', '.join(missing)}, or "
                f"leave {option} out"
            )
