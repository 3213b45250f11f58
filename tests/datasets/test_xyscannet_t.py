"""The script that makes XYScanNet-T's data, on images that stand in for the real ones."""

import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.layouts import find_pairs
from tests import forks
from tests.datasets.test_scenes import small

SCRIPT = "configs/xyscannet_t/data.sh"


def save(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (size[0] // 16, size[1] // 16, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, size[::-1]))


def sources(folder: Path) -> list[str]:
    """One or two images of each kind that the script looks for."""
    for kind in ("blur", "sharp"):
        for number in (47, 48, 123):
            save(folder / "gopro" / kind / f"{number:06d}.jpg", (160, 168), number)
        for scene in ("000", "001", "003", "020"):
            save(folder / "reds" / scene / kind / "00000001.jpg", (160, 168), int(scene))
    for number in range(8, 61):
        save(folder / "clip" / f"{number:06d}.jpg", (160, 168), number)
    save(folder / "photos" / "hill.jpg", (120, 160), 0)
    return [str(folder / name) for name in ("gopro", "clip", "reds", "photos")]


def scenes(folder: Path, name: str, split: str) -> set[str]:
    """Of one of the folders made, as the training script finds them."""
    return {pair.name.split("/")[0] for pair in find_pairs(folder / "datasets" / "xyscannet_t" / name, split)}


@pytest.mark.slow
def test_makes_the_folders_that_the_recipe_reads(tmp_path, repository):
    environment = os.environ | {"PYTHON": forks.python(tmp_path), "PYTHONPATH": str(repository)}
    script = Path(shutil.copy(repository / SCRIPT, tmp_path))
    script.write_text(small(script.read_text()))
    command = [str(script), *sources(tmp_path / "sources")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    train, plain_train = (scenes(tmp_path, name, "train") for name in ("train", "plain_train"))
    parts = {name.split("-")[0] for name in train}
    assert parts == {"real", "clip", "streets", "photos", "mild", "halfreal", "halfclip", "halfstreets"}
    val, plain_val = (scenes(tmp_path, name, "test") for name in ("val", "plain_val"))
    assert val == {f"{size}-{scene}" for size in ("full", "half") for scene in ("GOPR0372_07_00", "REDS_001")}
    assert not any("REDS_001" in name or "000123" in name for name in train)
    left_out = {f"{part}-REDS_{scene}" for part in ("real", "halfreal") for scene in ("000", "003", "020")}
    assert train - plain_train == left_out
    assert plain_train < train and plain_val == {"full-GOPR0372_07_00", "half-GOPR0372_07_00"}

    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert again.returncode == 1 and "is there already" in again.stderr
    help_text = subprocess.run([str(script)], cwd=tmp_path, capture_output=True, text=True).stderr
    assert "GOPRO CLIP REDS PHOTOS" in help_text
