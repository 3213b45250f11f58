"""SSIM against Octave's values, a brute-force volume in SciPy, scikit-image's map, and what any SSIM must do."""

import time

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import structural_similarity

import metrics.ssim
from metrics.ssim import ssim_matlab_rgb, ssim_matlab_rgb_torch, ssim_per_channel
from tests.metrics.images import GOLDEN, PAIRS, golden_pair, noise
from tests.metrics.test_psnr import as_batch

BOTH = pytest.mark.parametrize("ssim", [ssim_matlab_rgb, ssim_per_channel])


def brute_force_volume(x: np.ndarray, y: np.ndarray) -> float:
    """The definition, word for word: one 11 x 11 x 11 window over the array, whose three axes are all spatial."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    grid = np.stack(np.mgrid[-5:6, -5:6, -5:6])
    window = np.exp(-(grid**2).sum(axis=0) / (2 * 1.5**2))
    window /= window.sum()

    def mean(values):
        return ndimage.correlate(values, window, mode="nearest")

    variance_x, variance_y = mean(x * x) - mean(x) ** 2, mean(y * y) - mean(y) ** 2
    covariance = mean(x * y) - mean(x) * mean(y)
    luminance = (2 * mean(x) * mean(y) + 2.55**2) / (mean(x) ** 2 + mean(y) ** 2 + 2.55**2)
    return float(np.mean(luminance * (2 * covariance + 7.65**2) / (variance_x + variance_y + 7.65**2)))


def scikit_image_per_channel(x: np.ndarray, y: np.ndarray) -> float:
    """scikit-image reflects at the borders; on images padded by replication its map, cropped, is MATLAB's."""
    padded = [np.pad(image, ((5, 5), (5, 5), (0, 0)), mode="edge") for image in (x, y)]
    _, full = structural_similarity(
        *padded,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        data_range=255,
        use_sample_covariance=False,
        full=True,
    )
    return float(full[5:-5, 5:-5].mean())


@pytest.mark.parametrize("name", PAIRS)
def test_equals_octave(name):
    restored, sharp = golden_pair(name)
    assert ssim_matlab_rgb(restored, sharp) == pytest.approx(GOLDEN[name]["ssim_matlab_rgb"], abs=1e-9)
    assert ssim_per_channel(restored, sharp) == pytest.approx(np.mean(GOLDEN[name]["ssim_per_channel"]), abs=1e-9)


def test_volume_equals_brute_force():
    restored, sharp = (image[20:60, 30:75] for image in golden_pair("p2"))
    assert ssim_matlab_rgb(restored, sharp) == pytest.approx(brute_force_volume(restored, sharp), abs=1e-11)


def test_per_channel_equals_scikit_image():
    restored, sharp = golden_pair("p4")
    assert ssim_per_channel(restored, sharp) == pytest.approx(scikit_image_per_channel(restored, sharp), abs=1e-11)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 30), (4, 7), (65, 11), (139, 20)])
def test_any_size_and_the_seams_of_the_bands(height, width):
    x, y = noise(height, width, seed=1), noise(height, width, seed=2)
    assert ssim_matlab_rgb(x, y) == pytest.approx(brute_force_volume(x, y), abs=1e-11)
    assert ssim_per_channel(x, y) == pytest.approx(scikit_image_per_channel(x, y), abs=1e-11)


def test_bands_do_not_change_the_score(monkeypatch):
    x, y = golden_pair("p1")
    banded = ssim_matlab_rgb(x, y)
    monkeypatch.setattr(metrics.ssim, "BAND", 10_000)
    assert ssim_matlab_rgb(x, y) == pytest.approx(banded, abs=1e-13)


@BOTH
def test_identity_symmetry_and_bounds(ssim):
    x, y = golden_pair("p1")
    assert ssim(x, x) == 1.0
    assert ssim(x, y) == pytest.approx(ssim(y, x), abs=1e-14)
    assert 0.0 < ssim(x, y) < 1.0
    assert -1.0 <= ssim(noise(40, 40), 255 - noise(40, 40)) < 0.0


@BOTH
def test_falls_as_blur_grows(ssim):
    _, sharp = golden_pair("p4")
    scores = [ssim(cv2.GaussianBlur(sharp, (0, 0), sigma), sharp) for sigma in (0.5, 1, 2, 4, 8)]
    assert scores == sorted(scores, reverse=True) and scores[0] - scores[-1] > 0.05


