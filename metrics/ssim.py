"""Structural similarity as MATLAB computes it (Wang et al., IEEE TIP 2004; the paper's Tables 1 and 2 used MATLAB).

MATLAB's ssim(A, ref) takes an H x W x 3 array for a volume: its window is an 11 x 11 x 11 Gaussian, which smooths
across the colours as well. That is `ssim_matlab_rgb`, the paper's "SSIM"; `ssim_per_channel` treats each colour as an
image of its own, as most Python code does, and is lower. Settings are MATLAB's defaults: sigma 1.5, replicated borders,
K = (0.01, 0.03), peak 255, population variances, mean over the whole map, double precision.
https://www.mathworks.com/help/images/ref/ssim.html
"""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
import torch

from .checks import check_rgb_pair, to_levels

Values = TypeVar("Values", np.ndarray, torch.Tensor)

RADIUS = 5
C1 = (0.01 * 255.0) ** 2
C2 = (0.03 * 255.0) ** 2
ROWS = 4  # rows whose formula is computed at a time: they stay in the processor's nearest cache
BAND = 90  # rows filtered at a time: memory does not grow with the image


def _gaussian() -> np.ndarray:
    """The 11 taps of the Gaussian window along one axis, summing to 1."""
    taps = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / 1.5) ** 2)
    return taps / taps.sum()


def _across_colours() -> np.ndarray:
    """The same window along the axis of three colours with replicated borders: a 3 x 3 matrix (out, in)."""
    matrix = np.zeros((3, 3))
    for out in range(3):
        for offset, tap in zip(range(-RADIUS, RADIUS + 1), _gaussian(), strict=True):
            matrix[out, min(max(out + offset, 0), 2)] += tap
    return matrix


TAPS = _gaussian()
ACROSS_COLOURS = _across_colours()


def ssim_matlab_rgb(restored: np.ndarray, sharp: np.ndarray) -> float:
    """MATLAB's ssim of two uint8 RGB images (H, W, 3) taken as volumes: the paper's SSIM. 1 for equal images.

    Raises ValueError for another dtype or shape, or for two different shapes.
    """
    return _mean_ssims(restored, sharp, (True,))[0]


def ssim_per_channel(restored: np.ndarray, sharp: np.ndarray) -> float:
    """MATLAB's ssim of each colour of two uint8 RGB images (H, W, 3), averaged: not the paper's. 1 for equal images.

    Raises ValueError for another dtype or shape, or for two different shapes.
    """
    return _mean_ssims(restored, sharp, (False,))[0]


def ssim_both(restored: np.ndarray, sharp: np.ndarray) -> tuple[float, float]:
    """`ssim_matlab_rgb` and `ssim_per_channel` of two images, in little more than the time of one: they share their
    filtering. Raises as they do."""
    volume, per_channel = _mean_ssims(restored, sharp, (True, False))
    return volume, per_channel


def _mean_ssims(restored: np.ndarray, sharp: np.ndarray, forms: tuple[bool, ...]) -> list[float]:
    """The mean similarity as a volume for each True, per channel for each False."""
    check_rgb_pair(restored, sharp)
    restored, sharp = np.ascontiguousarray(restored), np.ascontiguousarray(sharp)  # OpenCV knows no reversed axes
    height = restored.shape[0]
    totals = [0.0] * len(forms)
    workspace = np.empty((4, min(BAND + 2 * RADIUS, height), *restored.shape[1:]))  # fresh memory costs as much as sums
    for top in range(0, height, BAND):
        # The band's neighbours, as far as the window reaches, go with it; where the image ends, the filter replicates.
        bottom = min(top + BAND, height)
        first, last = max(top - RADIUS, 0), min(bottom + RADIUS, height)
        maps = workspace[:, : last - first]
        _smooth_sums(restored[first:last], sharp[first:last], maps)
        maps = maps[:, top - first : bottom - first]
        for row in range(0, bottom - top, ROWS):
            rows = maps[:, row : row + ROWS]
            for k, volume in enumerate(forms):
                totals[k] += _sum_of_similarity(
                    *(cv2.transform(one, ACROSS_COLOURS) if volume else one for one in rows)
                )
    return [total / restored.size for total in totals]


