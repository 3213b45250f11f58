"""`python -m datasets.check` on good, broken and mistaken data sets."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datasets.check import LARGEST_ERROR, main, measure
from datasets.images import read_rgb
from datasets.layouts import KNOWN_LAYOUTS, find_pairs
from datasets.synthesize import synthesize_photos
from tests.datasets.conftest import save, textured, touch


def shaken(root: Path, gamma: float, scene: str = "GOPR0001_11_00") -> Path:
    """Twelve pairs of 96 x 96 in GoPro's layout, frames averaged in value ** gamma."""
    save(root / "photos" / f"{scene}.png", textured(200, 240, 1))
    synthesize_photos(
        root / "photos",
        root / "set",
        pairs_per_photo=12,
        size=96,
        strength=10,
        gamma=gamma,
        noise=0,
        test_every=0,
        seed=2,
    )
    return root / "set"


def test_command_on_a_good_data_set(tmp_path: Path, repository: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "datasets.check", str(shaken(tmp_path, 1.0, "clip"))],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "12 pairs" in result.stdout and "equal sizes" in result.stdout and "no problems found" in result.stdout
    assert ": blur\n" in result.stdout


@pytest.mark.parametrize("gamma,name", [(1.0, "blur"), (2.2, "blur_gamma")])
def test_tells_blur_from_blur_gamma(tmp_path: Path, gamma: float, name: str, capsys: pytest.CaptureFixture) -> None:
    root = shaken(tmp_path, gamma)
    found = measure(find_pairs(root))
    assert found.exponent == pytest.approx(gamma, abs=0.3) and found.error < LARGEST_ERROR
    assert main([str(root)]) == 1  # Not all of GoPro's pairs are there.
    output = capsys.readouterr().out
    assert f": {name}\n" in output
    assert "GoPro train has 2103 pairs, but 12 were found" in output
    assert ("the standard is blur" in output) == (name == "blur_gamma")


def test_measures_psnr(tmp_path: Path) -> None:
    image = textured(60, 60, 1) // 2
    for number, difference in enumerate((1, 4)):
        save(tmp_path / "blur" / f"{number}.png", image + difference)
        save(tmp_path / "sharp" / f"{number}.png", image)
    found = measure(find_pairs(tmp_path))
    assert found.psnr == pytest.approx(np.mean([20 * np.log10(255 / d) for d in (1, 4)]), abs=1e-3)
    assert found.brightness == pytest.approx(image.mean(), abs=0.01)


def test_a_change_of_brightness_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    image = textured(60, 60, 1).astype(int) // 2 + 8
    blurred = (image + np.roll(image, 1, axis=0)) / 2
    for difference, words in ((1, None), (6, "levels brighter"), (-3, "levels darker")):
        for number in range(2):
            save(tmp_path / "blur" / f"{number}.png", np.rint(blurred + difference).astype(np.uint8))
            save(tmp_path / "sharp" / f"{number}.png", image.astype(np.uint8))
        assert measure(find_pairs(tmp_path)).brightness_gap == pytest.approx(difference, abs=0.1)
        main([str(tmp_path)])
        output = capsys.readouterr().out
        assert words in output if words else "levels" not in output


