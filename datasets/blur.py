"""Synthetic blur of one image: camera shake and moving objects over a photograph, averages of frames; sensor noise.

Linear light is value ** gamma for display values in [0, 1]. Photographs are float32 (H, W, 3), frames uint8 (H, W, 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .trajectory import displaced, frame_count, random_shake

# Photographs are reduced to the width of GoPro's images: at full size their pixels are softer than those of video.
LONGEST_SIDE = 1280
SMALLEST_ZOOM = 0.6
FOCAL_RATIO = 1.1  # focal length over the long side: the wide lens of a phone or a GoPro
MID_GREY = 0.5  # display value for which the noise level is given
READ_NOISE = 0.02  # linear intensity whose shot noise has the variance of the read noise
OBJECT_RADII = 0.05, 0.25  # range of the mean radius of a moving object, as a share of the crop's side
OUTLINE_POINTS, OUTLINE_WAVES = 64, 4


@dataclass(frozen=True)
class MovingObject:
    """An object in front of the scene.

    Attributes:
        image: premultiplied colours in linear light and opacity, float32 (H, W, 4).
        frames: (N, 3, 3) homographies from positions in the crop to positions in ``image``, one for each frame.
    """

    image: np.ndarray
    frames: np.ndarray

    def over(self, crop: np.ndarray, frame: int) -> np.ndarray:
        """The crop with the object in front of it, as seen in one frame."""
        layer = _warped(self.image, self.frames[frame], crop.shape[0])
        return crop * (1 - layer[..., 3:]) + layer[..., :3]


def shaken_pair(
    photo: np.ndarray, size: int, strength: float, rng: np.random.Generator, others: Sequence[np.ndarray] = ()
) -> tuple[np.ndarray, ...]:
    """A random crop of a photograph, blurred by camera shake, and the sharp crop.

    Args:
        photo: linear light, at least ``size`` in height and width.
        size: height and width of the crop in pixels.
        strength: mean blur length in pixels.
        rng: the source of all randomness.
        others: more photographs; a random piece of each moves in front of the crop on a trajectory of its own.
    Returns:
        (blurred, sharp), float32 (size, size, 3), linear light.
    """
    length = strength * rng.gamma(4.0) / 4.0  # mean `strength`, standard deviation half of that
    margin = int(length) + 4
    needed = (size + 2 * margin) / min(photo.shape[:2])
    photo = _resized(photo, rng.uniform(min(1.0, max(SMALLEST_ZOOM, needed)), 1.0), size)
    height, width = photo.shape[:2]
    top, left = (_offset(extent - size, margin, rng) for extent in (height, width))
    corners = np.array([[left, top], [left + size - 1, top], [left, top + size - 1], [left + size - 1, top + size - 1]])
    sharp = photo[top : top + size, left : left + size]
    if length == 0 and not others:
        return sharp.copy(), sharp
    lengths = [strength * rng.gamma(2.0) / 2.0 for _ in others]
    count = frame_count(max([length, *lengths]))
    centre = ((width - 1) / 2, (height - 1) / 2)
    frames = random_shake(rng, length, FOCAL_RATIO * max(height, width), centre, corners, count)
    region, matrices = _seen(photo, frames, corners)
    objects = [_moving_object(other, size, path, count, rng) for other, path in zip(others, lengths, strict=True)]
    total = np.zeros((size, size, 3), np.float32)
    for frame, matrix in enumerate(matrices):
        crop = _warped(region, matrix, size)
        for moving in objects:
            crop = moving.over(crop, frame)
        total += crop
    for moving in objects:
        sharp = moving.over(sharp, count // 2)
    return total / count, sharp


def _seen(photo: np.ndarray, frames: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The region of a photograph that the frames show through a crop with these corners, the upper left one first.

    Returns:
        The region (H, W, 3), and the homographies (N, 3, 3) from positions in the crop to positions in it.
    """
    reach = displaced(frames, corners).reshape(-1, 2)
    low = np.floor(reach.min(axis=0)).astype(int) - 2
    high = np.ceil(reach.max(axis=0)).astype(int) + 3
    # Pixel of the crop -> photograph in the middle of the exposure -> photograph in the frame -> region.
    return _region(photo, low, high), _shift(*-low) @ frames @ _shift(*corners[0])


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)


