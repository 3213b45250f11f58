"""Full, streamed and tiled prediction, in fp32 and bf16: accuracy, time and peak memory in one run.

    python -m benchmarks.prediction --precision fp32 bf16               photographs with synthetic camera shake
    python -m benchmarks.prediction datasets/GoPro/test --weights FILE --size 360 640 --tile 128:32 256:32 256:64
    python -m benchmarks.prediction datasets/GoPro/test --dim 48 --size 720 1280 --images 1 --band 32 64

Restores the blurred images of a data set, or of any folder, cropped to the central --size pixels. PSNR in dB, averaged
over the images: `to full` between a result and the first row's, before rounding to 8 bits; `to sharp` between the 8-bit
result and the sharp image, if there is one. Each mode runs in its own process; memory is the peak above weights and
images. With --dim the network has as many channels and random weights: time and memory are those of a trained one, PSNR
means nothing.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import measure
from datasets.images import read_rgb
from datasets.layouts import LayoutError, find_pairs
from datasets.synthesize import synthesize_photos
from engine import distributed
from engine.config import shipped_weights
from engine.console import readable_errors
from engine.demo import HELD_OUT, SAMPLES
from engine.predict.tiling import check_tile, restore_tiled
from metrics.psnr import psnr
from models import XYScanNet, load_network
from models.images import images_to_tensor, tensor_to_images
from models.streaming import BAND, stream

COLUMNS = (
    ("", -32),
    ("ms an image", 12),
    ("x full", 9),
    ("memory MiB", 12),
    ("x full", 8),
    ("PSNR: to full", 16),
    ("to sharp", 10),
)


class Mode(NamedTuple):
    """How an image is restored: by tiles, by bands, or in full."""

    precision: str
    tile: int | None = None
    overlap: int = 0
    band: int | None = None

    def __str__(self) -> str:
        if self.tile:
            return f"tiles of {self.tile}, overlap {self.overlap}, {self.precision}"
        return f"streamed, bands of {self.band}, {self.precision}" if self.band else f"full, {self.precision}"


class Outcome(NamedTuple):
    measurement: measure.Measurement  # of all images
    restored: list[np.ndarray]  # (1, 3, H, W), clamped to [-0.5, 0.5]


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data is None:
            synthesize_photos(SAMPLES, Path(folder), test_photos=HELD_OUT, pairs_per_photo=1, seed=0)
            arguments.data = Path(folder)
        compare(arguments, distributed.device(arguments.device))


def compare(arguments: argparse.Namespace, device: torch.device) -> None:
    """Print a line for each mode."""
    blurred, sharp = read(arguments)
    height, width = blurred[0].shape[:2]
    network = f"random weights, dim {arguments.dim}" if arguments.dim else arguments.weights
    print(
        f"{network}, {distributed.describe(device)}, torch {torch.__version__}; "
        f"{len(blurred)} images, the first {width} x {height}\n"
    )
    measure.print_row(COLUMNS, [heading for heading, _ in COLUMNS])
    modes = [
        mode
        for precision in arguments.precision
        for mode in (
            Mode(precision),
            *(Mode(precision, band=band) for band in arguments.band),
            *(Mode(precision, *tile) for tile in arguments.tile),
        )
    ]
    full = None
    for mode in modes:
        outcome = measure.isolated(run, mode, arguments, device, device=device, limit=arguments.limit)
        full = outcome if mode == modes[0] else full
        measure.print_row(COLUMNS, [str(mode), *describe(outcome, full, sharp)])
    print(measure.LEFT_OUT)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data",
        type=Path,
        nargs="?",
        metavar="FOLDER",
        help="a data set, its test split, or a folder of images (default: photographs with synthetic camera shake)",
    )
    network = parser.add_mutually_exclusive_group()
    network.add_argument(
        "--weights", type=Path, default=shipped_weights("xyscannet_t"), metavar="FILE", help="default: the shipped ones"
    )
    network.add_argument("--dim", type=int, metavar="N", help="random weights and this many channels")
    parser.add_argument("--images", type=int, default=4, metavar="N", help="the first N (default %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="crop size (default: full images)")
    parser.add_argument(
        "--band",
        type=int,
        nargs="*",
        default=[BAND],
        metavar="N",
        help=f"rows of a streamed band, a multiple of 4 (default {BAND})",
    )
    parser.add_argument(
        "--tile",
        type=tile,
        nargs="*",
        default=[(128, 32), (256, 32), (256, 64)],
        metavar="SIZE:OVERLAP",
        help="in pixels, multiples of 8 (default 128:32 256:32 256:64)",
    )
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32"], help="default fp32")
    measure.add_arguments(parser, limit=600)
    arguments = parser.parse_args()
    if arguments.size and min(arguments.size) < 8:
        parser.error(f"--size must be at least 8 x 8, got {arguments.size}")
    return arguments


def tile(text: str) -> tuple[int, int]:
    """SIZE:OVERLAP."""
    try:
        size, overlap = (int(number) for number in text.split(":"))
        check_tile(size, overlap)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"SIZE:OVERLAP, got {text!r} ({error})") from None
    return size, overlap


def read(arguments: argparse.Namespace) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """(blurred images, sharp images or None)."""
    pairs = find_pairs(arguments.data, "test")[: arguments.images]
    if not pairs:
        raise LayoutError(f"{arguments.data}: no images")
    crop = functools.partial(middle, size=arguments.size)
    return (
        [crop(read_rgb(pair.blurred)) for pair in pairs],
        [crop(read_rgb(pair.sharp)) if pair.sharp else None for pair in pairs],
    )


def middle(image: np.ndarray, size: list[int] | None) -> np.ndarray:
    """Center crop of (H, W, 3) to at most this height and width."""
    if size is None:
        return image
    top, left = (max(have - want, 0) // 2 for have, want in zip(image.shape, size, strict=False))
    return image[top : top + size[0], left : left + size[1]]


def run(mode: Mode, arguments: argparse.Namespace, device: torch.device) -> Outcome:
    """One mode, in the current process."""
    torch.manual_seed(0)
    network = XYScanNet(arguments.dim) if arguments.dim else load_network(arguments.weights)
    network = network.to(device).eval()
    images = [images_to_tensor([image]).to(device) for image in read(arguments)[0]]
    restored: list[torch.Tensor] = []

    @torch.inference_mode()
    def restore_all() -> None:
        restored.clear()
        with torch.autocast(device.type, torch.bfloat16, enabled=mode.precision == "bf16"):
            restored.extend(restore(network, image, mode).float().clamp(-0.5, 0.5) for image in images)

    measurement = measure.measure(restore_all, device, arguments.repeats)
    return Outcome(measurement, [image.cpu().numpy() for image in restored])


def restore(network: XYScanNet, image: torch.Tensor, mode: Mode) -> torch.Tensor:
    if mode.tile:
        return restore_tiled(network, image, mode.tile, mode.overlap)
    return stream(network, image, mode.band) if mode.band else network(image)


def describe(outcome: Outcome | None, full: Outcome | None, sharp: list[np.ndarray | None]) -> list[str]:
    """The cells of a row."""
    if outcome is None:
        return ["-"] * (len(COLUMNS) - 1)
    (seconds, memory), restored = outcome
    reference = full.measurement if full else None
    to_full = [distance(*pair) for pair in zip(restored, full.restored, strict=True)] if full else []
    to_sharp = [
        psnr(tensor_to_images(torch.from_numpy(image))[0], other)
        for image, other in zip(restored, sharp, strict=True)
        if other is not None
    ]
    return [
        f"{1000 * seconds / len(restored):.0f}",
        measure.ratio(seconds, reference and reference.seconds),
        f"{memory / 2**20:.0f}",
        measure.ratio(memory, reference and reference.memory),
        *(f"{statistics.fmean(values):.3f}" if values else "-" for values in (to_full, to_sharp)),
    ]


def distance(image: np.ndarray, other: np.ndarray) -> float:
    """PSNR in dB of values with a range of 1; infinite for equal images."""
    error = np.square(image - other, dtype=np.float64).mean()
    return -10 * math.log10(error) if error else math.inf


if __name__ == "__main__":
    with readable_errors():
        main()
