"""The golden pairs of images and what they score, for the tests of this folder."""

import json
from pathlib import Path

import cv2
import numpy as np

FOLDER = Path(__file__).parents[1] / "fixtures" / "metrics"
GOLDEN = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
PAIRS = sorted(GOLDEN)
OTHERS = json.loads((FOLDER / "golden_others.json").read_text(encoding="utf-8"))


def golden_pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The distorted and the sharp image of a pair, uint8 RGB."""
    images = [cv2.imread(str(FOLDER / f"{name}_{kind}.png")) for kind in ("out", "gt")]
    return cv2.cvtColor(images[0], cv2.COLOR_BGR2RGB), cv2.cvtColor(images[1], cv2.COLOR_BGR2RGB)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
