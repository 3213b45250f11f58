"""Random crops, flips and rotations of image pairs.

Images are arrays (H, W, C). All randomness comes from the generator that is passed in.
"""

import numpy as np

ImagePair = tuple[np.ndarray, np.ndarray]


def random_crop(blurred: np.ndarray, sharp: np.ndarray, size: int, rng: np.random.Generator) -> ImagePair:
    """Crop both images at the same random position.

    Returns:
        Two views of (size, size, C); nothing is copied.
    Raises:
        ValueError: the images differ in size or are smaller than the crop.
    """
    height, width = blurred.shape[:2]
    if sharp.shape != blurred.shape or min(height, width) < size:
        raise ValueError(f"cannot crop {size}x{size} pixels from images of {blurred.shape} and {sharp.shape}")
    top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
    window = np.s_[top : top + size, left : left + size]
    return blurred[window], sharp[window]


def augment(blurred: np.ndarray, sharp: np.ndarray, rng: np.random.Generator, rotate: float = 1.0) -> ImagePair:
    """Flip horizontally and vertically, each with probability 1/2, then rotate, both images in the same way.

    Args:
        rotate: probability of a rotation by 0, 90, 180 or 270 degrees, all four equally likely. The released code's
            is 1/2: rows stay rows in 75 % of the crops.
    Returns:
        Views.
    """
    horizontal, vertical, rotations = rng.integers(2), rng.integers(2), rng.integers(4)
    if rotate < 1 and rng.random() >= rotate:
        rotations = 0
    return _transform(blurred, horizontal, vertical, rotations), _transform(sharp, horizontal, vertical, rotations)


def _transform(image: np.ndarray, horizontal: int, vertical: int, rotations: int) -> np.ndarray:
    if horizontal:
        image = image[:, ::-1]
    if vertical:
        image = image[::-1]
    return np.rot90(image, rotations)
