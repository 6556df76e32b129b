"""The checklist: what the fit knows, what the table shows, what the user states, what is missing."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
from scipy.stats import spearmanr

import isoloss
from isoloss.cli import run
from isoloss.fitting.checklist import QUESTIONS, SECTIONS, STATED, Source, parse_about
from isoloss.fitting.result import Fit
from tests.oracles.formulas import FORMULAS, PLANTED, points

LADDER = "examples/stdlib_ladder.csv"


def make(about=None, **columns) -> Fit:
    x = points(("params", "tokens"), 24, 0)
    loss = FORMULAS["hoffmann"](PLANTED["hoffmann"], x) * np.exp(
        0.01 * np.random.default_rng(0).normal(size=24)
    )
    return isoloss.fit("hoffmann", {**x, "loss": loss, **columns}, draws=0, sensitivity=False, about=about)


def answers(found: Fit) -> dict[str, tuple[str, str]]:
    return {item.key: (item.answer, item.source) for item in found.checklist}


def test_every_question_in_order_once():
    found = make()
    assert [item.key for item in found.checklist] == list(QUESTIONS)
    order = [SECTIONS.index(item.section) for item in found.checklist]
    assert order == sorted(order)
    assert set(order) == set(range(5))
    for item in found.checklist:
        assert item.question.endswith("?")
        assert item.source in get_args(Source)
        assert bool(item.answer) == (item.source != "missing")
    assert set(STATED) <= set(QUESTIONS)


def test_what_the_fit_knows():
    x = {"tokens": 2.0 ** np.arange(12), "loss": 8 / 2.0 ** np.arange(12) + 1}
    x["loss"][3] = np.nan
    runs = isoloss.read({**x, "w": np.arange(1.0, 13)})
    held = isoloss.Constraints(priors={"beta": (1.0, 0.1)}, fix={"gamma": 1.0})
    found = isoloss.fit(
        "hestness(tokens)", runs.without([5], "diverged", "above the trend"), weights="w", constraints=held,
        objective=isoloss.Huber(delta=0.01), draws=30, starts=16, coverage=0.8, sensitivity=False,
    )  # fmt: skip
    said = answers(found)
    assert said["form"][0].startswith("hestness(tokens): loss = ")
    assert said["variables"][0].startswith("loss [")
    assert said["variables"][0].endswith("of tokens")
    assert said["parameters"][0] == "2: alpha, beta"
    assert said["held"][0] == "gamma = 1 (fixed), beta ~ 1 +- 0.1"
    assert said["cleaning"] == ("1 diverged", "fit")
    assert said["dropped"] == ("1 nonfinite-loss", "fit")
    assert said["objective"][0] == "huber, delta 0.01, log residuals, sum"
    assert said["weights"][0] == "by w"
    assert said["starts"][0].startswith("16, ")
    assert said["intervals"][0].startswith("80 %, 30 draws by ")
    assert said["ties"][0] == "none"


def test_what_the_table_shows():
    x = points(("params", "tokens"), 24, 0)
    lr = 0.01 * x["params"] ** -0.1 * np.exp(0.1 * np.cos(np.arange(24)))
    rho = spearmanr(lr, x["params"])[0]
    found = make(
        lr=lr, batch_tokens=np.full(24, 2.0**19), dataset=["c4", "pile"] * 12, epochs=np.linspace(1, 4, 24),
        run=[f"r{i // 2}" for i in range(24)], step=[1, 2] * 12,
    )  # fmt: skip
    said = answers(found)
    assert said["lr"] == (
        f"lr {lr.min():.4g} to {lr.max():.4g}, falls with params (rank correlation {rho:.2f})",
        "table",
    )
    assert said["batch"] == ("batch_tokens 5.243e+05", "table")
    assert said["data"] == ("dataset c4, pile", "table")
    assert said["repetition"] == ("1 to 4 epochs", "table")
    assert said["runs"] == ("24 rows of 12 runs", "table")
    assert said["checkpoints"] == ("2 rows per run, told apart by step", "table")
    assert said["schedule"] == ("", "missing")
    ratio = x["tokens"] / x["params"]
    assert f"tokens per parameter {ratio.min():.4g} to {ratio.max():.4g}" in said["ranges"][0]


def test_only_the_rows_of_the_fit_count():
    lr = np.full(24, 1e-3)
    lr[0] = 1.0
    x = points(("params", "tokens"), 24, 0)
    runs = isoloss.read({**x, "loss": FORMULAS["hoffmann"](PLANTED["hoffmann"], x), "lr": lr})
    found = isoloss.fit("hoffmann", runs.without([1], "diverged", "x"), draws=0, sensitivity=False)
    assert answers(found)["lr"] == ("lr 0.001", "table")


def test_derived_counts_are_said():
    runs = isoloss.read(LADDER)
    columns = {name: runs[name] for name in ("params", "flops", "loss")}
    found = isoloss.fit("hoffmann", columns, draws=0, sensitivity=False)
    assert "tokens = flops / (6 * params)" in answers(found)["counting"][0]
    final = isoloss.read(
        {"run": ["a", "a", "b"], "step": [1, 2, 2], "tokens": [1, 2, 4], "loss": [5, 4, 3.5]}
    )
    said = answers(isoloss.fit("power", final.final_checkpoints(), draws=0, sensitivity=False))
    assert said["checkpoints"][0] == "one per run, the last (1 earlier ones removed)"


def test_what_the_user_states():
    about = {"schedule": "cosine to  10 %", "lr": "muP, tuned at 40M"}
    said = answers(make(about, lr=np.full(24, 1e-3)))
    assert said["schedule"] == ("cosine to 10 %", "user")
    assert said["lr"] == ("muP, tuned at 40M (table: lr 0.001)", "user")
    assert answers(make(about))["lr"] == ("muP, tuned at 40M", "user")


@pytest.mark.parametrize(
    ("about", "error", "words"),
    [
        ({"shedule": "x"}, ValueError, "about needs one of counting, .*got 'shedule'"),
        ({"objective": "x"}, ValueError, "the fit itself answers"),
        ({"schedule": " "}, ValueError, "an answer for schedule"),
        ({"schedule": 3}, TypeError, "text for schedule"),
        (["data"], TypeError, r"about needs a mapping of answers, got \['data'\]"),
    ],
)
def test_wrong_statements(about, error, words):
    with pytest.raises(error, match=words):
        make(about)


@pytest.mark.parametrize("words", [["schedule"], ["nope=1"], ["schedule=a", "schedule=b"]])
def test_wrong_words(words):
    with pytest.raises(ValueError, match="about"):
        parse_about(words)


def test_words_keep_equals_signs():
    assert parse_about(["schedule=a=b"]) == {"schedule": "a=b"}


def test_there_and_back():
    found = make({"schedule": "cosine"})
    document = json.loads(json.dumps(found.to_json()))
    assert Fit.from_json(document).checklist == found.checklist
    document["checklist"][0]["source"] = "rumour"
    with pytest.raises(ValueError, match="damaged"):
        Fit.from_json(document)


# Command line


def test_the_command_line_prints_both(capsys, tmp_path):
    path = tmp_path / "fit.json"
    words = [
        "fit",
        "hoffmann",
        LADDER,
        "--draws",
        "20",
        "--about",
        "schedule=cosine to 10 %",
        "--json",
        str(path),
    ]
    assert run(words) == 0
    text = capsys.readouterr().out
    assert "sensitivity: loss at params" in text
    assert "D*/N*" in text
    assert "tied exponents (alpha=beta)" in text
    lines = [line for line in text.splitlines() if line.startswith("checklist: ")]
    assert lines == [
        "checklist: 23 of 31 answered; open: repetition, data, warmup, weight-decay, code, evaluation-set, "
        "smoothing, held-out (--checklist prints all, --about KEY=TEXT answers)"
    ]
    found = isoloss.load(path)
    assert answers(found)["schedule"] == ("cosine to 10 %", "user")
    assert found.sensitivity[0].what == "fit"


def test_the_whole_list_and_no_refits(capsys):
    words = ["fit", "power(flops)", LADDER, "--draws", "20", "--checklist", "--no-sensitivity", "--md"]
    assert run(words) == 0
    text = capsys.readouterr().out
    assert "sensitivity: " not in text
    for key in QUESTIONS:
        assert f" {key} " in text


def test_an_unknown_key_is_bad_input(capsys):
    assert run(["fit", "hoffmann", LADDER, "--about", "scheduel=x"]) == 2
    error = capsys.readouterr().err
    assert "schedule" in error
    assert "'scheduel'" in error
