"""PSNR and SSIM after alignment: RealBlur's protocol (Rim et al., ECCV 2020), after Köhler et al. (ECCV 2012).

RealBlur's sharp photograph comes from a second camera, so a restored image may be brighter and shifted by a fraction of
a pixel. It is scaled to the sharp one's intensity by least squares, its homography to it is found by ECC (Evangelidis &
Psarakis, TPAMI 2008; 100 iterations, no earlier stop, Gaussian of 5 pixels), and it is warped with bicubic
interpolation; what the warp brings in from outside the image does not count. Settings are those of
https://github.com/rimchang/RealBlur (evaluation_RealBlur_ecc.py), in float32 as there. OpenCV's versions 4 agree within
5e-4 dB; version 5 warps differently, by 4e-3 dB.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from .checks import check_rgb_pair
from .ssim import RADIUS, ssim_map

ITERATIONS = 100
GAUSSIAN = 5  # the size of the filter before each step of ECC, in pixels


class AlignmentError(ValueError):
    """ECC finds no homography between the two images."""


def psnr_ssim_aligned(restored: np.ndarray, sharp: np.ndarray) -> tuple[float, float]:
    """PSNR in dB and SSIM of two uint8 RGB images (H, W, 3) after intensity match and alignment of the first.

    PSNR is over the pixels that the warp covers, infinite where these are equal. SSIM is Gaussian, per channel,
    averaged over the covered pixels that are at least 5 from the border.

    Raises:
        AlignmentError: ECC does not converge, or nothing is left to compare.
        ValueError: another dtype or shape, two different shapes, or a side shorter than 11.
    """
    check_rgb_pair(restored, sharp)
    if min(sharp.shape[:2]) <= 2 * RADIUS:
        raise ValueError(f"images of at least 11 x 11 are needed, got {sharp.shape[1]} x {sharp.shape[0]}")
    target = sharp.astype(np.float32) / 255
    aligned, covered = _align(_match_intensity(restored.astype(np.float32) / 255, target), target)
    inner = covered[RADIUS:-RADIUS, RADIUS:-RADIUS]
    if not inner.any():
        raise AlignmentError("the homography that ECC finds maps the restored image entirely outside the frame")
    target *= covered
    squares = np.sum((target - aligned) ** 2, dtype=np.float64) / covered.sum(dtype=np.float64)
    psnr = -10.0 * math.log10(squares) if squares else math.inf
    similarity = ssim_map(aligned.astype(np.float64) * 255, target.astype(np.float64) * 255)
    # The window of these pixels lies in the image, so that it does not matter how borders are continued.
    similarity = similarity[RADIUS:-RADIUS, RADIUS:-RADIUS] * inner
    return psnr, float(similarity.sum() / inner.sum(dtype=np.float64))


def _match_intensity(restored: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    """The restored image times the one factor that brings it nearest to the sharp one."""
    energy = np.sum(restored * restored)
    if not energy:
        raise AlignmentError("the restored image is black")
    return (np.sum(sharp * restored) / energy) * restored


def _align(image: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image warped onto the target, zero outside, and the mask of the pixels that it covers; both (H, W, 3)."""
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ITERATIONS, 0)
    try:
        _, homography = cv2.findTransformECC(
            cv2.cvtColor(target, cv2.COLOR_RGB2GRAY),
            cv2.cvtColor(image, cv2.COLOR_RGB2GRAY),
            np.eye(3, dtype=np.float32),
            cv2.MOTION_HOMOGRAPHY,
            criteria,
            inputMask=None,
            gaussFiltSize=GAUSSIAN,
        )
    except cv2.error as error:
        raise AlignmentError(f"ECC does not converge: {error.err}") from error
    if not np.isfinite(homography).all():
        raise AlignmentError("ECC does not converge: its homography is not finite")
    size = target.shape[1::-1]
    aligned = cv2.warpPerspective(
        image, homography, size, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )
    covered = cv2.warpPerspective(
        np.ones_like(image),
        homography,
        size,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
    )
    return aligned * covered, covered
