"""Looks at a data set before it costs a training run.

    python -m datasets.check datasets/GoPro
    python -m datasets.check BLURRED SHARP

Counts the pairs of each split, compares all sizes, names the data set with the counts expected of it, and measures on a
sample of images: the blurred images' PSNR and brightness, whether blurred and sharp are swapped, and in which light the
frames of the blurred images were averaged, which tells GoPro's `blur` from its `blur_gamma`. Images of GoPro's test
scenes in a train split, by the names of files and folders, links followed, are a problem. Exit status: 0 good, 1
problems found, 2 bad usage.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from .images import ImageError, read_rgb
from .layouts import HIDE_FOLDERS, VARIANT_NAME, AmbiguityError, LayoutError, Pair, find_pairs
from .paired import check_headers

EXPECTED = {"GoPro": {"train": 2103, "test": 1111}, "HIDE": {"test": 2025}, "RealBlur": {"train": 3758, "test": 980}}
# Exponents of the light that frames are averaged in: 1 is GoPro's `blur`, 2.2 its `blur_gamma`. Measured, eight pairs
# at a time: 0.95 to 1.06 on GoPro's own `blur`; on averages of its 240 fps frames 0.6 to 1.2 plain, 1.9 to 2.4 linear.
PLAIN, LINEAR, WITHIN, LARGEST_ERROR = 1.0, 2.2, 0.45, 0.25
# GoPro's test scenes: nothing of them may be trained on.
GOPRO_TEST = (
    "GOPR0384_11_00",
    "GOPR0384_11_05",
    "GOPR0385_11_01",
    "GOPR0396_11_00",
    "GOPR0410_11_00",
    "GOPR0854_11_00",
    "GOPR0862_11_00",
    "GOPR0868_11_00",
    "GOPR0869_11_00",
    "GOPR0871_11_00",
    "GOPR0881_11_01",
)
TILES_ACROSS = 12
LEAST_EXCESS = 5e-4  # Tiles with less blur than this say nothing about the light.
SAME_PSNR = 60.0
NOTABLE_GLOW = 1.5  # 8-bit levels; GoPro's `blur` has less than half a one, REDS 4 to 5


@dataclass(frozen=True)
class Measurement:
    """What a sample of pairs shows.

    psnr: mean PSNR of the blurred images in dB. brightness: mean of the sharp images in 8-bit levels. glow: by how many
    levels the blurred ones are brighter.
    sharpness: gradient energy of the blurred images over that of the sharp ones, the median.
    exponent, error: of the light that frames were averaged in, with its standard error; NaN where nothing shows it.
    """

    psnr: float
    brightness: float
    glow: float
    sharpness: float
    exponent: float
    error: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m datasets.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, nargs="+", help="a data set's folder, or two: blurred and sharp images")
    parser.add_argument("--split", choices=["train", "test"], help="only this split")
    parser.add_argument("--variant", choices=["J", "R"], help="only this one, where RealBlur-J and -R share a folder")
    parser.add_argument("--samples", type=int, default=24, help="pairs to measure in each split (default 24)")
    parser.add_argument("--partial", action="store_true", help="not a whole data set: any number of pairs is right")
    options = parser.parse_args(arguments)
    for folder in options.root:
        if not folder.is_dir():
            parser.error(f"{folder}: no such folder")
    if len(options.root) > 2 or options.samples < 1:
        parser.error("one or two folders and at least one sample are needed")
    source = options.root[0] if len(options.root) == 1 else options.root
    problems = check(source, options.split, options.variant, options.samples, options.partial)
    print(f"{len(problems)} problem(s) found" if problems else "no problems found")
    return 1 if problems else 0


def check(
    source: Path | Sequence[Path], split: str | None, variant: str | None, samples: int, partial: bool = False
) -> list[str]:
    """Reports on all splits and variants that are asked for, or there. Returns the problems."""
    try:
        pairs = find_pairs(source, split, variant=variant)
    except AmbiguityError as error:
        chosen = [{"split": split, "variant": variant, error.what: choice} for choice in error.choices]
        return [problem for choice in chosen for problem in check(source, **choice, samples=samples, partial=partial)]
    except (LayoutError, OSError) as error:
        print(f"PROBLEM {error}")
        return [str(error)]
    name, split = recognise(pairs, split)
    print(
        f"{source if isinstance(source, Path) else ' and '.join(map(str, source))}: "
        f"{name or 'a data set of no known name'}{f'-{variant}' if variant else ''}{f', {split}' if split else ''}"
    )
    problems = _check_counts(pairs, None if partial else name, split) + _check_variant(pairs, variant)
    if split == "train":
        problems += _check_scenes(pairs)
    try:
        check_headers(pairs, progress=sys.stderr.isatty())
        print("  every header is read; blurred and sharp images have equal sizes")
        problems += _check_pixels(pairs, name, samples)
    except (ImageError, LayoutError) as error:
        problems.append(str(error))
    for problem in problems:
        print(f"  PROBLEM {problem}")
    return problems


def recognise(pairs: Sequence[Pair], split: str | None) -> tuple[str | None, str | None]:
    """(data set, split) by the names in the paths of the first pair; None for what they do not tell."""
    parts = pairs[0].blurred.absolute().parts[-6:]
    text = "/".join(parts).lower()
    name = None
    if "realblur" in text:
        name = "RealBlur"
    # HIDE's own files are named such as 1fromGOPR0950.png.
    elif "/hide" in text or "fromgopr" in text or any(folder in parts for folder in HIDE_FOLDERS):
        name = "HIDE"
    elif "gopr" in text:
        name = "GoPro"
    if split is None:
        split = next((part for part in reversed(parts) if part in ("train", "test")), None)
    return name, split


def measure(pairs: Sequence[Pair]) -> Measurement:
    """Measures pairs that have sharp images."""
    psnr, brightness, glow, sharpness, sums = [], [], [], [], []
    for pair in tqdm(pairs, "Measuring", unit="pair", leave=False, disable=None):
        blurred, sharp = (read_rgb(path).astype(np.float32) / 255 for path in (pair.blurred, pair.sharp))
        psnr.append(-10 * math.log10(max(1e-10, float(np.mean((blurred - sharp) ** 2)))))
        brightness.append(255 * float(sharp.mean()))
        glow.append(255 * float(blurred.mean()) - brightness[-1])
        sharpness.append(_gradient_energy(blurred) / max(1e-12, _gradient_energy(sharp)))
        sums.append(_excess_sums(blurred, sharp))
    exponent, error = _light_exponent(np.array(sums))
    return Measurement(
        float(np.mean(psnr)),
        float(np.mean(brightness)),
        float(np.mean(glow)),
        float(np.median(sharpness)),
        exponent,
        error,
    )


def _check_counts(pairs: Sequence[Pair], name: str | None, split: str | None) -> list[str]:
    alone = sum(pair.sharp is None for pair in pairs)
    count = f"{len(pairs)} blurred images without sharp ones" if alone else f"{len(pairs)} pairs"
    expected = EXPECTED.get(name, {}).get(split)
    if expected is None:
        known = {number: f"{other} {part}" for other, parts in EXPECTED.items() for part, number in parts.items()}
        print(f"  {count}" + (f", as many as {known[len(pairs)]} has" if len(pairs) in known else ""))
        return []
    print(f"  {count}, {expected} expected")
    return [] if len(pairs) == expected else [f"{name} {split} has {expected} pairs, {len(pairs)} are found"]


def _check_scenes(pairs: Sequence[Pair]) -> list[str]:
    """Images of GoPro's test scenes among those to train on."""
    files = [file for pair in pairs for file in (pair.blurred, pair.sharp) if file is not None]
    found = [(file, scene) for file in files for scene in GOPRO_TEST if scene in f"{file} {file.resolve()}"]
    return [f"{file}: of GoPro's test scene {scene}, which must not be trained on" for file, scene in found]


