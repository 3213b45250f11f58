"""FID (Heusel et al., NeurIPS 2017) and KID (Bińkowski et al., ICLR 2018): distances between two sets of images.

Both compare the sets in the 2048 features of Inception-v3. The network and the way images come into it are clean-fid
0.1.35's, its clean mode (Parmar et al., CVPR 2022): full images, squashed to 299 x 299 by Pillow's bicubic filter
without rounding. The mathematics is written here. With features of anything else the numbers are distances, but neither
FID nor KID.

FID falls with the number of images, and below 2049 images the covariances are singular: only equal numbers compare.
KID's estimate is unbiased for independent sets. Restored and sharp images show the same scenes, so it may be slightly
negative: the score of sharp against sharp images tells where zero is.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from .checks import check_rgb
from .downloads import INCEPTION, DownloadError, fetch
from .perceptual import full_precision, network_facts

Extractor = Callable[[torch.Tensor], torch.Tensor]  # (B, 3, 299, 299) float32, 0 to 255 -> (B, D)
BATCH = 32
PATCH = (240, 256)  # rows, columns: three by five of them fill an image of 720 x 1280


class Inception:
    """clean-fid's Inception-v3 as an extractor; 2048 features of each image.

    Attributes:
        facts: what decides the features: the weights' file and sha256, versions, the kind of device.

    Raises:
        DownloadError: the package is not installed or the weights are unavailable.
    """

    def __init__(self, device: str | torch.device = "cpu"):
        module = _cleanfid("inception_torchscript")
        path = fetch(INCEPTION)
        self._network = module.InceptionV3W(str(path.parent), download=False).to(device).eval()
        self.facts = network_facts(
            {
                "file": path.name,
                "sha256": INCEPTION.sha256,
                "package": f"clean-fid {importlib.metadata.version('clean-fid')}",
            },
            device,
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, 299, 299) in 0 to 255 -> (B, 2048)."""
        return self._network(images)


inception = cache(Inception)  # the one network of a device, for FID and KID to share


def _cleanfid(module: str) -> ModuleType:
    """A module of clean-fid, which is not in a plain installation. Raises DownloadError."""
    try:
        return importlib.import_module(f"cleanfid.{module}")
    except ImportError as error:
        raise DownloadError(f"FID and KID need the package clean-fid ({error}): pip install -e .[metrics]") from error


