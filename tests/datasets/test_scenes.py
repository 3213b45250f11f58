"""Data for the next training of XYScanNet-T: moving objects, levelled tiles, no test scenes, and the script."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.blur import shaken_pair
from datasets.catalogue import DATA_SETS
from datasets.check import main
from datasets.images import read_rgb, write_png
from datasets.layouts import find_pairs
from datasets.synthesize import synthesize_photos
from datasets.tiles import cut_tiles
from tests import forks

SCRIPT = "configs/xyscannet_t/scenes.sh"
APT_GET = """#!/bin/sh
mkdir -p pack/DEBIAN
printf '%s\\n' 'Package: stand-in' 'Version: 1' 'Architecture: all' 'Maintainer: a <a@b.c>' 'Description: a' \\
    > pack/DEBIAN/control
while read -r package path; do
    mkdir -p "pack/usr/share/photos/$(dirname "$path")"; cp "$PHOTO" "pack/usr/share/photos/$path"
done < "$PHOTOS"
dpkg-deb --build pack stand-in.deb
rm -r pack
"""


def texture(seed: int, height: int = 160, width: int = 200) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height))


def test_objects_are_in_both_images_and_move_by_themselves():
    photo, other = (texture(seed).astype(np.float32) / 255 for seed in (0, 1))
    still, alone = (shaken_pair(photo, 96, 0, np.random.default_rng(2), others) for others in ((other,), ()))
    assert np.abs(still[0] - still[1]).max() < 1e-3  # nothing moves: both images are the same
    assert np.abs(still[1] - alone[1]).max() > 0.1  # and show the object
    blurred, sharp = shaken_pair(photo, 96, 12, np.random.default_rng(2), (other, other))
    assert np.abs(blurred - sharp).max() > 0.1 and blurred.shape == sharp.shape == (96, 96, 3)


def test_objects_are_pieces_of_photographs_of_the_same_split(tmp_path):
    for seed in range(3):
        write_png(tmp_path / "photos" / f"{seed}.png", texture(seed))
    made = [
        synthesize_photos(
            tmp_path / "photos", tmp_path / name, pairs_per_photo=2, size=64, objects=objects, test_photos=["2"]
        )
        for name, objects in (("none", 0), ("some", 2), ("again", 2))
    ]
    assert made == [{"train": 4, "test": 2}] * 3

    def images(name: str, split: str) -> np.ndarray:
        return np.stack([read_rgb(pair.sharp) for pair in find_pairs(tmp_path / name, split)])

    assert np.array_equal(images("some", "train"), images("again", "train"))
    assert not np.array_equal(images("some", "train"), images("none", "train"))
    assert np.array_equal(images("some", "test"), images("none", "test"))  # alone in its split


def test_levelled_tiles_are_as_bright_as_the_sharp_ones(tmp_path):
    sharp = texture(0, 640, 640) // 2
    write_png(tmp_path / "set" / "train" / "sharp" / "1.png", sharp)
    write_png(tmp_path / "set" / "train" / "blur" / "1.png", cv2.GaussianBlur(sharp, (0, 0), 3) + 6)
    for level, difference in ((False, 6), (True, 0)):
        cut_tiles(tmp_path / "set", tmp_path / str(level), size=320, level=level)
        for pair in find_pairs(tmp_path / str(level), "train"):
            assert read_rgb(pair.blurred).mean() - read_rgb(pair.sharp).mean() == pytest.approx(difference, abs=0.5)


@pytest.mark.parametrize("scene", DATA_SETS["gopro"].test_scenes[::10])
def test_a_test_scene_to_train_on_is_refused_by_its_name(tmp_path, scene, capsys):
    for kind in ("blur", "sharp"):
        write_png(tmp_path / scene / kind / "1.png", texture(0))
        for split in ("train", "test"):
            (tmp_path / "set" / split / "a_name").mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / split / "a_name" / kind).symlink_to(tmp_path / scene / kind)
    for split, refused in (("train", True), ("test", False)):
        main([str(tmp_path / "set"), "--split", split])
        assert (f"GoPro's test scene {scene}" in capsys.readouterr().out) is refused


def small(script: str) -> str:
    """The same script for images of a quarter of the size, and one pair of each photograph."""
    script = re.sub(r"(?<=--)(size|strength) (\d+)", lambda match: f"{match[1]} {int(match[2]) // 4}", script)
    return re.sub(r"(?<=--pairs_per_photo )\d+", "1", script)


def sources(folder: Path) -> None:
    """One or two images of each kind that the script looks for."""
    names = {
        "GoPro/train/GOPR0372_07_00/{}": ["000047"],
        "GoPro_averaged/{}": ["GOPR0374_11_00_815_avg10"],
        "REDS/000/{}": ["1"],
        "REDS/001/{}": ["1"],
        "REDS/003/{}": ["1"],
        "REDS/020/{}": ["1"],
        "GoPro_train_blur/{}": ["00018", "00131", "00443", "00825"],
    }
    for place, images in names.items():
        for kind in ("blur", "teacher" if "train_blur" in place else "sharp"):
            for name in images:
                sharp = texture(len(name), 160, 168)
                image = cv2.blur(sharp, (5, 1)) if kind == "blur" else sharp
                write_png(folder / place.format(kind) / f"{name}.png", image)
    for number in range(60):
        write_png(folder / "GoPro_240fps" / "GOPR0477_11_00" / f"{number:06d}.png", texture(number, 160, 168))


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_makes_the_folders_that_the_recipe_reads(tmp_path, repository):
    sources(tmp_path / "data")
    write_png(tmp_path / "photo.png", texture(0, 80, 84))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "apt-get").write_text(APT_GET)
    (tmp_path / "bin" / "apt-get").chmod(0o755)
    script = Path(shutil.copy(repository / SCRIPT, tmp_path))
    script.write_text(small(script.read_text()))
    photos = tmp_path / "photos.txt"  # beside the script
    photos.write_text("stand-in images/land/hill.jpg\nstand-in images/land/sea.jpg\n")
    environment = os.environ | {
        "PYTHON": forks.python(tmp_path),
        "PYTHONPATH": str(repository),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PHOTOS": str(photos),
        "PHOTO": str(tmp_path / "photo.png"),
    }
    done = subprocess.run(
        [str(script), str(tmp_path / "data")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-2000:]
    train, val, reds = (
        find_pairs(tmp_path / "datasets" / "xyscannet_t" / folder, split)
        for folder, split in (("scenes_train", "train"), ("scenes_val", "test"), ("reds_val", "test"))
    )
    real = {"real", "halfreal", "clip", "linearclip", "taught", "halftaught", "averaged"}
    made = {"closeby", "streets", "linearstreets", "places", "linearplaces"}
    assert {pair.name.split("/")[0].split("-")[0] for pair in train} == real | made
    assert [pair.name for pair in val] == ["00131", "00443", "00825"]
    assert len(reds) == 2 and not any("/REDS/" in str(pair.blurred.resolve()) for pair in train)
    assert not any(name in str(pair.blurred.resolve()) for pair in train for name in ("00131", "00443", "00825"))
