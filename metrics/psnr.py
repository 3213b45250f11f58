"""Peak signal-to-noise ratio over 8-bit RGB values, as MATLAB's psnr(A, ref) computes it (paper, Tables 1 and 2)."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch

from .checks import check_rgb_pair, to_levels

PEAK = 255.0


def psnr(restored: np.ndarray, sharp: np.ndarray) -> float:
    """PSNR in dB of two uint8 RGB images (H, W, 3): 10 log10(255^2 / MSE), infinite for equal images.

    Raises:
        ValueError: another dtype or shape, or two different shapes.
    """
    check_rgb_pair(restored, sharp)
    # OpenCV sums the squares as integers, so the sum is exact, and in a twentieth of NumPy's time.
    mean_squared_error = (
        cv2.norm(np.ascontiguousarray(restored), np.ascontiguousarray(sharp), cv2.NORM_L2SQR) / restored.size
    )
    return 10.0 * math.log10(PEAK**2 / mean_squared_error) if mean_squared_error else math.inf


def psnr_torch(restored: torch.Tensor, sharp: torch.Tensor) -> torch.Tensor:
    """PSNR in dB of each image of two batches (B, 3, H, W), floating in [0, 1] or uint8: shape (B,), float64.

    On any device that knows float64. Raises ValueError for another shape or range.
    """
    restored, sharp = to_levels(restored, sharp)
    mean_squared_error = (restored - sharp).square().mean(dim=(1, 2, 3))
    return 10.0 * torch.log10(PEAK**2 / mean_squared_error)
