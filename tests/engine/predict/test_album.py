"""Folders of photographs: what is found, where results go, what made them, and what a failure leaves."""

import hashlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datasets.images import ImageError
from engine.memory import OutOfMemory
from engine.predict.album import Album, SameName, find_photographs, restore_photographs
from engine.predict.inference import NotFinite
from engine.predict.video import read_maker
from models import XYScanNet
from tests.engine.predict.test_peers import nafnet
from tests.engine.predict.test_video import make_video, read_video
from tests.workplace import ROOT, forbid_reading, make_config, start


class Unchanged:
    """Stands for a restorer whose network finds nothing to do."""

    def __init__(self, **maker):
        self.maker = {"weights_sha256": "w", "tile": None, **maker}

    def restore(self, images: torch.Tensor, *names: str) -> tuple[torch.Tensor, float]:
        return images, 0.25


def photo(path, seed: int = 0):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (11, 14, 3), dtype=np.uint8)
    Image.fromarray(values).save(path, format=None if path.suffix in Image.registered_extensions() else "PNG")
    return path


def places(album: Album, source, output) -> dict[str, str]:
    return {
        path.relative_to(source).as_posix(): target.relative_to(output).as_posix() for path, target in album.photographs
    }


def test_which_photographs_a_folder_holds(tmp_path):
    source, output = tmp_path / "in", tmp_path / "in" / "restored"
    for name in (
        "b.PNG",
        "day/a.jpg",
        "day/a.png",
        "day/c.v2.tif",
        "d.heic",
        ".hidden.png",
        ".trash/d.png",
        "notes.txt",
        "restored/b.png",
        "day/clip.mp4",
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    album = find_photographs([source], output)
    assert places(album, source, output) == {
        "b.PNG": "b.png",
        "d.heic": "d.png",
        "day/a.jpg": "day/a.jpg.png",
        "day/a.png": "day/a.png.png",
        "day/c.v2.tif": "day/c.v2.png",
        "day/clip.mp4": "day/clip.mp4",
    }
    assert album.videos == [source / "day/clip.mp4"] and album.others == [source / "notes.txt"] and album.report() == 0
    assert find_photographs([source / "notes.txt"], output).photographs == [
        (source / "notes.txt", output / "notes.png")
    ]
    with pytest.raises(FileNotFoundError):
        find_photographs([tmp_path / "nowhere"], output)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        find_photographs([tmp_path / "empty"], output)


def test_every_photograph_has_a_result_of_its_own(tmp_path):
    for seed, name in enumerate(("a.jpg", "a.png", "a.jpg.png", "a.png.png", "a.tif")):
        photo(tmp_path / "in" / name, seed)
    album = find_photographs([tmp_path / "in"], tmp_path / "out")
    assert len({target for _, target in album.photographs}) == 5
    assert restore_photographs(Unchanged(), album.photographs) == 0
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_several_inputs_keep_apart_what_has_one_name(tmp_path):
    for name in ("x/1.png", "x/2.png", "y/1.png", "y/z/3.jpg", "y/3.png"):
        photo(tmp_path / name)
    x, y, out = tmp_path / "x", tmp_path / "y", tmp_path / "out"
    album = find_photographs([x, y, x / "2.png", y / "z" / "3.jpg"], out)  # the last two are in the folders as well
    assert places(album, tmp_path, out) == {
        "x/1.png": "x/1.png",
        "x/2.png": "2.png",
        "y/1.png": "y/1.png",
        "y/3.png": "3.png",
        "y/z/3.jpg": "z/3.png",
    }
    photo(tmp_path / "other" / "y" / "1.png")
    with pytest.raises(SameName):
        find_photographs([y / "1.png", tmp_path / "other" / "y" / "1.png"], out)
    # A name that is another's after the folder's name has come before it.
    photo(tmp_path / "w" / "x" / "1.png")
    with pytest.raises(SameName):
        find_photographs([x, y, tmp_path / "w"], out)


def test_inputs_that_are_missing_are_counted_and_the_others_go_on(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    sources = [tmp_path / "nowhere.jpg", photo(tmp_path / "1.png"), tmp_path / "empty"]
    album = find_photographs(sources, tmp_path / "out")
    assert len(album.photographs) == 1 and album.report() == 2
    errors = capsys.readouterr().err
    assert "nowhere.jpg" in errors and "empty" in errors


@pytest.mark.parametrize(
    "form, expected",
    [
        ("png", ["a.png", "b.HEIC.png", "b.JPEG.png", "c.png"]),
        ("jpeg", ["a.jpg", "b.HEIC.jpg", "b.JPEG.jpg", "c.jpg"]),
        ("same", ["a.png", "b.png", "b.JPEG", "c.webp"]),
    ],
)
def test_results_have_their_formats_suffix(tmp_path, form, expected):
    sources = [photo(tmp_path / name) for name in ("a.png", "b.HEIC", "b.JPEG", "c.webp")]
    album = find_photographs(sources, tmp_path / "out", form)
    assert [target.name for _, target in album.photographs] == expected


def test_a_video_follows_the_same_rules(tmp_path, capsys):
    pytest.importorskip("av", reason="PyAV is not installed")
    clip, target = tmp_path / "clip.mp4", tmp_path / "out" / "clip.mp4"
    make_video(clip, 6)
    work = [(tmp_path / "broken.mp4", tmp_path / "out" / "broken.mp4"), (clip, target)]
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    assert restore_photographs(Unchanged(), work) == 1
    assert [path.name for path in target.parent.iterdir()] == ["clip.mp4"]
    assert "6 frames, 0.25 s each" in capsys.readouterr().out
    first = target.read_bytes()
    assert restore_photographs(Unchanged(), [(clip, target)]) == 0 and target.read_bytes() == first
    assert restore_photographs(Unchanged(tile=64), [(clip, target)]) == 1 and target.read_bytes() == first
    assert restore_photographs(Unchanged(), [(clip, target)], frames=slice(2, 4)) == 1
    error = capsys.readouterr().err
    assert "tile" in error and "frames" in error and "--overwrite" in error
    assert restore_photographs(Unchanged(), [(clip, target)], overwrite=True, frames=slice(2, 4)) == 0
    assert len(read_video(target)[0]) == 2
    assert read_maker(target) == {
        "source": "clip.mp4",
        "source_sha256": hashlib.sha256(clip.read_bytes()).hexdigest(),
        "frames": "2:4",
        "weights_sha256": "w",
        "tile": None,
    }
    assert find_photographs([target.parent], target.parent.parent).videos == [target]
    with pytest.raises(FileNotFoundError):  # results alone are among them
        find_photographs([target.parent], target.parent)


@pytest.mark.timeout(20)
def test_links_and_fifos(tmp_path):
    source = tmp_path / "in"
    photo(source / "a" / "1.png")
    photo(source / "b" / "2.png")
    for link in ("a/up", "b/up", "again"):
        (source / link).symlink_to(source)
    os.mkfifo(source / "a" / "x.png")
    assert set(places(find_photographs([source], tmp_path), source, tmp_path)) == {"a/1.png", "b/2.png"}
    with pytest.raises(ImageError):
        find_photographs([source / "a" / "x.png"], tmp_path)


def test_a_folder_that_cannot_be_read_is_counted_and_the_others_go_on(tmp_path, monkeypatch):
    for name in ("good/1.png", "secret/2.png"):
        photo(tmp_path / name)
    forbid_reading(monkeypatch, "secret")
    album = find_photographs([tmp_path], tmp_path / "out")
    assert len(album.photographs) == 1 and album.report() == 1
    with pytest.raises(PermissionError):
        find_photographs([tmp_path / "secret"], tmp_path / "out")


def test_an_output_that_cannot_be_written_stops_it_at_once(tmp_path, monkeypatch):
    photo(tmp_path / "1.png")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(PermissionError, match=f"{tmp_path} cannot be written to"):
        find_photographs([tmp_path / "1.png"], tmp_path / "not" / "there")


def test_the_same_again_is_left_as_it_is_and_anything_else_is_refused(tmp_path, capsys):
    one, other = photo(tmp_path / "x" / "1.png", 1), photo(tmp_path / "y" / "1.png", 2)
    target = tmp_path / "out" / "1.png"
    assert restore_photographs(Unchanged(), [(one, target)]) == 0
    first = target.read_bytes()
    copy = tmp_path / "moved.png"
    copy.write_bytes(one.read_bytes())
    for source in (one, copy):  # the content decides, not its place
        assert restore_photographs(Unchanged(), [(source, target)]) == 0
    capsys.readouterr()
    for restorer, source, named in (
        (Unchanged(), other, "another photograph"),
        (Unchanged(weights_sha256="v"), one, "weights_sha256"),
        (Unchanged(tile=64), one, "tile"),
    ):
        assert restore_photographs(restorer, [(source, target)]) == 1 and target.read_bytes() == first
        error = capsys.readouterr().err
        assert named in error and "--overwrite" in error and "--output" in error
    assert restore_photographs(Unchanged(), [(other, target)], overwrite=True) == 0 and target.read_bytes() != first


@pytest.mark.parametrize("there", [b"", b"edited since", "cut", "saved by another program"])
def test_what_is_no_whole_result_neither_counts_as_done_nor_is_lost(tmp_path, there):
    source, target = photo(tmp_path / "photo.png"), tmp_path / "out" / "photo.png"
    restore_photographs(Unchanged(), [(source, target)])
    if there == "cut":
        there = target.read_bytes()[:-30]
    elif there == "saved by another program":
        Image.open(target).rotate(90).save(target)
        there = target.read_bytes()
    target.write_bytes(there)
    assert restore_photographs(Unchanged(), [(source, target)]) == 1 and target.read_bytes() == there
    assert restore_photographs(Unchanged(), [(source, target)], overwrite=True) == 0 and target.read_bytes() != there


def test_a_photograph_itself_is_never_written_over(tmp_path):
    source = photo(tmp_path / "photo.png")
    original = source.read_bytes()
    for overwrite in (False, True):
        assert restore_photographs(Unchanged(), [(source, source)], overwrite) == 0 and source.read_bytes() == original


def test_results_among_the_photographs_are_not_restored_again(tmp_path):
    photo(tmp_path / "a.jpg")
    for _ in range(2):
        album = find_photographs([tmp_path], tmp_path)
        assert places(album, tmp_path, tmp_path) == {"a.jpg": "a.png"}
        assert restore_photographs(Unchanged(), album.photographs) == 0


def test_a_result_says_what_made_it(tmp_path):
    source, target = photo(tmp_path / "a.png"), tmp_path / "out.png"
    assert restore_photographs(Unchanged(tile=64), [(source, target)]) == 0
    assert json.loads(Image.open(target).info["XYScanNet"]) == {
        "source": "a.png",
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "weights_sha256": "w",
        "tile": 64,
    }


@pytest.mark.parametrize(
    "error",
    [
        NotFinite("a.png"),
        OutOfMemory("a.png"),
        MemoryError(),
        OSError(28, "full"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_one_failure_does_not_stop_the_others_and_leaves_nothing(tmp_path, capsys, error):
    class Failing(Unchanged):
        def restore(self, images, *names):
            if "bad" in names[0]:
                raise error
            return images, 0.25

    work = [(photo(tmp_path / name), tmp_path / "out" / name) for name in ("bad.png", "good.png")]
    assert restore_photographs(Failing(), work) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]
    assert "failed: \n" not in capsys.readouterr().err  # a MemoryError has no text of its own


def test_a_fault_of_the_code_is_not_hidden(tmp_path):
    class Wrong(Unchanged):
        def restore(self, images, *names):
            raise TypeError

    with pytest.raises(TypeError):
        restore_photographs(Wrong(), [(photo(tmp_path / "a.png"), tmp_path / "out.png")])


def save_weights(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(XYScanNet(dim=8, num_blocks=(1, 1, 1)).state_dict(), path)


@pytest.fixture
def predict_py(tmp_path, monkeypatch, capsys):
    """Run predict.py in ``tmp_path`` in this process; return what it printed."""

    def run(*flags: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["predict.py", "--device", "cpu", *flags])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "predict.py"), run_name="__main__")
        assert end.value.code == code
        return "".join(capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    return run


def test_the_command_restores_photographs_and_videos_together(tmp_path, predict_py):
    pytest.importorskip("av", reason="PyAV is not installed")
    save_weights(tmp_path / "tiny.pth")
    photo(tmp_path / "photos" / "a.jpg")
    make_video(tmp_path / "clip.mp4", 4, size=(24, 32))
    inputs = ("--weights", "tiny.pth", "photos", "clip.mp4")
    out = predict_py(*inputs, "--format", "webp", "--frames", "1:3")
    assert "2 frames, " in out and sorted(p.name for p in (tmp_path / "restored").iterdir()) == ["a.webp", "clip.mp4"]
    assert read_maker(tmp_path / "restored" / "clip.mp4")["kl_gate"] == "image"
    out = predict_py(*inputs, "nowhere.png", "--format", "webp", "--frames", "1:3", code=1)
    assert out.count("exists already, left as it is") == 2 and "nowhere.png" in out
    predict_py("--weights", "tiny.pth", "photos", "--frames", "1:3", code=2)
    predict_py("--weights", "tiny.pth", "photos", "--quality", "101", code=2)


def test_the_command_takes_another_network(tmp_path, predict_py):
    pytest.importorskip("spandrel", reason="the package spandrel is not installed")
    torch.manual_seed(0)
    torch.save({"params": nafnet().state_dict()}, tmp_path / "nafnet.pth")
    photo(tmp_path / "a.png")
    predict_py("a.png", "--weights", "nafnet.pth")
    made_by = json.loads(Image.open(tmp_path / "restored" / "a.png").info["XYScanNet"])
    assert made_by["architecture"] == "NAFNet" and made_by["licence"] and made_by["kl_gate"] is None
    for flags in (["--stream"], ["--local_pooling", "64"]):
        assert flags[0] in predict_py("a.png", "--weights", "nafnet.pth", "--output", "other", *flags, code=2)
    assert not (tmp_path / "other").exists()


def test_the_command(tmp_path, predict_py):
    def run(*flags: str, code: int = 0) -> str:
        return predict_py("photos", "--job_name", "mine", *flags, code=code)

    weights = tmp_path / "results" / "mine" / "models" / "best_XYScanNet_stage2.pth"
    photo(tmp_path / "photos" / "night" / "a.jpg")
    cv2.imwrite(str(tmp_path / "photos" / "b.png"), np.zeros((5, 7, 3), np.uint16))
    make_config(tmp_path, "mine", stage=2)
    out = run(code=2)
    assert f"no weights at {weights.relative_to(tmp_path)}" in out and "train_XYScanNet_stage2.py" in out
    assert not (tmp_path / "restored").exists()

    save_weights(weights)
    (tmp_path / "photos" / "c.png").write_bytes(b"not an image")
    out = run(code=1)
    assert "photos/night/a.jpg -> restored/night/a.png  (14 x 11, " in out and "1 of 3 photographs failed" in out
    assert cv2.imread(str(tmp_path / "restored" / "b.png"), cv2.IMREAD_UNCHANGED).dtype == np.uint16
    assert cv2.imread(str(tmp_path / "restored" / "night" / "a.png")).shape == (11, 14, 3)
    made = (tmp_path / "restored" / "b.png").stat().st_mtime_ns
    (tmp_path / "photos" / "c.png").unlink()
    run()
    run("--self_ensemble", code=1)
    assert (tmp_path / "restored" / "b.png").stat().st_mtime_ns == made


@pytest.mark.slow
def test_torchrun_is_refused(tmp_path, predict_py, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without torchrun" in predict_py("photos", code=2)


def test_ctrl_c_ends_it_with_one_line_and_nothing_half_written(tmp_path):
    save_weights(tmp_path / "tiny.pth")
    for number in range(40):
        path = photo(tmp_path / "photos" / f"{number:02}.png", number)
        Image.open(path).resize((200, 150)).save(path)
    process = start(
        tmp_path, "predict.py", "photos", "--weights", "tiny.pth", "--device", "cpu", output=subprocess.PIPE
    )
    until = time.monotonic() + 120
    while time.monotonic() < until and not (tmp_path / "restored" / "00.png").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    errors = process.stderr.read()
    lines = [line for line in errors.splitlines() if not line.startswith("selective scan on ")]
    assert process.wait(60) == 130 and len(lines) == 1, errors
    results = list((tmp_path / "restored").iterdir())
    assert 0 < len(results) < 40 and all(cv2.imread(str(path)).shape == (150, 200, 3) for path in results)
