"""The prediction level: the sequence by hand, planted curves, curves that never settle, the verb."""

from __future__ import annotations

import json

import numpy as np
import pytest

import isoloss
from isoloss.cli import run
from isoloss.comparing.level import Prefix, _settled, level
from isoloss.errors import NoAnswer
from isoloss.laws import get

TOKENS = np.geomspace(1e5, 1e9, 14)
FLOOR = 1.5


def planted(seed, noise=0.002, tokens=TOKENS):
    """A learning curve with floor 1.5 and relative noise."""
    rng = np.random.default_rng(seed)
    return {
        "tokens": tokens,
        "loss": (FLOOR + 300 * tokens**-0.4) * np.exp(noise * rng.normal(size=len(tokens))),
    }


def prefixes(asymptotes, stderr):
    """Prefixes with these asymptotes and standard errors; None is one whose parameters are open."""
    nan = float("nan")
    return [
        Prefix(5 + i, 10.0 * (i + 1), 0.0 if c is None else c, nan if c is None else s, *[nan] * 5,
               "not-identified" if c is None else "identified")
        for i, (c, s) in enumerate(zip(asymptotes, stderr, strict=True))
    ]  # fmt: skip


# --- the definition, by hand ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asymptotes", "stderr", "want"),
    [
        # 2.0 moves by more than 0.3 within two prefixes; 1.6 stays; 1.50 and 1.505 agree; s is small there.
        ([2.0, 1.6, 1.5, 1.505, 1.5, 1.5], [0.3, 0.2, 0.1, 0.005, 0.005, 0.005], (1, 3, 3)),
        # The standard error alone decides when: everything else is settled from the start.
        ([1.5, 1.5, 1.5, 1.5, 1.5, 1.5], [0.3, 0.3, 0.3, 0.3, 0.02, 0.005], (0, 1, 5)),
        # A stop at once still waits for the two prefixes that confirm omega.
        ([1.5, 1.5, 1.5, 1.5, 1.5], [0.001] * 5, (0, 1, 2)),
        # An open prefix agrees with nothing: neither omega, nor one of those that confirm it, nor a stop.
        ([1.5, None, 1.5, 1.5, 1.5, 1.5], [0.001] * 6, (2, 3, 4)),
        # A move within the tolerance is none, however small the standard error.
        ([1.5, 1.508, 1.5, 1.508, 1.5], [1e-9] * 5, (0, 1, 2)),
        # Never: drifts by 0.1 a prefix.
        ([1.5, 1.4, 1.3, 1.2, 1.1], [0.05] * 5, (None, None, None)),
        # Settled within a wide standard error, never to the tolerance.
        ([1.5, 1.6, 1.5, 1.6, 1.5], [0.3] * 5, (0, None, None)),
        # Agreement by luck: no asymptote is known to the tolerance.
        ([1.5, 1.5, 1.6, 1.5, 1.5], [0.3] * 5, (0, 1, None)),
    ],
)  # fmt: skip
def test_level_stop_and_answer_by_hand(asymptotes, stderr, want):
    found, reason, needed = _settled(prefixes(asymptotes, stderr), tolerance=0.01, patience=2, axis="tokens")
    assert found == want
    assert bool(reason) == bool(needed) == (want[2] is None)


@pytest.mark.parametrize(
    ("asymptotes", "stderr", "says"),
    [
        ([1.5, 1.5], [0.1] * 2, "2 prefixes cannot hold one confirmed by the next 2"),
        ([1.5, None, None, None, 1.4], [0.1] * 5, "2 of 5 prefixes determine"),
        ([1.5, 1.4, 1.3, 1.2], [0.05] * 4, "it ends at 1.2, 2 before at 1.4"),
        ([1.5, 1.6, 1.5, 1.55], [0.3] * 4, "the closest differ by 0.05"),
        ([1.5, 1.5, 1.6, 1.6], [0.3, 0.3, 0.25, 0.2], "the least standard error is 0.2"),
    ],
)
def test_not_reached_says_why(asymptotes, stderr, says):
    assert says in _settled(prefixes(asymptotes, stderr), tolerance=0.01, patience=2, axis="tokens")[1]


