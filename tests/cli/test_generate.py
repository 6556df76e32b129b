"""``isoloss generate``: what it writes, and what it refuses."""

from __future__ import annotations

import io
import json
import textwrap

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from isoloss.cli import run  # noqa: E402
from isoloss.deploy.decoders import decoder  # noqa: E402
from isoloss.deploy.generate import generate  # noqa: E402
from isoloss.deploy.sampling import Sampling  # noqa: E402
from isoloss.deploy.speculative import Fixed, speculate  # noqa: E402
from isoloss.deploy.words import Stream, Words, of_bytes, words_of  # noqa: E402
from isoloss.trainers.gpt_modules import of  # noqa: E402
from isoloss.trainers.gpt_settings import Settings  # noqa: E402
from isoloss.trainers.transformer import GPT  # noqa: E402

NETS = """
    import torch
    from isoloss.trainers.gpt_modules import of
    from isoloss.trainers.gpt_settings import Settings
    from isoloss.trainers.transformer import GPT

    def gpt(seed=0):
        settings = Settings(width=32, tokens=(1,), seed=seed)
        return of(GPT(settings), settings), torch.zeros(1, 4).long()

    def other():
        return gpt(1)
"""


def gpt(seed=0):
    settings = Settings(width=32, tokens=(1,), seed=seed)
    return decoder(of(GPT(settings), settings))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETS), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folder(place, template=True):
    """A model of 40 words with its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<end>": 0, **{f"w{i}": i for i in range(1, 40)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")
    if template:
        fast.chat_template = "{% for m in messages %}w1 {{ m.content }} {% endfor %}w2"
    fast.save_pretrained(place)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(place)
    return place


def test_bytes_are_continued_as_they_come(place, capsys):
    words = ["generate", "nets.py:gpt", "The cat", "--new", "20", "--temperature", "0", "--json", "g.json"]
    assert run(words) == 0
    said = capsys.readouterr()
    wanted = generate(gpt(), list(b"The cat"), 20, Sampling(0)).tokens
    document = json.loads((place / "g.json").read_text())
    assert tuple(document["tokens"]) == wanted
    assert document["text"] == bytes(wanted).decode(errors="replace")
    assert said.out == document["text"] + "\n"
    assert document["prompt_tokens"] == 7
    assert document["readings"] == 20
    assert document["drafted"] is None
    assert said.err.startswith("20 tokens, ")


def test_a_draft_leaves_greedy_text_as_it_is(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat"))
    own = ["generate", "nets.py:gpt", "-", "--new", "12", "--temperature", "0"]
    assert run([*own, "--draft", "nets.py:other", "--drafted", "3", "--json", "g.json"]) == 0
    document = json.loads((place / "g.json").read_text())
    made = speculate(gpt(), gpt(1), list(b"The cat"), 12, Fixed(3), Sampling(0))
    assert tuple(document["tokens"]) == generate(gpt(), list(b"The cat"), 12, Sampling(0)).tokens
    assert (document["drafted"], document["accepted"]) == (made.drafted, made.accepted)
    assert "drafted tokens accepted" in capsys.readouterr().err


def test_tokenizer_and_message_of_a_folder(place, capsys):
    where = str(folder(place / "model"))
    words = words_of(where, 40)
    assert words.tokens("w3 w5") == [3, 5]
    assert words.end == 0
    assert run(["generate", where, "w3 w5", "--new", "4", "--json", "g.json"]) == 0
    assert json.loads((place / "g.json").read_text())["prompt_tokens"] == 2
    assert (
        run(["generate", where, "w3", "--chat", "--new", "4", "--json", "g.json", "--dtype", "bfloat16"]) == 0
    )
    assert json.loads((place / "g.json").read_text())["prompt_tokens"] == 3
    capsys.readouterr()
    plain = str(folder(place / "plain", template=False))
    assert run(["generate", plain, "w3", "--chat"]) == 2
    assert "no template" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nets.py:gpt", ""], "needed a text"),
        (["nets.py:gpt", "a", "--dtype", "int8"], "float32 or bfloat16"),
        (["nets.py:gpt", "a", "--top-p", "0"], "top_p"),
        (["nets.py:gpt", "a", "--new", "100000"], "at most"),
        (["nowhere", "a"], "nowhere"),
    ],
)
def test_what_cannot_be_generated_is_refused(words, said, capsys):
    assert run(["generate", *words]) == 2
    assert said in capsys.readouterr().err


def test_no_tokenizer_is_said(place):
    assert words_of("nets.py:gpt", 256).tokens("a") == [97]
    with pytest.raises(ValueError, match=r"not bytes\. Name the original's folder with --tokenizer"):
        words_of("nets.py:gpt", 300)
    with pytest.raises(ValueError, match="has 40 tokens, the model 30"):
        words_of(folder(place / "model"), 30)


def test_a_damaged_tokenizer_is_not_taken_for_none(place):
    where = folder(place / "model")
    (where / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot load the tokenizer of"):
        words_of(where, 256)


def test_what_was_told_is_what_was_made():
    model, draft, told = gpt(), gpt(1), []
    end = generate(model, list(b"a"), 8, seed=3).tokens[4]
    for new, stop in ((9, None), (30, end)):
        told.clear()
        made = speculate(model, draft, list(b"a"), new, Fixed(4), seed=3, end=stop, told=told.append)
        assert tuple(told) == made.tokens


def test_a_stream_gives_every_character_once():
    text = "añ\n漢字 b\nc"
    pieces = []
    stream = Stream(of_bytes(), pieces.append)
    for token in text.encode():
        stream(token)
    stream.end()
    assert "".join(pieces) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    broken = Stream(of_bytes(), pieces.append)
    broken(0xE6)
    broken.end()
    assert pieces[-1] == "\N{REPLACEMENT CHARACTER}"


def test_a_stream_keeps_spaces_between_words():
    words = Words(lambda text: [], lambda ids: " ".join(f"w{i}" for i in ids))
    pieces = []
    stream = Stream(words, pieces.append)
    for token in (1, 2, 3):
        stream(token)
    stream.end()
    assert "".join(pieces) == "w1 w2 w3"
