"""Noise, JPEG artefacts and super-resolution made of sharp images: what they are, that they repeat, the command."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datasets.degradation import Degradation, main, parse_degradation, sharp_pairs
from datasets.images import ImageError, read_rgb
from datasets.layouts import AmbiguityError, LayoutError, Pair, find_pairs
from datasets.paired import PairedCrops, WholePairs
from datasets.stream import BatchStream
from engine.train.data import worker_init
from tests.datasets.conftest import save, textured

KINDS = ["noise:25", "noise:15-50", "jpeg:20", "jpeg:10-40", "sr:2", "sr:4"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five photographs of two sizes, at two depths, two of them with one stem."""
    for number, path in enumerate(("a.png", "b.png", "b.bmp", "deep/er/c.png", "deep/a.png")):
        save(tmp_path / "photos" / path, textured(38 + number % 2, 50, number))
    return tmp_path / "photos"


def mid_grey(side: int = 200) -> np.ndarray:
    return np.full((side, side, 3), 128, np.uint8)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """By Pillow, its colour subsampled 4:2:0."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=2)
    return np.asarray(Image.open(file)).astype(int)


def imresize(image: np.ndarray, extent: int) -> np.ndarray:
    """MATLAB's bicubic imresize of axis 0, antialiased, in floating point; at the border the pixels repeat."""
    scale = len(image) / extent
    stretch = max(scale, 1.0)
    centres = (np.arange(extent) + 0.5) * scale - 0.5
    taps = np.arange(-4 * int(stretch) - 4, 4 * int(stretch) + 5) + np.floor(centres).astype(int)[:, None]
    x = np.abs(taps - centres[:, None]) / stretch
    weights = np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("ot,otwc->owc", weights, image[taps.clip(0, len(image) - 1)].astype(float))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("noise:25", Degradation("noise", 25, 25)),
        ("noise:15-50", Degradation("noise", 15, 50)),
        ("jpeg:10-40", Degradation("jpeg", 10, 40)),
        ("sr:4", Degradation("sr", 4, 4)),
    ],
)
def test_what_is_written_is_understood(text: str, expected: Degradation) -> None:
    assert parse_degradation(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "noise",
        "noise:",
        "noise:0",
        "noise:-5",
        "noise:2.5",
        "noise:50-15",
        "noise:256",
        "jpeg:0-40",
        "jpeg:101",
        "sr:1",
        "sr:9",
        "sr:2-4",
        "blur:3",
        "noise:25 ",
        " sr:2",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be noise:SIGMA"):
        parse_degradation(text)


@pytest.mark.parametrize("sigma", [15, 25, 50])
def test_noise_has_its_mean_and_deviation_and_no_pattern(sigma: int, rng: np.random.Generator) -> None:
    noise = parse_degradation(f"noise:{sigma}")(mid_grey(), rng).astype(float) - 128
    standard_error = sigma / np.sqrt(noise.size)
    assert abs(noise.mean()) < 4 * standard_error + 0.05 * (sigma == 50)  # At 50 one value in a hundred is clipped.
    assert abs(noise.std() - sigma) < 4 * standard_error + 0.5 * (sigma == 50)
    across = [(noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise[..., 1:], noise[..., :-1])]
    assert all(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02 for a, b in across)


def test_noise_is_clipped_and_its_range_is_used(rng: np.random.Generator) -> None:
    dark = parse_degradation("noise:25")(np.zeros((200, 200, 3), np.uint8), rng)
    assert abs(np.mean(dark == 0) - 0.5) < 0.03 and abs(dark.mean() - 25 / np.sqrt(2 * np.pi)) < 0.3
    drawn = [(parse_degradation("noise:15-50")(mid_grey(60), rng).astype(float) - 128).std() for _ in range(60)]
    assert 14 < min(drawn) < 20 and 45 < max(drawn) < 52 and 30 < np.mean(drawn) < 35


def test_jpeg_is_pillows(rng: np.random.Generator) -> None:
    image = textured(50, 70, 3)
    for quality in (10, 20, 40):
        difference = parse_degradation(f"jpeg:{quality}")(image, rng) - jpeg(image, quality)
        assert np.abs(difference).mean() < 0.2  # Zero where OpenCV and Pillow bring one libjpeg.
    everything = {quality: jpeg(image, quality) for quality in range(5, 46)}
    drawn = set()
    for _ in range(150):
        degraded = parse_degradation("jpeg:10-40")(image, rng)
        drawn.add(min(everything, key=lambda quality: np.abs(degraded - everything[quality]).mean()))
    assert min(drawn) == 10 and max(drawn) == 40 and len(drawn) > 20


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_super_resolution_is_bicubic_down_and_up(factor: int, rng: np.random.Generator) -> None:
    degrade = parse_degradation(f"sr:{factor}")
    assert np.array_equal(degrade(mid_grey(24), rng), mid_grey(24))
    image = textured(48, 72, 5)
    degraded = degrade(image, rng)
    size = 72 // factor, 48 // factor
    small = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    assert np.array_equal(degraded, np.asarray(small.resize((72, 48), Image.Resampling.BICUBIC)))

    expected = image
    for width, height in (size, (72, 48)):
        expected = imresize(imresize(expected, height).swapaxes(0, 1), width).swapaxes(0, 1)
        expected = np.rint(expected).clip(0, 255)
    inner = np.s_[4 * factor : -4 * factor, 4 * factor : -4 * factor]
    assert np.abs(degraded[inner] - expected[inner]).max() <= 2  # Pillow rounds between its two passes.
    assert np.abs(image[inner] - expected[inner]).mean() > 5


def test_sizes_that_do_not_divide(rng: np.random.Generator) -> None:
    degrade, image = parse_degradation("sr:4"), textured(39, 50, 1)
    with pytest.raises(ValueError, match="50x39 pixels"):
        degrade(image, rng)
    degraded, sharp = degrade.whole(image, 0)
    assert degraded.shape == (36, 48, 3) and np.array_equal(sharp, image[:36, :48])
    assert np.array_equal(degraded, degrade(image[:36, :48], rng))
    with pytest.raises(ValueError, match="50x3 pixels"):
        degrade.whole(image[:3], 0)


@pytest.mark.parametrize("text", KINDS)
def test_a_crop_is_degraded_after_augmentation_and_repeats(photos: Path, text: str) -> None:
    pairs, degrade = sharp_pairs(photos), parse_degradation(text)
    crops, again = (PairedCrops(pairs, 16, seed=1, degradation=degrade) for _ in range(2))
    plain = PairedCrops(pairs, 16, seed=1)
    for key in ((0, 0), (3, 4), (7, 2)):
        degraded, sharp = crops[key]
        assert degraded.shape == (3, 16, 16) and degraded.dtype == torch.uint8 and degraded.is_contiguous()
        assert torch.equal(sharp, plain[key][1]) and not torch.equal(degraded, sharp)
        assert all(torch.equal(a, b) for a, b in zip((degraded, sharp), again[key], strict=True))
        if "-" not in text and not text.startswith("noise"):  # No randomness of its own.
            expected = degrade(sharp.numpy().transpose(1, 2, 0), np.random.default_rng())
            assert np.array_equal(degraded, expected.transpose(2, 0, 1))


def test_noise_differs_by_epoch_image_and_seed(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / f"{name}.png", mid_grey(16))

    def noise(seed: int, epoch: int, index: int) -> torch.Tensor:
        return PairedCrops(sharp_pairs(tmp_path), 16, seed, degradation=parse_degradation("noise:25"))[epoch, index][0]

    assert torch.equal(noise(1, 0, 0), noise(1, 0, 0))
    assert not any(torch.equal(noise(1, 0, 0), other) for other in (noise(1, 1, 0), noise(1, 0, 1), noise(2, 0, 0)))


def test_workers_change_nothing(photos: Path) -> None:
    def batches(**options: object) -> list[torch.Tensor]:
        crops = PairedCrops(sharp_pairs(photos), 16, seed=1, degradation=parse_degradation("noise:15-50"))
        return [torch.stack(batch) for batch in DataLoader(crops, batch_sampler=BatchStream(5, 2, 1, 0, 4), **options)]

    alone, together = batches(), batches(num_workers=2, worker_init_fn=worker_init)
    assert len(alone) == 4 and all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_crops_that_do_not_divide_name_the_file(photos: Path) -> None:
    with pytest.raises(ImageError, match="a.png: 18x18 pixels"):
        PairedCrops(sharp_pairs(photos), 18, seed=1, degradation=parse_degradation("sr:4"))[0, 0]


def test_folders_of_sharp_images(photos: Path) -> None:
    assert sharp_pairs(photos) == [
        Pair(name, photos / path, photos / path)
        for name, path in (
            ("a", "a.png"),
            ("b.bmp", "b.bmp"),
            ("b.png", "b.png"),
            ("deep/a", "deep/a.png"),
            ("deep/er/c", "deep/er/c.png"),
        )
    ]
    (photos / "deep").rename(photos / "HR")
    with pytest.raises(LayoutError, match="3 images outside of them, such as a.png"):
        sharp_pairs(photos)
    assert len(sharp_pairs(photos / "HR")) == 2
    save(photos / "data/train/scene/blur/1.png", mid_grey(8))
    save(photos / "data/train/scene/sharp/1.png", mid_grey(8))
    sharp = photos / "data/train/scene/sharp/1.png"
    assert sharp_pairs(photos / "data") == [Pair("scene/1", sharp, sharp)]
    (photos / "data/test").mkdir()
    assert sharp_pairs(photos / "data", "train") == [Pair("scene/1", sharp, sharp)]
    with pytest.raises(AmbiguityError):
        sharp_pairs(photos / "data")
    with pytest.raises(LayoutError, match="no images found"):
        sharp_pairs(photos / "data/test")
    with pytest.raises(LayoutError, match="no such folder"):
        sharp_pairs(photos / "none")


@pytest.mark.parametrize("text", ["noise:15-50", "sr:4"])
def test_the_command_writes_what_validation_sees(
    photos: Path, tmp_path: Path, repository: Path, capfd: pytest.CaptureFixture, text: str
) -> None:
    for number, workers in enumerate("13"):
        arguments = [str(photos), str(tmp_path / workers), "--degradation", text, "--workers", workers]
        arguments += ["--seed", "0"][: 2 * number]
        if (text, workers) == ("noise:15-50", "3"):  # as users run it
            command = [sys.executable, "-m", "datasets.degradation", *arguments]
            code = subprocess.run(command, cwd=repository).returncode
        else:
            code = main(arguments)
        printed = capfd.readouterr()
        assert code == 0 and printed.out == f"{tmp_path / workers}: 5 pairs for test\n", printed.err
        assert "Degrading images: 100%" in printed.err
        written = find_pairs(tmp_path / workers, "test")
        whole = WholePairs(sharp_pairs(photos), degradation=parse_degradation(text))
        assert [pair.name for pair in written] == [pair.name for pair in whole.pairs]
        for pair, (degraded, sharp) in zip(written, (whole[index] for index in range(5)), strict=True):
            for path, image in ((pair.blurred, degraded), (pair.sharp, sharp)):
                assert path.suffix == ".png" and np.array_equal(read_rgb(path), image.numpy().transpose(1, 2, 0))


def test_another_seed_makes_other_noise(photos: Path, tmp_path: Path) -> None:
    blurred = []
    for seed in "01":
        assert main([str(photos), str(tmp_path / seed), "--degradation", "noise:25", "--seed", seed]) == 0
        blurred.append(read_rgb(tmp_path / seed / "test/blur/a.png"))
    assert not np.array_equal(*blurred)


def test_bad_use_is_explained_and_leaves_nothing(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    for arguments, message in [
        (["noise:x"], "--degradation: must be noise:SIGMA"),
        (["sr:2", "--seed", "-1"], "--seed: must not be negative"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            main([str(photos), str(out), "--degradation", *arguments])
        assert message in capsys.readouterr().err
    truncated = photos / "deep/a.png"
    truncated.write_bytes(truncated.read_bytes()[:-9])
    assert main([str(photos), str(out), "--degradation", "jpeg:20"]) == 1
    assert "deep/a.png: truncated" in capsys.readouterr().err
    save(truncated, textured(30, 3, 0))
    assert main([str(photos), str(out), "--degradation", "sr:4"]) == 1
    assert "deep/a.png: 3x30 pixels" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    save(out / "kept.png", mid_grey(8))
    assert main([str(photos), str(out), "--degradation", "noise:25"]) == 1
    assert "is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["kept.png"]
