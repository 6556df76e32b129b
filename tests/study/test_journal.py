"""The journal of a run: what a crash, a flipped byte, a full disk and a second writer leave of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoloss.errors import StoreError
from isoloss.study import journal as journals
from isoloss.study.journal import Contents, Damaged, JournalError, line, open_journal, parse, read

TEXTS = st.text(max_size=12)
NUMBERS = st.floats(allow_nan=False) | st.integers()
ENTRIES = st.lists(
    st.fixed_dictionaries(
        {"step": NUMBERS, "measured": st.dictionaries(TEXTS, NUMBERS | TEXTS, max_size=3), "cpu": NUMBERS}
    )
    | st.fixed_dictionaries({"attempt": st.integers(1, 9), "pid": st.integers(1)})
    | st.fixed_dictionaries({"end": st.sampled_from(["done", "failed", "paused"]), "trace": TEXTS}),
    min_size=1,
    max_size=8,
)


def bytes_of(entries) -> bytes:
    return b"".join(line(entry) for entry in entries)


@given(ENTRIES)
def test_what_is_written_is_read(entries):
    contents = parse(bytes_of(entries))
    assert list(contents.entries) == entries
    assert contents.size == len(bytes_of(entries))


def test_a_line_is_json_whose_crc_anybody_can_check():
    text = line({"step": 3, "measured": {"loss": 2.5, "data": "é\n"}}).decode("ascii")
    assert text.count("\n") == 1
    found = json.loads(text)
    crc = int(found.pop("crc32"), 16)
    assert zlib.crc32(json.dumps(found, separators=(",", ":")).encode()) == crc


@given(ENTRIES, st.data())
def test_any_truncation_leaves_a_prefix(entries, data):
    whole = bytes_of(entries)
    cut = data.draw(st.integers(0, len(whole)))
    contents = parse(whole[:cut])
    assert list(contents.entries) == entries[: len(contents.entries)]
    assert contents.size <= cut
    ends = [len(bytes_of(entries[:n])) for n in range(len(entries) + 1)]
    assert contents.size == max(end for end in ends if end <= cut)


@given(ENTRIES, st.data())
def test_any_flipped_bit_is_noticed_or_cuts_the_last_line(entries, data):
    whole = bytearray(bytes_of(entries))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = list(parse(bytes(whole)).entries)
    except Damaged:
        return
    assert place == len(whole) - 1  # the newline of the last line
    assert found == entries[:-1]


@given(st.binary(max_size=60))
def test_what_is_no_journal_is_damaged_or_has_no_complete_line(data):
    try:
        assert parse(data) == Contents()
        assert b"\n" not in data
    except Damaged:
        assert b"\n" in data


def test_opening_cuts_the_tail_and_goes_on(tmp_path):
    folder = tmp_path / "a"
    journal, note = open_journal(folder, wait=0.0)
    assert note is None
    journal.append({"attempt": 1, "pid": 5})
    journal.append({"step": 1, "measured": {"loss": 3.0}, "cpu": 1.0, "wall": 1.5})
    journal.close()
    path = folder / journals.NAME
    path.write_bytes(path.read_bytes()[:-3])
    journal, note = open_journal(folder, wait=0.0)
    assert note is None
    assert journal.contents.points == []
    journal.append({"step": 1, "measured": {"loss": 3.5}, "cpu": 1.0, "wall": 1.5})
    journal.close()
    assert [point["measured"]["loss"] for point in read(folder).points] == [3.5]
    assert read(folder).seconds == (1.0, 1.5)
    assert read(folder).pid == 5


def test_zeros_after_a_power_cut_are_cut_off(tmp_path):
    whole = line({"attempt": 1, "pid": 5})
    assert parse(whole + bytes(300)).size == len(whole)


def test_a_damaged_line_sets_the_folder_aside_each_time(tmp_path):
    folder = tmp_path / "a"
    for number in (1, 2):
        journal, _ = open_journal(folder, wait=0.0)
        journal.append({"attempt": 1, "pid": number})
        journal.close()
        path = folder / journals.NAME
        path.write_bytes(path.read_bytes().replace(b"attempt", b"attemqt"))
        (folder / "checkpoint").touch()
        with pytest.raises(Damaged, match="line 1"):
            read(folder)
        journal, note = open_journal(folder, wait=0.0)
        journal.close()
        assert f"a.damaged-{number}" in note
        assert journal.contents == Contents()
        assert sorted(path.name for path in folder.iterdir()) == [journals.NAME]
        assert (tmp_path / f"a.damaged-{number}" / "checkpoint").exists()


def test_one_writer_at_a_time_and_the_other_is_named(tmp_path):
    journal, _ = open_journal(tmp_path / "a", wait=0.0)
    journal.append({"attempt": 1, "pid": 4711})
    with pytest.raises(StoreError, match="held by process 4711"):
        open_journal(tmp_path / "a", wait=0.05)
    journal.close()
    open_journal(tmp_path / "a", wait=0.0)[0].close()


def test_the_lock_goes_with_its_process(tmp_path):
    code = "import sys, os; from pathlib import Path; from isoloss.study.journal import open_journal\n"
    code += f"j, _ = open_journal(Path({str(tmp_path / 'a')!r}), wait=0); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreError, match="held by another process"):
            open_journal(tmp_path / "a", wait=0.0)
        holder.kill()
        open_journal(tmp_path / "a", wait=5.0)[0].close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_said(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / journals.NAME).symlink_to("/dev/full")
    journal, _ = open_journal(tmp_path / "a", wait=0.0)
    with pytest.raises(JournalError, match="no room") as caught:
        journal.append({"attempt": 1, "pid": 1})
    journal.close()
    assert caught.value.errno in journals.NO_ROOM


def test_a_part_of_a_line_is_taken_back_when_the_disk_is_full(tmp_path):
    """With a limit on the size of files the system writes what fits, and then refuses."""
    code = f"""
