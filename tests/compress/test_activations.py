"""Rounded inputs: published signal-to-noise, native casts, ranges against enumeration, bias correction, planted outliers."""

from __future__ import annotations

import copy
import math

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from isoloss.compress import activations, formats  # noqa: E402
from isoloss.compress.activations import (  # noqa: E402
    Activations,
    advise,
    best_range,
    bias_shift,
    correct_biases,
    fake_round,
    ranges,
    rounded_inputs,
    samples,
    sqnr,
    token_range,
)
from isoloss.compress.formats import Float, FloatType  # noqa: E402
from isoloss.compress.layers import find  # noqa: E402
from isoloss.compress.statistics import Collector  # noqa: E402
from tests.compress.models import Language, convolutions, filled  # noqa: E402


def densities(name):
    """Numbers and how much each counts."""
    if name == "uniform":
        x = torch.linspace(-1, 1, 16001, dtype=torch.float64)
        return x, torch.ones_like(x)
    if name == "normal":
        x = torch.linspace(-10, 10, 16001, dtype=torch.float64)
        return x, torch.exp(-x.square() / 2)
    x = torch.sinh(torch.linspace(-math.asinh(100), math.asinh(100), 24001, dtype=torch.float64))
    return x, (1 + x.square() / 8) ** -4.5 * (1 + x.square()).sqrt()  # t of 8 degrees, times dx


# dB at the best range: computed from van Baalen et al. 2023, arXiv 2303.17951; all codes finite.
TABLE = {
    "uniform": (48.13, 44.45, 38.48, 32.40, 26.28),
    "normal": (40.54, 42.66, 37.56, 31.56, 25.58),
    "t8": (34.38, 38.42, 37.52, 31.54, 25.56),
}


@pytest.mark.parametrize("density", TABLE)
def test_signal_to_noise_of_eight_bits_is_as_published(density):
    x, weights = densities(density)
    kinds = [
        formats.get("int8/narrow"),
        *(Float(FloatType(e, 7 - e, "finite"), "tensor") for e in (2, 3, 4, 5)),
    ]
    for kind, wanted in zip(kinds, TABLE[density], strict=True):
        assert best_range(x, kind, weights).sqnr == pytest.approx(wanted, abs=0.06), kind.spec
    if density != "uniform":
        high = best_range(x, kinds[0], weights).high
        assert high == pytest.approx({"normal": 3.9, "t8": 8.5}[density], rel=0.06)


def test_advice_turns_where_the_table_does():
    generator = torch.Generator().manual_seed(0)
    flat, bell = torch.rand(8, 400, generator=generator) - 0.5, torch.randn(8, 400, generator=generator)
    heavy = bell / (torch.randn(8, 8, 400, generator=generator).square().mean(0)).sqrt()
    assert advise("a", flat, flat.flatten()).best == "int8/narrow"
    assert advise("a", flat, flat.flatten()).gain == 0
    found = advise("a", bell, bell.flatten())
    assert found.best == "fp8-e2m5"
    assert found.gain > 0
    w, x, both = found.table["fp8-e3m4"]
    assert 10 ** (-both / 10) == pytest.approx(10 ** (-w / 10) + 10 ** (-x / 10), rel=1e-3)
    wild = heavy.flatten().sign() * heavy.flatten().abs() ** 4
    assert advise("a", heavy, wild).best in ("fp8-e3m4", "fp8-e4m3")


@pytest.mark.parametrize("spec", ["fp8-e4m3", "fp8-e5m2"])
def test_floats_are_native_casts(spec):
    dtype = {"fp8-e4m3": torch.float8_e4m3fn, "fp8-e5m2": torch.float8_e5m2}[spec]
    x = torch.randn(500, generator=torch.Generator().manual_seed(1))
    high = x.abs().max()
    scale = high / torch.finfo(dtype).max
    assert torch.equal(fake_round(x, -high, high, spec), (x / scale).to(dtype).float() * scale)


@pytest.mark.parametrize("spec", ["int8", "int8/asym", "int4/narrow", "int3/asym"])
def test_integers_are_the_formats_own(spec):
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(2)) + 0.5
    own = formats.get(spec + "/scale-fp32")
    low, high = token_range(x, own)
    torch.testing.assert_close(fake_round(x, low, high, own), own.encode(x).decode())
    assert torch.equal(
        fake_round(torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2, 1), spec), torch.zeros(2, 3)
    )


def test_the_searched_range_is_the_best_of_a_fine_grid():
    x = torch.randn(3000, generator=torch.Generator().manual_seed(3)) ** 3
    for spec in ("int4", "int8", "fp4-e2m1"):
        found = best_range(x, spec)
        every = [
            sqnr(x, fake_round(x, torch.tensor(-h), torch.tensor(h), spec))
            for h in torch.linspace(0.01, float(x.abs().max()), 700).tolist()
        ]
        assert found.sqnr >= max(every) - 0.05
        assert found.sqnr == pytest.approx(
            sqnr(x, fake_round(x, torch.tensor(-found.high), torch.tensor(found.high), spec))
        )


