"""Other degradations than blur, computed from sharp images: Gaussian noise, JPEG artefacts, super-resolution.

    python -m datasets.degradation PHOTOS OUT --degradation noise:25     a test set: OUT/test/{blur,sharp}/*.png
    python -m datasets.degradation PHOTOS OUT --degradation jpeg:10-40
    python -m datasets.degradation PHOTOS OUT --degradation sr:4

noise:SIGMA    white Gaussian noise with that standard deviation in 8-bit levels, rounded and clipped to 0..255 as in an
               image file, hence one-sided at black and white. Papers that keep noisy values as unclipped floats measure
               a slightly different task.
jpeg:QUALITY   libjpeg's quality with 4:2:0 chroma subsampling, by OpenCV. The grid of 8 x 8 blocks starts at the corner
               of the crop, as in a file.
sr:FACTOR      downsampled by FACTOR, then upsampled to the original size, both with Pillow's bicubic. It antialiases
               with the kernel of MATLAB's imresize (a = -0.5, stretched), but truncates it at the border, where MATLAB
               mirrors the image. The network's input is the upsampled 8-bit image.

noise:15-50 and jpeg:10-40 draw a level for each image, uniformly. The folder of degraded images is called `blur`, as in
deblurring data sets, so that the predict scripts find it. Validation during training uses the images of seed 0. OUT
appears when it is complete.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from .folder import new_folder, thread_pool
from .images import ImageError, read_rgb, write_png
from .layouts import (
    SHARP_NAMES,
    SPLITS,
    AmbiguityError,
    LayoutError,
    Pair,
    existing_folder,
    find_pairs,
    image_names,
    list_images,
)

BOUNDS = {"noise": (1, 255), "jpeg": (1, 100), "sr": (2, 8)}
WRITTEN = re.compile(rf"({'|'.join(BOUNDS)}):([0-9]{{1,3}})(?:-([0-9]{{1,3}}))?")
FORMS = (
    "must be noise:SIGMA (1 to 255) or jpeg:QUALITY (1 to 100), each also as a range such as noise:15-50, "
    "or sr:FACTOR (2 to 8)"
)


@dataclass(frozen=True)
class Degradation:
    """Computes degraded images from sharp ones. Images are uint8 (H, W, 3) RGB."""

    kind: str  # a key of BOUNDS
    low: int  # range of the level (sigma or quality); the factor of super-resolution
    high: int

    @property
    def multiple(self) -> int:
        """Height and width of an image must be multiples of this."""
        return self.low if self.kind == "sr" else 1

    def __call__(self, sharp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The degraded image, of the same size. All randomness comes from the generator.

        Raises:
            ValueError: the size is not a multiple of the factor of super-resolution.
        """
        if any(side % self.multiple for side in sharp.shape[:2]):
            raise ValueError(f"{sharp.shape[1]}x{sharp.shape[0]} pixels are not a multiple of {self.multiple}")
        if self.kind == "noise":
            return _noisy(sharp, rng.uniform(self.low, self.high), rng)
        if self.kind == "jpeg":
            return _compressed(sharp, int(rng.integers(self.low, self.high, endpoint=True)))
        return _downsampled(sharp, self.low)

    def whole(self, sharp: np.ndarray, index: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(degraded, sharp) of a full image, reproducible for an index in the data set and a seed.

        Both are cropped at the bottom and right to a multiple of the factor.

        Raises:
            ValueError: the image is smaller than the factor.
        """
        height, width = (side // self.multiple * self.multiple for side in sharp.shape[:2])
        if not height or not width:
            raise ValueError(f"{sharp.shape[1]}x{sharp.shape[0]} pixels cannot be downsampled by {self.multiple}")
        sharp = sharp[:height, :width]
        return self(sharp, np.random.default_rng([seed, index])), sharp


def parse_degradation(text: str) -> Degradation:
    """Parse noise:25, noise:15-50, jpeg:40, jpeg:10-40 or sr:4.

    Raises:
        ValueError: anything else; the message gives the valid forms.
    """
    match = WRITTEN.fullmatch(text)
    if match:
        kind, low, high = match[1], int(match[2]), int(match[3] or match[2])
        least, most = BOUNDS[kind]
        if least <= low <= high <= most and not (kind == "sr" and match[3]):
            return Degradation(kind, low, high)
    raise ValueError(FORMS)


def sharp_pairs(folder: str | os.PathLike, split: str | None = None) -> list[Pair]:
    """The sharp images of a data set of pairs, or every image below a plain folder, sorted; each pair holds one twice.

    Args:
        split: see ``find_pairs``.

    Raises:
        LayoutError: the folder is missing, has no images, or has images beside folders of sharp ones.
        AmbiguityError: the folder contains both train and test.
    """
    root = existing_folder(folder)
    try:
        found = find_pairs(root, split, need_sharp=True)
        return [Pair(pair.name, pair.sharp, pair.sharp) for pair in found if pair.sharp]
    except AmbiguityError:
        raise
    except LayoutError:
        pass  # no pairs
    if all((root / name).is_dir() for name in SPLITS):
        if split is None:
            raise AmbiguityError(root, "split", list(SPLITS))
        root /= split
    paths = list_images(root)
    if not paths:
        raise LayoutError(f"{root}: no images found")
    others = [path for path in paths if not any(part.lower() in SHARP_NAMES for part in path.split("/")[:-1])]
    if 0 < len(others) < len(paths):
        raise LayoutError(
            f"{root}: contains folders of sharp images and {len(others)} images outside of them, such as "
            f"{others[0]}; give a folder that contains sharp images only"
        )
    return [Pair(name, root / path, root / path) for name, path in zip(image_names(paths), paths, strict=True)]


def degrade_folder(
    source: str | os.PathLike,
    out: str | os.PathLike,
    degradation: Degradation,
    *,
    split: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> int:
    """Write a test set of full images, out/test/{blur,sharp}/<name>.png.

    Args:
        source: a plain folder of sharp images, or a data set of pairs, whose sharp images are taken.
        out: a folder that does not exist or is empty.
        degradation: as returned by ``parse_degradation``.
        split: "train" or "test" of a data set.
        seed: of noise and levels.
        workers: threads, None for one per core; the result does not depend on it.
        progress: show a progress bar.
    Returns:
        The number of pairs.
    Raises:
        LayoutError, ImageError: images that cannot be used.
        FileExistsError: ``out`` is not empty.
    """
    pairs = sharp_pairs(source, split)

    def make(index: int) -> None:
        sharp = read_rgb(pairs[index].blurred)  # the sharp image, see sharp_pairs
        try:
            images = degradation.whole(sharp, index, seed)
        except ValueError as error:
            raise ImageError(f"{pairs[index].blurred}: {error}") from error
        for kind, image in zip(("blur", "sharp"), images, strict=True):
            write_png(folder / "test" / kind / f"{pairs[index].name}.png", image)

    with new_folder(Path(out)) as folder, thread_pool(workers) as pool:
        made = pool.map(make, range(len(pairs)))
        return len(list(tqdm(made, "Degrading images", len(pairs), unit="image", disable=not progress)))


def _noisy(sharp: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    noise = sigma * rng.standard_normal(sharp.shape, dtype=np.float32)
    return np.clip(np.rint(sharp + noise), 0, 255).astype(np.uint8)


def _compressed(sharp: np.ndarray, quality: int) -> np.ndarray:
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]
    # A crop may be a view with negative strides, which OpenCV does not accept.
    data = cv2.imencode(".jpg", cv2.cvtColor(np.ascontiguousarray(sharp), cv2.COLOR_RGB2BGR), options)[1]
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _downsampled(sharp: np.ndarray, factor: int) -> np.ndarray:
    height, width = sharp.shape[:2]
    small = Image.fromarray(sharp).resize((width // factor, height // factor), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 if the images cannot be used."""
    parser = argparse.ArgumentParser(
        "python -m datasets.degradation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder of sharp images, or data set of pairs")
    parser.add_argument("out", type=Path, help="output folder; must not exist or be empty")
    parser.add_argument("--degradation", required=True, help="noise:25, jpeg:10-40, sr:4, …; see above")
    parser.add_argument("--split", choices=SPLITS, help="of a data set that has both")
    parser.add_argument("--seed", type=int, default=0, help="of noise and levels (default 0)")
    parser.add_argument("--workers", type=int, help="threads (default: one per core)")
    options = vars(parser.parse_args(arguments))
    try:
        options["degradation"] = parse_degradation(options["degradation"])
    except ValueError as error:
        parser.error(f"--degradation: {error}, got {options['degradation']!r}")
    if options["seed"] < 0:
        parser.error(f"--seed: must not be negative, got {options['seed']}")
    try:
        count = degrade_folder(**options, progress=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options['out']}: {count} pairs for test")
    return 0


if __name__ == "__main__":
    sys.exit(main())
