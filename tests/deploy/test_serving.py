"""The search for settings on landscapes whose peak is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from isoloss.deploy.serving import search
from isoloss.errors import NoAnswer

AXES = {
    "batch": [1, 2, 4, 8, 16, 32, 64, 128],
    "threads": [1, 2, 3, 4, 6, 8],
    "cache": [256, 512, 1024, 2048, 4096],
}


def landscape(seed: int):
    """Time of a step: the larger of reading and computing, threads that get in each other's way, paging of a small cache."""
    rng = np.random.default_rng(seed)
    ridge, best, crowd = 2 ** rng.uniform(2, 6), rng.uniform(2, 6), rng.uniform(0.03, 0.3)
    needs, fails = rng.uniform(8, 80), rng.uniform(2e4, 3e5)

    def rate(settings):
        batch, threads, cache = (settings[name] for name in AXES)
        if batch * cache > fails * 2:
            return None
        workers = threads / (1 + (threads / best) ** 3)
        step = 1 + max(1.0, batch / ridge) / workers
        paging = 1 + 0.7 * max(0.0, math.log2(batch * needs / cache))
        crowded = 1 + crowd * (cache / 4096) * (batch / 32)
        return batch / (step * paging * crowded)

    return rate


def true_peak(rate):
    values = [rate(dict(zip(AXES, place, strict=True))) for place in itertools.product(*AXES.values())]
    return max(value for value in values if value is not None)


def found_by(search_of, seeds, noise):
    share = []
    for seed in seeds:
        rate, rng = landscape(seed), np.random.default_rng(1000 + seed)

        def measure(settings, rate=rate, rng=rng):
            value = rate(settings)
            return None if value is None else value * math.exp(noise * rng.standard_normal())

        settings = search_of(measure, seed)
        share.append(rate(settings) / true_peak(rate))
    return np.array(share)


def test_a_quarter_of_the_map_finds_the_peak_more_often_than_the_best_of_as_many_by_chance():
    """The map would take three measurements at each of the 240 places: 720; the search takes 60, a twelfth."""
    seeds = range(30)

    def ours(measure, seed):
        return search(AXES, measure, 60, seed).settings

    def chance(measure, seed):
        rng = np.random.default_rng(seed)
        places = list(itertools.product(*AXES.values()))
        tried = [dict(zip(AXES, places[i], strict=True)) for i in rng.choice(len(places), 60, replace=False)]
        values = [measure(settings) for settings in tried]
        return tried[max((v, i) for i, v in enumerate(values) if v is not None)[1]]

    own, other = found_by(ours, seeds, 0.02), found_by(chance, seeds, 0.02)
    assert (own > 0.97).mean() >= 0.9
    assert (own > 0.97).mean() > (other > 0.97).mean() + 0.2


def test_without_noise_on_a_small_grid_the_peak_itself_is_found():
    axes = {"batch": [1, 2, 4, 8, 16], "threads": [1, 2, 3]}
    for seed in range(5):
        found = search(axes, lambda s: s["batch"] ** 0.5 / (1 + (s["threads"] - 2) ** 2), 14, seed)
        assert found.settings == {"batch": 16, "threads": 2}
        assert found.value == pytest.approx(4.0)
        assert found.grid == 15
        assert len(found.trials) == 14


def test_the_value_is_of_measurements_made_after_the_settings_were_chosen():
    """All places are alike: what looks best is luck, and the value must not keep it."""
    means = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        found = search(AXES, lambda s, rng=rng: math.exp(0.1 * rng.standard_normal()), 40, seed)
        means.append(math.log(found.value))
    assert abs(np.mean(means)) < 0.05  # the largest of 40 would be 0.2 on average


def test_failures_are_no_zeros():
    found = search(
        {"batch": list(range(1, 21))}, lambda s: None if s["batch"] > 12 else float(s["batch"]), 15, 0
    )
    assert found.settings == {"batch": 12}
    assert any(trial.value is None for trial in found.trials)
    with pytest.raises(NoAnswer, match="failed"):
        search({"batch": [1, 2, 4]}, lambda s: None, 8)


def test_refusals():
    with pytest.raises(ValueError, match="axes with values"):
        search({"batch": []}, lambda s: 1.0)
    with pytest.raises(ValueError, match="eight trials"):
        search({"batch": [1, 2]}, lambda s: 1.0, 3)
    with pytest.raises(ValueError, match="above 0"):
        search({"batch": [1, 2]}, lambda s: 0.0, 8)


def test_the_same_seed_makes_the_same_trials():
    rate = landscape(3)
    first, second = (search(AXES, rate, 40, 5) for _ in range(2))
    assert first.trials == second.trials


def test_a_server_gives_each_request_the_text_that_it_gets_alone():
    torch = pytest.importorskip("torch", reason="text needs torch")
    from isoloss.deploy.decoders import decoder
    from isoloss.deploy.generate import generate
    from isoloss.deploy.server import Request, serve
    from isoloss.trainers.gpt_modules import of
    from isoloss.trainers.gpt_settings import Settings
    from isoloss.trainers.transformer import GPT

    settings = Settings(width=32, tokens=(1,), seq_len=64)
    model = decoder(of(GPT(settings), settings))
    texts = (b"the cat sat on the mat and the dog", b"to be", b"or", b"not to be that is", b"x")
    requests = [Request(list(text), 3 + 4 * i, i) for i, text in enumerate(texts)]
    alone = [generate(model, list(one.prompt), one.new, seed=one.seed).tokens for one in requests]
    for batch, piece in ((1, 64), (2, 5), (3, 1), (8, 64)):
        made = serve(model, requests, batch, piece)
        assert list(made.texts) == alone
        assert max(made.waited) <= made.seconds
        assert made.tokens_per_second == pytest.approx(sum(map(len, alone)) / made.seconds)
    assert serve(model, requests, 1, 64).readings == sum(len(text) for text in alone)
    assert serve(model, requests, 5, 64).readings == max(len(text) for text in alone)
    ended = serve(model, requests, 3, end=alone[4][2])
    assert ended.texts[4] == alone[4][:3]
    with pytest.raises(ValueError, match="needed requests"):
        serve(model, [], 1)
    with pytest.raises(ValueError, match="reads at most 64"):
        serve(model, [Request([1] * 60, 9)], 1)
    assert torch.is_grad_enabled()
