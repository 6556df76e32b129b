"""The verb ``samples``: counts, rates, and tables it cannot use."""

from __future__ import annotations

import json

import pytest

from isoloss.cli import run

COUNTS = "name,tasks,right,right_accepted,wrong,wrong_accepted\neasy,58,174,174,26,6\nhard,42,26,26,174,44\n"
RATES = "prior,p,tpr,fpr\n0.58,0.87,1,0.25\n0.42,0.13,1,0.25\n"


def test_rates_give_the_worked_case(tmp_path, capsys):
    (tmp_path / "t.csv").write_text(RATES)
    assert run(["samples", str(tmp_path / "t.csv"), "--wrong", "1"]) == 0
    printed = capsys.readouterr().out
    assert "draw up to 2 samples, then abstain: expected reward 0.4724" in printed
    assert "0.9640" in printed
    assert "interval" not in printed


def test_counts_give_intervals_and_json(tmp_path, capsys):
    (tmp_path / "t.csv").write_text(COUNTS)
    assert run(["samples", str(tmp_path / "t.csv"), "--wrong", "1", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["tries"]["low"] <= found["tries"]["value"] == 2 <= found["tries"]["high"]
    assert [t["name"] for t in found["types"]] == ["easy", "hard"]
    assert "90% interval" in err


def test_all_at_once_is_dearer(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("prior,p,tpr,fpr\n1,0.3,0.9,0.1\n")
    for words, said in (
        (["--price", "0.02"], "draw until"),
        (["--price", "0.02", "--at-once"], "draw up to"),
    ):
        assert run(["samples", str(tmp_path / "t.csv"), *words]) == 0
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "needed columns tasks"),
        (COUNTS.replace("174,174", "174,", 1), "row 1: needed a whole number for right_accepted"),
        (COUNTS.replace("58", "5.5", 1), "whole number for tasks"),
        (COUNTS.replace("174,174", "174,175", 1), "right_accepted <= right"),
        (RATES.replace("0.87", "1.2"), "p between 0 and 1"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, capsys, text, message):
    (tmp_path / "t.csv").write_text(text)
    assert run(["samples", str(tmp_path / "t.csv")]) == 2
    assert message in capsys.readouterr().err


def test_settings_that_cannot_be(tmp_path, capsys):
    (tmp_path / "t.csv").write_text(RATES)
    assert run(["samples", str(tmp_path / "t.csv"), "--wrong", "-1"]) == 2
    assert "wrong of 0 or more" in capsys.readouterr().err