def _smooth_sums(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    """The local means of s = x + y, d = x - y, s^2 + 2 C1 + 2 C2 and d^2 go to `out`, float64 (4, H, W, 3).

    x and y are uint8 (H, W, 3). Sums and squares are exact in the small types that they are filtered from. The
    constants are added here, where it costs nothing, for the formula of `_sum_of_similarity`.
    """
    plus, minus = cv2.add(x, y, dtype=cv2.CV_16U), cv2.subtract(x, y, dtype=cv2.CV_16S)
    squares = [np.square(values.astype(np.float32)) for values in (plus, minus)]
    added = (0, 0, 2 * C1 + 2 * C2, 0)
    for values, constant, place in zip((plus, minus, *squares), added, out, strict=True):
        cv2.sepFilter2D(values, cv2.CV_64F, TAPS, TAPS, dst=place, delta=constant, borderType=cv2.BORDER_REPLICATE)


def _sum_of_similarity(s: np.ndarray, d: np.ndarray, ss: np.ndarray, dd: np.ndarray) -> float:
    """The formula of `_similarity` in what `_smooth_sums` gives, for 4 x y = s^2 - d^2 and 2 (x^2 + y^2) = s^2 + d^2:
    the same in half as many passes over the values."""
    means, difference = s * s, d * d
    means += 2 * C1
    variances, covariances = ss - means, dd - difference
    similarity = means - difference
    means += difference
    np.subtract(variances, covariances, out=difference)
    variances += covariances
    similarity *= difference
    means *= variances
    similarity /= means
    return float(similarity.sum())


def ssim_map(x: np.ndarray, y: np.ndarray, volume: bool) -> np.ndarray:
    """The similarity of every value of two float64 images (H, W, 3) of levels 0 to 255, as a volume or per channel."""

    def smooth(values: np.ndarray) -> np.ndarray:
        values = cv2.sepFilter2D(values, cv2.CV_64F, TAPS, TAPS, borderType=cv2.BORDER_REPLICATE)
        return cv2.transform(values, ACROSS_COLOURS) if volume else values

    # Only the sum of the two variances enters the formula, so their squares share one filtering.
    return _similarity(smooth(x), smooth(y), smooth(x * x + y * y), smooth(x * y))


def _similarity(mean_x: Values, mean_y: Values, mean_square: Values, mean_product: Values) -> Values:
    """The formula, from the local means of x, y, x^2 + y^2 and x y, all of one shape."""
    means_squared, means_product = mean_x * mean_x + mean_y * mean_y, mean_x * mean_y
    numerator = (2 * means_product + C1) * (2 * (mean_product - means_product) + C2)
    return numerator / ((means_squared + C1) * (mean_square - means_squared + C2))


def ssim_matlab_rgb_torch(restored: torch.Tensor, sharp: torch.Tensor) -> torch.Tensor:
    """`ssim_matlab_rgb` of each image of two batches (B, 3, H, W), floating in [0, 1] or uint8: shape (B,), float64.

    On any device that knows float64. Raises ValueError for another shape or range.
    """
    x, y = to_levels(restored, sharp)
    similarity = _similarity(_smooth_torch(x), _smooth_torch(y), _smooth_torch(x * x + y * y), _smooth_torch(x * y))
    return similarity.mean(dim=(1, 2, 3))


def _smooth_torch(images: torch.Tensor) -> torch.Tensor:
    """The volumetric window over a batch (B, 3, H, W)."""
    height, width = images.shape[2:]
    padded = torch.nn.functional.pad(images, (RADIUS, RADIUS, RADIUS, RADIUS), mode="replicate")
    # Sums of shifted images, for convolutions in double precision are slow on many devices and inexact under TF32.
    rows = sum(float(tap) * padded[:, :, k : k + height] for k, tap in enumerate(TAPS))
    smooth = sum(float(tap) * rows[:, :, :, k : k + width] for k, tap in enumerate(TAPS))
    return torch.einsum("oc,bchw->bohw", images.new_tensor(ACROSS_COLOURS), smooth)
