"""Time of the metrics, compared with reading the images and with other implementations.

    python -m benchmarks.metrics datasets/GoPro/test
    python -m benchmarks.metrics datasets/GoPro/test --images 20 --repeats 5

On one core, one pair after another; each figure is the best of --repeats. Blurred images serve as restored ones.
scikit-image's SSIM is per channel, with its Gaussian window. No package computes MATLAB's SSIM of an RGB volume, so the
comparison is the formula written with SciPy's filters. The target for NIQE is two images of 1280 x 720 per second.
"""

from __future__ import annotations

import argparse
import sys
import timeit
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from datasets.images import read_rgb
from datasets.layouts import Pair, find_pairs
from engine.console import readable_errors
from metrics.niqe import niqe
from metrics.psnr import psnr
from metrics.ssim import ssim_both, ssim_matlab_rgb, ssim_per_channel

Images = list[tuple[np.ndarray, np.ndarray]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="FOLDER", help="a data set of pairs, or its test split")
    parser.add_argument("--images", type=int, default=4, metavar="N", help="the first N pairs (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed runs (default %(default)s)")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    pairs = [pair for pair in find_pairs(arguments.data, "test") if pair.sharp][: arguments.images]
    if not pairs:
        parser.error(f"{arguments.data}: no pairs of blurred and sharp images (--images {arguments.images})")
    try:
        from scipy.ndimage import gaussian_filter
        from skimage.metrics import structural_similarity
    except ImportError as error:
        print(f"error: the comparisons need scikit-image and SciPy ({error}): pip install -e .[test]", file=sys.stderr)
        return 2
    images = read(pairs)
    height, width = images[0][0].shape[:2]
    print(f"{len(pairs)} pairs, the first {width} x {height}, one core, ms a pair, best of {arguments.repeats}\n")

    def clock(function: Callable[[np.ndarray, np.ndarray], object]) -> float:
        return fastest(lambda: [function(*pair) for pair in images]) / len(images)

    def fastest(work: Callable[[], object]) -> float:
        return min(timeit.repeat(work, number=1, repeat=arguments.repeats))

    reading = fastest(lambda: read(pairs)) / len(pairs)
    simple = clock(lambda *pair: (psnr(*pair), ssim_both(*pair)))
    skimage = clock(
        lambda *pair: structural_similarity(
            *pair, channel_axis=2, data_range=255, gaussian_weights=True, use_sample_covariance=False
        )
    )
    volume = clock(lambda restored, sharp: volume_ssim(restored, sharp, gaussian_filter))
    rows = [
        ("reading both PNGs", reading, None, ""),
        ("PSNR and both SSIMs", simple, simple / reading, "of reading; target: at most 2"),
        ("ssim_per_channel", ours := clock(ssim_per_channel), skimage / ours, "times faster than scikit-image"),
        ("scikit-image's SSIM", skimage, None, ""),
        ("ssim_matlab_rgb", ours := clock(ssim_matlab_rgb), volume / ours, "times faster than SciPy's filters"),
        ("volume by SciPy", volume, None, ""),
    ]
    try:
        seconds = clock(lambda restored, _: niqe(restored))
        rows.append(("niqe_live", seconds, 1 / seconds, "images/s a core; target: at least 2"))
    except ValueError as error:
        print(f"niqe_live: not measured, {error}")
    for name, seconds, ratio, what in rows:
        print(f"{name:<22}{seconds * 1e3:>9.1f}" + (f"{ratio:>9.2f} {what}" if ratio else ""))
    return 0


def read(pairs: list[Pair]) -> Images:
    return [(read_rgb(pair.blurred), read_rgb(pair.sharp)) for pair in pairs if pair.sharp]


def volume_ssim(restored: np.ndarray, sharp: np.ndarray, gaussian_filter: Callable[..., np.ndarray]) -> float:
    """MATLAB's SSIM of an H x W x 3 volume, as in its formula."""

    def smooth(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, mode="nearest", radius=5)

    x, y = restored.astype(np.float64), sharp.astype(np.float64)
    mean_x, mean_y = smooth(x), smooth(y)
    variance_x, variance_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(
        np.mean(
            (2 * mean_x * mean_y + c1)
            * (2 * covariance + c2)
            / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
        )
    )


if __name__ == "__main__":
    with readable_errors():
        sys.exit(main())
