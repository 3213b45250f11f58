"""Blurs one image: a shaken camera over a photograph, with objects that move before it, or the average of neighbouring
video frames; sensor noise.

Light is linear: value ** gamma of display values in [0, 1]. Photographs are float32 (H, W, 3), frames uint8 (H, W, 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .trajectory import displaced, frame_count, random_shake

# Photographs are reduced to GoPro's width: pixels of a large photograph are softer than those of a video frame.
LONGEST_SIDE = 1280
SMALLEST_ZOOM = 0.6
FOCAL_RATIO = 1.1  # Focal length over the long side: a phone's or a GoPro's wide lens.
MID_GREY = 0.5  # Display value at which the noise level is stated.
READ_NOISE = 0.02  # Variance of the read noise, as that of the shot noise of this linear intensity.
OBJECT_SHARES = 0.05, 0.25  # Smallest and largest mean radius of a moving object, as a share of the window's side.
OUTLINE_POINTS, OUTLINE_WAVES = 64, 4


@dataclass(frozen=True)
class Layer:
    """What moves by itself: colours times opacity, and opacity, float32 (H, W, 4); its place in each frame."""

    image: np.ndarray
    frames: np.ndarray

    def over(self, window: np.ndarray, frame: int) -> np.ndarray:
        """The window with this layer before it."""
        layer = _warped(self.image, self.frames[frame], window.shape[0])
        return window * (1 - layer[..., 3:]) + layer[..., :3]


def shaken_pair(
    photo: np.ndarray, size: int, strength: float, rng: np.random.Generator, others: Sequence[np.ndarray] = ()
) -> tuple[np.ndarray, ...]:
    """A random window of a photograph as a shaken camera sees it, and as it is.

    photo: linear light, at least size in height and width. strength: mean blur length in pixels.
    others: photographs alike; a piece of each, cut at random, moves before the window on a path of its own.
    Returns: blurred, sharp: float32 (size, size, 3), linear light.
    """
    length = strength * rng.gamma(4.0) / 4.0  # Mean `strength`, half as much standard deviation.
    margin = int(length) + 4
    needed = (size + 2 * margin) / min(photo.shape[:2])
    photo = _resized(photo, rng.uniform(min(1.0, max(SMALLEST_ZOOM, needed)), 1.0), size)
    height, width = photo.shape[:2]
    top, left = (_offset(extent - size, margin, rng) for extent in (height, width))
    corners = np.array([[left, top], [left + size - 1, top], [left, top + size - 1], [left + size - 1, top + size - 1]])
    sharp = photo[top : top + size, left : left + size]
    if length == 0 and not others:
        return sharp.copy(), sharp
    paths = [strength * rng.gamma(2.0) / 2.0 for _ in others]
    count = frame_count(max([length, *paths]))
    frames = random_shake(
        rng, length, FOCAL_RATIO * max(height, width), ((width - 1) / 2, (height - 1) / 2), corners, count
    )
    reach = displaced(frames, corners).reshape(-1, 2)
    low = np.floor(reach.min(axis=0)).astype(int) - 2
    high = np.ceil(reach.max(axis=0)).astype(int) + 3
    region = _region(photo, low, high)
    # Output pixel -> photograph at the middle of the exposure -> photograph at the frame -> region.
    to_photo = np.array([[1, 0, left], [0, 1, top], [0, 0, 1]], float)
    to_region = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]], float)
    layers = [_moving_layer(other, size, path, count, rng) for other, path in zip(others, paths, strict=True)]
    total = np.zeros((size, size, 3), np.float32)
    for frame, matrix in enumerate(to_region @ frames @ to_photo):
        window = _warped(region, matrix, size)
        for layer in layers:
            window = layer.over(window, frame)
        total += window
    for layer in layers:
        sharp = layer.over(sharp, count // 2)
    return total / count, sharp


def _warped(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    return cv2.warpPerspective(image, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _moving_layer(photo: np.ndarray, size: int, length: float, count: int, rng: np.random.Generator) -> Layer:
    """A piece of a photograph with a random smooth outline, that moves by `length` in `count` frames."""
    margin = int(length) + 4  # What comes into the window from beyond its border.
    side = size + 2 * margin
    photo = _resized(photo, 1.0, side)
    top, left = (rng.integers(extent - side + 1) for extent in photo.shape[:2])
    opacity = np.zeros((side, side), np.float32)
    outline = margin + rng.uniform(0, size, 2) + size * _outline(rng)
    cv2.fillPoly(opacity, [np.rint(outline).astype(np.int32)], 1.0)
    opacity = cv2.GaussianBlur(opacity, (0, 0), 1.0)[..., None]
    image = np.concatenate([photo[top : top + side, left : left + side] * opacity, opacity], axis=2)
    frames = random_shake(rng, length, FOCAL_RATIO * size, tuple(outline.mean(axis=0)), outline, count)
    return Layer(image, frames @ np.array([[1, 0, margin], [0, 1, margin], [0, 0, 1]], float))


def _outline(rng: np.random.Generator) -> np.ndarray:
    """(OUTLINE_POINTS, 2): a closed curve about zero, as a share of the window's side."""
    angles = np.linspace(0, 2 * np.pi, OUTLINE_POINTS, endpoint=False)
    waves = np.arange(1, OUTLINE_WAVES + 1)[:, None]
    wobble = (
        rng.normal(0, 0.25, (OUTLINE_WAVES, 1)) / waves * np.cos(waves * angles + rng.uniform(0, 7, (OUTLINE_WAVES, 1)))
    )
    radius = rng.uniform(*OBJECT_SHARES) * np.exp(wobble.sum(axis=0))
    stretch = np.exp(rng.uniform(-0.6, 0.6))  # Upright or lying.
    return np.stack([radius * np.cos(angles) * stretch, radius * np.sin(angles) / stretch], axis=1)


