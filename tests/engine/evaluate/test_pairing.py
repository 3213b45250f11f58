"""Restored images and a data set's, paired by name: every layout gives the same pairs, and nothing is guessed."""

import shutil

import cv2
import numpy as np
import pytest

from datasets.layouts import LayoutError
from engine.evaluate.pairing import find_samples, match

SCENES = {"GOPR0384_11_00": ("000001", "000002"), "GOPR0385_11_01": ("000001",)}
LAYOUTS = (
    "{scene}/{frame}",
    "{scene}/blur/{frame}",
    "{scene}_{frame}",
    "{scene}-{frame}",
    "sharp/{scene}/{frame}",
    "testA/{scene}_{frame}",
    "images/{scene}/{frame}",
)


def save(path, value=0, size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


@pytest.fixture
def truth(tmp_path):
    """GoPro as downloaded."""
    for scene, frames in SCENES.items():
        for frame in frames:
            for kind in ("blur", "sharp"):
                save(tmp_path / "GoPro" / "test" / scene / kind / f"{frame}.png")
    return tmp_path / "GoPro"


def restore(folder, layout):
    for scene, frames in SCENES.items():
        for frame in frames:
            save(folder / f"{layout.format(scene=scene, frame=frame)}.png")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", ["", "test"])
def test_every_layout_gives_the_same_pairs(tmp_path, truth, layout, where):
    restore(tmp_path / "out", layout)
    pairing = find_samples(tmp_path / "out", [truth / where], None, sharp_needed=True)
    assert not pairing.complaints() and len(pairing.samples) == 3
    for sample in pairing.samples:
        scene, frame = sample.name.split("/")
        assert sample.restored == tmp_path / "out" / f"{layout.format(scene=scene, frame=frame)}.png"
        assert sample.sharp == truth / "test" / scene / "sharp" / f"{frame}.png"
        assert sample.blurred == truth / "test" / scene / "blur" / f"{frame}.png"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_of_sharp_images_in_any_layout_will_do(tmp_path, layout):
    restore(tmp_path / "out", "{scene}/{frame}")
    restore(tmp_path / "truth", layout)
    folder = tmp_path / "truth" / ("sharp" if layout.startswith("sharp") else "")
    if "testA" in layout or "blur" in layout:
        with pytest.raises(LayoutError, match="truth: has blurred images, but no sharp ones"):
            find_samples(tmp_path / "out", [folder], None, sharp_needed=True)
        return
    pairing = find_samples(tmp_path / "out", [folder], None, sharp_needed=True)
    assert not pairing.complaints() and len(pairing.samples) == 3


def test_a_flat_folder_fits_scenes_where_file_names_are_enough(tmp_path, truth):
    shutil.rmtree(truth / "test" / "GOPR0385_11_01")
    save(tmp_path / "out" / "000001.png")
    save(tmp_path / "out" / "000002.png")
    pairing = find_samples(tmp_path / "out", [truth], None, sharp_needed=True)
    assert [sample.restored.name for sample in pairing.samples] == ["000001.png", "000002.png"]
    assert pairing.by_ending == [
        "000001 is matched to GOPR0384_11_00/000001",
        "000002 is matched to GOPR0384_11_00/000002",
    ]


def test_names_that_fit_several_images_are_refused_and_named(tmp_path, truth):
    save(tmp_path / "out" / "000001.png")
    with pytest.raises(LayoutError, match="ambiguous, 000001 may be GOPR0384_11_00/000001 and GOPR0385_11_01/000001"):
        find_samples(tmp_path / "out", [truth], None, sharp_needed=True)
    restore(tmp_path / "out", "{scene}/blur/{frame}")
    restore(tmp_path / "out", "{scene}/{frame}")
    with pytest.raises(LayoutError, match="have the same name, so pairing is ambiguous"):
        find_samples(tmp_path / "out", [truth], None, sharp_needed=True)


def test_another_scenes_frame_is_no_partner():
    assert match(["a/1", "b/2"], ["b/1", "a/2"], "here") == {}
    assert match(["x_1", "1"], ["1", "x/1"], "here") == {"1": "1", "x/1": "x_1"}
    assert match(["_", "1"], ["1", "-"], "here") == {"1": "1"}


def test_realblurs_prefixes_do_not_count(tmp_path):
    for name in (
        "scene001/blur/blur_1.png",
        "scene001/gt/gt_1.png",
        "scene002/blur/blur_1.png",
        "scene002/gt/gt_1.png",
    ):
        save(tmp_path / "RealBlur_J" / "test" / name)
    save(tmp_path / "out" / "scene001_blur_1.png")
    save(tmp_path / "out" / "scene002_blur_1.png")
    pairing = find_samples(tmp_path / "out", [tmp_path / "RealBlur_J"], "J", sharp_needed=True)
    assert not pairing.complaints() and [s.sharp.parts[-3] for s in pairing.samples] == ["scene001", "scene002"]


def test_missing_extra_wrong_shape_and_damaged_images_are_named(tmp_path, truth):
    restore(tmp_path / "out", "{scene}/{frame}")
    (tmp_path / "out" / "GOPR0384_11_00" / "000001.png").rename(tmp_path / "out" / "GOPR0384_11_00" / "000009.png")
    save(tmp_path / "out" / "GOPR0384_11_00" / "000002.png", size=(6, 9))
    damaged = tmp_path / "out" / "GOPR0385_11_01" / "000001.png"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    pairing = find_samples(tmp_path / "out", [truth], None, sharp_needed=True)
    assert pairing.samples == [] and pairing.missing == ["GOPR0384_11_00/000001"]
    assert pairing.extra == [str(tmp_path / "out" / "GOPR0384_11_00" / "000009.png")]
    assert "000002.png: 9x6 pixels, but" in pairing.wrong_shape[0] and "000001.png: truncated" in pairing.wrong_shape[1]
    assert all(name in pairing.complaints() for name in (pairing.missing[0], pairing.extra[0], pairing.wrong_shape[0]))


def test_what_is_no_folder_of_restored_images_is_refused(tmp_path, truth):
    with pytest.raises(LayoutError, match="nowhere: no such folder"):
        find_samples(tmp_path / "nowhere", [truth], None, sharp_needed=True)
    (tmp_path / "out").mkdir()
    with pytest.raises(LayoutError, match="out: no images"):
        find_samples(tmp_path / "out", [truth], None, sharp_needed=True)
    save(tmp_path / "out" / "a.png")
    save(tmp_path / "out" / "a.jpg")
    with pytest.raises(LayoutError, match="differ in nothing but their suffix"):
        find_samples(tmp_path / "out", [truth], None, sharp_needed=True)