def _warped(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    return cv2.warpPerspective(image, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _moving_object(photo: np.ndarray, size: int, length: float, count: int, rng: np.random.Generator) -> MovingObject:
    """A piece of a photograph with a random smooth outline that moves by ``length`` pixels in ``count`` frames."""
    margin = int(length) + 4  # what enters the crop from outside
    side = size + 2 * margin
    photo = _resized(photo, 1.0, side)
    top, left = (rng.integers(extent - side + 1) for extent in photo.shape[:2])
    opacity = np.zeros((side, side), np.float32)
    outline = margin + rng.uniform(0, size, 2) + size * _outline(rng)
    cv2.fillPoly(opacity, [np.rint(outline).astype(np.int32)], 1.0)
    opacity = cv2.GaussianBlur(opacity, (0, 0), 1.0)[..., None]
    image = np.concatenate([photo[top : top + side, left : left + side] * opacity, opacity], axis=2)
    frames = random_shake(rng, length, FOCAL_RATIO * size, tuple(outline.mean(axis=0)), outline, count)
    return MovingObject(image, frames @ _shift(margin, margin))


def _outline(rng: np.random.Generator) -> np.ndarray:
    """A closed curve (OUTLINE_POINTS, 2) around the origin, in units of the crop's side."""
    angles = np.linspace(0, 2 * np.pi, OUTLINE_POINTS, endpoint=False)
    waves = np.arange(1, OUTLINE_WAVES + 1)[:, None]
    amplitudes = rng.normal(0, 0.25, (OUTLINE_WAVES, 1)) / waves
    wobble = amplitudes * np.cos(waves * angles + rng.uniform(0, 7, (OUTLINE_WAVES, 1)))
    radius = rng.uniform(*OBJECT_RADII) * np.exp(wobble.sum(axis=0))
    stretch = np.exp(rng.uniform(-0.6, 0.6))  # wide or tall
    return np.stack([radius * np.cos(angles) * stretch, radius * np.sin(angles) / stretch], axis=1)


def _offset(most: int, margin: int, rng: np.random.Generator) -> int:
    """Random offset of a crop in 0..most, with a margin to the border if there is room for it."""
    margin = min(margin, most // 2)
    return int(rng.integers(margin, most - margin + 1))


def _region(photo: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The photograph from low to high (x, y), mirrored beyond its border."""
    height, width = photo.shape[:2]
    inner = photo[max(0, low[1]) : min(height, high[1]), max(0, low[0]) : min(width, high[0])]
    above, left = max(0, -low[1]), max(0, -low[0])
    below, right = max(0, high[1] - height), max(0, high[0] - width)
    return cv2.copyMakeBorder(inner, above, below, left, right, cv2.BORDER_REFLECT_101)


def add_noise(linear: np.ndarray, noise: float, gamma: float, rng: np.random.Generator) -> np.ndarray:
    """Add shot noise (variance proportional to the light) and read noise; ``noise`` is in 8-bit levels at mid-grey."""
    light = MID_GREY**gamma
    levels_per_light = 255 / gamma * light ** (1 / gamma - 1)
    variance = (noise / levels_per_light) ** 2 / (light + READ_NOISE) * (linear + READ_NOISE)
    return linear + np.sqrt(variance, dtype=np.float32) * rng.standard_normal(linear.shape, np.float32)


def to_linear(image: np.ndarray, gamma: float) -> np.ndarray:
    """uint8 display values -> float32 linear light in [0, 1]."""
    return (np.linspace(0, 1, 256, dtype=np.float32) ** np.float32(gamma))[image]


def linear_photo(image: np.ndarray, size: int, gamma: float) -> np.ndarray:
    """A photograph in linear light, reduced to LONGEST_SIDE but not below ``size``."""
    photo = to_linear(image, gamma)
    return _resized(photo, min(1.0, LONGEST_SIDE / max(photo.shape[:2])), size)


def _resized(photo: np.ndarray, zoom: float, least: int) -> np.ndarray:
    zoom = max(zoom, least / min(photo.shape[:2]))
    height, width = (round(extent * zoom) for extent in photo.shape[:2])
    return photo if zoom == 1 else cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)


def to_8_bit(linear: np.ndarray, gamma: float) -> np.ndarray:
    """Linear light -> uint8 display values, rounded and clipped."""
    return np.rint(np.clip(linear, 0, 1) ** np.float32(1 / gamma) * 255).astype(np.uint8)


def average(frames: Sequence[np.ndarray], gamma: float) -> np.ndarray:
    """The mean of value ** gamma over uint8 frames, as uint8 display values."""
    total = np.zeros(frames[0].shape, np.float32)
    for frame in frames:
        total += to_linear(frame, gamma)
    return to_8_bit(total / len(frames), gamma)