def test_a_noise_free_curve_is_known_at_once():
    tokens = np.array([1.0, 4, 16, 64, 256, 1024, 4096, 16384])
    runs = {"tokens": tokens, "loss": 2 + 8 * tokens**-0.5}  # 10, 6, 4, 3, 2.5, 2.25, 2.125, 2.0625
    found = level("hestness", runs, draws=10, patience=2)
    assert (found.omega, found.stop, found.known) == (0, 1, 2)
    assert [p.rows for p in found.prefixes] == [5, 6, 7, 8]
    assert [p.upto for p in found.prefixes] == [256, 1024, 4096, 16384]
    np.testing.assert_allclose([p.asymptote for p in found.prefixes], 2.0, atol=1e-6)
    np.testing.assert_allclose([p.predicted for p in found.prefixes], 2.0625, atol=1e-6)
    assert found.measured == 2.0625
    assert found.share == 0.25
    assert found.reached is found.prefixes[2]


# --- curves -----------------------------------------------------------------------------------------


def test_planted_floors_are_in_their_intervals_and_found_early():
    """Five noisy curves; bootstrap intervals of a dozen rows are known to hold less than they say."""
    held = []
    for seed in range(5):
        found = level("hestness", planted(seed), draws=40, tolerance=0.02, least=7)
        at = found.reached
        assert at is not None, found.reason
        assert at.stderr <= 0.02
        assert found.share < 0.3
        assert found.omega <= found.stop <= found.known
        held.append(at.low <= FLOOR <= at.high)
        assert abs(at.asymptote - FLOOR) < 4 * at.stderr
        assert abs(at.predicted - found.measured) < 0.05
    assert sum(held) >= 3  # of 5 at 0.9: fewer has probability 0.009


def test_prefixes_are_fits_of_their_rows():
    runs = planted(3)
    found = level("hestness", runs, draws=25, seed=5, least=11)
    assert [p.rows for p in found.prefixes] == [11, 12, 13, 14]
    at = found.prefixes[1]
    alone = isoloss.fit(
        "hestness", {k: v[: at.rows] for k, v in runs.items()}, draws=25, starts=16, seed=5,
        uncertainty="bootstrap",
    )  # fmt: skip
    assert at.asymptote == alone.values["gamma"]
    assert at.stderr == pytest.approx(np.std(alone.draws[:, 0], ddof=1))
    assert at.predicted == alone.predict(tokens=TOKENS[-1]).median[0]


def test_order_of_rows_and_repeated_sizes():
    tokens = np.repeat(TOKENS[:9], 3)
    runs = planted(4, tokens=tokens)
    order = np.random.default_rng(0).permutation(len(tokens))
    first = level("hestness", runs, draws=20)
    again = level("hestness", {k: v[order] for k, v in runs.items()}, draws=20)
    assert first.to_json() == again.to_json()
    # Rows of one size come together; the first prefix has five sizes.
    assert [p.rows for p in first.prefixes] == [15, 18, 21, 24, 27]
    assert first.measured == pytest.approx(runs["loss"][-3:].mean())


def test_a_law_of_the_wrong_shape_never_settles():
    """M3 on a curve of M2: its floor falls with every prefix, faster than its standard error."""
    runs = {"tokens": TOKENS, "loss": FLOOR + 300 * TOKENS**-0.4}
    found = level("m3", runs, draws=20, least=8)
    assert found.known is None
    assert found.reached is None
    assert found.share is None
    assert found.reason in repr(found)
    floors = [p.asymptote for p in found.prefixes]
    assert (np.diff(floors) < 0).all()
    assert floors[-1] > FLOOR


def test_a_pure_power_has_no_floor_to_find():
    rng = np.random.default_rng(6)
    runs = {"tokens": TOKENS, "loss": 30 * TOKENS**-0.1 * np.exp(0.002 * rng.normal(size=len(TOKENS)))}
    found = level("hestness", runs, draws=20, tolerance=0.02, least=10)
    assert found.known is None
    assert found.needed


def test_moving_on_after_the_answer_is_said():
    """A curve that pauses at 2.5 and then falls again."""
    tokens = np.geomspace(1e5, 1e9, 18)
    bend = 1 / (1 + (tokens / 5e7) ** 2)
    loss = 1.5 + 1.0 * bend + 300 * tokens**-0.5
    found = level("hestness", {"tokens": tokens, "loss": loss}, draws=20, tolerance=0.05, least=6)
    assert found.reached is not None
    assert found.reached.asymptote == pytest.approx(2.5, abs=0.05)
    # The last fit may be open or not; either way the answer at 2.5 is not what was measured.
    assert found.measured < 1.6
    assert found.reached.predicted_low > found.measured
    if found.prefixes[-1].identified:
        assert "moved-on" in [w.code for w in found.warnings]


