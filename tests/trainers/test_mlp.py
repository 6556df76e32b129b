"""The small networks: numbers against scikit-learn and closed forms, curves that fall, exact resume."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn gives the tables")

from isoloss.trainers import checkpoint, mlp, tables  # noqa: E402

SMALL = {"table": "digits", "width": 16, "examples": 200, "epochs": 10}


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(folder, **settings):
    return list(mlp.train({**settings, "folder": str(folder)}))


@pytest.mark.parametrize("name", tables.TABLES)
def test_what_is_said_of_a_table_is_what_it_holds(name):
    table, parts = tables.TABLES[name], tables.read(name)
    x, y = np.concatenate(parts.x), np.concatenate(parts.y)
    assert x.shape == (table.rows, table.features)
    assert len(set(y.tolist())) == table.outputs or table.outputs == 1
    assert tuple(len(part) for part in parts.x) == table.parts
    if table.options is None:
        whole = getattr(datasets, table.maker)(return_X_y=True)[0]
        assert np.array_equal(np.sort(whole.sum(axis=1)), np.sort(x.sum(axis=1)))


def test_examples_are_standardised_by_themselves_and_the_rest_by_them():
    parts = tables.read("diabetes")
    few, validation, test = tables.standardised(parts, 50, seed=3)
    again = tables.standardised(parts, 50, seed=4)
    assert not torch.equal(few.x, again[0].x)
    assert test.x.shape == again[2].x.shape
    inside = few.x.abs().max(dim=0).values < tables.CLIP  # columns where nothing was cut
    torch.testing.assert_close(few.x.mean(dim=0)[inside], torch.zeros(int(inside.sum())), atol=1e-6, rtol=0)
    unit = parts.y[0].std()
    differences = (test.y[1:] - test.y[:-1]).double().numpy() * unit
    np.testing.assert_allclose(differences, np.diff(parts.y[2]), atol=1e-3)
    assert validation.y.shape == (55,)


def test_the_network_is_that_of_torch():
    settings = mlp.Settings(table="wine", width=5, examples=40, layers=2, seed=1)
    theta = mlp._first_weights(settings)
    assert len(theta) == settings.params == (13 + 1) * 5 + (5 + 1) * 5 + (5 + 1) * 3
    modules = []
    at = 0
    for inputs, outputs in settings.sizes:
        linear = torch.nn.Linear(inputs, outputs)
        with torch.no_grad():
            linear.weight.copy_(theta[at : at + inputs * outputs].view(outputs, inputs))
            linear.bias.copy_(theta[at + inputs * outputs : at + (inputs + 1) * outputs])
        at += (inputs + 1) * outputs
        modules += [linear, torch.nn.ReLU()]
    x = torch.randn(7, 13, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mlp._outputs(theta, x, settings.sizes), torch.nn.Sequential(*modules[:-1])(x))


def test_the_steps_are_those_of_adamw(tmp_path):
    """One pass against torch.optim.AdamW with the same batches."""
    settings = mlp.Settings(table="iris", width=4, examples=40, epochs=1)
    learn, *_ = tables.standardised(tables.read("iris"), 40, seed=0)
    theta = mlp._first_weights(settings)
    state = mlp._State(theta.clone(), torch.zeros_like(theta), torch.zeros_like(theta))
    mlp._pass(state, learn, settings, steps=3)
    there = torch.nn.Parameter(theta.clone())
    adam = torch.optim.AdamW([there], lr=1.0, betas=mlp.BETAS, eps=mlp.EPSILON, weight_decay=50 / 40)
    order = torch.from_numpy(np.random.default_rng([0, 2, 0]).permutation(40))
    for batch, share in zip(torch.split(order, 16), (1, 2 / 3, 1 / 3), strict=True):
        adam.param_groups[0]["lr"] = 0.01 * share
        adam.zero_grad()
        mlp._loss(mlp._outputs(there, learn.x[batch], settings.sizes), learn.y[batch]).backward()
        adam.step()
    torch.testing.assert_close(state.theta, there.detach(), rtol=1e-5, atol=1e-6)


def test_rates_rise_then_fall_to_nearly_nothing():
    rates = [mlp._rate(step, 100) for step in range(1, 101)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 0.96]
    assert rates[-1] == 0.01
    assert max(rates) < 1


@pytest.mark.parametrize("table", ["digits", "friedman1"])
def test_more_examples_less_loss_and_seeds_agree(table, tmp_path):
    losses = np.array(
        [
            [
                run(tmp_path, table=table, width=32, examples=n, epochs=15, seed=s)[-1][1]["loss"]
                for s in (0, 1)
            ]
            for n in (60, 240, 960)
        ]
    )
    assert (losses[1:].max(axis=1) < losses[:-1].min(axis=1)).all()
    assert (losses.std(axis=1) < 0.25 * losses.mean(axis=1)).all()


def test_the_loss_is_below_that_of_guessing(tmp_path):
    results = {
        table: run(tmp_path, table=table, width=16, examples=80, epochs=20)[-1][1]
        for table in ("breast_cancer", "wine", "iris", "diabetes")
    }
    for table, result in results.items():
        classes = tables.TABLES[table].outputs
        assert result["loss"] < (math.log(classes) if classes > 1 else 1.0), table
        assert ("error" in result) == (classes > 1)
        assert result["done"] == 1
        assert len(result["data_sha256"]) == 64


@pytest.mark.parametrize("stops", [(1,), (4, 3), (10,)])
def test_a_stopped_run_goes_on_bit_for_bit(stops, tmp_path):
    whole = run(tmp_path / "a", **SMALL)
    seen = []
    for stop in stops:
        generator = mlp.train({**SMALL, "folder": str(tmp_path / "b")})
        (tmp_path / "b").mkdir(exist_ok=True)
        seen += [next(generator) for _ in range(stop)]
        generator.close()
        assert (tmp_path / "b" / checkpoint.NEWEST).exists()
    rest = run(tmp_path / "b", **SMALL)
    if sum(stops) < SMALL["epochs"]:
        assert [*seen, *rest] == whole
    else:
        assert rest == whole[-1:]
    assert not (tmp_path / "b" / checkpoint.NEWEST).exists()


def test_a_damaged_checkpoint_is_said_and_costs_only_time(tmp_path):
    whole = run(tmp_path, **SMALL)
    generator = mlp.train({**SMALL, "folder": str(tmp_path)})
    next(generator)
    generator.close()
    file = tmp_path / checkpoint.NEWEST
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert run(tmp_path, **SMALL) == whole


def test_a_folder_of_other_settings_is_refused(tmp_path):
    generator = mlp.train({**SMALL, "folder": str(tmp_path)})
    next(generator)
    generator.close()
    with pytest.raises(ValueError, match="their own folder"):
        run(tmp_path, **{**SMALL, "seed": 1})


def test_weights_that_left_the_numbers_have_no_loss(tmp_path):
    *_, (_, result) = run(tmp_path, table="diabetes", width=8, examples=60, epochs=8, lr=1e30)
    assert math.isnan(result["loss"])


def test_axes_are_counts_and_flops_are_six_times_their_product():
    found = mlp.axes({**SMALL, "folder": "unused"})
    assert found["params"] == (64 + 1) * 16 + (16 + 1) * 10
    assert (found["tokens"], found["tokens_unique"]) == (2000, 200)
    assert found["flops"] == 6 * found["params"] * found["tokens"]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"widht": 3}, ValueError, "got also widht"),
        ({"width": None}, TypeError, "width: needed a number, got None"),
        ({"width": True}, TypeError, "needed a number"),
        ({"width": 3.5}, ValueError, "needed a whole number"),
        ({"width": 0}, ValueError, "needed 1 or more"),
        ({"table": "mnist"}, ValueError, "needed one of digits"),
        ({"table": 3}, TypeError, "needed text"),
        ({"examples": 1125}, ValueError, "1124 rows"),
        ({"lr": 0}, ValueError, "above 0"),
        ({"decay": -1}, ValueError, "0 or more"),
        ({"seed": math.inf}, ValueError, "whole number"),
    ],
)
def test_wrong_settings_are_named(change, error, match):
    with pytest.raises(error, match=match):
        mlp.axes({**SMALL, **change})


def test_missing_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match="lack width, examples"):
        mlp.axes({"table": "digits"})
    with pytest.raises(ValueError, match="lack folder"):
        next(mlp.train(SMALL))
    assert mlp.axes({**SMALL, "width": 16.0}) == mlp.axes(SMALL)
