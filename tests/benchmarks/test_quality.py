"""The quality table: rows are named once, what is measured is what is meant, and the page is made from rows alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from benchmarks import quality  # noqa: E402
from benchmarks.quality_cases import Case, Measure, divergence, mean  # noqa: E402
from benchmarks.quality_ours import run  # noqa: E402
from benchmarks.quality_page import pair, section  # noqa: E402
from benchmarks.quality_rows import OURS, PEERS, Row  # noqa: E402
from isoloss.measure.criteria import CrossEntropy  # noqa: E402
from isoloss.measure.subject import Subject  # noqa: E402


@pytest.fixture
def case() -> Case:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.ReLU(), torch.nn.Linear(24, 5)).eval()
    x, y = torch.randn(64, 16), torch.randint(5, (64,))

    def calibration(draw: int) -> Subject:
        return Subject(net, [(x[:16], y[:16]), (x[16:32], y[16:32])], CrossEntropy(), "small")

    @torch.no_grad()
    def outputs(model):
        return [model(x[32:]).log_softmax(-1)]

    def measure(before, after) -> dict[str, Measure]:
        return {"KL": mean(divergence(before[0], after[0]))}

    return Case("small", net, calibration, outputs, measure, "a small network", ("0",))


def test_rows_are_named_once():
    keys = [(row.key, row.draw) for row in (*OURS, *PEERS)]
    assert len(set(keys)) == len(keys)
    assert all("," not in row.key for row in (*OURS, *PEERS))  # --only is cut at commas


def test_the_divergence_is_that_of_the_formula():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    assert divergence(p.log(), q.log()).tolist() == pytest.approx([0.25 * math.log(2)])


def test_the_error_of_a_mean_over_groups_knows_of_neighbours():
    found = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat_interleave(8)
    assert mean(found).se == pytest.approx(0.5080 / 32**0.5, rel=1e-3)
    assert mean(found, 4).se == pytest.approx(0.5774 / 4**0.5, rel=1e-3)


@pytest.mark.parametrize("method", ["nearest@int4", "gptq@int3/g8", "squeezellm@table2", "mixed(gptq)@4"])
def test_a_method_changes_what_counts_and_nothing_else(case, method):
    original = case.outputs(case.model)
    before = [p.clone() for p in case.model.parameters()]
    made = run(case, method, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, case.model.parameters(), strict=True))
    assert torch.equal(made.model[0].weight, case.model[0].weight)  # kept
    assert not torch.equal(made.model[2].weight, case.model[2].weight)
    assert quality.judged(case, original, made.model)["KL"][0] > 0
    if method == "nearest@int4":
        assert made.bits == 4 + 16 / 24  # a scale of 16 bits for each row of 24
    assert quality.judged(case, original, case.model)["KL"] == (0.0, 0.0)


def test_words_that_name_no_method_are_refused(case):
    with pytest.raises(ValueError, match="needed SOLVER@FORMAT"):
        run(case, "gptq", 0)


def test_the_page_holds_every_row_in_order_of_its_size():
    rows = [
        {**Row("small", "gptq@int4").to_json(), "bits": 4.1, "seconds": 3.2, "measures": {"KL": [0.01, 0.001]}},
        {**Row("small", "hqq int4 g64", peer=True).to_json(), "bits": 4.5, "seconds": 1, "version": "1.0",
         "measures": {"KL": [0.02, 0.001]}},
        {**Row("small", "gptq@int2").to_json(), "bits": 2.1, "seconds": 3, "measures": {"KL": [0.5, 0.1]}},
        {**Row("small", "other int4", peer=True).to_json(), "error": "no such option"},
    ]  # fmt: skip
    known = {"words": "one of them", "weights": 100, "rest": 100, "original": {}}
    text = section(rows, {"small": known})
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert [line.split("|")[1].strip() for line in lines] == [
        "**About four bits**", "**`gptq@int4`**", "hqq 1.0: int4 g64", "**About two bits**", "**`gptq@int2`**",
    ]  # fmt: skip
    assert "| 4.100 | 10.05 |" in lines[1]  # with as many numbers in 16 bits
    assert "- `other int4`: no such option" in text
    assert "gptq" not in section(rows, {"other": known})  # no heading without rows


def test_a_pair_shows_two_digits_of_its_error():
    assert pair(0.01234, 0.00056) == "0.01234 ± 0.00056"
    assert pair(3.0, 0.0) == "3.00 ± 0.00"


def test_cached_rows_are_told_apart(tmp_path):
    row = OURS[0]
    paths = {quality.kept(tmp_path, one) for one in (row, replace(row, draw=1), OURS[1])}
    assert len(paths) == 3
