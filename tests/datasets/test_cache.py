"""The decoded cache: the same pixels as the files, built once by several processes, never half-built."""

import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets import cache
from datasets.cache import CacheError, cached_reader, missing_bytes
from datasets.images import ImageError, read_rgb
from datasets.layouts import Pair, find_pairs
from datasets.paired import PairedCrops
from datasets.stream import BatchStream
from tests.datasets.conftest import save, textured


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    for number in range(5):
        for kind in ("blur", "sharp"):
            save(tmp_path / "set" / kind / f"{number}.png", textured(20 + number, 30, 10 * len(kind) + number))
    return find_pairs(tmp_path / "set")


def files(folder: Path) -> set[str]:
    return {path.suffix for path in folder.iterdir()}


def test_gives_the_pixels_of_the_files(pairs: list[Pair], tmp_path: Path) -> None:
    read = cached_reader([*pairs, Pair("alone", pairs[0].blurred, None)], tmp_path / "cache", progress=False)
    for pair in pairs:
        for path in (pair.blurred, pair.sharp):
            assert np.array_equal(read(path), read_rgb(path))
    assert read.file.stat().st_size == sum(2 * (20 + number) * 30 * 3 for number in range(5))
    assert files(tmp_path / "cache") == {".rgb", ".json", ".lock"}
    with pytest.raises(ImageError, match="other.png: not in the cache"):
        read(tmp_path / "other.png")


def test_reads_views_and_not_copies(pairs: list[Pair], tmp_path: Path) -> None:
    read = cached_reader(pairs, tmp_path / "cache")
    image = read(pairs[0].blurred)
    assert np.shares_memory(image, read(pairs[0].blurred)) and not image.flags.writeable


