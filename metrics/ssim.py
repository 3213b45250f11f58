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
BAND = 64  # rows computed at a time: they stay in the processor's cache, and memory does not grow with the image
TAPS = cv2.getGaussianKernel(2 * RADIUS + 1, 1.5).ravel()  # of the window along one axis, summing to 1
# The same window along the axis of three colours: a 3 x 3 matrix (out, in).
ACROSS_COLOURS = cv2.sepFilter2D(np.eye(3), cv2.CV_64F, np.ones(1), TAPS, borderType=cv2.BORDER_REPLICATE)


def ssim_matlab_rgb(restored: np.ndarray, sharp: np.ndarray) -> float:
    """MATLAB's ssim of two uint8 RGB images (H, W, 3) as volumes, the paper's SSIM. 1 for equal images.

    Raises:
        ValueError: another dtype or shape, or two different shapes.
    """
    return ssim_both(restored, sharp)[0]


def ssim_per_channel(restored: np.ndarray, sharp: np.ndarray) -> float:
    """MATLAB's ssim of each colour of two uint8 RGB images (H, W, 3), averaged: not the paper's. 1 for equal images.

    Raises:
        ValueError: another dtype or shape, or two different shapes.
    """
    return ssim_both(restored, sharp)[1]


def ssim_both(restored: np.ndarray, sharp: np.ndarray) -> tuple[float, float]:
    """`ssim_matlab_rgb` and `ssim_per_channel` of two images, which share their filtering. Raises as they do."""
    check_rgb_pair(restored, sharp)
    height, totals = len(restored), np.zeros(2)
    for top in range(0, height, BAND):
        # The rows around a band that its windows reach go with it; the filter replicates where the image ends.
        first, last = max(top - RADIUS, 0), min(top + BAND + RADIUS, height)
        x, y = (np.ascontiguousarray(image[first:last], np.float64) for image in (restored, sharp))
        means = [means[top - first : top - first + BAND] for means in _local_means(x, y)]
        volumes = [cv2.transform(mean, ACROSS_COLOURS) for mean in means]
        totals += [_similarity(*volumes).sum(), _similarity(*means).sum()]
    volume, per_channel = totals / restored.size
    return float(volume), float(per_channel)


def ssim_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The similarity per channel of every value of two float64 images (H, W, 3) of levels 0 to 255."""
    return _similarity(*_local_means(x, y))


def _local_means(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Of x, y, x^2 + y^2 and x y under the window; only the sum of the two variances enters the formula."""
    return [
        cv2.sepFilter2D(values, cv2.CV_64F, TAPS, TAPS, borderType=cv2.BORDER_REPLICATE)
        for values in (x, y, x * x + y * y, x * y)
    ]


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
    # Sums of shifted images, because convolutions in double precision are slow on many devices and inexact under TF32.
    rows = sum(float(tap) * padded[:, :, k : k + height] for k, tap in enumerate(TAPS))
    smooth = sum(float(tap) * rows[:, :, :, k : k + width] for k, tap in enumerate(TAPS))
    return torch.einsum("oc,bchw->bohw", images.new_tensor(ACROSS_COLOURS), smooth)