def test_undecided_where_nothing_is_blurred(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        image = textured(60, 60, number) // 2
        noisy = image + rng.integers(0, 3, image.shape, np.uint8)
        save(tmp_path / "blur" / f"{number}.png", image)
        save(tmp_path / "sharp" / f"{number}.png", noisy)
    assert main([str(tmp_path)]) == 0
    assert "undetermined" in capsys.readouterr().out


def test_swapped_folders_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    scene = shaken(tmp_path, 1.0, "clip") / "train" / "clip"
    assert main([str(scene / "sharp"), str(scene / "blur")]) == 1
    assert "swapped" in capsys.readouterr().out
    assert main([str(scene / "blur"), str(scene / "sharp")]) == 0


def test_equal_folders_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    scene = shaken(tmp_path, 1.0, "clip") / "train" / "clip"
    shutil.rmtree(scene / "blur")
    shutil.copytree(scene / "sharp", scene / "blur")
    assert main([str(tmp_path / "set")]) == 1
    assert "are the same" in capsys.readouterr().out


def test_every_split_is_reported_unless_one_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shaken(tmp_path, 1.0, "clip")
    shutil.copytree(tmp_path / "set" / "train", tmp_path / "set" / "test")
    assert main([str(tmp_path / "set")]) == 0
    output = capsys.readouterr().out
    assert "train\n" in output and "test\n" in output
    assert main([str(tmp_path / "set"), "--split", "test"]) == 0
    assert "train\n" not in capsys.readouterr().out


def test_broken_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = shaken(tmp_path, 1.0, "clip")
    broken = root / "train/clip/sharp/000004.png"
    good = read_rgb(broken)
    broken.write_bytes(broken.read_bytes()[:1000])
    assert main([str(root)]) == 1
    assert "000004.png: truncated" in capsys.readouterr().out
    save(broken, good[1:])
    assert main([str(root)]) == 1
    assert "96x96 pixels, but its sharp image" in capsys.readouterr().out
    broken.unlink()
    assert main([str(root)]) == 1
    assert "1 of 12 blurred images have no sharp partner" in capsys.readouterr().out


@pytest.mark.parametrize(
    "paths,text",
    [
        (["HIDE/test/test-close-ups/a.png", "HIDE/test/GT/a.png"], "HIDE test has 2025 pairs, but 1 were found"),
        (["x/test/testA/1fromGOPR0950.png", "x/test/testB/1fromGOPR0950.png"], "HIDE test has 2025 pairs"),
        (["GoPro/train/blur/1.png", "GoPro/train/sharp/1.png"], "GoPro train has 2103 pairs"),
        (["RealBlur_J/test/testA/blur_1.png", "RealBlur_J/test/testB/gt_1.png"], "RealBlur test has 980 pairs"),
        (["RealBlur-R_x/s/blur/blur_1.png", "RealBlur-R_x/s/gt/gt_1.png"], "RealBlur-R by the names of its files"),
    ],
)
def test_data_sets_are_recognised(tmp_path: Path, paths: list[str], text: str, capsys: pytest.CaptureFixture) -> None:
    touch(tmp_path, *paths)
    assert main([str(tmp_path / Path(paths[0]).parts[0])]) == 1
    assert text in capsys.readouterr().out


def test_j_and_r_mixed_up_in_a_list(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    touch(tmp_path, "RealBlur-R_x/s/blur/blur_1.png", "RealBlur-R_x/s/gt/gt_1.png")
    for variant in "JR":
        (tmp_path / f"RealBlur_{variant}_test_list.txt").write_text(
            "RealBlur-R_x/s/gt/gt_1.png RealBlur-R_x/s/blur/blur_1.png\n"
        )
    assert main([str(tmp_path), "--split", "test"]) == 1
    output = capsys.readouterr().out
    assert "RealBlur-J, test" in output and "RealBlur-R, test" in output
    assert output.count("name both RealBlur-J and RealBlur-R") == 1


def test_blurred_only_is_no_problem(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    touch(tmp_path, "RWBI/test/testA/1.png", "RWBI/test/testA/2.png")
    assert main([str(tmp_path / "RWBI")]) == 0
    assert "2 blurred images without sharp ones" in capsys.readouterr().out


def test_training_needs_sharp_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    touch(tmp_path, "mine/train/blur/1.png", "mine/train/blur/2.png")
    assert main([str(tmp_path / "mine"), "--split", "train"]) == 1
    assert "2 of 2 images to train on" in capsys.readouterr().out


def test_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments in ([str(tmp_path / "gone")], [str(tmp_path)] * 3, [], [str(tmp_path), "--samples", "0"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert main([str(tmp_path)]) == 1
    assert KNOWN_LAYOUTS in capsys.readouterr().out