def _check_variant(pairs: Sequence[Pair], variant: str | None) -> list[str]:
    """RealBlur-J or -R by name. Pixels are not asked: no statistic has been tried on the two real data sets."""
    named = {match[1] for part in pairs[0].blurred.absolute().parts if (match := VARIANT_NAME.match(part))}
    if not named and variant is None:
        return []
    if variant:
        named.add(variant)
    print(f"  by the names of its files RealBlur-{' and -'.join(sorted(named))}; cannot tell from the pixels")
    if len(named) > 1:
        return [f"{pairs[0].blurred}: RealBlur-J and RealBlur-R are mixed up in its path and list"]
    return []


def _check_pixels(pairs: Sequence[Pair], name: str | None, samples: int) -> list[str]:
    """Measures an evenly spaced sample and judges it."""
    whole = [pair for pair in pairs if pair.sharp is not None]
    if not whole:
        return []
    sample = [whole[int(place)] for place in np.linspace(0, len(whole) - 1, min(samples, len(whole)))]
    found = measure(sample)
    print(
        f"  of {len(sample)} pairs: blurred images have {found.psnr:.2f} dB PSNR, "
        f"sharp ones a mean of {found.brightness:.0f} of 255"
    )
    if found.psnr > SAME_PSNR:
        return ["blurred and sharp images are the same"]
    if found.sharpness > 1:
        return [f"the blurred images have {found.sharpness:.2f} x the sharp ones' gradient energy: are they swapped?"]
    if abs(found.glow) > NOTABLE_GLOW:
        print(
            f"  the blurred ones are {abs(found.glow):.1f} levels {'brighter' if found.glow > 0 else 'darker'}: "
            "a network trained on these learns to change the brightness of others too"
        )
    if name == "RealBlur":
        return []  # Photographed, not averaged.
    light = _light_name(found)
    print(
        f"  frames averaged as value ** {found.exponent:.2f} +- {found.error:.2f} "
        f"(1: blur, 2.2: blur_gamma): {light or 'cannot tell'}"
    )
    return ["these are GoPro's blur_gamma; the standard is blur"] if name == "GoPro" and light == "blur_gamma" else []


