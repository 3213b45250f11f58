"""Several methods' outputs of one image, the same crops of each enlarged side by side (paper, Fig. 5).

    python -m analysis.compare GOPR0384_11_00/000001 --blurred datasets/GoPro/test \\
        --methods stage1=results/J1/images stage2=results/J2/images
    python -m analysis.compare photo --blurred photos --methods ours=restored --crop 120 300 64 96 --crop 40 20 64 96

On the left the full image with the crops' frames, then a column each for blurred, every method and sharp. Crops lie
where the methods differ most, unless given. Images are paired by name, as evaluate.py does. PSNR is that of the whole
image, without RealBlur's alignment.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from analysis.figure import COLOURS, add_output_flag, check_name, save_pixels
from analysis.inputs import InputError, check_unique, named_path
from datasets.images import IMAGE_SUFFIXES, read_rgb
from datasets.layouts import Pair, find_pairs
from engine.evaluate.pairing import find_samples, listed, words

CROP = (64, 96)  # height and width where none is given, in the image's pixels; at most half the image's
TILE, FULL_HEIGHT = 288, 384  # pixels: no column of crops is wider unless one alone is; the full image is no lower
GAP, FRAME, FONT, LINE = 10, 4, 24, 32
BLURRED, SHARP = "blurred", "sharp"


class Crop(NamedTuple):
    """A rectangle of an image, in its pixels."""

    y: int
    x: int
    height: int
    width: int

    def of(self, image: np.ndarray) -> np.ndarray:
        return image[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True)
class Panel:
    """What one column shows. image: uint8 RGB (H, W, 3); psnr: in dB over all of it, None without a sharp image."""

    label: str
    image: np.ndarray
    psnr: float | None = None

    def caption(self) -> str:
        if self.psnr is None:
            return self.label
        return f"{self.label}\n" + (f"{self.psnr:.2f} dB" if math.isfinite(self.psnr) else "equals sharp")


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    from engine.console import readable_errors  # only here: --help needs no PyTorch

    with readable_errors():
        check_name(arguments.output)
        truth = [arguments.blurred, *([arguments.sharp] if arguments.sharp else [])]
        pair = find_pair(arguments.image, truth)
        panels = read_panels(pair, {BLURRED: pair.blurred, **find_outputs(pair, truth, arguments.methods)})
        crops = [Crop(*crop) for crop in arguments.crop] or choose_crops(panels, arguments.crops)
        _check_crops(crops, panels[0].image, pair.blurred)
        save_pixels(np.asarray(draw(pair.name, panels, crops)), arguments.output)
    if not arguments.crop and len(crops) < arguments.crops:
        print(f"no room for more than {len(crops)} crops that do not overlap", file=sys.stderr)
    print(" ".join(f"--crop {crop.y} {crop.x} {crop.height} {crop.width}" for crop in crops))
    print(f"picture: {arguments.output}")
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", metavar="IMAGE", help="its name in the data set, or the end of it: scene/000001")
    parser.add_argument(
        "--methods",
        required=True,
        nargs="+",
        type=named_path("FOLDER", "ours=results/J/images"),
        metavar="NAME=FOLDER",
        help="the methods' restored images, in the order of the columns",
    )
    parser.add_argument(
        "--blurred",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="blurred images, or a data set's test split in any layout, whose sharp images are found",
    )
    parser.add_argument("--sharp", type=Path, metavar="FOLDER", help="sharp images, where BLURRED holds none")
    crops = parser.add_mutually_exclusive_group()
    crops.add_argument(
        "--crop",
        nargs=4,
        type=int,
        action="append",
        default=[],
        metavar=("Y", "X", "H", "W"),
        help="upper left corner and size in pixels; once for each crop",
    )
    crops.add_argument(
        "--crops",
        type=int,
        default=2,
        metavar="N",
        help="how many to choose where the methods differ most (default %(default)s); for a single "
        "method, where blurred and sharp do",
    )
    add_output_flag(parser, "comparison.png")
    arguments = parser.parse_args(argv)
    if arguments.crops < 1:
        parser.error("--crops: at least one")
    labels = [BLURRED, SHARP, *(label for label, _ in arguments.methods)]
    check_unique(parser, "--methods", labels)
    return arguments


# The images


def find_pair(image: str, truth: list[Path]) -> Pair:
    """The pair of the data set that `image` names, wholly or by its end.

    truth: a data set or its test split, or two folders, blurred and sharp.
    Raises:
        InputError: no name fits or several do.
        LayoutError: the folders cannot be read, see ``find_pairs``.
    """
    pairs = find_pairs(truth) if len(truth) == 2 else find_pairs(truth[0], "test")
    stem, dot, suffix = image.rpartition(".")
    wanted = words(stem if dot + suffix.lower() in IMAGE_SUFFIXES else image)
    fitting = [pair for pair in pairs if words(pair.name) == wanted] or [
        pair for pair in pairs if words(pair.name)[-len(wanted) :] == wanted
    ]
    if not fitting:
        raise InputError(f"{truth[0]}: has no image called {image}; it has{listed([pair.name for pair in pairs])}")
    if len(fitting) > 1:
        raise InputError(
            f"{truth[0]}: {image} may be any of these; name one in full:{listed([pair.name for pair in fitting])}"
        )
    return fitting[0]


def find_outputs(pair: Pair, truth: list[Path], methods: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """Each method's output of the pair, by label.

    Raises:
        InputError: a folder without it or with a damaged one.
        LayoutError: a folder that is missing, empty or ambiguously named.
    """
    found = {}
    for label, folder in methods:
        pairing = find_samples(folder, truth, None, sharp_needed=False)
        if pair.name in pairing.missing:
            raise InputError(
                f"{folder}: has no image called {pair.name}; restore it with {label}, or leave {label} out"
            )
        outputs = {sample.name: sample.restored for sample in pairing.samples}
        if pair.name not in outputs:
            raise InputError(
                f"{folder}: {pair.name} cannot be compared; restore it again, at its own size, or leave "
                f"{label} out:{listed(pairing.wrong_shape)}"
            )
        found[label] = outputs[pair.name]
    return found


def read_panels(pair: Pair, shown: dict[str, Path]) -> list[Panel]:
    """The columns from left to right: what is `shown`, by label, then the sharp image where there is one.

    Raises:
        InputError: images of several sizes.
        ImageError: damaged ones.
    """
    from metrics.psnr import psnr  # only here: --help needs no PyTorch

    paths = shown | ({SHARP: pair.sharp} if pair.sharp else {})
    images = {label: read_rgb(path) for label, path in paths.items()}
    height, width = images[BLURRED].shape[:2]
    for label, image in images.items():
        if image.shape[:2] != (height, width):
            raise InputError(
                f"{paths[label]} is {image.shape[1]} x {image.shape[0]} pixels, but {pair.blurred} is "
                f"{width} x {height}; images are compared at one size: restore the full image at its "
                "own size, or leave it out"
            )
    sharp = images.get(SHARP)
    return [
        Panel(label, image, None if sharp is None or label == SHARP else psnr(image, sharp))
        for label, image in images.items()
    ]


# The crops


def choose_crops(panels: Sequence[Panel], count: int) -> list[Crop]:
    """Up to `count` crops where the methods' variance is largest, or, with one method, where blurred and sharp differ.

    The largest first; they do not overlap, so fewer fit a small image. Without a sharp image, a single method is held
    against the blurred one.
    """
    methods = [panel.image for panel in panels if panel.label not in (BLURRED, SHARP)]
    return most_different(methods if len(methods) > 1 else [panels[0].image, panels[-1].image], count)


def most_different(images: Sequence[np.ndarray], count: int) -> list[Crop]:
    """Greedily, the windows of CROP's size with the largest variance over `images`, uint8 RGB (H, W, 3)."""
    variance = np.stack(images).astype(np.float32).var(axis=0).mean(axis=2)
    height, width = (max(1, min(size, side // 2)) for size, side in zip(CROP, variance.shape, strict=True))
    table = cv2.integral(variance, sdepth=cv2.CV_64F)
    sums = table[height:, width:] - table[:-height, width:] - table[height:, :-width] + table[:-height, :-width]
    crops: list[Crop] = []
    while len(crops) < count and np.isfinite(sums.max()):
        y, x = (int(k) for k in np.unravel_index(np.argmax(sums), sums.shape))
        crops.append(Crop(y, x, height, width))
        sums[max(0, y - height + 1) : y + height, max(0, x - width + 1) : x + width] = -np.inf  # would overlap
    return crops


def _check_crops(crops: Sequence[Crop], image: np.ndarray, path: Path) -> None:
    height, width = image.shape[:2]
    for crop in crops:
        if (
            min(crop.y, crop.x) < 0
            or min(crop.height, crop.width) < 1
            or crop.y + crop.height > height
            or crop.x + crop.width > width
        ):
            raise InputError(
                f"--crop {' '.join(map(str, crop))} does not lie inside {path}, which is {height} high "
                f"and {width} wide: Y + H is at most {height}, X + W at most {width}, H and W at least "
                "1"
            )


# The picture


def draw(name: str, panels: Sequence[Panel], crops: Sequence[Crop]) -> Image.Image:
    """The picture; all crops are enlarged alike, by whole pixels. The last panel is also the one shown whole."""
    scale = max(1, TILE // max(crop.width for crop in crops))
    columns = [
        _column([_tile(crop.of(panel.image), scale, _colour(k)) for k, crop in enumerate(crops)], panel.caption())
        for panel in panels
    ]
    reference = panels[-1] if panels[-1].label == SHARP else panels[0]
    tiles = sum(crop.height * scale + 2 * FRAME + GAP for crop in crops) - GAP
    caption = f"{reference.label}: {name}\ncrops enlarged {scale} times" + (
        "; PSNR of full images" if reference.label == SHARP else ""
    )
    columns.insert(0, _column([_full_image(reference.image, crops, max(FULL_HEIGHT, tiles))], caption))
    picture = Image.new(
        "RGB",
        (sum(column.width + GAP for column in columns) + GAP, max(column.height for column in columns) + 2 * GAP),
        "white",
    )
    left = GAP
    for column in columns:
        picture.paste(column, (left, GAP))
        left += column.width + GAP
    return picture


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _tile(crop: np.ndarray, scale: int, colour: str) -> Image.Image:
    """A crop enlarged, with its frame around it; no pixel is hidden or blended with another."""
    enlarged = Image.fromarray(np.repeat(np.repeat(crop, scale, axis=0), scale, axis=1))
    return ImageOps.expand(enlarged, FRAME, colour)


def _full_image(image: np.ndarray, crops: Sequence[Crop], height: int) -> Image.Image:
    """The full image at a height, with a frame around each crop, edged in white to stand out on any background."""
    scale = height / image.shape[0]
    full = Image.fromarray(image).resize((max(1, round(image.shape[1] * scale)), height), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(full)
    for k, crop in enumerate(crops):
        left, top = round(crop.x * scale), round(crop.y * scale)
        right, bottom = round((crop.x + crop.width) * scale) - 1, round((crop.y + crop.height) * scale) - 1
        for margin, width, colour in ((FRAME + 1, FRAME + 2, "white"), (FRAME, FRAME, _colour(k))):
            pen.rectangle(
                (
                    max(0, left - margin),
                    max(0, top - margin),
                    min(full.width - 1, right + margin),
                    min(full.height - 1, bottom + margin),
                ),
                outline=colour,
                width=width,
            )
    return full


def _column(pictures: Sequence[Image.Image], caption: str) -> Image.Image:
    """Pictures one below the other and their caption; as wide as the widest of them, so that no text is cut."""
    font = ImageFont.load_default(size=FONT)
    lines = caption.split("\n")
    width = max(*(picture.width for picture in pictures), *(math.ceil(font.getlength(line)) for line in lines))
    height = sum(picture.height + GAP for picture in pictures)
    column = Image.new("RGB", (width, height + 2 * LINE), "white")
    top = 0
    for picture in pictures:
        column.paste(picture, ((width - picture.width) // 2, top))
        top += picture.height + GAP
    for k, line in enumerate(lines):
        ImageDraw.Draw(column).text((width / 2, top + k * LINE), line, fill="black", font=font, anchor="ma")
    return column


if __name__ == "__main__":
    sys.exit(main())
