"""Idealized runtime on a simulated clock: exact without noise, unbiased with it, intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest

from isoloss.errors import NoAnswer

pytest.importorskip("torch")

from isoloss.measure.runtime import design, fit_runtime, measure_runtime, probe

# GPT-J-6B as published (Narayanan et al. 2023): seconds on an A100 to read 1, 428 and 960 tokens; per token.
PROMPTS, READ, TOKEN = (1.0, 428.0, 960.0), (0.023, 0.041, 0.075), 0.021
A, B, C = np.linalg.solve(np.vander(PROMPTS, 3, increasing=True), READ)
UNSEEN = [(10, 5), (100, 20), (300, 40), (600, 12), (900, 60), (428, 1)]


def with_cache(p, o, growth=0.0):
    return A + B * p + C * p * p + (o - 1) * TOKEN + growth * sum(p + i for i in range(1, o))


def without(p, o):
    return sum(A + B * (p + i) + C * (p + i) ** 2 for i in range(o))


def clock(truth, noise=0.0, seed=0, repeats=5, places=None):
    rng = np.random.default_rng(seed)
    return {
        (p, o): (truth(p, o) * (1 + noise * rng.standard_normal(repeats))).tolist()
        for p, o in places or design(1024, 64)
    }


def test_the_design_is_short():
    for prompt, output in ((1024, 64), (2048, 128), (48, 16), (4, 4)):
        places = design(prompt, output)
        assert len(places) <= 10
        assert len(set(places)) == len(places)
        assert max(p for p, _ in places) == prompt
        assert max(o for _, o in places) == output
        assert sum(o == 1 for _, o in places) >= 3
    with pytest.raises(NoAnswer, match="tell little apart"):
        design(3, 64)


@pytest.mark.parametrize(
    "truth", [with_cache, lambda p, o: with_cache(p, o, 2e-6), without], ids=["cache", "growth", "none"]
)
def test_exact_without_noise(truth):
    found = fit_runtime(clock(truth))
    for p, o in UNSEEN:
        assert found.seconds(p, o) == pytest.approx(truth(p, o), rel=1e-3)
    assert found.cached == (truth is not without)
    if truth is with_cache:
        assert (found.per_token, found.growth) == (pytest.approx(TOKEN), 0.0)
        assert [found.first(p) for p in PROMPTS] == pytest.approx(list(READ), rel=1e-3)


@pytest.mark.parametrize("truth", [with_cache, without], ids=["cache", "none"])
def test_unbiased_with_noise(truth):
    """Over many clocks the mean prediction is the truth, within 4 standard errors of that mean."""
    off = np.array([
        [fitted.seconds(p, o) / truth(p, o) - 1 for p, o in UNSEEN]
        for fitted in (fit_runtime(clock(truth, 0.03, seed)) for seed in range(40))
    ])  # fmt: skip
    errors = off.std(axis=0, ddof=1) / np.sqrt(len(off))
    assert np.all(np.abs(off.mean(axis=0)) < 4 * errors + 1e-3)
    assert np.all(off.std(axis=0) < 0.05)


def test_tokens_cost_what_they_cost():
    found = [fit_runtime(clock(with_cache, 0.03, seed)).per_token for seed in range(40)]
    assert abs(np.mean(found) - TOKEN) < 4 * np.std(found) / np.sqrt(40) + 0.002 * TOKEN
    grown = [fit_runtime(clock(lambda p, o: with_cache(p, o, 3e-5), 0.02, seed)).growth for seed in range(25)]
    assert np.mean(np.array(grown) > 0) > 0.9
    assert np.mean([g for g in grown if g > 0]) == pytest.approx(3e-5, rel=0.1)
    none = [fit_runtime(clock(with_cache, 0.03, seed)).growth for seed in range(60)]
    assert np.mean(np.array(none) > 0) < 0.12


def test_intervals_cover_what_is_measured():
    inside = 0
    for seed in range(50):
        fitted = fit_runtime(clock(with_cache, 0.03, seed))
        seen = clock(with_cache, 0.03, 10_000 + seed, places=UNSEEN)
        for (p, o), values in seen.items():
            told = fitted.predict(p, o, 0.9)
            inside += told.low <= np.median(values) <= told.high
    assert inside / (50 * len(UNSEEN)) > 0.85


def test_the_least_of_the_repeats_is_denoised():
    """Delays that only add, as those of a shared machine, do not reach the denoised runtime."""
    rng = np.random.default_rng(3)
    delayed = {
        place: (with_cache(*place) * (1 + rng.exponential(0.3, 15))).tolist() for place in design(1024, 64)
    }
    noisy, clean = fit_runtime(delayed), fit_runtime(delayed, "min")
    worst = [max(abs(f.seconds(p, o) / with_cache(p, o) - 1) for p, o in UNSEEN) for f in (noisy, clean)]
    assert worst[1] < 0.08 < worst[0]


def test_how_far_out_it_is():
    found = fit_runtime(clock(with_cache))
    assert found.predict(500, 30).reach == 1
    assert found.predict(2048, 1).reach == 2
    assert found.predict(1024, 1056).reach == 2
    with pytest.raises(ValueError, match="at least 1"):
        found.seconds(0, 1)


def test_what_cannot_be_fitted():
    for places, error, said in (
        ({(1, 1): [1.0], (9, 1): [2.0], (9, 2): [2.0]}, NoAnswer, "do not tell"),
        ({**clock(with_cache), (5, 1): [0.0]}, ValueError, "positive"),
        ({**clock(with_cache), (5, 1): []}, ValueError, "positive"),
    ):
        with pytest.raises(error, match=said):
            fit_runtime(places)
    with pytest.raises(ValueError, match="no statistic"):
        fit_runtime(clock(with_cache), "mode")
    with pytest.raises(ValueError, match="no clock"):
        measure_runtime(lambda p, o: None, clock="sun")
    with pytest.raises(NoAnswer, match="nothing here generates"):
        probe()


def test_a_generator_is_called_at_the_places_of_the_design():
    made = []

    def generate(p, o):
        made.append((p, o))
        sum(range(100 * (p + 20 * o)))

    found = measure_runtime(generate, 64, 8, repeats=3, seconds=0.0)
    places = design(64, 8)
    assert made[: len(places)] == places
    assert all(made.count(place) == 5 for place in places)  # a first call, one to tell its time, three
    names = {each.name for each in found.measurements()}
    assert "runtime_prefill" in names
    assert {each.of for each in found.measurements()} >= {"prompt 1", "prompt 64"}
    assert found.spent.wall_seconds > 0