def test_any_law_with_a_floor():
    runs = planted(1)
    for name, value in (("henighan(tokens)", 1.5), ("nezhurina(tokens)", 1.5)):
        found = level(name, runs, draws=10, least=13, tolerance=0.05)
        assert found.prefixes[-1].asymptote == pytest.approx(value, abs=0.05)
    # A curve that ends in a rise has an infinite floor: no asymptote to compare.
    assert not Prefix(9, 1e9, np.inf, *[float("nan")] * 6, "identified").identified


def test_size_asked_for():
    found = level("hestness", planted(2), draws=20, at=1e12, least=12)
    assert found.at == 1e12
    assert found.measured is None
    law = get("hestness")
    fitted = found.prefixes[-1]
    assert FLOOR < fitted.predicted < law.evaluate([1.52, 300, 0.4], tokens=1e12)


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "options", "says"),
    [
        ("hoffmann", {}, "one axis"),
        ("power", {}, "names its floor"),
        ("hestness", {"tolerance": 0.0}, "tolerance"),
        ("hestness", {"tolerance": float("nan")}, "tolerance"),
        ("hestness", {"patience": 0}, "patience"),
        ("hestness", {"draws": 1}, "draws"),
        ("hestness", {"least": 3}, "more sizes than the 3 parameters"),
        ("hestness", {"at": -1.0}, "size above 0"),
    ],
)
def test_bad_settings_are_refused(law, options, says):
    with pytest.raises(ValueError, match=says):
        level(law, planted(0), **options)


def test_a_law_that_is_none_is_refused():
    with pytest.raises(TypeError, match="needs a law"):
        level(3, planted(0))


@pytest.mark.parametrize(("name", "value"), [("at", "1T"), ("tolerance", "0.1"), ("tolerance", True)])
def test_a_setting_that_is_no_number_is_refused(name, value):
    with pytest.raises(TypeError, match=f"level needs {name} as a number, got {value!r}"):
        level("hestness", planted(0), **{name: value})


def test_too_few_sizes_is_no_answer():
    with pytest.raises(NoAnswer, match="4 different tokens are fewer than the first prefix needs, 5"):
        level("hestness", planted(0, tokens=np.repeat(TOKENS[:4], 5)))


# --- the verb ---------------------------------------------------------------------------------------


def write(path, runs):
    rows = [f"{a:.10g},{b:.12g}" for a, b in zip(*runs.values(), strict=True)]
    path.write_text("\n".join(["D,val", *rows]) + "\n", encoding="utf-8")
    return path


def test_the_verb_says_what_python_says(tmp_path, capsys):
    table, out = write(tmp_path / "t.csv", planted(7)), tmp_path / "level.json"
    words = ["level", "hestness", str(table), "--columns", "tokens=D,loss=val", "--tolerance", "0.02"]
    words += ["--least", "7", "--draws", "30", "--at", "10G"]
    assert run([*words, "--json", str(out), "--md"]) == 0
    document, printed = json.loads(out.read_text(encoding="utf-8")), capsys.readouterr().out
    here = level(
        "hestness",
        isoloss.read(table, columns="tokens=D,loss=val"),
        tolerance=0.02,
        least=7,
        draws=30,
        at=1e10,
    )
    assert document == json.loads(json.dumps(here.to_json()))
    assert document["schema"] == "isoloss/level/1"
    assert "known" in printed
    assert "| asymptote" in printed
    assert "loss at 10B tokens" in printed


def test_the_verb_leaves_with_3_where_it_is_not_reached(tmp_path, capsys):
    runs = {"tokens": TOKENS, "loss": FLOOR + 300 * TOKENS**-0.4}
    table, out = write(tmp_path / "t.csv", runs), tmp_path / "level.json"
    words = ["level", "m3", str(table), "--columns", "tokens=D,loss=val", "--draws", "10", "--least", "10"]
    assert run([*words, "--json", str(out)]) == 3
    assert "no answer: " in capsys.readouterr().err
    assert json.loads(out.read_text(encoding="utf-8"))["known"] is None
