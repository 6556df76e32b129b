"""Generation: caches against whole readings, speculative decoding against exact enumeration of a small vocabulary."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from isoloss.deploy.acceptance import Head, agreement, fit  # noqa: E402
from isoloss.deploy.decoders import Read, decoder  # noqa: E402
from isoloss.deploy.generate import generate  # noqa: E402
from isoloss.deploy.sampling import Sampling, draw  # noqa: E402
from isoloss.deploy.speculative import (  # noqa: E402
    Adaptive,
    Fixed,
    best_count,
    speculate,
    tokens_per_call,
)
from isoloss.trainers.gpt_modules import Transformer, of  # noqa: E402
from isoloss.trainers.gpt_settings import Settings  # noqa: E402
from isoloss.trainers.transformer import GPT  # noqa: E402


@dataclass
class Chain:
    """A model whose next token depends on the last one: rows of probabilities."""

    rows: Tensor
    context: int = 0

    @property
    def vocabulary(self):
        return len(self.rows)

    def begin(self):
        return ChainSession(self.rows, [])


@dataclass
class ChainSession:
    rows: Tensor
    ids: list[int]

    @property
    def length(self):
        return len(self.ids)

    def read(self, ids):
        self.ids += ids.tolist()
        return Read(self.rows[ids].log(), torch.nn.functional.one_hot(ids, len(self.rows)).float())

    def rewind(self, length):
        assert 0 <= length <= len(self.ids)
        del self.ids[length:]


def chain(seed: int, tokens: int = 3) -> Chain:
    rows = torch.rand(tokens, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) ** 2
    return Chain(rows / rows.sum(1, keepdim=True))


def small(seed: int = 0, **given) -> Transformer:
    settings = Settings(width=32, tokens=(1,), seq_len=48, seed=seed, **given)
    model = of(GPT(settings), settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():  # blocks begin at zero
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def hugging_face():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("make", [small, lambda: small(qk_norm=False, tied=False), hugging_face])
def test_a_session_says_what_a_whole_reading_says_in_whatever_pieces_it_reads(make):
    model = make()
    ids = torch.randint(0, 50, (40,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model(ids[None])
    whole = getattr(out, "logits", out)[0]
    session = decoder(model).begin()
    rows = [session.read(part).logits for part in ids.split([1, 7, 2, 1, 29])]
    torch.testing.assert_close(torch.cat(rows), whole, rtol=1e-4, atol=1e-4)
    session.rewind(12)
    assert session.length == 12
    other = torch.cat([ids[:12], ids[20:25]])
    with torch.no_grad():
        out = model(other[None])
    again = session.read(ids[20:25])
    torch.testing.assert_close(again.logits, getattr(out, "logits", out)[0, 12:], rtol=1e-4, atol=1e-4)
    head = (model.head if isinstance(model, Transformer) else model.lm_head).weight
    torch.testing.assert_close(again.hidden @ head.T, again.logits, rtol=1e-4, atol=1e-4)


def test_greedy_text_is_that_of_the_library_whose_model_it_is():
    model = hugging_face()
    ids = torch.tensor([3, 1, 4, 1, 5])
    theirs = model.generate(ids[None], max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[
        0, 5:
    ]
    ours = generate(decoder(model), ids, 12, Sampling(0))
    assert ours.tokens == tuple(theirs.tolist())
    fast = speculate(decoder(model), decoder(hugging_face()), ids, 12, Fixed(3), Sampling(0))
    assert fast.tokens == ours.tokens
    assert fast.acceptance == 1 and fast.calls == 3  # noqa: PT018


@pytest.mark.parametrize("draft", [small(1), small(0)])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_greedy_speculation_gives_the_models_own_text_whatever_the_draft(draft, count):
    model = small(0)
    ours = generate(decoder(model), list(b"Mary"), 30, Sampling(0))
    fast = speculate(decoder(model), decoder(draft), list(b"Mary"), 30, Fixed(count), Sampling(0))
    assert fast.tokens == ours.tokens
    assert fast.calls <= ours.calls


def exact(model: Chain, sampling: Sampling, first: int, length: int) -> dict[tuple[int, ...], float]:
    rows = sampling.probabilities(model.rows.log()).numpy()
    out = {}
    for text in itertools.product(range(model.vocabulary), repeat=length):
        path = (first, *text)
        out[text] = float(np.prod([rows[a, b] for a, b in itertools.pairwise(path)]))
    return out


class Often:
    """Drafting ends after a token 0, or by what the last hidden state says: it depends on drafted tokens alone."""

    def more(self, drafted, accepted):
        return drafted < 1 or accepted > 0.7

    def chance(self, hidden):
        return 0.9 if hidden[0] else 0.6


@pytest.mark.parametrize(
    ("stopping", "sampling"),
    [
        (Fixed(1), Sampling()),
        (Fixed(4), Sampling(1.3, top_p=0.8)),
        (Often(), Sampling()),
        (Often(), Sampling(0.7, top_k=2)),
    ],
    ids=["one", "four, the likeliest 80 %", "adaptive", "adaptive, two tokens"],
)
def test_speculated_texts_have_the_models_distribution(stopping, sampling):
    model, draft = chain(0), chain(1)
    expected = exact(model, sampling, 1, 3)
    times = 1200
    seen = dict.fromkeys(expected, 0)
    for seed in range(times):
        seen[speculate(model, draft, [1], 3, stopping, sampling, seed).tokens] += 1
    assert all(seen[text] == 0 for text, p in expected.items() if p == 0)
    likely = [text for text, p in expected.items() if p * times >= 5]
    counts = [seen[text] for text in likely]
    share = [expected[text] * times for text in likely]
    counts.append(times - sum(counts))
    share.append(times - sum(share))
    if share[-1] < 1e-6:
        counts, share = counts[:-1], share[:-1]
    assert stats.chisquare(counts, share).pvalue > 1e-3


def test_tokens_per_reading_are_as_the_formula_says_where_tokens_are_accepted_alike():
    row, other = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    model, draft = Chain(row.repeat(3, 1)), Chain(other.repeat(3, 1))
    alpha = float(torch.minimum(row, other).sum())
    made = [speculate(model, draft, [0], 400, Fixed(4), seed=seed) for seed in range(12)]
    rates = [len(one.tokens) / one.calls for one in made]
    mean, se = np.mean(rates), np.std(rates, ddof=1) / len(rates) ** 0.5
    assert abs(mean - tokens_per_call(alpha, 4)) < 4 * se + 0.01  # the last reading is cut short
    found = agreement(model, draft, [torch.zeros(5, dtype=torch.long)] * 2, (1.0,))[0]
    assert found.acceptance == pytest.approx(alpha)
    assert found.divergence == pytest.approx(float((row * (row / other).log()).sum()))


def test_the_best_count_is_that_of_enumeration():
    for alpha, cost in itertools.product((0.0, 0.3, 0.6, 0.9, 1.0), (0.05, 0.2, 0.9)):
        gains = [sum(alpha**i for i in range(count + 1)) / (cost * count + 1) for count in range(65)]
        count, gain = best_count(alpha, cost)
        assert gain == pytest.approx(max(gains))
        assert gains[count] == pytest.approx(gain)


def test_a_head_finds_out_which_tokens_are_refused():
    # The two agree after tokens 0 and 1, and on tokens 0 and 1; token 2 the draft gives far too often.
    model = Chain(torch.tensor([[0.48, 0.48, 0.04]] * 3).double())
    draft = Chain(torch.tensor([[0.3, 0.3, 0.4]] * 3).double())
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 3, (60,), generator=generator) for _ in range(20)]
    found = fit(model, draft, texts, refusal=1.0, steps=400, rate=0.02)
    chances = found.head(torch.eye(3))
    assert chances[:2].min() > 0.95  # min(1, p / q) = 1
    assert abs(float(chances[2]) - 0.1) < 0.05  # 0.04 / 0.4
    assert found.held_loss < 0.5 * found.base_loss
    assert abs(found.foretold - found.accepted) < 0.05
    stopping = Adaptive(found.head, 0.3, 1, 20)
    made = speculate(model, draft, [0], 300, stopping, seed=0)
    fixed = speculate(model, draft, [0], 300, Fixed(4), seed=0)
    assert made.acceptance > fixed.acceptance


def test_more_refusals_weighed_make_a_head_more_careful():
    model, draft = chain(0), chain(1)
    texts = [torch.randint(0, 3, (60,), generator=torch.Generator().manual_seed(i)) for i in range(10)]
    plain, careful = (fit(model, draft, texts, refusal=weight, rate=0.02).foretold for weight in (1.0, 6.0))
    assert careful < plain


def test_temperature_changes_how_near_two_models_are():
    model, draft = chain(3), chain(4)
    texts = [torch.tensor([0, 1, 2, 0, 2]), torch.tensor([1, 1])]
    rows = {row.temperature: row for row in agreement(model, draft, texts, (0.0, 0.5, 1.0, 50.0))}
    for temperature, row in rows.items():
        sampling = Sampling(temperature)
        p, q = (sampling.probabilities(one.rows.log()) for one in (model, draft))
        at = torch.cat(texts)
        assert row.acceptance == pytest.approx(float(torch.minimum(p, q).sum(1)[at].mean()))
        if temperature:
            own = torch.distributions.Categorical(p[at])
            assert row.entropy == pytest.approx(float(own.entropy().mean()))
    assert rows[50.0].acceptance > rows[1.0].acceptance
    assert rows[0.0].entropy == 0


def test_an_end_token_ends_the_text():
    model = chain(0)
    for seed in range(20):
        for made in (
            generate(model, [0], 30, seed=seed, end=2),
            speculate(model, chain(1), [0], 30, Fixed(5), seed=seed, end=2),
        ):
            assert 2 not in made.tokens[:-1]
            assert made.tokens[-1] == 2 or len(made.tokens) == 30


def test_refusals():
    model = decoder(small())
    with pytest.raises(ValueError, match="reads at most 48"):
        generate(model, [1] * 40, 10)
    with pytest.raises(ValueError, match="tokens of 0 to 255"):
        generate(model, [256], 1)
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, [], 1)
    with pytest.raises(ValueError, match="256 tokens, got 3"):
        speculate(model, chain(0), [1], 2)
    with pytest.raises(ValueError, match="top_p"):
        Sampling(top_p=0)
    with pytest.raises(ValueError, match="bounds"):
        Adaptive(Head(3), least=0)
    with pytest.raises(ValueError, match="five texts"):
        fit(chain(0), chain(1), [])
    with pytest.raises(TypeError, match="Write a class"):
        decoder(torch.nn.Linear(1, 1))
    session = model.begin()
    with pytest.raises(ValueError, match="one dimension"):
        session.read(torch.zeros(1, 1, dtype=torch.long))


def test_cut_distributions_against_their_definitions():
    p = torch.tensor([0.4, 0.3, 0.2, 0.1])
    for z in (p.log(), p.log() + 3):
        torch.testing.assert_close(Sampling().probabilities(z), p.double(), rtol=1e-6, atol=1e-7)
        kept = Sampling(top_k=2).probabilities(z)
        torch.testing.assert_close(kept, torch.tensor([4 / 7, 3 / 7, 0, 0]).double(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(Sampling(top_p=0.7 - 1e-6).probabilities(z), kept)
        torch.testing.assert_close(
            Sampling(2.0).probabilities(z), (p.sqrt() / p.sqrt().sum()).double(), rtol=1e-6, atol=1e-7
        )
    generator = torch.Generator().manual_seed(0)
    counts = np.bincount([draw(p.double(), generator) for _ in range(4000)])
    assert stats.chisquare(counts, 4000 * p.double().numpy() / float(p.double().sum())).pvalue > 1e-3
