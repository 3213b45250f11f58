"""Crop and augmentation: the same for both images, every variant reached, drawn from the generator alone."""

import numpy as np
import pytest

from datasets.augmentation import augment, random_crop


def test_window_is_the_same_and_reaches_every_corner(rng: np.random.Generator) -> None:
    rows, columns = np.mgrid[:6, :9]
    image = np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint8)
    places = set()
    for _ in range(400):
        blurred, sharp = random_crop(image, image + 100, 4, rng)
        assert blurred.shape == (4, 4, 3) and np.array_equal(blurred + 100, sharp)
        assert np.shares_memory(blurred, image)
        places.add(tuple(blurred[0, 0, :2].tolist()))
    assert places == {(row, column) for row in range(3) for column in range(6)}


def test_whole_image_is_a_window_and_more_is_not(rng: np.random.Generator) -> None:
    image = rng.integers(0, 255, (5, 5, 3), np.uint8)
    assert np.array_equal(random_crop(image, image, 5, rng)[1], image)
    for blurred, sharp, size in ((image, image, 6), (image, image[:4], 4)):
        with pytest.raises(ValueError, match=f"{size}x{size}"):
            random_crop(blurred, sharp, size, rng)


def test_the_eight_symmetries_are_equally_likely(rng: np.random.Generator) -> None:
    """Flips and turns by 90 degrees make the square's symmetry group, whose members compose from numpy's own."""
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    symmetries = [np.rot90(other, turns).tobytes() for other in (image, image[::-1]) for turns in range(4)]
    counts = dict.fromkeys(symmetries, 0)
    for _ in range(1600):
        blurred, sharp = augment(image, image, rng)
        assert np.array_equal(blurred, sharp)
        counts[np.ascontiguousarray(blurred).tobytes()] += 1
    assert len(counts) == 8 and min(counts.values()) > 130


def test_half_the_rotations_leave_rows_rows_three_times_in_four(rng: np.random.Generator) -> None:
    """The released code's distribution: 0, 90, 180, 270 degrees with 0.625, 0.125, 0.125, 0.125."""
    image = np.zeros((2, 3, 3), np.uint8)
    shapes = [augment(image, image, rng, rotate=0.5)[0].shape for _ in range(4000)]
    assert shapes.count((2, 3, 3)) / 4000 == pytest.approx(0.75, abs=0.03)
    assert {augment(image, image, rng, rotate=0)[0].shape for _ in range(50)} == {(2, 3, 3)}