def test_the_volume_mixes_colours_and_the_channels_do_not():
    x, y = golden_pair("p2")
    swapped = [image[..., [1, 0, 2]] for image in (x, y)]
    assert ssim_per_channel(*swapped) == pytest.approx(ssim_per_channel(x, y), abs=1e-12)
    assert abs(ssim_matlab_rgb(*swapped) - ssim_matlab_rgb(x, y)) > 1e-6


def peppers_twin(texture: float, saturation: float) -> np.ndarray:
    """Fine grey texture over soft patches of colour, as MATLAB's peppers.png has them."""
    rng = np.random.default_rng(0)
    grey = rng.normal(size=(192, 256, 1))
    colour = cv2.resize(rng.normal(size=(4, 5, 3)), (256, 192), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.round(110 + texture * grey + saturation * colour), 0, 255).astype(np.uint8)


def test_why_matlab_says_0_9845_of_peppers():
    """MathWorks' staff find ssim(A, ref) = 0.9845 for A = imgaussfilt(ref, 1.5, "FilterSize", 11, "Padding",
    "replicate") of peppers.png, where a colour at a time gives 0.917 (MATLAB Answers 2142916). The picture is
    MathWorks'; one with as much texture and as saturated colours shows the same two figures, and where they part."""

    def soften(sharp):
        return cv2.GaussianBlur(sharp, (11, 11), 1.5, borderType=cv2.BORDER_REPLICATE)

    sharp = peppers_twin(texture=2.5, saturation=29)
    soft = soften(sharp)
    volume, per_channel = ssim_matlab_rgb(soft, sharp), ssim_per_channel(soft, sharp)
    assert volume == pytest.approx(0.9845, abs=1e-3) and per_channel == pytest.approx(0.917, abs=3e-3)
    part = soft[:40, :50], sharp[:40, :50]
    assert ssim_matlab_rgb(*part) == pytest.approx(brute_force_volume(*part), abs=1e-11)
    # A volume's window takes in the differences between the colours of a pixel. They are large, blur leaves them as
    # they are, and beside them the lost texture weighs little. Without colours there is nothing to take in.
    grey = peppers_twin(texture=2.5, saturation=0)
    grey_volume, grey_per_channel = ssim_matlab_rgb(soften(grey), grey), ssim_per_channel(soften(grey), grey)
    assert grey_volume == pytest.approx(grey_per_channel, abs=1e-12)
    assert grey_per_channel == pytest.approx(per_channel, abs=0.02)


def test_torch_agrees():
    pairs = [tuple(image[:112, :128] for image in golden_pair(name)) for name in PAIRS]
    scores = ssim_matlab_rgb_torch(as_batch(*[x for x, _ in pairs]), as_batch(*[y for _, y in pairs]).float() / 255)
    assert scores.shape == (len(PAIRS),)
    assert scores.tolist() == pytest.approx([ssim_matlab_rgb(x, y) for x, y in pairs], abs=1e-7)


def test_torch_on_tiny_images():
    x, y = noise(3, 2, seed=1), noise(3, 2, seed=2)
    assert ssim_matlab_rgb_torch(as_batch(x), as_batch(y)).item() == pytest.approx(ssim_matlab_rgb(x, y), abs=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_torch_on_a_gpu():
    x, y = golden_pair("p1")
    score = ssim_matlab_rgb_torch(as_batch(x).cuda(), as_batch(y).cuda()).item()
    assert score == pytest.approx(ssim_matlab_rgb(x, y), abs=2e-6)


@BOTH
def test_refuses_wrong_input(ssim):
    with pytest.raises(ValueError, match=r"\(H, W, 3\) is needed, got shape \(8, 8\)"):
        ssim(noise(8, 8)[..., 0], noise(8, 8)[..., 0])
    with pytest.raises(ValueError, match="a uint8 array is needed, got float64"):
        ssim(noise(8, 8) / 255.0, noise(8, 8))
    with pytest.raises(ValueError, match="differ in size"):
        ssim(noise(8, 9), noise(9, 8))
    with pytest.raises(ValueError, match=r"values in \[0, 1\] are needed"):
        ssim_matlab_rgb_torch(torch.zeros(1, 3, 8, 8) - 0.5, torch.zeros(1, 3, 8, 8))


def test_fast_enough_to_score_a_test_set():
    x, y = noise(720, 1280, seed=1), noise(720, 1280, seed=2)
    started = time.process_time()
    ssim_matlab_rgb(x, y)
    # 0.1 s on one core of 2024; the bound leaves room for a busy machine and still catches an unseparated window.
    assert time.process_time() - started < 1.5