def test_static_ranges_of_three_kinds():
    x = torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([50.0])])
    taken = {"layer": torch.cat([x, torch.tensor([-1.0, 50.0])])}
    widest = ranges(taken, Activations("int8", "static", "minmax"))["layer"]
    share = ranges(taken, Activations("int8", "static", "percentile", 99.9))["layer"]
    best = ranges(taken, Activations("int4", "static", "mse"))["layer"]
    skew = ranges({"layer": taken["layer"].abs()}, Activations("int8/asym", "static", "percentile", 99.0))[
        "layer"
    ]
    assert (widest.low, widest.high) == (-50.0, 50.0)
    assert share.high == pytest.approx(1.0, abs=0.01)
    assert best.high < 50
    assert skew.low < 0.02
    assert skew.high == pytest.approx(0.99, abs=0.01)
    both = ranges({"layer": taken["layer"].clamp(max=1)}, Activations("int4/asym", "static", "mse"))["layer"]
    assert both.low == pytest.approx(-both.high, rel=0.1)


def test_a_model_with_rounded_inputs():
    model = filled(Language(16, 2))
    x = torch.randint(0, 13, (4, 12), generator=torch.Generator().manual_seed(4))
    layers = find(model).layers
    taken = samples(model, layers, [x])
    assert all(len(one) <= activations.SAMPLE + 2 for one in taken.values())
    errors = {}
    with torch.no_grad():
        exact = model(x)
        for spec in ("int8", "int4", "fp8-e4m3", "int8/asym"):
            for how in (Activations(spec), Activations(spec, "static", "mse")):
                with rounded_inputs(model, how, ranges(taken, how)) as left:
                    out = model(x)
                assert list(left) == ["embedding"]
                errors[spec, how.when] = float((out - exact).square().mean() / exact.square().mean())
        assert torch.equal(model(x), exact)  # nothing stays behind
    assert errors["int8", "token"] < errors["int4", "token"] / 50
    assert errors["int8", "token"] < 1e-3
    assert errors["fp8-e4m3", "token"] < 1e-2
    with torch.no_grad(), rounded_inputs(model, Activations("int8", "static"), {}) as left:
        assert torch.equal(model(x), exact)
    assert "no calibration data" in left["blocks.0.up"]
    with pytest.raises(ValueError, match="static"), rounded_inputs(model, Activations("int8", "static")):
        pass
    conv = filled(convolutions())
    image = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(5))
    conv.eval()
    with torch.no_grad(), rounded_inputs(conv, Activations("int8")) as left:
        torch.testing.assert_close(conv(image), conv(image))
    assert not left


def test_planted_outliers_cost_integers_what_they_do_not_cost_floats():
    """One large feature per token: a gain moved from a layer norm to the next weight leaves the function as it is."""
    generator = torch.Generator().manual_seed(6)
    net = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 32))
    x = torch.randn(200, 64, generator=generator)
    gaps = {"int8": [], "fp8-e4m3": []}
    for k in (1.0, 10.0, 100.0):
        own = copy.deepcopy(net)
        with torch.no_grad():
            own[0].weight[3] *= k
            own[0].bias[3] *= k
            own[1].weight[:, 3] /= k
            exact = own(x)
            torch.testing.assert_close(exact, net(x), atol=1e-5, rtol=1e-4)
            for spec, gap in gaps.items():
                with rounded_inputs(own, Activations(spec)):
                    gap.append(float((own(x) - exact).square().mean()))
    assert gaps["int8"] == sorted(gaps["int8"])
    assert gaps["int8"][2] > 100 * gaps["int8"][0]
    assert gaps["fp8-e4m3"][2] < 2 * gaps["fp8-e4m3"][0]
    assert gaps["fp8-e4m3"][0] > gaps["int8"][0]
    assert gaps["fp8-e4m3"][2] < gaps["int8"][2]


@pytest.mark.parametrize("kind", ["linear", "grouped convolution"])
def test_corrected_biases_give_the_mean_output_back(kind):
    torch.manual_seed(7)
    model, x = (nn.Linear(12, 16), torch.rand(300, 12))
    if kind != "linear":
        model, x = (nn.Conv2d(4, 6, 3, groups=2), torch.rand(20, 4, 7, 7))
    [layer] = find(model).layers
    collector = Collector([layer])
    dims = [0, *range(2, x.ndim)]
    with torch.no_grad():
        with collector.watching():
            exact = model(x).mean(dims)
        decoded = formats.get("int2").encode(layer.matrix()).decode()
        shift = bias_shift(layer.matrix(), decoded, collector.statistics()[layer.name])
        layer.put(decoded)
        assert float((model(x).mean(dims) - exact).abs().max()) > 0.01
        assert correct_biases(model, {layer.name: shift}) == ()
        torch.testing.assert_close(model(x).mean(dims), exact, atol=1e-5, rtol=1e-4)


def test_layers_without_a_bias_are_named():
    model = nn.Linear(3, 2, bias=False)
    assert correct_biases(model, {"model": torch.ones(2)}) == ("model",)
    with pytest.raises(KeyError):
        correct_biases(model, {"other": torch.ones(2)})


def test_settings_that_do_not_fit_are_refused():
    for bad in (("table3",), ("int8", "often"), ("int8", "static", "best"), ("int2/bipolar",)):
        with pytest.raises(ValueError, match=r"rounded to|needs static or token|needs minmax"):
            Activations(*bad)
    with pytest.raises(ValueError, match="percentile"):
        Activations("int8", "static", "percentile", 10.0)
    with pytest.raises(ValueError, match="other than 0"):
        best_range(torch.zeros(3), "int8")
