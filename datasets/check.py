"""Checks a data set before training on it.

    python -m datasets.check datasets/GoPro
    python -m datasets.check BLURRED SHARP

Counts the pairs of each split, compares the sizes of all images, recognises known data sets and the number of pairs
they should have, looks for test scenes of known data sets in a train split by the names of files and folders (links
are followed), and measures a sample of images: PSNR and brightness of the blurred images, whether blurred and sharp are
swapped, and the gamma with which frames were averaged, which tells GoPro's `blur` from its `blur_gamma`. Exit status: 0
no problems, 1 problems found, 2 bad usage.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .catalogue import DATA_SETS, DataSet
from .headers import check_headers
from .images import ImageError, read_rgb, reduced
from .layouts import VARIANT_NAME, AmbiguityError, LayoutError, Pair, find_pairs

# Exponent with which frames were averaged: 1 for GoPro's `blur`, 2.2 for its `blur_gamma`. Measured on eight pairs at a
# time: 0.95 to 1.06 for GoPro's `blur`; for averages of its 240 fps frames, 0.6 to 1.2 without gamma, 1.9 to 2.4 with.
PLAIN, LINEAR, WITHIN, LARGEST_ERROR = 1.0, 2.2, 0.45, 0.25
TILES_ACROSS = 12
LEAST_EXCESS = 5e-4  # tiles with less blur say nothing about the exponent
SAME_PSNR = 60.0
NOTABLE_GAP = 1.5  # 8-bit levels; below 0.5 for GoPro's `blur`, 4 to 5 for REDS


@dataclass(frozen=True)
class Measurement:
    """Measured on a sample of pairs."""

    psnr: float  # of the blurred images, mean in dB
    brightness: float  # of the sharp images, mean in 8-bit levels
    brightness_gap: float  # by how many levels the blurred images are brighter, mean
    sharpness: float  # gradient energy of the blurred image over that of the sharp one, median
    exponent: float  # with which frames were averaged; NaN if it cannot be determined
    error: float  # its standard error


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m datasets.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, nargs="+", help="a data set, or two folders: blurred and sharp images")
    parser.add_argument("--split", choices=["train", "test"], help="only this split")
    parser.add_argument("--variant", choices=["J", "R"], help="only this one, if RealBlur-J and -R share a folder")
    parser.add_argument("--samples", type=int, default=24, help="pairs to measure in each split (default %(default)s)")
    parser.add_argument("--partial", action="store_true", help="a part or a mixture of data sets: any number of pairs")
    options = parser.parse_args(arguments)
    for folder in options.root:
        if not folder.is_dir():
            parser.error(f"{folder}: no such folder")
    if len(options.root) > 2 or options.samples < 1:
        parser.error("expected one or two folders, and --samples of at least 1")
    source = options.root[0] if len(options.root) == 1 else options.root
    problems = check(source, options.split, options.variant, options.samples, options.partial)
    print(f"{len(problems)} problem(s) found" if problems else "no problems found")
    return 1 if problems else 0


def check(
    source: Path | Sequence[Path], split: str | None, variant: str | None, samples: int, partial: bool = False
) -> list[str]:
    """Print a report on the given split and variant, or on all that exist. Returns the problems."""
    try:
        pairs = find_pairs(source, split, variant=variant)
    except AmbiguityError as error:
        chosen = [{"split": split, "variant": variant, error.what: choice} for choice in error.choices]
        return [problem for choice in chosen for problem in check(source, **choice, samples=samples, partial=partial)]
    except (LayoutError, OSError) as error:
        print(f"PROBLEM {error}")
        return [str(error)]
    data_set, split = recognise(pairs, split)
    name = data_set.name if data_set else "an unknown data set"
    print(
        f"{source if isinstance(source, Path) else ' and '.join(map(str, source))}: "
        f"{name}{f'-{variant}' if variant else ''}{f', {split}' if split else ''}"
    )
    problems = _check_counts(pairs, None if partial else data_set, split) + _check_variant(pairs, variant)
    if split == "train":
        problems += _check_scenes(pairs)
        if alone := sum(pair.sharp is None for pair in pairs):
            problems.append(f"{alone} of {len(pairs)} images to train on have no sharp image")
    try:
        check_headers(pairs, progress=sys.stderr.isatty())
        print("  all headers can be read; blurred and sharp images have equal sizes")
        problems += _check_pixels(pairs, data_set, samples)
    except (ImageError, LayoutError) as error:
        problems.append(str(error))
    for problem in problems:
        print(f"  PROBLEM {problem}")
    return problems


def recognise(pairs: Sequence[Pair], split: str | None) -> tuple[DataSet | None, str | None]:
    """(data set, split), recognised by the path of the first pair; None for what is unknown.

    RealBlur-J stands for both variants, which have equally many pairs.
    """
    parts = pairs[0].blurred.absolute().parts[-6:]
    text = "/" + "/".join(parts).lower()
    data_set = max(DATA_SETS.values(), key=lambda one: one.match(text))
    if split is None:
        split = next((part for part in reversed(parts) if part in ("train", "test")), None)
    return data_set if data_set.match(text) else None, split


def measure(pairs: Sequence[Pair]) -> Measurement:
    """Measure pairs that have sharp images."""
    psnr, brightness, gaps, sharpness, sums = [], [], [], [], []
    for pair in tqdm(pairs, "Measuring", unit="pair", leave=False, disable=None):
        blurred, sharp = (read_rgb(path).astype(np.float32) / 255 for path in (pair.blurred, pair.sharp) if path)
        psnr.append(-10 * math.log10(max(1e-10, float(np.mean((blurred - sharp) ** 2)))))
        brightness.append(255 * float(sharp.mean()))
        gaps.append(255 * float(blurred.mean()) - brightness[-1])
        sharpness.append(_gradient_energy(blurred) / max(1e-12, _gradient_energy(sharp)))
        sums.append(_excess_sums(blurred, sharp))
    exponent, error = _average_exponent(np.array(sums))
    return Measurement(
        float(np.mean(psnr)),
        float(np.mean(brightness)),
        float(np.mean(gaps)),
        float(np.median(sharpness)),
        exponent,
        error,
    )


def _check_counts(pairs: Sequence[Pair], data_set: DataSet | None, split: str | None) -> list[str]:
    alone = sum(pair.sharp is None for pair in pairs)
    count = f"{len(pairs)} blurred images without sharp ones" if alone else f"{len(pairs)} pairs"
    expected = data_set.pairs.get(split) if data_set and split else None
    if data_set is None or expected is None:
        known = {number: f"{one.name} {part}" for one in DATA_SETS.values() for part, number in one.pairs.items()}
        print(f"  {count}" + (f", the number in {known[len(pairs)]}" if len(pairs) in known else ""))
        return []
    print(f"  {count}, {expected} expected")
    if len(pairs) == expected:
        return []
    return [f"{data_set.name} {split} has {expected} pairs, but {len(pairs)} were found"]


def _check_scenes(pairs: Sequence[Pair]) -> list[str]:
    """Test scenes of known data sets among images to train on; one problem for each scene."""
    files = [file for pair in pairs for file in (pair.blurred, pair.sharp) if file is not None]
    paths = [f"{file} {file.resolve()}" for file in files]
    problems = []
    for name, scene in ((one.name, scene) for one in DATA_SETS.values() for scene in one.test_scenes):
        found = [file for file, path in zip(files, paths, strict=True) if scene in path]
        if found:
            problems.append(f"{found[0]}: {name}'s test scene {scene} must not be trained on (images: {len(found)})")
    return problems


def _check_variant(pairs: Sequence[Pair], variant: str | None) -> list[str]:
    """RealBlur-J or -R, by name alone: no statistic of the pixels has been tried on the real data sets."""
    named = {match[1] for part in pairs[0].blurred.absolute().parts if (match := VARIANT_NAME.match(part))}
    if not named and variant is None:
        return []
    if variant:
        named.add(variant)
    print(f"  RealBlur-{' and -'.join(sorted(named))} by the names of its files; pixels are not checked for this")
    if len(named) > 1:
        return [f"{pairs[0].blurred}: its path and list name both RealBlur-J and RealBlur-R"]
    return []


def _check_pixels(pairs: Sequence[Pair], data_set: DataSet | None, samples: int) -> list[str]:
    """Measure an evenly spaced sample of the pairs. Returns the problems."""
    with_sharp = [pair for pair in pairs if pair.sharp is not None]
    if not with_sharp:
        return []
    places = np.linspace(0, len(with_sharp) - 1, min(samples, len(with_sharp)))
    sample = [with_sharp[int(place)] for place in places]
    found = measure(sample)
    print(
        f"  {len(sample)} pairs measured: PSNR of the blurred images {found.psnr:.2f} dB, "
        f"mean of the sharp ones {found.brightness:.0f} of 255"
    )
    if found.psnr > SAME_PSNR:
        return ["blurred and sharp images are the same"]
    if found.sharpness > 1:
        return [f"gradient energy of blurred over sharp images is {found.sharpness:.2f}: they may be swapped"]
    if abs(gap := found.brightness_gap) > NOTABLE_GAP:
        print(
            f"  blurred images are {abs(gap):.1f} levels {'brighter' if gap > 0 else 'darker'} than "
            "sharp ones: a network trained on them learns to change the brightness of other images"
        )
    if data_set and data_set.photographed:
        return []
    kind = _kind_of_average(found)
    print(
        f"  frames averaged as value ** {found.exponent:.2f} +- {found.error:.2f} "
        f"(1: blur, 2.2: blur_gamma): {kind or 'undetermined'}"
    )
    if data_set and data_set.has_gamma and kind == "blur_gamma":
        return [f"these are {data_set.name}'s blur_gamma; the standard is blur"]
    return []


def _kind_of_average(found: Measurement) -> str | None:
    """``blur``, ``blur_gamma``, or None if the measurement does not decide."""
    if not found.error < LARGEST_ERROR:
        return None
    names = {"blur": PLAIN, "blur_gamma": LINEAR}
    return next((name for name, exponent in names.items() if abs(found.exponent - exponent) < WITHIN), None)


# The exponent p of the average: the mean of x_1 … x_n as value ** p exceeds the plain mean by about
# (p - 1) / 2 * variance / mean (second-order expansion of the power mean). Over a tile larger than the blur, the plain
# mean of the frames equals that of the sharp image, and the variance is what the blurred tile has lost:
# mean(sharp^2) - mean(blurred^2) for a plain average, corrected for the change of the mean. So p - 1 is the slope of
# mean(blurred) - mean(sharp) against (variance / mean) / 2.


def _excess_sums(blurred: np.ndarray, sharp: np.ndarray) -> tuple[float, float]:
    """Sums over tiles and channels of excess * expected and of expected^2; their ratio is the slope p - 1."""
    short = min(sharp.shape[:2])
    tile = min(short, max(8, short // TILES_ACROSS))
    mean_b, mean_s, square_b, square_s = (reduced(x, tile) for x in (blurred, sharp, blurred**2, sharp**2))
    variance = square_s - mean_s**2 - (square_b - mean_b**2)
    expected = variance / (2 * np.maximum(mean_s, 0.05))
    excess = mean_b - mean_s
    used = expected > LEAST_EXCESS
    return float((excess * expected)[used].sum()), float((expected**2)[used].sum())


def _average_exponent(sums: np.ndarray) -> tuple[float, float]:
    """(pooled exponent, its jackknife standard error) from the sums of N images (N, 2)."""
    total = sums.sum(axis=0)
    if len(sums) < 3 or not np.all(total[1] - sums[:, 1] > 0):
        return math.nan, math.nan
    left_out = (total[0] - sums[:, 0]) / (total[1] - sums[:, 1])
    error = math.sqrt((len(sums) - 1) / len(sums) * np.sum((left_out - left_out.mean()) ** 2))
    return 1 + total[0] / total[1], error


def _gradient_energy(image: np.ndarray) -> float:
    grey = image.mean(axis=2)
    return float(np.mean(np.diff(grey, axis=0) ** 2) + np.mean(np.diff(grey, axis=1) ** 2))


if __name__ == "__main__":
    sys.exit(main())