def inception_features(
    paths: Sequence[Path],
    device: str | torch.device = "cpu",
    extractor: Extractor | None = None,
    cut: Callable[[np.ndarray], list[np.ndarray]] | None = None,
    read: Callable[[Path], np.ndarray] | None = None,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Features of image files in their order: (N, 2048) float32, or as many columns as the extractor gives.

    Args:
        paths: one or more files.
        device: where the extractor runs.
        extractor: Inception-v3, unless another is given.
        cut: makes several images of each, as `patches` does; their features follow each other.
        read: gives the uint8 RGB image (H, W, 3) of a file; by default Pillow, which leaves EXIF's orientation aside.
        progress: called after each batch, with its number of files.

    Raises:
        ValueError: an unreadable image, or one that cannot be cut; names the file.
        DownloadError: see Inception.
    """
    extractor = inception(str(device)) if extractor is None else extractor
    to_input = resizer()
    parts = []
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(paths), BATCH):
            files = paths[first : first + BATCH]
            groups = pool.map(lambda path: [to_input(image) for image in _cut_image(path, cut, read or _read)], files)
            inputs = [image for group in groups for image in group]
            parts += [_extract(inputs[k : k + BATCH], device, extractor) for k in range(0, len(inputs), BATCH)]
            if progress:
                progress(len(files))
    return np.concatenate(parts)


def _cut_image(
    path: Path, cut: Callable[[np.ndarray], list[np.ndarray]] | None, read: Callable[[Path], np.ndarray]
) -> list[np.ndarray]:
    """The image that a file holds, or what `cut` makes of it."""
    try:
        return cut(read(path)) if cut else [read(path)]
    except (OSError, ValueError, SyntaxError) as error:  # the last is what Pillow makes of some damaged PNGs
        named = str(error).startswith(str(path))
        raise ValueError(str(error) if named else f"{path}: {error}") from error


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _extract(inputs: list[np.ndarray], device: str | torch.device, extractor: Extractor) -> np.ndarray:
    batch = torch.from_numpy(np.stack(inputs)).permute(0, 3, 1, 2).to(device)
    with torch.inference_mode(), full_precision(batch.device):
        return extractor(batch).float().cpu().numpy()


@cache
def resizer() -> Callable[[np.ndarray], np.ndarray]:
    """clean-fid's own: a uint8 RGB image (H, W, 3) -> (299, 299, 3) float32 in 0 to 255. Raises DownloadError."""
    return _cleanfid("resize").build_resizer("clean")


def patches(image: np.ndarray) -> list[np.ndarray]:
    """The 15 patches of 256 columns and 240 rows that fill an image (720, 1280, 3), row by row.

    The protocol of Whang et al. (CVPR 2022, https://arxiv.org/abs/2112.02475): "15 non-overlapping patches of size
    256 x 240 from each 1280 x 720 image". Of patches of 240 columns and 256 rows, only 10 would fit.

    Raises:
        ValueError: another size.
    """
    check_rgb("image", image)
    if image.shape[:2] != (720, 1280):
        raise ValueError(f"patches are cut from images of 1280 x 720, this one is {image.shape[1]} x {image.shape[0]}")
    return list(rearrange(image, "(r h) (c w) d -> (r c) h w d", h=PATCH[0], w=PATCH[1]))


def frechet_distance(features1: np.ndarray, features2: np.ndarray) -> float:
    """Fréchet distance of Gaussians fitted to two sets of features (N1, D) and (N2, D): Heusel et al., Eq. 6.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), covariances by N - 1. Of factors A and B with C1 = A'A and C2 = B'B,
    the trace of the root is the sum of the singular values of A B'. So no root of a matrix is taken, which is inexact
    where the covariances are singular, as they are for fewer images than features.

    Raises:
        ValueError: features that are not finite, too few, or of different widths.
    """
    features1, features2 = _check(features1, features2)
    offset = features1.mean(axis=0) - features2.mean(axis=0)
    factors = [_factor(features) for features in (features1, features2)]
    root = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    distance = offset @ offset + sum(np.square(factor).sum() for factor in factors) - 2 * root
    return max(0.0, float(distance))  # of equal sets, rounding leaves something on either side of zero


def _factor(features: np.ndarray) -> np.ndarray:
    """A matrix A of at most D rows with A'A the covariance of the features (N, D)."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred


def kernel_distance(
    features1: np.ndarray, features2: np.ndarray, seed: int = 0, num_subsets: int = 100, max_subset_size: int = 1000
) -> float:
    """Squared maximum mean discrepancy of two sets of features (N1, D) and (N2, D): Bińkowski et al.

    The kernel is (x.y / D + 1)^3; the unbiased estimate is averaged over random subsets. They are drawn as clean-fid
    draws them after numpy.random.seed(seed).

    Raises:
        ValueError: features that are not finite, too few, or of different widths.
    """
    features1, features2 = _check(features1, features2)
    size = min(len(features1), len(features2), max_subset_size)
    random = np.random.RandomState(seed)
    total = 0.0
    for _ in range(num_subsets):
        y = features2[random.choice(len(features2), size, replace=False)]
        x = features1[random.choice(len(features1), size, replace=False)]
        within = sum(kernel.sum() - np.trace(kernel) for kernel in (_kernel(x, x), _kernel(y, y)))
        total += within / (size * (size - 1)) - 2 * _kernel(x, y).mean()
    return float(total / num_subsets)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # a power by 3 is many times slower


def _check(features1: np.ndarray, features2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64, or ValueError."""
    sets = tuple(np.asarray(features, np.float64) for features in (features1, features2))
    for features in sets:
        if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
            raise ValueError(f"finite features (N, D) of at least two images are needed, got shape {features.shape}")
    if sets[0].shape[1] != sets[1].shape[1]:
        raise ValueError(f"the features differ in number: {sets[0].shape[1]} and {sets[1].shape[1]}")
    return sets
