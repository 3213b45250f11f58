"""NIQE, the Naturalness Image Quality Evaluator (Mittal, Soundararajan & Bovik, IEEE Signal Processing Letters 2013).

The grey image is cut into blocks of 96 x 96; each gives 36 numbers: the shapes of the distributions of its locally
normalised values and of the products of neighbours, at full and at half size. NIQE is the distance between the Gaussian
fitted to the blocks' numbers and one fitted to pristine photographs, the model. Lower is better.

Two models bear the name, and their scores differ by up to a factor of two, so no score here is called "NIQE" alone:

    niqe_live     the release of the LIVE laboratory, https://live.ece.utexas.edu/research/quality/niqe_release.zip;
                  its parameters are data/niqe_live.npz, under the notice beside them
    niqe_matlab   MATLAB's niqe(), the paper's; its model must be exported from MATLAB (see MATLAB_MODEL). The features
                  are taken to be the release's: MathWorks documents the method, not its every detail

The steps are the release's computequality.m. Where a patch of 7 x 7 pixels is exactly flat, signs of rounding errors
enter, and scores agree with the release's in MATLAB or Octave only to about 1e-3.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from .checks import check_rgb
from .downloads import DownloadError, sha256

LIVE_MODEL = Path(__file__).parent / "data" / "niqe_live.npz"
BLOCK = 96
KEYS = (("mu_prisparam", "cov_prisparam"), ("mu_pris_param", "cov_pris_param"))  # of MATLAB files, and of LIVE_MODEL
MATLAB_MODEL = """MATLAB's model comes with no package. With MATLAB and its Image Processing Toolbox, run
    model = niqeModel;
    mu_prisparam = model.Mean; cov_prisparam = model.Covariance;
    save('niqe_matlab.mat', 'mu_prisparam', 'cov_prisparam', '-v7')
