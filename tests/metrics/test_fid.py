"""Distances of features against clean-fid's values and SciPy's, and reading with a stand-in for Inception-v3."""

import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg

import metrics.fid
from datasets.images import read_rgb
from metrics.downloads import INCEPTION, DownloadError
from metrics.fid import Inception, frechet_distance, inception, inception_features, kernel_distance, patches, resizer
from tests.metrics.images import OTHERS, blurred, golden_pair, noise


def golden_features() -> tuple[np.ndarray, np.ndarray]:
    i, j = np.arange(64)[:, None], np.arange(16)[None]
    return (np.abs(np.sin(0.37 * i * (j + 1) + j)), 1.1 * np.abs(np.sin(0.37 * i * (j + 1) + 1.3 * j + 0.2)) + 0.05)


def normal(count: int, width: int, seed: int, offset: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(offset, 1, (count, width))


def textbook(features1: np.ndarray, features2: np.ndarray) -> float:
    """The formula with a root of a matrix."""
    offset = features1.mean(axis=0) - features2.mean(axis=0)
    covariances = [np.cov(features, rowvar=False) for features in (features1, features2)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    return float(offset @ offset + np.trace(covariances[0] + covariances[1] - 2 * root))


def test_frechet_equals_cleanfid():
    assert frechet_distance(*golden_features()) == pytest.approx(OTHERS["features"]["fid"], rel=1e-6)


def test_kernel_equals_cleanfid():
    assert kernel_distance(*golden_features()) == pytest.approx(OTHERS["features"]["kid"], rel=1e-6)


def test_kernel_equals_cleanfid_itself_on_subsets():
    fid = pytest.importorskip("cleanfid.fid")
    x, y = normal(50, 8, 1), normal(70, 8, 2, 0.5)
    np.random.seed(3)
    expected = fid.kernel_distance(x, y, num_subsets=5, max_subset_size=20)
    assert kernel_distance(x, y, seed=3, num_subsets=5, max_subset_size=20) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("counts", [(200, 150), (40, 10), (7, 9)])
def test_frechet_equals_the_textbook(counts):
    # From more images than features down to a singular covariance, where the root of a matrix loses digits.
    x, y = normal(counts[0], 12, 1), normal(counts[1], 12, 2, 0.3)
    assert frechet_distance(x, y) == pytest.approx(textbook(x, y), rel=1e-5)


def test_frechet_of_a_shift_is_its_square():
    x = normal(30, 6, 1)
    assert frechet_distance(x, x + 2) == pytest.approx(6 * 2**2, rel=1e-9)
    expected = 4 * (x.mean(axis=0) ** 2).sum() + 4 * x.var(axis=0, ddof=1).sum()
    assert frechet_distance(x, 3 * x) == pytest.approx(expected, rel=1e-9)


def test_identity_symmetry_and_order():
    x, near, far = normal(60, 8, 1), normal(60, 8, 2, 0.2), normal(60, 8, 3, 1.0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert kernel_distance(x, x) < 0.0  # shared images: below the zero of independent sets
    assert frechet_distance(x, far) == pytest.approx(frechet_distance(far, x), rel=1e-9)
    for distance in (frechet_distance, kernel_distance):
        assert distance(x, near) < distance(x, far)


def test_the_seed_decides_the_subsets():
    x, y = normal(60, 8, 1), normal(60, 8, 2)
    scores = [kernel_distance(x, y, seed, num_subsets=3, max_subset_size=20) for seed in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]


def test_refuses_what_are_no_features():
    for wrong in (np.zeros(5), np.zeros((1, 5)), np.full((4, 5), np.nan)):
        for distance in (frechet_distance, kernel_distance):
            with pytest.raises(ValueError, match=r"finite features \(N, D\) of at least two images"):
                distance(wrong, np.zeros((4, 5)))
    with pytest.raises(ValueError, match="differ in number: 5 and 6"):
        frechet_distance(np.zeros((4, 5)), np.zeros((4, 6)))


def test_resizes_as_cleanfid_does():
    _, sharp = golden_pair("p1")
    resized = resizer()(sharp)
    golden = OTHERS["clean_resize_p1_gt"]
    assert resized.shape == (299, 299, 3) and resized.dtype == np.float32
    assert resized.mean() == pytest.approx(golden["mean"], abs=1e-3)
    for place, pixel in golden["pixels"].items():
        assert resized[tuple(map(int, place.split(",")))] == pytest.approx(pixel, abs=1e-3)


class Colours:
    """Stands in for Inception-v3: mean and deviation of each colour and of three differences."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.float32 and 0 <= images.min() and 1 < images.max() <= 255
        self.batches.append(tuple(images.shape))
        steps = images.diff(dim=3).abs()
        return torch.cat([values.mean(dim=(2, 3)) for values in (images, steps)], dim=1)


def write_images(folder: Path, count: int = 5, sigma: float = 0.0, size: tuple[int, int] = (40, 56)) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{k}.png" for k in range(count)]
    for k, path in enumerate(paths):
        image = noise(*size, seed=k)
        cv2.imwrite(str(path), (blurred(image, sigma) if sigma else image)[..., ::-1])
    return paths


def test_features_are_those_of_the_files_in_their_order(tmp_path):
    paths = write_images(tmp_path / "a", count=3)
    extractor = Colours()
    features = inception_features(paths, "cpu", extractor)
    assert features.shape == (3, 6) and features.dtype == np.float32 and extractor.batches == [(3, 3, 299, 299)]
    backwards = inception_features(paths[::-1], "cpu", Colours())
    assert np.array_equal(backwards, features[::-1])
    # Colours arrive as RGB, 0 to 255.
    assert features[1, :3] == pytest.approx(noise(40, 56, seed=1).mean(axis=(0, 1)), abs=2)


def test_many_images_go_in_batches(tmp_path):
    extractor = Colours()
    inception_features(write_images(tmp_path / "a", count=35, size=(8, 8)), "cpu", extractor)
    assert [batch[0] for batch in extractor.batches] == [32, 3]


def test_distances_grow_with_blur(tmp_path):
    features = {
        name: inception_features(write_images(tmp_path / name, sigma=sigma), "cpu", Colours())
        for name, sigma in (("sharp", 0), ("near", 0.5), ("far", 2))
    }
    for distance in (frechet_distance, kernel_distance):
        near, far = (distance(features[name], features["sharp"]) for name in ("near", "far"))
        assert near < far


class TorchScript(torch.nn.Module):
    """A network in the form of the Inception-v3 file that clean-fid loads: what it runs are its `layers`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(3, 2048, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def test_the_network_is_loaded_once_from_the_cache(tmp_path, monkeypatch):
    network = TorchScript().eval()
    file = tmp_path / INCEPTION.file
    torch.jit.script(network).save(str(file))
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setenv("XYSCANNET_CACHE", str(tmp_path))
    monkeypatch.setattr(metrics.fid, "INCEPTION", replace(INCEPTION, sha256=checksum))
    inception.cache_clear()
    loaded = inception("cpu")
    assert inception("cpu") is loaded and loaded.facts["device"] == "cpu"
    assert loaded.facts["backbone"] == {"file": INCEPTION.file, "sha256": checksum, "package": "clean-fid 0.1.35"}
    (path,) = write_images(tmp_path / "a", count=1)
    mean = resizer()(noise(40, 56, seed=0)).mean(axis=(0, 1))
    with torch.inference_mode():
        expected = network((torch.from_numpy(mean)[None, :, None, None] - 128) / 128).flatten()
    assert inception_features([path])[0] == pytest.approx(expected.numpy(), abs=1e-4)
    inception.cache_clear()  # the stand-in must not outlive this test


def test_patches_fill_the_image():
    image = noise(720, 1280)
    cut = patches(image)
    assert len(cut) == 15 and {patch.shape for patch in cut} == {(240, 256, 3)}
    rows = [np.concatenate(cut[k : k + 5], axis=1) for k in (0, 5, 10)]
    assert np.array_equal(np.concatenate(rows), image)
    with pytest.raises(ValueError, match="cut from images of 1280 x 720, this one is 720 x 1280"):
        patches(noise(1280, 720))


def test_features_of_patches_follow_each_other(tmp_path):
    (path,) = write_images(tmp_path / "a", count=1, size=(720, 1280))
    features = inception_features([path], "cpu", Colours(), cut=patches)
    assert features.shape == (15, 6)
    assert features[6, :3] == pytest.approx(noise(720, 1280)[240:480, 256:512].mean(axis=(0, 1)), abs=0.2)


def test_bad_images_are_named(tmp_path):
    with pytest.raises(ValueError, match="missing.png: "):
        inception_features([tmp_path / "missing.png"], "cpu", Colours())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(ValueError, match="broken.png: "):
        inception_features([tmp_path / "broken.png"], "cpu", Colours())
    (small,) = write_images(tmp_path / "small", count=1)
    with pytest.raises(ValueError, match="0.png: patches are cut from images of 1280 x 720"):
        inception_features([small], "cpu", Colours(), cut=patches)


def test_without_inception_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("XYSCANNET_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(DownloadError) as caught:
        Inception()
    for words in ("needed for FID and KID", str(tmp_path / INCEPTION.file), INCEPTION.sha256, INCEPTION.url):
        assert words in str(caught.value)
    (tmp_path / INCEPTION.file).write_bytes(b"another network")
    with pytest.raises(DownloadError, match="its sha256 is"):
        Inception()


def offline(*_: object, **__: object) -> None:
    raise OSError("no route to host")


def test_images_are_read_as_the_caller_does(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    Image.fromarray(noise(40, 60)).save(tmp_path / "turned.png", exif=exif)
    sizes = []

    def cut(image):
        sizes.append(image.shape)
        return [image]

    for options in ({}, {"read": read_rgb}):
        inception_features([tmp_path / "turned.png"], "cpu", Colours(), cut, **options)
    assert sizes == [(40, 60, 3), (60, 40, 3)]
