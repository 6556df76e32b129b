"""The fit's JSON: exact there and back, standard JSON, whole or absent, and refused in words when damaged."""

from __future__ import annotations

import copy
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import isoloss
from tests.oracles.formulas import FORMULAS, PLANTED, points


def make(**options):
    rng = np.random.default_rng(0)
    x = points(("params", "tokens"), 30, 0)
    loss = FORMULAS["hoffmann"](PLANTED["hoffmann"], x) * np.exp(0.01 * rng.normal(size=30))
    loss[4] = np.nan
    table = {**x, "loss": loss, "w": rng.uniform(1, 2, 30)}
    return isoloss.fit("hoffmann", table, weights="w", **{"draws": 25, "starts": 8, **options})


FIT = make(
    objective=isoloss.StudentT(df=5.0),
    constraints=isoloss.Constraints(
        tie=(("alpha", "beta"),),
        bounds={"alpha": (0.1, 0.9)},
        priors={"E": (1.8, 0.2)},
        borrow={"B": "besiroglu-2024"},
    ),
)
DOCUMENT = json.loads(json.dumps(FIT.to_json()))


@pytest.mark.parametrize(
    "options",
    [
        {"objective": isoloss.Huber(delta=0.01, reduction="mean")},
        {"objective": isoloss.Gaussian(residual="linear"), "uncertainty": "laplace"},
        {"draws": 0},
        {"draws": 1},
        {"constraints": isoloss.Constraints(fix={"E": 1.8}, tie=(("alpha", "beta"),))},
    ],
    ids=str,
)
def test_there_and_back_is_exact(options, tmp_path):
    fit = make(**options)
    fit.save(tmp_path / "a.json")
    again = isoloss.load(tmp_path / "a.json")
    assert again.to_json() == fit.to_json()
    for name in ("theta", "draws", "y", "rows", "residuals", "weights"):
        assert np.array_equal(getattr(again, name), getattr(fit, name)), name
    assert again.draws.shape == fit.draws.shape
    for name in (
        "objective",
        "status",
        "result",
        "warnings",
        "removed",
        "constraints",
        "fingerprint",
        "seed",
        "value",
    ):
        assert getattr(again, name) == getattr(fit, name), name
    if len(fit.draws):
        at = {"params": [1e9, 7e10], "tokens": [1e11, 1.4e12]}
        for of in ("mean", "run"):
            assert np.array_equal(again.predict(of=of, **at).draws, fit.predict(of=of, **at).draws)
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("options", [{}, {"draws": 0}, {"draws": 1}], ids=str)
def test_standard_json(options, tmp_path):
    fit = make(**options)
    fit.save(tmp_path / "fit.json")
    assert strict((tmp_path / "fit.json").read_text())["schema"] == "isoloss/fit/1"
    if len(fit.draws):
        strict(json.dumps(fit.predict(params=1e9, tokens=1e10).to_json()))


def test_standard_json_of_a_table_without_variation(tmp_path):
    tokens = np.geomspace(1e8, 1e10, 8)
    fit = isoloss.fit("power", {"tokens": tokens, "loss": np.full(8, 3.0)}, draws=5, sensitivity=False)
    fit.save(tmp_path / "fit.json")
    strict((tmp_path / "fit.json").read_text())
    isoloss.load(tmp_path / "fit.json")


def test_a_crash_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "fit.json"
    FIT.save(path)
    before = path.read_bytes()

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(ValueError, match="disk full"):
        FIT.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["fit.json"]


def test_it_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="cannot write"):
        FIT.save(tmp_path / "absent" / "fit.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"), ("{", "not JSON"), ("[]", "not a fit"), ("3", "not a fit"), ("null", "not a fit"),
        ("{}", "schema"), ('{"schema": "isoloss/plan/1"}', "schema"), ('{"schema": "isoloss/fit/1"}', "incomplete"),
        ("[" * 100_000, ""), ('{"a": ' + "9" * 5000 + "}", ""), ("\x00", "not JSON"),
    ],
    ids=lambda v: v[:30],
)  # fmt: skip
def test_other_files_are_refused(text, says, tmp_path):
    path = tmp_path / "fit.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=says or None):
        isoloss.load(path)


def test_not_text_and_not_there(tmp_path):
    (tmp_path / "fit.json").write_bytes(b"\xff\xfe\x00garbage")
    for path in (tmp_path / "fit.json", tmp_path / "absent.json", tmp_path):
        with pytest.raises(ValueError, match=r"cannot read|not JSON"):
            isoloss.load(path)


def every_place(node, path=()):
    """Every key and index in the document; of a long list of numbers the first and the last."""
    found = []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    items = list(items)
    if isinstance(node, list) and len(items) > 4:
        items = [items[0], items[-1]]
    for key, value in items:
        found.append((*path, key))
        found += every_place(value, (*path, key))
    return found


PLACES = every_place(DOCUMENT)
OTHER = st.sampled_from(
    [
        None,
        True,
        3,
        -1,
        0,
        10**400,
        float("inf"),
        float("nan"),
        "text",
        "",
        [],
        [1],
        [[1]],
        {},
        {"a": 1},
        ["x"],
    ]
)


def load_damaged(document, path):
    path.write_text(json.dumps(document), encoding="utf-8")
    try:
        fit = isoloss.load(path)
    except ValueError:
        return
    # What is accepted must be usable: no damage that shows only later.
    try:
        fit.predict(params=1e9, tokens=1e10)
        fit.predict(of="run", params=1e9, tokens=1e10)
    except isoloss.NoAnswer:
        pass
    repr(fit)
    fit.parameters  # noqa: B018
    strict(json.dumps(fit.to_json()))


@settings(max_examples=150)
@given(place=st.sampled_from(PLACES))
def test_a_missing_part_is_a_value_error(place, tmp_path):
    document = copy.deepcopy(DOCUMENT)
    node = document
    for key in place[:-1]:
        node = node[key]
    del node[place[-1]]
    load_damaged(document, tmp_path / "fit.json")


@settings(max_examples=300)
@given(place=st.sampled_from(PLACES), value=OTHER)
def test_a_part_of_another_kind_is_a_value_error(place, value, tmp_path):
    document = copy.deepcopy(DOCUMENT)
    node = document
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    load_damaged(document, tmp_path / "fit.json")
