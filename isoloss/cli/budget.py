"""Options that say what may be spent, and the budget they describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
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
Bits = Annotated[float, typer.Option("--bits", help="Per stored parameter at serving.")]
Peak = Annotated[str | None, typer.Option("--peak", help="FLOP/s of one device: 989e12.")]
Utilisation = Annotated[
    float | None, typer.Option("--utilisation", help="Share of the peak in training: 0.4.")
]
ServeUtilisation = Annotated[float | None, typer.Option("--serve-utilisation", help="The same in serving.")]
Price = Annotated[float | None, typer.Option("--price-per-device-hour", help="In any currency.")]


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
    bits: float,
    peak: str | None,
    utilisation: float | None,
    serve_utilisation: float | None,
    price_per_device_hour: float | None,
) -> Budget:
    """The budget that the options describe, counts and sizes as people write them."""
    from isoloss.planning.budget import Budget
    from isoloss.runs.units import parse_bytes, parse_count

    def count(text: str | None) -> float | None:
        return None if text is None else parse_count(text)

    return Budget(
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
        bits=bits,
        peak=count(peak),
        utilisation=utilisation,
        serve_utilisation=serve_utilisation,
        price_per_device_hour=price_per_device_hour,
    )
