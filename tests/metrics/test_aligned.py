"""RealBlur's aligned scores against those of its protocol run with OpenCV 4, and what alignment must do."""

import math

import cv2
import numpy as np
import pytest

from metrics.aligned import AlignmentError, psnr_ssim_aligned
from metrics.psnr import psnr
from metrics.ssim import ssim_per_channel
from tests.metrics.images import GOLDEN, PAIRS, blurred, golden_pair, noise


def moved(image: np.ndarray, x: float, y: float) -> np.ndarray:
    return cv2.warpAffine(
        image,
        np.float32([[1, 0, x], [0, 1, y]]),
        image.shape[1::-1],
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT,
    )


@pytest.mark.parametrize("name", PAIRS)
def test_equals_the_protocol(name):
    psnr_value, ssim_value = psnr_ssim_aligned(*golden_pair(name))
    # ECC amplifies the rounding of NumPy's float32 sums, which differs between versions (6.6e-4 dB with NumPy 2.2).
    assert psnr_value == pytest.approx(GOLDEN[name]["aligned"][0], abs=1e-3)
    assert ssim_value == pytest.approx(GOLDEN[name]["aligned"][1], abs=1e-4)


def test_a_shift_by_part_of_a_pixel_is_undone():
    _, sharp = golden_pair("p4")
    shifted = moved(sharp, 1.3, -0.7)
    aligned_psnr, aligned_ssim = psnr_ssim_aligned(shifted, sharp)
    assert aligned_psnr > psnr(shifted, sharp) + 8
    assert aligned_ssim > ssim_per_channel(shifted, sharp) + 0.1


def test_intensity_is_matched():
    _, sharp = golden_pair("p1")
    dark = np.round(sharp * 0.7).astype(np.uint8)
    assert psnr_ssim_aligned(dark, sharp)[0] > psnr(dark, sharp) + 20


def test_identity_is_all_but_perfect():
    _, sharp = golden_pair("p2")
    psnr_value, ssim_value = psnr_ssim_aligned(sharp, sharp)
    assert psnr_value > 70 and ssim_value == pytest.approx(1, abs=1e-6)


def test_falls_as_blur_grows():
    _, sharp = golden_pair("p2")
    scores = [psnr_ssim_aligned(blurred(sharp, sigma), sharp) for sigma in (0.5, 1, 2, 4)]
    for values in zip(*scores, strict=True):
        assert list(values) == sorted(values, reverse=True)


def test_what_cannot_be_aligned_raises():
    _, sharp = golden_pair("p2")
    with pytest.raises(AlignmentError, match="black"):
        psnr_ssim_aligned(np.zeros_like(sharp), sharp)
    with pytest.raises(AlignmentError, match="ECC does not converge"):
        psnr_ssim_aligned(np.full_like(sharp, 100), sharp)


def test_unrelated_images_raise_or_score_low():
    try:
        psnr_value, _ = psnr_ssim_aligned(noise(64, 64, seed=1), noise(64, 64, seed=2))
    except AlignmentError:
        return
    assert math.isfinite(psnr_value) and psnr_value < 15


def test_refuses_wrong_input():
    with pytest.raises(ValueError, match="a uint8 array is needed, got float64"):
        psnr_ssim_aligned(noise(32, 32) / 255.0, noise(32, 32))
    with pytest.raises(ValueError, match="differ in size"):
        psnr_ssim_aligned(noise(32, 33), noise(33, 32))
    with pytest.raises(ValueError, match="at least 11 x 11 are needed, got 40 x 10"):
        psnr_ssim_aligned(noise(10, 40), noise(10, 40))
