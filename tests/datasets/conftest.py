"""Small random images, written as files, for the tests of the data side."""

from pathlib import Path

import cv2
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def repository() -> Path:
    """The root, which scripts and modules are run from."""
    return REPOSITORY


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def textured(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 (H, W, 3): smooth noise with edges at several scales, so that blur shows."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for scale in (2, 6, 16):
        noise = rng.random((height // scale + 2, width // scale + 2, 3)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_NEAREST)
    return (image * 85).astype(np.uint8)


def save(path: Path, image: np.ndarray) -> Path:
    """Writes RGB in the format of the suffix, by OpenCV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])
    return path


def touch(root: Path, *paths: str) -> None:
    """Tiny PNGs at relative paths."""
    for path in paths:
        save(root / path, np.full((2, 3, 3), 9, np.uint8))
