import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparkles.data.features import KEY_BYTES, FeatureCache

SHAPE = (3, 4)


def open_cache(folder: Path, encoder_hash: str = "abc") -> FeatureCache:
    return FeatureCache(folder, encoder_hash=encoder_hash, shape=SHAPE)


def features_of(number: int) -> torch.Tensor:
    return torch.full((1, *SHAPE), number, dtype=torch.float16)


def as_keys(*keys: bytes) -> torch.Tensor:
    return torch.tensor([list(key) for key in keys], dtype=torch.uint8)


def write_forever(folder: Path, started: Path) -> None:
    cache, number = open_cache(folder), 0
    while True:
        cache.put(as_keys(cache.key(number)), features_of(number))
        number += 1
        if number == 20:
            started.touch()


def test_other_processes_get_what_was_put(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    features = torch.randn(2, *SHAPE).half()
    keys = [cache.key("a.png", None), cache.key("a.png", (0, 0, 1, 1))]
    assert cache.get(keys[0]) is None
    cache.put(as_keys(*keys), features)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(open_cache(tmp_path).get, keys)
    assert torch.equal(torch.stack(found), features)


@pytest.mark.parametrize("change", ["encoder", "part"])
def test_a_key_tells_encoders_and_pictures_apart(tmp_path: Path, change: str) -> None:
    cache = open_cache(tmp_path / "one")
    other = open_cache(tmp_path / "two", "abd" if change == "encoder" else "abc")
    assert len(cache.key("x")) == KEY_BYTES
    assert cache.key("x") != other.key("x" if change == "encoder" else "y")


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1] + b"!", lambda data: data[:-1], lambda data: b""],
    ids=["changed", "cut", "empty"],
)
def test_a_damaged_file_counts_as_absent_and_is_replaced(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    cache = open_cache(tmp_path)
    key = cache.key("x")
    cache.put(as_keys(key), features_of(7))
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(key) is None
    cache.put(as_keys(key), features_of(7))
    assert cache.get(key) is not None


def test_writers_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=write_forever, args=(tmp_path / "t", tmp_path / f"{i}")) for i in (1, 2)
    ]
    for writer in writers:
        writer.start()
    while not all((tmp_path / f"{i}").exists() for i in (1, 2)):
        time.sleep(0.01)
    for writer in writers:
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    cache = open_cache(tmp_path / "t")
    for number in range(20):
        kept = cache.get(cache.key(number))
        assert kept is not None
        assert torch.equal(kept, features_of(number)[0])
    cache.put(as_keys(cache.key(-1)), features_of(-1))


def test_where_nothing_can_be_written_work_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = open_cache(tmp_path)
    keys = [cache.key(number) for number in range(3)]
    for key in keys:
        cache._path(key).parent.write_text("in the way")
    cache.put(as_keys(*keys), torch.cat([features_of(1)] * 3))
    assert cache.get(keys[0]) is None
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "features are not kept from here on"
    ]
