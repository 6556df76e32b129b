"""Text: what is in it, who goes where, and that a damaged cache is noticed."""

from __future__ import annotations

import gzip
import hashlib
import json

import numpy as np
import pytest

from isoloss.trainers import text


def test_a_single_file_is_split_by_position(tmp_path):
    content = bytes(range(1, 201)) * 10
    (tmp_path / "a.txt").write_bytes(content)
    loaded = text.load(str(tmp_path / "a.txt"), tmp_path / "cache")
    assert bytes(loaded.training) == content[:1900]
    assert bytes(loaded.validation) == content[1900:]
    assert loaded.sha256 == hashlib.sha256(content).hexdigest()
    assert isinstance(loaded.training.base, np.memmap)
    assert not loaded.training.flags.writeable


def test_a_compressed_file_is_its_content(tmp_path):
    content = b"plain words " * 500
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    loaded = text.load(str(tmp_path / "a.txt.gz"), tmp_path / "cache")
    assert bytes(loaded.training) + bytes(loaded.validation) == content


def test_a_folder_is_split_by_the_hash_of_the_name(tmp_path):
    folder = tmp_path / "books"
    (folder / "deep").mkdir(parents=True)
    names = [f"{'deep/' if i % 2 else ''}{i:02}.txt" for i in range(60)]
    for name in names:
        (folder / name).write_text(f"<{name}>")
    (folder / ".hidden").write_text("no")
    held = [n for n in sorted(names) if int(hashlib.sha256(n.encode()).hexdigest()[:8], 16) % 20 == 0]
    assert 0 < len(held) < 12
    loaded = text.load(str(folder), tmp_path / "cache")
    assert bytes(loaded.validation).decode() == "".join(f"<{n}>\n" for n in held)
    kept = [n for n in sorted(names) if n not in held]
    assert bytes(loaded.training).decode() == "".join(f"<{n}>\n" for n in kept)


def test_the_standard_library_has_no_tests_tables_or_machine_files(tmp_path):
    names = [name for name, _ in text._files("stdlib")]
    assert names == sorted(names)
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    for name in names:
        for word in ("site-packages", "/test", "_sysconfigdata", "encodings/", "topics"):
            assert word not in f"/{name}", name
    loaded = text.load("stdlib", tmp_path)
    assert loaded.training.size > 2_000_000
    assert 0.02 < loaded.validation.size / (loaded.training.size + loaded.validation.size) < 0.1


@pytest.mark.parametrize("damage", ["short", "changed", "no json", "bad json"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    (tmp_path / "a.txt").write_bytes(b"0123456789" * 100)
    first = text.load(str(tmp_path / "a.txt"), tmp_path / "cache")
    sha256 = first.sha256
    del first
    (cached,) = (tmp_path / "cache").glob("*.bytes")
    beside = cached.with_suffix(".json")
    if damage == "short":
        cached.write_bytes(cached.read_bytes()[:-1])
    elif damage == "changed":
        cached.write_bytes(cached.read_bytes().replace(b"5", b"6"))
    elif damage == "no json":
        beside.unlink()
    else:
        beside.write_text('{"size": ')
    again = text.load(str(tmp_path / "a.txt"), tmp_path / "cache")
    assert again.sha256 == sha256
    assert bytes(again.training) == b"0123456789" * 95


def test_the_cache_serves_until_the_source_changes(tmp_path):
    source = tmp_path / "a.txt"
    source.write_bytes(b"abc" * 100)
    text.load(str(source), tmp_path / "cache")
    (cached,) = (tmp_path / "cache").glob("*.bytes")
    made = cached.stat().st_mtime_ns
    text.load(str(source), tmp_path / "cache")
    assert cached.stat().st_mtime_ns == made
    said = json.loads(cached.with_suffix(".json").read_text())
    assert said["sha256"] == hashlib.sha256(b"abc" * 100).hexdigest()
    source.write_bytes(b"abcd" * 100)
    assert bytes(text.load(str(source), tmp_path / "cache").training) == b"abcd" * 95


def test_the_cache_folder_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOLOSS_CACHE", str(tmp_path / "here"))
    (tmp_path / "a.txt").write_bytes(b"abc" * 100)
    text.load(str(tmp_path / "a.txt"))
    assert list((tmp_path / "here").glob("*.bytes"))


def test_what_cannot_be_used_is_refused(tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match="no such file"):
        text.load(str(tmp_path / "absent.txt"), cache)
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(ValueError, match="got none for training"):
        text.load(str(tmp_path / "empty.txt"), cache)
    (tmp_path / "binary.txt").write_bytes(b"abc\0def" * 50)
    with pytest.raises(ValueError, match="zero byte"):
        text.load(str(tmp_path / "binary.txt"), cache)
    (tmp_path / "bad.gz").write_bytes(b"not compressed")
    with pytest.raises(ValueError, match=r"cannot read .*bad\.gz"):
        text.load(str(tmp_path / "bad.gz"), cache)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="needed text files"):
        text.load(str(tmp_path / "none"), cache)
    (tmp_path / "short.txt").write_bytes(b"a" * 100)
    with pytest.raises(ValueError, match="more than seq_len = 64 bytes of validation"):
        text.load(str(tmp_path / "short.txt"), cache).windows(64)
    assert not list(cache.glob(".text*"))