def _light_name(found: Measurement) -> str | None:
    """`blur`, `blur_gamma`, or None where the measurement does not decide."""
    if not found.error < LARGEST_ERROR:
        return None
    names = {"blur": PLAIN, "blur_gamma": LINEAR}
    return next((name for name, exponent in names.items() if abs(found.exponent - exponent) < WITHIN), None)


# In which light were frames averaged? The mean of x_1 … x_n as value ** p exceeds the plain mean by about
# (p - 1) / 2 * variance / mean (second-order expansion of the power mean). Over a tile larger than the blur, the plain
# mean of the frames is that of the sharp image, and the variance is what the blurred tile lost: mean(sharp^2) -
# mean(blurred^2) for a plain average, corrected for the change of the mean. So p - 1 is the slope of
# mean(blurred) - mean(sharp) against that.


def _excess_sums(blurred: np.ndarray, sharp: np.ndarray) -> tuple[float, float]:
    """Sums over tiles and channels of excess * expected and expected^2, whose ratio is the slope p - 1."""
    short = min(sharp.shape[:2])
    tile = min(short, max(8, short // TILES_ACROSS))
    mean_b, mean_s, square_b, square_s = (_tile_means(x, tile) for x in (blurred, sharp, blurred**2, sharp**2))
    variance = square_s - mean_s**2 - (square_b - mean_b**2)
    expected = variance / (2 * np.maximum(mean_s, 0.05))
    excess = mean_b - mean_s
    used = expected > LEAST_EXCESS
    return float((excess * expected)[used].sum()), float((expected**2)[used].sum())


def _light_exponent(sums: np.ndarray) -> tuple[float, float]:
    """The pooled exponent and its standard error by leaving one image out at a time: (N, 2) -> two numbers."""
    total = sums.sum(axis=0)
    if len(sums) < 3 or not np.all(total[1] - sums[:, 1] > 0):
        return math.nan, math.nan
    left_out = (total[0] - sums[:, 0]) / (total[1] - sums[:, 1])
    error = math.sqrt((len(sums) - 1) / len(sums) * np.sum((left_out - left_out.mean()) ** 2))
    return 1 + total[0] / total[1], error


def _tile_means(image: np.ndarray, tile: int) -> np.ndarray:
    rows, columns = image.shape[0] // tile, image.shape[1] // tile
    return cv2.resize(image[: rows * tile, : columns * tile], (columns, rows), interpolation=cv2.INTER_AREA)


def _gradient_energy(image: np.ndarray) -> float:
    grey = image.mean(axis=2)
    return float(np.mean(np.diff(grey, axis=0) ** 2) + np.mean(np.diff(grey, axis=1) ** 2))


if __name__ == "__main__":
    sys.exit(main())