or download https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/niqe_matlab_params.mat
(of a project under a non-commercial licence). niqe_live needs neither."""

# MATLAB's rgb2gray: the first row of the inverse of the matrix from YIQ to RGB.
GREY = np.linalg.inv([[1.0, 0.956, 0.621], [1.0, -0.272, -0.647], [1.0, -1.106, 1.703]])[:1]
# The shape parameters that are tried, and the moment ratio of a distribution with each of them.
SHAPES = 0.2 + 0.001 * np.arange(9801)
RATIOS = np.array([math.gamma(2 / a) ** 2 / (math.gamma(1 / a) * math.gamma(3 / a)) for a in SHAPES])
# By each shape: from the standard deviation to the scale, and the mean of a distribution of scale 1.
SCALES = np.array([math.sqrt(math.gamma(1 / a) / math.gamma(3 / a)) for a in SHAPES])
MEANS = np.array([math.gamma(2 / a) / math.gamma(1 / a) for a in SHAPES])


def niqe(image: np.ndarray, model: str | Path = "live") -> float:
    """NIQE of a uint8 RGB image (H, W, 3); 0 and up, lower is better.

    Args:
        image: no side shorter than 96, and one not shorter than 192.
        model: "live", or the path of a model: a .mat file saved by MATLAB, or an .npz file. See `NIQE`.

    Raises:
        ValueError: another dtype or shape, too small or too flat an image, or a file that is no model.
        DownloadError: the model's file is not there; says how to obtain it.
    """
    check_rgb("image", image)
    mean, covariance = load_model(str(model))
    features = _features(_grey(image))
    complete = features[np.isfinite(features).all(axis=1)]
    if len(complete) < 2:
        raise ValueError(
            f"image: too small or too flat for NIQE: {len(complete)} of its blocks of {BLOCK} x {BLOCK} "
            f"can be used, at least 2 are needed; its size is {image.shape[1]} x {image.shape[0]}"
        )
    # As MATLAB's nanmean and nancov: a number that is missing takes only its whole block out of the covariance.
    offset = mean - np.nanmean(features, axis=0)
    precision = np.linalg.pinv((covariance + np.cov(complete, rowvar=False)) / 2)
    return float(np.sqrt(offset @ precision @ offset))


class NIQE:
    """`niqe` by one model, "live" or a file of MATLAB's.

    Attributes:
        facts: the model's file and checksum, for the scores' record.

    Raises what `niqe` raises for a model.
    """

    def __init__(self, niqe_model: str | Path = "live"):
        self.model = str(niqe_model)
        load_model(self.model)
        path = LIVE_MODEL if self.model == "live" else Path(self.model)
        self.facts = {"model": {"file": path.name, "sha256": sha256(path)}}

    def __call__(self, image: np.ndarray) -> float:
        return niqe(image, self.model)


@cache
def load_model(model: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean (36,) and covariance (36, 36) of pristine blocks; raises as `niqe` does."""
    path = LIVE_MODEL if model == "live" else Path(model)
    if not path.is_file():
        raise DownloadError(f"{path}: the NIQE model is missing.\n{MATLAB_MODEL}")
    values = _read(path)
    for mean, covariance in KEYS:
        if mean in values and covariance in values:
            parameters = np.ravel(values[mean]).astype(np.float64), np.asarray(values[covariance], np.float64)
            if parameters[0].shape == (36,) and parameters[1].shape == (36, 36):
                return parameters
    shapes = {name: np.shape(value) for name, value in values.items() if not name.startswith("__")}
    raise ValueError(
        f"{path}: no model of NIQE: mu_prisparam (1, 36) and cov_prisparam (36, 36) are needed, the file "
        f"holds {shapes}.\n{MATLAB_MODEL}"
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .mat or .npz file by name."""
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return dict(arrays)
        from scipy.io import loadmat  # not among the dependencies of a plain installation

        return loadmat(path)
    except ImportError as error:
        raise DownloadError(f"{path}: reading a .mat file needs SciPy: pip install -e .[metrics]") from error
    except Exception as error:  # both readers raise whatever a damaged file makes them stumble over
        raise ValueError(
            f"{path}: cannot be read as a .mat file (version 7 or older) or an .npz file ({error})"
        ) from error


def _grey(image: np.ndarray) -> np.ndarray:
    """MATLAB's rgb2gray of uint8, rounded half up, as float64 (H, W)."""
    return np.floor(cv2.transform(image.astype(np.float64), GREY) + 0.5)


def _features(grey: np.ndarray) -> np.ndarray:
    """36 numbers of each whole block: (blocks, 36), NaN where a block is too flat for one."""
    rows, columns = grey.shape[0] // BLOCK, grey.shape[1] // BLOCK
    if not rows * columns:
        return np.empty((0, 36))
    full = grey[: rows * BLOCK, : columns * BLOCK]
    scales = []
    for size, image in ((BLOCK, full), (BLOCK // 2, halve(full))):
        blocks = _normalise(image).reshape(rows, size, columns, size).swapaxes(1, 2).reshape(-1, size, size)
        # The values, and each one's product with its left, upper, upper left and upper right neighbour; those of the
        # first row and column are taken from the other end of the block, as MATLAB's circshift does.
        up = np.roll(blocks, 1, axis=1)
        pairs = [np.roll(blocks, 1, axis=2), up, np.roll(up, 1, axis=2), np.roll(up, -1, axis=2)]
        scales += [_shape_of_values(blocks)] + [
            _shape_of_products(np.multiply(blocks, pair, out=pair)) for pair in pairs
        ]
    return np.concatenate(scales, axis=1)


def _normalise(image: np.ndarray) -> np.ndarray:
    """Each value less the mean around it, by the deviation around it: a Gaussian of 7 x 7, sigma 7/6."""
    taps = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    taps /= taps.sum()
    mean, mean_square = (
        cv2.sepFilter2D(values, cv2.CV_64F, taps, taps, borderType=cv2.BORDER_REPLICATE)
        for values in (image, image * image)
    )
    return (image - mean) / (np.sqrt(np.abs(mean_square - mean * mean)) + 1)


def halve(image: np.ndarray) -> np.ndarray:
    """MATLAB's imresize(image, 0.5) of a float64 image (H, W): the bicubic kernel, widened against aliasing, and
    borders mirrored. https://www.mathworks.com/help/images/ref/imresize.html"""
    # Keys' cubic with a = -1/2, at half the distances 0.5, 1.5, 2.5 and 3.5 of the eight pixels around an output pixel.
    near = np.array([0.25, 0.75])
    far = np.array([1.25, 1.75])
    half = np.concatenate([1.5 * near**3 - 2.5 * near**2 + 1, -0.5 * far**3 + 2.5 * far**2 - 4 * far + 2]) / 2
    taps = np.concatenate([half[::-1], half])
    # An even kernel: output pixel j lies between the input's 2j and 2j + 1, and its taps begin at 2j - 3.
    rows = cv2.sepFilter2D(image, cv2.CV_64F, np.ones(1), taps, anchor=(0, 3), borderType=cv2.BORDER_REFLECT)[::2]
    return cv2.sepFilter2D(rows, cv2.CV_64F, taps, np.ones(1), anchor=(3, 0), borderType=cv2.BORDER_REFLECT)[:, ::2]


def _shape_of_values(blocks: np.ndarray) -> np.ndarray:
    """(blocks, 2): shape and mean scale of the distribution of each block's values."""
    shape, left, right = _fit(blocks)
    return np.stack([SHAPES[shape], (left + right) / 2], axis=1)


def _shape_of_products(blocks: np.ndarray) -> np.ndarray:
    """(blocks, 4): shape, mean, left and right scale of the distribution of each block's products."""
    shape, left, right = _fit(blocks)
    return np.stack([SHAPES[shape], (right - left) * MEANS[shape], left, right], axis=1)


def _fit(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Asymmetric generalised Gaussians fitted to each block by its moments: the index into SHAPES
    and the scales left and right of zero, each (blocks,); a scale is NaN where a block has no value on that side."""
    values = blocks.reshape(len(blocks), -1)
    positive, negative = np.maximum(values, 0), np.minimum(values, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        right_squares, left_squares = _dot(positive, positive), _dot(negative, negative)
        right = np.sqrt(right_squares / np.count_nonzero(positive, axis=1))
        left = np.sqrt(left_squares / np.count_nonzero(negative, axis=1))
        ratio = left / right
        magnitude = (positive.sum(axis=1) - negative.sum(axis=1)) / values.shape[1]
        moments = magnitude**2 / ((right_squares + left_squares) / values.shape[1])
        moments *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shape = np.array([np.argmin((RATIOS - moment) ** 2) for moment in moments])
    return shape, left * SCALES[shape], right * SCALES[shape]


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b)
