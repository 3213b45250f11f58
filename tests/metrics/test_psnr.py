"""PSNR against Octave's values, scikit-image's function, and what any PSNR must do."""

import hashlib
import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from metrics.psnr import psnr, psnr_torch
from tests.metrics.images import GOLDEN, PAIRS, golden_pair, noise


def as_batch(*images: np.ndarray) -> torch.Tensor:
    return torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1) for image in images])


@pytest.mark.parametrize("name", PAIRS)
def test_equals_octave(name):
    restored, sharp = golden_pair(name)
    assert hashlib.sha256(restored.tobytes()).hexdigest() == GOLDEN[name]["sha256_pixels"]["out"]
    assert psnr(restored, sharp) == pytest.approx(GOLDEN[name]["psnr"], abs=1e-9)


def test_equals_scikit_image():
    restored, sharp = noise(17, 23, seed=1), noise(17, 23, seed=2)
    assert psnr(restored, sharp) == pytest.approx(peak_signal_noise_ratio(sharp, restored, data_range=255), abs=1e-10)


def test_one_level_everywhere_is_48_db():
    sharp = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(sharp + 1, sharp) == pytest.approx(20 * math.log10(255), abs=1e-12)
    assert psnr(sharp - 1, sharp) == pytest.approx(20 * math.log10(255), abs=1e-12)  # differences do not wrap around


def test_infinite_for_equal_images_and_zero_for_opposite_ones():
    black, white = np.zeros((4, 5, 3), np.uint8), np.full((4, 5, 3), 255, np.uint8)
    assert psnr(black, black) == math.inf
    assert psnr(black, white) == 0.0
    assert torch.equal(psnr_torch(as_batch(black, black), as_batch(black, white)).isinf(), torch.tensor([True, False]))


def test_symmetric():
    a, b = golden_pair("p1")
    assert psnr(a, b) == psnr(b, a)


def test_torch_scores_each_image_on_its_own():
    pairs = [(noise(12, 9, seed=i), noise(12, 9, seed=i + 10)) for i in range(3)]
    scores = psnr_torch(as_batch(*[a for a, _ in pairs]), as_batch(*[b for _, b in pairs]).float() / 255)
    assert scores.tolist() == pytest.approx([psnr(a, b) for a, b in pairs], abs=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 4), (3, 8, 8), (1, 8, 8, 3), (0, 8, 3)])
def test_refuses_other_shapes(shape):
    wrong = np.zeros(shape, np.uint8)
    with pytest.raises(ValueError, match=r"restored: an RGB image \(H, W, 3\) is needed"):
        psnr(wrong, wrong)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint16, bool])
def test_refuses_other_dtypes(dtype):
    with pytest.raises(ValueError, match="sharp: a uint8 array is needed, got"):
        psnr(noise(8, 8), noise(8, 8).astype(dtype))


def test_refuses_two_sizes():
    with pytest.raises(ValueError, match=r"differ in size: restored \(8, 9, 3\), sharp \(9, 8, 3\)"):
        psnr(noise(8, 9), noise(9, 8))


def test_torch_refuses_other_ranges_and_shapes():
    images = as_batch(noise(8, 8)) / 255
    for wrong in (images * 255, images - 0.5, images + 0.25, torch.full_like(images, math.nan)):
        with pytest.raises(ValueError, match=r"sharp: values in \[0, 1\] are needed"):
            psnr_torch(images, wrong)
    with pytest.raises(ValueError, match="restored: a floating or uint8 tensor is needed, got torch.int64"):
        psnr_torch(images.long(), images)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\) is needed"):
        psnr_torch(images[0], images[0])
    with pytest.raises(ValueError, match="differ in shape"):
        psnr_torch(images, images[:, :, :7])