def test_is_decoded_once(pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cached_reader(pairs, tmp_path / "cache")
    monkeypatch.setattr(cache, "read_rgb", None)  # A second decoding would fail.
    assert cached_reader(pairs, tmp_path / "cache").file == first.file


def test_a_complete_cache_needs_no_more_bytes(pairs: list[Pair], tmp_path: Path) -> None:
    needed = missing_bytes(pairs, tmp_path / "cache")
    assert cached_reader(pairs, tmp_path / "cache").file.stat().st_size == needed
    assert missing_bytes(pairs, tmp_path / "cache") == 0


def test_a_changed_file_makes_another_cache(pairs: list[Pair], tmp_path: Path) -> None:
    before = cached_reader(pairs, tmp_path / "cache")
    old = before(pairs[1].blurred).copy()
    save(pairs[1].blurred, textured(21, 30, 99))
    after = cached_reader(pairs, tmp_path / "cache")
    assert after.file != before.file
    assert np.array_equal(after(pairs[1].blurred), textured(21, 30, 99))
    assert np.array_equal(before(pairs[1].blurred), old)  # A job that runs keeps its own.


def test_pickles_small_and_works_in_workers(pairs: list[Pair], tmp_path: Path) -> None:
    read = cached_reader(pairs, tmp_path / "cache")
    read(pairs[0].blurred)
    copy = pickle.loads(pickle.dumps(read))
    assert len(pickle.dumps(read)) < 4000
    assert np.array_equal(copy(pairs[2].sharp), read_rgb(pairs[2].sharp))

    def batches(read: object, workers: int) -> list[torch.Tensor]:
        crops = pickle.loads(pickle.dumps(PairedCrops(pairs, 16, seed=1, read=read)))
        loader = DataLoader(crops, batch_sampler=BatchStream(5, 4, 1, 0, 4), num_workers=workers)
        return [torch.stack(batch) for batch in loader]

    for with_cache, from_files in zip(batches(read, 1), batches(read_rgb, 0), strict=True):
        assert torch.equal(with_cache, from_files)


def test_two_processes_at_once_build_one(pairs: list[Pair], tmp_path: Path, repository: Path) -> None:
    """Each process decodes slowly and says when: the second finds the cache that the first has built."""
    script = tmp_path / "build.py"
    script.write_text("""
import sys, time
from datasets import cache
from datasets.images import read_rgb
from datasets.layouts import find_pairs
def slow(path):
    time.sleep(0.1)
    print("decoded")
    return read_rgb(path)
cache.read_rgb = slow
pairs = find_pairs(sys.argv[1])
read = cache.cached_reader(pairs, sys.argv[2])
assert all((read(path) == read_rgb(path)).all() for pair in pairs for path in (pair.blurred, pair.sharp))
""")
    command = [sys.executable, str(script), str(tmp_path / "set"), str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    jobs = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [job.communicate(timeout=60) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    assert sorted(output.count("decoded") for output, _ in outputs) == [0, 10]
    assert files(tmp_path / "cache") == {".rgb", ".json", ".lock"}


def test_works_where_there_are_no_locks(pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "fcntl", None)
    (tmp_path / "cache").mkdir()
    for _ in range(2):
        assert np.array_equal(cached_reader(pairs, tmp_path / "cache")(pairs[0].sharp), read_rgb(pairs[0].sharp))


def test_an_unfinished_build_is_built_again(pairs: list[Pair], tmp_path: Path) -> None:
    """A process killed between pixels and index, or in the middle of the pixels."""
    read = cached_reader(pairs, tmp_path / "cache")
    read.file.with_suffix(".json").unlink()
    read.file.write_bytes(b"half")
    left = read.file.with_name(f".{read.file.name}.12345-ab.tmp")
    left.write_bytes(b"left behind")
    again = cached_reader(pairs, tmp_path / "cache")
    assert np.array_equal(again(pairs[4].blurred), read_rgb(pairs[4].blurred))
    assert not left.exists()


def test_a_bad_image_leaves_nothing_behind(pairs: list[Pair], tmp_path: Path) -> None:
    pairs[3].sharp.write_bytes(pairs[3].sharp.read_bytes()[:-20])
    with pytest.raises(ImageError, match="sharp/3.png: truncated"):
        cached_reader(pairs, tmp_path / "cache")
    assert files(tmp_path / "cache") == {".lock"}
    pairs[3].sharp.unlink()
    with pytest.raises(ImageError, match="sharp/3.png: cannot be read"):
        cached_reader(pairs, tmp_path / "cache")


def test_a_full_disk_is_noticed_first(pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(CacheError, match="10 decoded images need 0.00 GB.*make room"):
        cached_reader(pairs, tmp_path / "cache")
    assert files(tmp_path / "cache") == {".lock"}


def test_building_shows_a_bar_when_asked(pairs: list[Pair], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cached_reader(pairs, tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""
    cached_reader(pairs, tmp_path / "loud", progress=True)
    assert "10/10" in capsys.readouterr().err


def same_as_the_files(read: cache.CachedReader, pairs: list[Pair]) -> bool:
    return all(np.array_equal(read(path), read_rgb(path)) for pair in pairs for path in (pair.blurred, pair.sharp))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: bytes(len(content)),
        lambda content: content[: len(content) // 2],
        lambda content: content + b"x",
        lambda content: b"",
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    ],
    ids=["zeroed", "cut short", "longer", "empty", "one bit"],
)
def test_wrong_pixels_are_built_again_with_one_line(pairs: list[Pair], tmp_path: Path, damage, caplog) -> None:
    file = cached_reader(pairs, tmp_path / "cache").file
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert same_as_the_files(cached_reader(pairs, tmp_path / "cache"), pairs)
    assert file.read_bytes() == whole
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    caplog.clear()
    assert same_as_the_files(cached_reader(pairs, tmp_path / "cache"), pairs) and not caplog.records


def test_readers_of_a_damaged_cache_share_one_rebuilding(pairs: list[Pair], tmp_path: Path, caplog) -> None:
    """As workers do: each has mapped the file before anybody notices."""
    readers = [pickle.loads(pickle.dumps(cached_reader(pairs, tmp_path / "cache"))) for _ in range(3)]
    for read in readers:
        read(pairs[0].blurred)
    content = readers[0].file.read_bytes()
    readers[0].file.write_bytes(content[:5000] + bytes(len(content) - 5000))
    assert all(same_as_the_files(read, pairs) for read in readers)
    assert len(caplog.records) == 1


def test_a_cache_cut_short_before_a_process_maps_it(pairs: list[Pair], tmp_path: Path) -> None:
    read = cached_reader(pairs, tmp_path / "cache")
    read.file.write_bytes(b"short")
    assert same_as_the_files(read, pairs)
    other = cached_reader(pairs, tmp_path / "cache")
    other.file.unlink()
    assert same_as_the_files(other, pairs)


def test_a_disk_that_returns_other_pixels_than_written_is_named(pairs: list[Pair], tmp_path: Path, monkeypatch) -> None:
    read = cached_reader(pairs, tmp_path / "cache")
    numbers = itertools.count()
    monkeypatch.setattr(cache, "zlib", SimpleNamespace(crc32=lambda content: next(numbers)))
    with pytest.raises(CacheError):
        read(pairs[0].sharp)


def edited(content: bytes) -> bytes:
    """An edit that leaves valid JSON: two images change places."""
    index = json.loads(content)
    first, second = list(index["places"])[:2]
    index["places"][first], index["places"][second] = index["places"][second], index["places"][first]
    return json.dumps(index).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:40],
        lambda content: b"\xff" + content,
        lambda content: b"[" * 100_000,
        lambda content: b"{}",
        lambda content: b"[1]",
        lambda content: b'{"checksum": 0, "places": 3}',
        edited,
    ],
    ids=["empty", "cut short", "not UTF-8", "deep", "no keys", "list", "number", "edited"],
)
def test_a_wrong_index_is_built_again_with_one_line(pairs: list[Pair], tmp_path: Path, damage, caplog) -> None:
    index = cached_reader(pairs, tmp_path / "cache").file.with_suffix(".json")
    whole = index.read_bytes()
    index.write_bytes(damage(whole))
    assert same_as_the_files(cached_reader(pairs, tmp_path / "cache"), pairs)
    assert index.read_bytes() == whole and len(caplog.records) == 1
