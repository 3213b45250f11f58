"""Random crop and augmentation of a pair: the window is chosen first, so that only the crop is flipped and rotated.

Arrays are (H, W, C). All randomness comes from the generator given.
"""

import numpy as np

ImagePair = tuple[np.ndarray, np.ndarray]


def random_crop(blurred: np.ndarray, sharp: np.ndarray, size: int, rng: np.random.Generator) -> ImagePair:
    """The same random square window of both images: two views (size, size, C), nothing is copied.

    Raises: ValueError for images that differ in size or are smaller than the window.
    """
    height, width = blurred.shape[:2]
    if sharp.shape != blurred.shape or min(height, width) < size:
        raise ValueError(f"cannot take a {size}x{size} window of images of {blurred.shape} and {sharp.shape}")
    top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
    window = np.s_[top : top + size, left : left + size]
    return blurred[window], sharp[window]


def augment(blurred: np.ndarray, sharp: np.ndarray, rng: np.random.Generator) -> ImagePair:
    """Horizontal flip and vertical flip, each with probability 1/2, then a rotation by 0, 90, 180 or 270 degrees.

    The same for both images. Returns views.
    """
    horizontal, vertical, turns = rng.integers(2), rng.integers(2), rng.integers(4)
    return _transform(blurred, horizontal, vertical, turns), _transform(sharp, horizontal, vertical, turns)


def _transform(image: np.ndarray, horizontal: int, vertical: int, turns: int) -> np.ndarray:
    if horizontal:
        image = image[:, ::-1]
    if vertical:
        image = image[::-1]
    return np.rot90(image, turns)
