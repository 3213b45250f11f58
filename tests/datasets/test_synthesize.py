"""The command that makes pairs, run as users run it: layout, determinism, held-out photographs, errors."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import synthesize
from datasets.files import HOST
from datasets.folder import new_folder
from datasets.images import ImageError, read_rgb, read_size, write_png
from datasets.layouts import find_pairs
from datasets.synthesize import main, synthesize_frames, synthesize_photos
from tests.datasets.conftest import save, textured


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(5):
        save(tmp_path / "photos" / f"photo{number}.jpg", textured(90, 120, number))
    return tmp_path / "photos"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def test_command_makes_gopro_layout_the_same_for_any_number_of_workers(photos: Path, repository: Path) -> None:
    made = []
    for workers in ("1", "3"):
        out = photos.parent / f"out{workers}"
        result = subprocess.run(
            [
                sys.executable,
                "-m",
                "datasets.synthesize",
                str(photos),
                str(out),
                "--pairs_per_photo",
                "3",
                "--size",
                "48",
                "--strength",
                "6",
                "--seed",
                "5",
                "--workers",
                workers,
            ],
            cwd=repository,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"{out}: 12 pairs for train, 3 for test\n" and "15/15" in result.stderr
        made.append(contents(out))
    assert made[0] == made[1]
    assert [pair.name for pair in find_pairs(out, "test")] == [f"photo4/{number:06d}" for number in (1, 2, 3)]
    pairs = find_pairs(out, "train")
    assert len(pairs) == 12
    assert {read_size(path) for pair in pairs for path in (pair.blurred, pair.sharp)} == {(48, 48)}
    blurred, sharp = read_rgb(pairs[0].blurred).astype(float), read_rgb(pairs[0].sharp).astype(float)
    assert np.mean(np.diff(blurred, axis=1) ** 2) < np.mean(np.diff(sharp, axis=1) ** 2)


def test_seed_and_name_decide_each_photographs_pairs(photos: Path, tmp_path: Path) -> None:
    options = {"pairs_per_photo": 2, "size": 32, "test_every": 0}
    synthesize_photos(photos, tmp_path / "a", seed=1, **options)
    (photos / "photo0.jpg").unlink()
    synthesize_photos(photos, tmp_path / "fewer", seed=1, **options)
    synthesize_photos(photos, tmp_path / "other", seed=2, **options)
    first, fewer, other = (contents(tmp_path / name) for name in ("a", "fewer", "other"))
    assert fewer == {path: data for path, data in first.items() if "photo0" not in path}
    assert not any(other[path] == data for path, data in fewer.items())


def test_held_out_by_name(photos: Path, tmp_path: Path) -> None:
    counts = synthesize_photos(photos, tmp_path / "out", pairs_per_photo=1, size=32, test_photos=["photo1", "photo3"])
    assert counts == {"train": 3, "test": 2}
    assert {path.name for path in (tmp_path / "out" / "test").iterdir()} == {"photo1", "photo3"}
    assert not {"photo1", "photo3"} & {path.name for path in (tmp_path / "out" / "train").iterdir()}
    with pytest.raises(ValueError, match="nobody"):
        synthesize_photos(photos, tmp_path / "none", size=32, test_photos=["nobody"])


def test_photographs_of_the_same_name_stay_apart(tmp_path: Path) -> None:
    for path in ("a.jpg", "a.png", "deeper/a.png"):
        save(tmp_path / "photos" / path, textured(40, 40, 1))
    synthesize_photos(tmp_path / "photos", tmp_path / "out", pairs_per_photo=1, size=32, test_every=0)
    assert {path.name for path in (tmp_path / "out" / "train").iterdir()} == {"a.jpg", "a.png", "deeper-a"}


def test_nothing_is_half_made(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A photograph that turns out to be damaged after others are done leaves no data set at all."""
    data = bytearray(save(photos / "photo5.png", textured(64, 64, 5)).read_bytes())
    data[len(data) // 2] ^= 0x55  # The header is good, the pixels are not.
    (photos / "photo5.png").write_bytes(data)
    with pytest.raises(ValueError, match="photo5.png: "):
        synthesize_photos(photos, tmp_path / "made" / "out", pairs_per_photo=1, size=32, workers=1)
    assert list((tmp_path / "made").iterdir()) == []


def test_what_is_there_is_not_overwritten(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    assert main([str(photos), str(tmp_path / "out"), "--size", "32"]) == 1
    assert "out: exists and is not an empty folder" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep me"


def test_bad_use_is_explained(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments, status, message in [
        ([str(photos), "OUT", "--size", "100"], 1, "photo0.jpg: smaller than the 100x100 crop"),
        ([str(tmp_path / "gone"), "OUT"], 1, "gone: no such folder"),
        ([str(tmp_path / "photos" / "photo0.jpg"), "OUT"], 1, "photo0.jpg"),
        ([str(photos), "OUT", "--strength", "-1"], 1, "strength"),
        ([str(photos), "OUT", "--objects", "-1"], 1, "objects"),
        ([str(photos), "OUT", "--fewest", "5"], 2, "--fewest is for frames"),
        ([str(photos), "OUT", "--frames", "--objects", "2"], 2, "--objects is for photographs"),
        ([str(photos), "OUT", "--frames", "--noise", "5"], 2, "--noise is for photographs"),
        ([str(photos), "OUT", "--frames", "--step", "0"], 1, "step >= 1"),
        ([str(photos), "OUT", "--frames", "--most", "6", "--fewest", "6"], 1, "an odd number"),
    ]:
        arguments[1] = str(tmp_path / "out")
        try:
            assert main(arguments) == status
        except SystemExit as stop:
            assert stop.code == status
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


# Frames


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """60 frames of a texture that moves by two pixels a frame."""
    wide = textured(40, 200, 1)
    for number in range(60):
        save(tmp_path / "clips" / "first" / f"{number:06d}.png", wide[:, 2 * number : 2 * number + 64])
    return tmp_path / "clips" / "first"


@pytest.mark.parametrize("gamma", [1.0, 2.2])
def test_frames_are_averaged_about_the_sharp_one(clip: Path, tmp_path: Path, gamma: float) -> None:
    counts = synthesize_frames(clip, tmp_path / "out", gamma=gamma, seed=3)
    pairs = find_pairs(tmp_path / "out", "train")
    assert counts == {"train": len(pairs), "test": 0} and 60 // 13 <= len(pairs) <= 60 // 7
    frames = [read_rgb(clip / f"{number:06d}.png") for number in range(60)]
    end, lengths = 0, set()
    for pair in pairs:
        centre = int(Path(pair.name).name)
        count = 2 * (centre - end) + 1  # Windows follow one another without gap or overlap.
        lengths.add(count)
        expected = np.mean([(frame / 255) ** gamma for frame in frames[end : end + count]], axis=0) ** (1 / gamma) * 255
        assert np.array_equal(read_rgb(pair.sharp), frames[centre])
        assert np.abs(read_rgb(pair.blurred) - expected).max() <= 0.51
        end += count
    assert lengths <= {7, 9, 11, 13} and len(lengths) > 1


def test_overlapping_averages_lie_about_every_nth_frame(clip: Path, tmp_path: Path) -> None:
    counts = synthesize_frames(clip, tmp_path / "out", fewest=5, most=9, step=3, seed=1)
    pairs = find_pairs(tmp_path / "out", "train")
    assert [int(Path(pair.name).name) for pair in pairs] == list(range(4, 60 - 4, 3)) and counts["train"] == len(pairs)
    frames = np.stack([read_rgb(clip / f"{number:06d}.png") for number in range(60)]).astype(float)
    lengths = set()
    for pair in pairs:
        centre, blurred = int(Path(pair.name).name), read_rgb(pair.blurred)
        assert np.array_equal(read_rgb(pair.sharp), frames[centre])
        lengths |= {
            count
            for count in range(3, 10, 2)
            if np.abs(frames[centre - count // 2 : centre + count // 2 + 1].mean(0) - blurred).max() <= 0.51
        }
    assert lengths == {5, 7, 9}


def test_whole_clips_are_held_out(clip: Path, tmp_path: Path) -> None:
    clip.rename(clip.with_name("second"))
    os.symlink(clip.with_name("second"), clip)
    counts = synthesize_frames(clip.parent, tmp_path / "out", test_every=2, fewest=5, most=5)
    assert counts == {"train": 12, "test": 12}
    assert [path.name for path in (tmp_path / "out" / "test").iterdir()] == ["second"]


def test_a_video_file_is_read_by_the_command(clip: Path, tmp_path: Path, repository: Path) -> None:
    video = cv2.VideoWriter(str(tmp_path / "fast.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 240, (64, 40))
    assert video.isOpened()
    for number in range(22):
        video.write(cv2.imread(str(clip / f"{number:06d}.png")))
    video.release()
    result = subprocess.run(
        [sys.executable, "-m", "datasets.synthesize", str(tmp_path / "fast.avi"), str(tmp_path / "out"), "--most", "7"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'out'}: 3 pairs for train, 0 for test\n")
    pairs = find_pairs(tmp_path / "out")
    assert [pair.name for pair in pairs] == ["fast/000003", "fast/000010", "fast/000017"]
    sharp = read_rgb(pairs[1].sharp).astype(float)  # MJPEG is lossy, but frame 10 is nearest to frame 10.
    distances = [np.abs(read_rgb(clip / f"{number:06d}.png") - sharp).mean() for number in range(22)]
    assert np.argmin(distances) == 10


def test_unusable_clips_are_named(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="bad.mp4: cannot be opened"):
        synthesize_frames(tmp_path / "bad.mp4", tmp_path / "out")
    for number in range(5, 60):
        (clip / f"{number:06d}.png").unlink()
    with pytest.raises(ValueError, match="first: fewer frames than an average of up to 13"):
        synthesize_frames(clip, tmp_path / "out")
    save(clip / "000004.png", textured(30, 64, 1))
    with pytest.raises(ValueError, match="000004.png.*differs"):
        synthesize_frames(clip, tmp_path / "out", fewest=5, most=5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: neither videos"):
        synthesize_frames(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_photographs_that_would_share_a_name_are_an_error(tmp_path: Path) -> None:
    for name in ("a/b.png", "a-b.png"):
        save(tmp_path / "photos" / name, textured(60, 60, 0))
    with pytest.raises(ImageError):
        synthesize_photos(tmp_path / "photos", tmp_path / "out", size=32)
    assert not (tmp_path / "out").exists()


def test_an_error_ends_the_threads_and_leaves_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that goes on writing after the folder was removed would make it again."""
    write = synthesize.write_png

    def slow(path: Path, image: np.ndarray) -> None:
        if "photo0" in str(path):
            raise ImageError("bad")
        time.sleep(0.2)
        write(path, image)

    monkeypatch.setattr(synthesize, "write_png", slow)
    with pytest.raises(ImageError):
        synthesize_photos(photos, tmp_path / "made" / "out", pairs_per_photo=1, size=32, workers=2)
    time.sleep(0.5)
    assert list((tmp_path / "made").iterdir()) == []


def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(1, 16):
        write_png(tmp_path / "clip" / f"frame_{number}.png", np.full((8, 8, 3), 10 * number, np.uint8))
    synthesize_frames(tmp_path / "clip", tmp_path / "out", fewest=3, most=3, test_every=0)
    for pair in find_pairs(tmp_path / "out", "train"):
        assert read_rgb(pair.blurred).max() == read_rgb(pair.sharp).max()  # of the frames around it


@pytest.mark.parametrize("deeper", ["clip/deeper/2.png", "2.png"])
def test_frames_in_two_depths_are_refused(tmp_path: Path, deeper: str) -> None:
    for name in ("clip/a/1.png" if "deeper" in deeper else "clip/1.png", deeper):
        write_png(tmp_path / "set" / name, np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ImageError, match="deeper"):
        synthesize_frames(tmp_path / "set", tmp_path / "out")


def test_blurred_images_are_no_photographs(tmp_path: Path) -> None:
    for kind in ("blur", "sharp"):
        write_png(tmp_path / "set" / kind / "1.png", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ImageError, match="a blurred image of a data set"):
        synthesize_photos(tmp_path / "set", tmp_path / "out", size=32)


@pytest.mark.parametrize("wrong", [{"noise": math.nan}, {"strength": math.nan}, {"strength": 1e6}, {"seed": -1}])
def test_numbers_out_of_range(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        synthesize_photos(tmp_path, tmp_path / "out", **wrong)


def test_a_cut_video_is_told(tmp_path: Path, caplog) -> None:
    video = cv2.VideoWriter(str(tmp_path / "cut.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 30, (64, 64))
    for number in range(30):
        video.write(np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8))
    video.release()
    content = (tmp_path / "cut.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    synthesize_frames(tmp_path / "cut.avi", tmp_path / "out", test_every=0)
    assert "of its 30 frames can be read" in caplog.text


def test_an_output_that_is_a_link_or_the_current_folder(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "empty")
    abandoned = tmp_path / "disk" / f".empty.{HOST}-99999999-01234567.tmp"
    abandoned.mkdir()
    with new_folder(tmp_path / "out") as folder:
        assert folder.parent == tmp_path / "disk" and not abandoned.exists()
        (folder / "1.png").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1.png"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FileExistsError, match="current one"), new_folder(Path()):
        pass
