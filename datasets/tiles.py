"""Cuts the pairs of a data set into tiles: smaller files are faster to read in training and easier to copy.

    python -m datasets.tiles datasets/GoPro TILES --size 384                          overlapping tiles of all images
    python -m datasets.tiles datasets/GoPro TILES --size 384 --keep 2 --quality 95    the two most blurred, as WebP
    python -m datasets.tiles datasets/GoPro TILES --size 320 --reduce 2               at half the resolution
    python -m datasets.tiles datasets/REDS TILES --size 384 --level                   blurred images as bright as sharp

Writes OUT/{train,test}/{blur,sharp}/<pair>_<top>_<left>.png (or .webp): the smallest number of tiles that covers an
image, evenly spaced. --keep keeps those where blurred and sharp differ most: a clear sky teaches nothing. A split
appears when it is complete.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from .files import walk, write_atomic
from .folder import new_folder, thread_pool
from .headers import check_headers
from .images import read_rgb, reduced, write_png
from .layouts import Pair, find_pairs

LEVEL_SIGMA = 40  # pixels: larger than the blur, which does not change means over so large an area


def cut_tiles(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    split: str = "train",
    size: int = 384,
    keep: int | None = None,
    quality: int | None = None,
    reduce: int = 1,
    level: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> int:
    """Cut one split of a data set of pairs.

    Args:
        source: a data set in any layout of layouts.py.
        out: a folder that has no such split yet.
        split: "train" or "test", of the source and of the output.
        size: height and width of a tile in pixels.
        keep: number of tiles to keep of each pair, those with the lowest PSNR; None for all.
        quality: WebP quality, 1 to 100; None for PNG, which is lossless.
        reduce: integer factor by which images are first reduced, by area averaging.
        level: give blurred images the local brightness of the sharp ones (see ``levelled``).
        workers: threads, None for one per core.
        progress: show a progress bar.
    Returns:
        The number of tiles.
    Raises:
        LayoutError, ImageError: pairs that cannot be used or are smaller than a tile.
        ValueError: a number out of range.
        FileExistsError: ``out`` has this split already.
    """
    if size < 8 or reduce < 1 or (keep is not None and keep < 1) or (quality is not None and not 1 <= quality <= 100):
        raise ValueError("expected size >= 8, reduce >= 1, keep >= 1 and quality between 1 and 100")
    pairs = find_pairs(source, split, need_sharp=True)
    check_headers(pairs, size * reduce, progress)
    with new_folder(Path(out) / split) as folder, thread_pool(workers) as pool:
        made = pool.map(lambda pair: _cut(pair, folder, size, keep, quality, reduce, level), pairs)
        return sum(tqdm(made, "Cutting pairs", len(pairs), unit="pair", disable=not progress))


def _cut(pair: Pair, folder: Path, size: int, keep: int | None, quality: int | None, reduce: int, level: bool) -> int:
    """Write the tiles of one pair. Returns their number."""
    files = {"blur": pair.blurred, "sharp": pair.sharp}
    images = {kind: read_rgb(file) for kind, file in files.items() if file}
    if level:
        images["blur"] = levelled(images["blur"], images["sharp"])
    images = {kind: reduced(image, reduce) for kind, image in images.items()}
    windows = [
        (f"{pair.name}_{top}_{left}", np.s_[top : top + size, left : left + size])
        for top, left in product(*(_offsets(extent, size) for extent in images["blur"].shape[:2]))
    ]
    windows.sort(key=lambda named: -cv2.norm(*(image[named[1]] for image in images.values())))
    for (name, window), (kind, image) in product(windows[:keep], images.items()):
        _write(folder / kind / name, image[window], quality)
    return len(windows[:keep])


def levelled(blurred: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    """The blurred image with the sharp one's local means, both uint8 (H, W, 3).

    Frames averaged with another gamma or taken with another exposure change the brightness, and a network trained on
    such pairs learns to change it back.
    """
    difference = sharp.astype(np.float32) - blurred
    return np.rint(np.clip(blurred + cv2.GaussianBlur(difference, (0, 0), LEVEL_SIGMA), 0, 255)).astype(np.uint8)


def _offsets(extent: int, size: int) -> list[int]:
    """Offsets of the smallest number of windows that covers an extent, evenly spaced."""
    return [round(offset) for offset in np.linspace(0, extent - size, -(-extent // size))]


def _write(stem: Path, tile: np.ndarray, quality: int | None) -> None:
    if quality is None:
        write_png(f"{stem}.png", tile)
        return
    data = cv2.imencode(".webp", cv2.cvtColor(tile, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, quality])[1]
    write_atomic(f"{stem}.webp", data.tobytes())


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 if the data set cannot be used."""
    parser = argparse.ArgumentParser(
        "python -m datasets.tiles", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="data set to cut")
    parser.add_argument("out", type=Path, help="output folder, without this split")
    parser.add_argument("--split", choices=["train", "test"], default="train", help="default %(default)s")
    parser.add_argument("--size", type=int, default=384, help="height and width of a tile (default %(default)s)")
    parser.add_argument("--keep", type=int, metavar="N", help="keep the N most blurred tiles of a pair (default: all)")
    parser.add_argument("--quality", type=int, help="write WebP of this quality, 1 to 100 (default: PNG, lossless)")
    parser.add_argument("--reduce", type=int, default=1, metavar="N", help="first reduce the images by this factor")
    parser.add_argument("--level", action="store_true", help="match the local brightness of blurred to sharp images")
    parser.add_argument("--workers", type=int, help="threads (default: one per core)")
    options = vars(parser.parse_args(arguments))
    try:
        count = cut_tiles(**options, progress=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    out = options["out"]
    size = sum(file.stat().st_size for file in walk(out / options["split"]))
    print(f"{out}: {count} tiles, {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