def _offset(most: int, margin: int, rng: np.random.Generator) -> int:
    """A window's offset in 0..most, away from the border by the margin where there is room for it."""
    margin = min(margin, most // 2)
    return int(rng.integers(margin, most - margin + 1))


def _region(photo: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The photograph from low to high (x, y), continued by its mirror image: a border is never black."""
    height, width = photo.shape[:2]
    inner = photo[max(0, low[1]) : min(height, high[1]), max(0, low[0]) : min(width, high[0])]
    above, left = max(0, -low[1]), max(0, -low[0])
    below, right = max(0, high[1] - height), max(0, high[0] - width)
    return cv2.copyMakeBorder(inner, above, below, left, right, cv2.BORDER_REFLECT_101)


def add_noise(linear: np.ndarray, noise: float, gamma: float, rng: np.random.Generator) -> np.ndarray:
    """Adds shot noise (variance proportional to the light) and read noise; `noise` is in 8-bit levels at mid-grey."""
    light = MID_GREY**gamma
    levels_per_light = 255 / gamma * light ** (1 / gamma - 1)
    variance = (noise / levels_per_light) ** 2 / (light + READ_NOISE) * (linear + READ_NOISE)
    return linear + np.sqrt(variance, dtype=np.float32) * rng.standard_normal(linear.shape, np.float32)


def to_linear(image: np.ndarray, gamma: float) -> np.ndarray:
    """uint8 display values -> float32 linear light in [0, 1]."""
    return (np.linspace(0, 1, 256, dtype=np.float32) ** np.float32(gamma))[image]


def linear_photo(image: np.ndarray, size: int, gamma: float) -> np.ndarray:
    """A photograph in linear light, reduced to LONGEST_SIDE but not below `size`."""
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
    """The mean of uint8 frames in light value ** gamma, as uint8."""
    total = np.zeros(frames[0].shape, np.float32)
    for frame in frames:
        total += to_linear(frame, gamma)
    return to_8_bit(total / len(frames), gamma)
