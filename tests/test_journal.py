"""What is in a journal stays there, whatever kills its writer."""

import json
import logging
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from sparkles.journal import Journal, JournalError, written_records

RECORDS = {
    "a": {"text": "Two cats.", "usage": None},
    "b": "line\u2028separator, paragraph\u2029separator, \x85, \r\n, tab\t, null\0",
    "c": ["Bücher", "\U0001f408", "\ud83d alone"],
    "d": 3.5,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "journal.jsonl"


def fill(path: Path) -> bytes:
    """The content of a journal that holds RECORDS."""
    with Journal(path) as journal:
        for key, record in RECORDS.items():
            journal.put(key, record)
    return path.read_bytes()


def test_records_are_there_at_once_and_at_the_next_start(path: Path) -> None:
    with Journal(path) as journal:
        for key, record in RECORDS.items():
            assert key not in journal
            journal.put(key, record)
            assert key in journal
            assert journal[key] == record
    with Journal(path) as journal:
        assert dict(journal) == RECORDS
        assert len(journal) == len(RECORDS)
        assert journal.get("nobody") is None


def test_of_two_records_with_one_key_the_later_holds(path: Path) -> None:
    with Journal(path) as journal:
        journal.put("a", 1)
        journal.put("a", 2)
        assert journal["a"] == 2
    assert path.read_bytes().count(b"\n") == 2
    with Journal(path) as journal:
        assert dict(journal) == {"a": 2}


def test_a_file_cut_at_any_byte_keeps_every_whole_record(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = fill(path)
    torn = path.with_name("journal.jsonl.torn")
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        torn.unlink(missing_ok=True)
        caplog.clear()
        # A record is whole as soon as its last brace is there, with or without the line's end.
        whole = [line for line in content.split(b"\n")[:-1] if content.index(line) + len(line) <= cut]
        rest = content[:cut].rpartition(b"\n")[2]
        with Journal(path, sync=False) as journal:
            assert dict(journal) == dict(list(RECORDS.items())[: len(whole)])
            journal.put("new", "one")
        if rest and rest not in whole:
            assert torn.read_bytes() == rest + b"\n"
            assert f"after {len(rest)} bytes" in caplog.text
        else:
            assert not torn.exists()
            assert not caplog.records
        with Journal(path, sync=False) as journal:
            assert len(journal) == len(whole) + 1
            assert journal["new"] == "one"


def test_a_damaged_line_in_the_middle_is_passed_over_with_its_number(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = fill(path).split(b"\n")
    damaged = [b"\0" * 40, b'{"key": "x"}', b'{"key": 1, "record": 1}', b"[]", b""]
    path.write_bytes(b"\n".join([lines[0], *damaged, *lines[1:]]))
    with Journal(path) as journal:
        assert dict(journal) == RECORDS
    assert [record.args[1] for record in caplog.records] == [2, 3, 4, 5, 6]  # type: ignore[index]


def test_a_second_process_is_refused_until_the_first_has_died(path: Path) -> None:
    script = f"""
from pathlib import Path
from sparkles.journal import Journal
journal = Journal(Path({str(path)!r}))
journal.put("a", 1)
print("open", flush=True)
input()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    with pytest.raises(JournalError, match=r"journal\.jsonl is in use, .* or give this run a directory"):
        Journal(path)
    other.kill()
    other.communicate()
    with Journal(path) as journal:
        assert dict(journal) == {"a": 1}


def test_a_second_journal_of_the_same_process_is_refused(path: Path) -> None:
    with Journal(path), pytest.raises(JournalError, match="in use"):
        Journal(path)
    with Journal(path):
        pass


def test_threads_share_a_journal(path: Path) -> None:
    with Journal(path, sync=False) as journal:

        def work(thread: int) -> None:
            for number in range(100):
                key = f"{thread}/{number}"
                journal.put(key, {"text": key * 50})
                assert journal[key] == {"text": key * 50}
                assert len(list(journal)) > number

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
    with Journal(path) as journal:
        assert {key: record["text"] for key, record in journal.items()} == {
            f"{thread}/{number}": f"{thread}/{number}" * 50 for thread in range(8) for number in range(100)
        }


def test_what_json_cannot_hold_leaves_the_file_as_it_was(path: Path) -> None:
    content = fill(path)
    with Journal(path) as journal, pytest.raises(TypeError, match="not JSON serializable"):
        journal.put("e", {1, 2})
    assert path.read_bytes() == content


def test_a_full_disk_leaves_the_file_as_it_was(path: Path) -> None:
    content = fill(path)
    with Journal(path) as journal:
        with (
            mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")),
            pytest.raises(OSError, match="No space left"),
        ):
            journal.put("e", 1)
        assert "e" not in journal
        assert path.read_bytes() == content
        journal.put("f", 2)
    with Journal(path) as journal:
        assert dict(journal) == RECORDS | {"f": 2}


@pytest.mark.parametrize("sync", [True, False])
def test_put_waits_for_the_disk_unless_told_otherwise(path: Path, sync: bool) -> None:
    with Journal(path, sync=sync) as journal, mock.patch("os.fsync") as fsync:
        journal.put("a", 1)
        assert fsync.call_count == sync


def test_records_stay_on_disk(path: Path) -> None:
    path.parent.mkdir()
    with path.open("w") as file:
        file.writelines(json.dumps({"key": f"{n:064}", "record": "x" * 2_000}) + "\n" for n in range(5_000))
    tracemalloc.start()
    with Journal(path) as journal:
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(journal) == 5_000
    assert size < 5_000 * 400  # of more than 2,000 bytes each


def test_what_somebody_else_writes_is_read_on(path: Path) -> None:
    with Journal(path) as journal:
        journal.put("a", 1)
        journal.put("b", {"text": "two"})
        [first, (key, record, end)] = written_records(path)
        assert (first[:2], key, record) == (("a", 1), "b", {"text": "two"})
        assert end == path.stat().st_size
        journal.put("c", 3)
        with path.open("ab") as file:
            file.write(b'{"key": "d", "rec')  # in the middle of a line
        assert [found[:2] for found in written_records(path, end)] == [("c", 3)]


def test_an_empty_or_fresh_file_warns_of_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            with Journal(path) as journal:
                assert not journal
    assert not caplog.records
