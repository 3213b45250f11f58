"""Synthetic blur: light is conserved where it is averaged, no black borders, noise as stated."""

import cv2
import numpy as np
import pytest

from datasets.blur import add_noise, average, linear_photo, shaken_pair, to_8_bit, to_linear
from tests.datasets.conftest import textured


def test_tone_curve_and_back() -> None:
    values = np.arange(256, dtype=np.uint8)
    for gamma in (1.0, 2.2):
        assert np.array_equal(to_8_bit(to_linear(values, gamma), gamma), values)
    assert np.allclose(to_linear(values, 2.2), (values / 255) ** 2.2, atol=1e-6)
    assert to_8_bit(np.array([-0.5, 1.7], np.float32), 2.2).tolist() == [0, 255]


@pytest.mark.parametrize("gamma", [1.0, 2.2])
def test_average_of_frames(gamma: float, rng: np.random.Generator) -> None:
    frames = [rng.integers(0, 256, (4, 5, 3), np.uint8) for _ in range(7)]
    expected = 255 * np.mean([(frame / 255) ** gamma for frame in frames], axis=0) ** (1 / gamma)
    assert np.abs(average(frames, gamma) - expected).max() <= 0.51


def test_shake_blurs_and_sharp_is_the_photograph_itself(rng: np.random.Generator) -> None:
    photo = linear_photo(textured(300, 400, 1), 128, 2.2)
    for _ in range(5):
        blurred, sharp = shaken_pair(photo, 128, 12, rng)
        assert blurred.shape == sharp.shape == (128, 128, 3) and blurred.dtype == np.float32
        energy = [np.mean(np.diff(image, axis=1) ** 2) + np.mean(np.diff(image) ** 2) for image in (blurred, sharp)]
        assert energy[0] < energy[1]
        assert blurred.min() >= 0 and blurred.max() <= 1
        assert abs(blurred.mean() - sharp.mean()) < 0.03  # Linear light is conserved, but for what crosses the border.


def test_small_photographs_have_no_black_borders(rng: np.random.Generator) -> None:
    """As large as the window, and shaken far beyond it: white must stay white."""
    photo = linear_photo(np.full((64, 64, 3), 255, np.uint8), 64, 2.2)
    for _ in range(10):
        blurred, sharp = shaken_pair(photo, 64, 30, rng)
        assert blurred.min() > 0.999 and sharp.min() == 1


def test_sharp_lies_at_the_centre_of_mass_of_the_blur() -> None:
    """A bright dot: its blurred image's centre of mass, over many shakes of 20 pixels, is where the dot is."""
    photo = np.zeros((200, 200, 3), np.float32)
    photo[80:120:10, 80:120:10] = 1
    photo = cv2.GaussianBlur(photo, (0, 0), 1.5)
    offsets = []
    for seed in range(20):
        pair = shaken_pair(photo, 196, 10, np.random.default_rng(seed))
        centres = [
            np.array([(axis * image[..., 0]).sum() for axis in np.mgrid[:196, :196]]) / image[..., 0].sum()
            for image in pair
        ]
        offsets.append(np.linalg.norm(centres[0] - centres[1]))
    assert np.median(offsets) < 0.3 and max(offsets) < 1


def test_no_strength_means_no_blur(rng: np.random.Generator) -> None:
    blurred, sharp = shaken_pair(linear_photo(textured(64, 64, 1), 32, 2.2), 32, 0, rng)
    assert np.array_equal(blurred, sharp)


@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_noise_is_as_stated_at_mid_grey_and_grows_with_light(noise: float, rng: np.random.Generator) -> None:
    grey = to_linear(np.full((300, 300, 3), 127, np.uint8), 2.2)
    noisy = 255 * add_noise(grey, noise, 2.2, rng) ** (1 / 2.2)
    assert noisy.std() == pytest.approx(noise, rel=0.05) and noisy.mean() == pytest.approx(127, abs=0.5)
    deviations = [add_noise(np.full((300, 300), light, np.float32), noise, 2.2, rng).std() for light in (0.1, 0.4)]
    assert deviations[1] / deviations[0] == pytest.approx(np.sqrt(0.42 / 0.12), rel=0.05)


def test_large_photographs_are_reduced_but_not_below_the_window() -> None:
    assert linear_photo(textured(1500, 2000, 1), 64, 2.2).shape == (960, 1280, 3)
    assert linear_photo(textured(100, 2000, 1), 90, 2.2).shape == (90, 1800, 3)
