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
@pytest.mark.parametrize("suffix", ["features", "keys"])
def test_what_is_damaged_counts_as_absent_and_is_replaced_for_all(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    keys = [open_cache(tmp_path).key(number) for number in (0, 1)]
    open_cache(tmp_path).put(as_keys(*keys), torch.cat([features_of(0), features_of(1)]))
    (path,) = tmp_path.rglob(f"*.{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    cache = open_cache(tmp_path)
    assert cache.get(keys[1]) is None
    kept = cache.get(keys[0])
    assert (kept is None) == (not path.stat().st_size), "what is whole is still there"
    cache.put(as_keys(keys[1]), features_of(1))
    for reader in (cache, open_cache(tmp_path)):
        replaced = reader.get(keys[1])
        assert replaced is not None
        assert torch.equal(replaced, features_of(1)[0])


def test_a_reader_finds_what_is_put_later_by_others_and_by_its_own_forks(tmp_path: Path) -> None:
    reader, writers = open_cache(tmp_path), [open_cache(tmp_path) for _ in range(2)]
    keys = [reader.key(number) for number in range(6)]
    for number, key in enumerate(keys[:4]):
        assert reader.get(key) is None
        writers[number % 2].put(as_keys(key), features_of(number))
    fork = multiprocessing.get_context("fork").Process(
        target=writers[0].put, args=(as_keys(keys[4]), features_of(4))
    )
    fork.start()
    fork.join()
    writers[0].put(as_keys(keys[5]), features_of(5))
    assert [int(found[0, 0]) for key in keys if (found := reader.get(key)) is not None] == [*range(6)]
    assert len([*tmp_path.rglob("*.keys")]) == 3, "one for each process or cache that wrote"


def test_encoders_of_other_shapes_share_the_folder(tmp_path: Path) -> None:
    one, other = (
        open_cache(tmp_path),
        FeatureCache(tmp_path, encoder_hash="wide", shape=(2, 9)),
    )
    one.put(as_keys(one.key("x")), features_of(1))
    other.put(as_keys(other.key("x")), torch.ones(1, 2, 9).half())
    for cache, again in ((one, open_cache(tmp_path)), (other, other)):
        found = again.get(cache.key("x"))
        assert found is not None
        assert found.shape == cache.shape


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
    (tmp_path / "3x4").write_text("in the way")
    for number in range(3):
        cache.put(as_keys(cache.key(number)), features_of(number))
    assert cache.get(cache.key(0)) is None
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "features are not kept from here on"
    ]
