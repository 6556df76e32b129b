"""A study file: what it declares, and what it refuses."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoloss.study.jobs import expand, tasks_of
from isoloss.study.local import Task, Workers
from isoloss.study.study import Study, write_template

RUNG = {"width": [32, 64], "tokens": [1e6, 2e6], "seed": 0}


def study(**changes):
    tables = {"name": "s", "trainer": {"run": "train.py:train"}, "rungs": [RUNG]} | changes
    return Study(**tables)


def test_lists_are_crossed_and_alternatives_follow_each_other():
    runs = expand({"layers": 2}, {**RUNG, "runs": [{"lr": 0.1}, {"lr": [0.2, 0.3], "width": 16}]}, "r")
    got = {tuple(sorted(r.settings.items())) for r in runs}
    wanted = {
        tuple(sorted({"layers": 2, "width": w, "tokens": t, "seed": 0, "lr": lr}.items()))
        for w, t, lr in [
            *itertools.product([32, 64], [1000000, 2000000], [0.1]),
            *itertools.product([16], [1000000, 2000000], [0.2, 0.3]),
        ]
    }
    assert got == wanted
    assert len(runs) == len(wanted)


@given(st.permutations(list(RUNG)), st.sampled_from([{}, {"layers": 2}, {"data": "x"}]))
def test_a_key_depends_on_settings_not_on_their_order_or_neighbours(order, common):
    whole = {r.key for r in expand(common, RUNG, "r")}
    turned = {r.key for r in expand(common, {name: RUNG[name] for name in order}, "r")}
    alone = {r.key for r in expand(common, {"width": 32, "tokens": 1_000_000, "seed": 0.0}, "r")}
    assert turned == whole
    assert alone <= whole
    assert len(whole) == 4


def test_a_common_setting_is_part_of_the_key():
    (a,), (b,) = (expand({"layers": n}, {"width": 1}, "r") for n in (1, 2))
    assert a.key != b.key


def test_keys_are_names_of_folders():
    (run,) = expand({}, {"data": "../texts/a b.txt", "width": 3}, "r")
    assert "/" not in run.key


@pytest.mark.parametrize(
    "rung",
    [{f"a_long_name_{i}": f"a long value {i}" for i in range(20)}, {".hidden": 1}, {"größe": "日本/ü"}],
)
def test_workers_take_every_key_as_a_name(rung, tmp_path):
    (run,) = expand({}, rung, "r")
    (tmp_path / f"{run.key}.damaged-1").mkdir()
    with Workers("none.py:f", None, tmp_path, tmp_path / "runs") as workers:
        workers.run([Task(run.key, dict(run.settings))]).close()
    other = dict.fromkeys(rung, 2)
    assert run.key != expand({}, other, "r")[0].key


def test_runs_of_a_trunk_are_one_task_whose_key_names_no_horizon():
    runs = expand({}, RUNG, "r")
    axes = {r.key: {"flops": float(r.settings["width"] * r.settings["tokens"])} for r in runs}
    all_ = tasks_of(runs, axes, "loss", "tokens", None)
    part = tasks_of([r for r in runs if r.settings["tokens"] == 2_000_000], axes, "loss", "tokens", None)
    assert set(all_) == set(part)
    assert sorted(task.horizons for task, _ in all_.values()) == [(1e6, 2e6), (1e6, 2e6)]
    assert sorted(task.cost for task, _ in all_.values()) == [64e6, 128e6]
    assert all(task.config["tokens"] == [1_000_000, 2_000_000] for task, _ in all_.values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rungs": []}, "rungs"),
        ({"rungs": [{}]}, r"rungs\[1\] names no setting"),
        ({"rungs": [{"width": []}]}, r"rungs\[1\].width is an empty list"),
        ({"rungs": [RUNG, {"width": 32, "tokens": 1e6, "seed": 0}]}, "stands in rung 1 and in rung 2"),
        ({"rungs": [{"a": list(range(101)), "b": list(range(101))}]}, "more than 10000"),
        ({"rungs": [{"a": float("nan")}]}, "JSON"),
        ({"colour": 1}, "colour is no setting of a study"),
        ({"objective": {"coverage": 2}}, "objective.coverage.*less than or equal to 0.99, got 2"),
        ({"trainer": {}}, "trainer.run is missing"),
        ({"workers": {"threads": 0}}, "workers.threads"),
        ({"target": {"width": 1, "tokens": 1, "pick": "worst"}}, "target.pick"),
        ({"early_stop": {"at": 1.5}}, "early_stop.at"),
        ({"rungs": [{"folder": "x"}]}, r"rungs\[1\]: a setting cannot be called 'folder'"),
        ({"trainer": {"run": "a.py:b", "settings": {"why": 1}}}, "a setting cannot be called 'why'"),
        (
            {"trainer": {"run": "a.py:b", "horizon": "steps"}},
            "needs a number as the setting 'steps'.*got none",
        ),
        (
            {"trainer": {"run": "a.py:b", "horizon": "w"}, "rungs": [{"w": ["x"]}]},
            "number.*got 'x' for run w=x",
        ),
        ({"trainer": {"run": "a.py:b", "horizon": "tokens"}, "early_stop": {}}, "do not go together"),
        ({"objective": {"laws": ["hoffmann", "hoffmann"]}}, "objective.laws has one twice"),
        ({"objective": {"laws": "hoffmann"}}, "objective.laws: input should be a list, got 'hoffmann'"),
        ({"objective": {"coverage": 0.999}}, "objective.coverage"),
        ({"target": {"width": 1, "flops": 1e20}}, 'target.flops .* got pick = "all"'),
    ],
)
def test_what_is_no_study_is_refused_by_its_place(changes, said):
    with pytest.raises(ValueError, match=said):
        study(**changes)


def test_a_file_says_where_it_is_wrong(tmp_path):
    path = tmp_path / "s.toml"
    with pytest.raises(ValueError, match=r"cannot read the study .*isoloss study init"):
        Study.read(path)
    path.write_text("name = ", encoding="utf-8")
    with pytest.raises(ValueError, match=r"s\.toml is no TOML"):
        Study.read(path)
    path.write_text('name = "a"\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"s\.toml: trainer is missing; rungs is missing"):
        Study.read(path)


def test_a_root_in_a_file_is_relative_to_it(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(
        'name = "a"\nroot = "there"\ntrainer.run = "t.py:f"\nrungs = [{w = 1}]\n', encoding="utf-8"
    )
    assert Study.read(path).store_path == tmp_path / "there" / "a.db"


def test_the_template_is_a_study_and_is_never_written_over(tmp_path):
    path = tmp_path / "study.toml"
    write_template(path)
    found = Study.read(path)
    assert found.root == tmp_path
    assert found.store_path == tmp_path / "ladder.db"
    assert [len(rung.runs) for rung in found.plan()] == [6, 8, 1]
    with pytest.raises(ValueError, match="exists"):
        write_template(path)
