"""The command that cuts pairs into tiles: what they hold, that they cover, which are kept, errors."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datasets.images import read_rgb
from datasets.layouts import find_pairs
from datasets.tiles import cut_tiles, main
from tests.datasets.conftest import save, textured


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three pairs of 50x70 in two scenes."""
    for number, scene in enumerate(("a", "a", "b")):
        for kind in ("blur", "sharp"):
            save(
                tmp_path / "data" / "train" / scene / kind / f"{number:03d}.png",
                textured(50, 70, 10 * number + (kind == "blur")),
            )
    return tmp_path / "data"


def place(name: str) -> tuple[str, slice, slice]:
    """The pair's name and the window of a tile of 32."""
    name, top, left = name.rsplit("_", 2)
    return name, slice(int(top), int(top) + 32), slice(int(left), int(left) + 32)


def test_tiles_cover_both_images_of_every_pair(source: Path, tmp_path: Path) -> None:
    assert cut_tiles(source, tmp_path / "out", size=32) == 3 * 2 * 3
    whole = {pair.name: (read_rgb(pair.blurred), read_rgb(pair.sharp)) for pair in find_pairs(source, "train")}
    covered = {name: np.zeros((50, 70), int) for name in whole}
    for tile in find_pairs(tmp_path / "out", "train"):
        name, rows, columns = place(tile.name)
        for path, image in zip((tile.blurred, tile.sharp), whole[name], strict=True):
            assert np.array_equal(read_rgb(path), image[rows, columns])
        covered[name][rows, columns] += 1
    assert all(cover.min() == 1 for cover in covered.values())


def test_reduced_images_are_means_of_squares(source: Path, tmp_path: Path) -> None:
    assert cut_tiles(source, tmp_path / "out", size=25, reduce=2) == 3 * 2
    whole = {pair.name: read_rgb(pair.sharp) for pair in find_pairs(source, "train")}
    for tile in find_pairs(tmp_path / "out", "train"):
        name, top, left = tile.name.rsplit("_", 2)
        window = whole[name][2 * int(top) : 2 * int(top) + 50, 2 * int(left) : 2 * int(left) + 50]
        means = window.reshape(25, 2, 25, 2, 3).mean(axis=(1, 3))
        assert np.abs(read_rgb(tile.sharp) - means).max() <= 0.5


def test_command_keeps_the_most_blurred_tiles(source: Path, tmp_path: Path, repository: Path) -> None:
    for pair in find_pairs(source, "train"):  # Sharp but for the rows that the lower three tiles hold.
        blurred = read_rgb(pair.sharp)
        blurred[32:] //= 2
        save(pair.blurred, blurred)
    names = []
    for workers in ("1", "3"):
        out = tmp_path / f"out{workers}"
        result = subprocess.run(
            [
                sys.executable,
                "-m",
                "datasets.tiles",
                str(source),
                str(out),
                "--size",
                "32",
                "--keep",
                "3",
                "--quality",
                "95",
                "--workers",
                workers,
            ],
            cwd=repository,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0 and result.stdout.startswith(f"{out}: 9 tiles, 0."), result.stderr
        names.append([tile.name for tile in find_pairs(out, "train")])
    assert (
        names[0]
        == names[1]
        == sorted(f"{pair.name}_18_{left}" for pair in find_pairs(source, "train") for left in (0, 19, 38))
    )
    tile = find_pairs(out, "train")[0]
    name, rows, columns = place(tile.name)
    assert tile.blurred.suffix == ".webp"
    whole = read_rgb(source / "train" / f"{name.replace('/', '/blur/')}.png")[rows, columns].astype(float)
    assert np.sqrt(np.mean((read_rgb(tile.blurred) - whole) ** 2)) < 25  # Colour is stored at half the resolution.


def test_another_split_goes_to_its_own_folder(source: Path, tmp_path: Path) -> None:
    (source / "train").rename(source / "test")
    assert cut_tiles(source, tmp_path / "out", split="test", size=50) == 6
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["test"]


def test_bad_use_is_explained_and_leaves_nothing(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    for arguments, message in [
        (["--size", "64"], "smaller than the patch of 64"),
        (["--split", "test"], "no split"),
        (["--keep", "0"], "keep >= 1"),
        (["--quality", "0"], "quality between 1 and 100"),
        (["--size", "4"], "size >= 8"),
        (["--reduce", "0"], "reduce >= 1"),
    ]:
        assert main([str(source), str(out), *arguments]) == 1
        assert message in capsys.readouterr().err
        assert not out.exists()


def test_splits_are_cut_one_after_the_other(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source / "train", source / "test")
    for split in ("train", "test"):
        cut_tiles(source, tmp_path / "out", split=split, size=16)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test", "train"]
    with pytest.raises(FileExistsError):
        cut_tiles(source, tmp_path / "out", split="test", size=16)