import resource, signal
from pathlib import Path
from isoloss.study.journal import JournalError, line, open_journal, read
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path({str(tmp_path / "a")!r})
journal, _ = open_journal(folder, wait=0)
journal.append({{"attempt": 1, "pid": 1}})
resource.setrlimit(resource.RLIMIT_FSIZE, (journal.contents.size + len(line({{"attempt": 1, "pid": 1}})) + 9,) * 2)
try:
    journal.append({{"end": "done"}})
except JournalError as error:
    print(error.errno, (folder / "journal.jsonl").stat().st_size, read(folder).size, read(folder).attempts)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    size = len(line({"attempt": 1, "pid": 1}))
    assert done.stdout.split() == ["27", str(size), str(size), "1"]  # EFBIG


def test_a_folder_that_cannot_be_is_said(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(JournalError, match="cannot open"):
        open_journal(tmp_path / "a", wait=0.0)


def point(**measured):
    return {"step": 1, "measured": measured, "cpu": 0.0, "wall": 0.0}


FAILED, PAUSED, DONE = ({"end": end} for end in ("failed", "paused", "done"))
BEGUN = {"attempt": 1, "pid": 1}


@pytest.mark.parametrize(
    ("entries", "asked", "verdict"),
    [
        ([], (None, None, 1), None),
        ([BEGUN, point(loss=1.0)], (None, None, 1), None),
        ([BEGUN, point(loss=1.0), DONE], (None, None, 1), "done"),
        ([BEGUN, point(loss=1.0), DONE], (None, 0.5, 1), "done"),
        ([BEGUN, point(loss=1.0, horizon=2.0), DONE], ([2], None, 1), "done"),
        ([BEGUN, point(loss=1.0, horizon=2.0), DONE], ([2, 4], None, 1), None),
        ([BEGUN, FAILED], (None, None, 1), None),
        ([BEGUN, FAILED, BEGUN, FAILED], (None, None, 1), "failed"),
        ([BEGUN, FAILED, BEGUN, FAILED], (None, None, 2), None),
        ([BEGUN, FAILED, BEGUN, FAILED], (None, None, None), None),
        ([BEGUN, FAILED, BEGUN, point(loss=1.0), DONE], (None, None, 0), "done"),
        ([BEGUN, BEGUN, BEGUN, BEGUN], (None, None, 1), None),  # the driver went, not the run
        ([BEGUN, point(done=0.5), PAUSED], (None, 0.5, 1), "paused"),
        ([BEGUN, point(done=0.5), PAUSED], (None, 0.6, 1), None),
        ([BEGUN, point(done=0.5), PAUSED], (None, None, 1), None),
        ([BEGUN, point(done=0.5)], (None, 0.5, 1), None),
        ([BEGUN, point(done=0.5), PAUSED, BEGUN], (None, 0.5, 1), None),
        ([BEGUN, {"end": "diverged"}], (None, None, 1), "diverged"),
    ],
)
def test_what_is_left_to_do(entries, asked, verdict):
    assert parse(bytes_of(entries)).verdict(*asked) == verdict


def test_attempts_count_also_where_a_worker_died_before_it_said_so():
    assert parse(bytes_of([FAILED])).attempts == 1
    assert parse(bytes_of([BEGUN, BEGUN, FAILED])).attempts == 2


def test_decisions_use_no_clock_that_can_be_set():
    folder = os.path.dirname(journals.__file__)
    for name in ("worker", "journal", "local", "process"):
        with open(os.path.join(folder, f"{name}.py")) as file:
            text = file.read()
        assert "time.time(" not in text
        assert "datetime" not in text
