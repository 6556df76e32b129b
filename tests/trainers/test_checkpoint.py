"""Checkpoints: what was written comes back, and damage is noticed."""

from __future__ import annotations

import json
import struct

import pytest

torch = pytest.importorskip("torch")

from isoloss.trainers import checkpoint  # noqa: E402

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b.half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "one": torch.tensor(7, dtype=torch.int64),
    "turned": torch.arange(6.0).reshape(2, 3).T,
}


def same(found):
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].equal(tensor)


def test_tensors_and_facts_come_back(tmp_path):
    facts = {"step": 3, "loss": 0.1, "nan": float("nan"), "list": [1, 2]}
    checkpoint.save(tmp_path, TENSORS, facts)
    tensors, found, note = checkpoint.load(tmp_path)
    same(tensors)
    assert found["loss"] == 0.1
    assert found["nan"] != found["nan"]
    assert note == ""
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NEWEST]


def test_the_file_is_what_the_format_says(tmp_path):
    """Read by hand: little-endian length, JSON header, offsets into the data."""
    checkpoint.save(tmp_path, TENSORS, {"step": 3})
    content = (tmp_path / checkpoint.NEWEST).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert all(isinstance(value, str) for value in header["__metadata__"].values())
    entry = header["turned"]
    begin, end = entry["data_offsets"]
    assert (entry["dtype"], entry["shape"]) == ("F32", [3, 2])
    assert struct.unpack("<6f", content[8 + length :][begin:end]) == (0, 3, 1, 4, 2, 5)


def test_the_public_reader_agrees(tmp_path):
    public = pytest.importorskip("safetensors.torch")
    checkpoint.save(tmp_path, TENSORS, {"step": 3})
    same(public.load_file(tmp_path / checkpoint.NEWEST))


def test_nothing_there(tmp_path):
    assert checkpoint.load(tmp_path) is None


def spoil(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[:-5]
    elif how == "bit":
        content[-3] ^= 4
    elif how == "header":
        content[60] ^= 1
    elif how == "length":
        content[:8] = struct.pack("<Q", 1 << 60)
    else:
        content = bytearray()
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["cut", "bit", "header", "length", "empty"])
def test_a_damaged_newest_gives_the_previous_one(tmp_path, how):
    checkpoint.save(tmp_path, TENSORS, {"step": 1})
    checkpoint.save(tmp_path, TENSORS, {"step": 2})
    spoil(tmp_path / checkpoint.NEWEST, how)
    tensors, facts, note = checkpoint.load(tmp_path)
    same(tensors)
    assert facts == {"step": 1}
    assert "damaged" in note
    assert "previous" in note
    spoil(tmp_path / checkpoint.PREVIOUS, how)
    assert checkpoint.load(tmp_path)[:2] == ({}, {})
    assert "from the beginning" in checkpoint.load(tmp_path)[2]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, TENSORS, {"step": 1})

    def full(file, tensors, facts):
        file.write(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, TENSORS, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NEWEST]
    assert checkpoint.load(tmp_path)[1] == {"step": 1}


def test_removing(tmp_path):
    checkpoint.save(tmp_path, TENSORS, {})
    checkpoint.save(tmp_path, TENSORS, {})
    checkpoint.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []
