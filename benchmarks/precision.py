"""The cost of bfloat16 in quality: PSNR of images restored in bf16 and in fp32, by default with the shipped weights.

    python -m benchmarks.precision                                      photographs with synthetic camera shake
    python -m benchmarks.precision datasets/GoPro/test --weights FILE --images 7

Prints the PSNR of both precisions and their difference in dB, if there are sharp images, and the PSNR of the 8-bit bf16
result against the fp32 one. The time is that of one image, the second of two runs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks import measure
from datasets.images import read_rgb
from datasets.layouts import Pair, find_pairs
from datasets.synthesize import synthesize_photos
from engine import distributed
from engine.config import shipped_weights
from engine.console import readable_errors
from engine.demo import HELD_OUT, SAMPLES
from metrics.psnr import psnr
from models import load_network
from models.images import images_to_tensor, tensor_to_images

COLUMNS = [
    ("image", -40),
    ("fp32 dB", 10),
    ("bf16 dB", 10),
    ("change", 10),
    ("bf16 to fp32", 14),
    ("fp32 s", 9),
    ("bf16 s", 9),
]


def main() -> None:
    arguments = parse_arguments()
    device = distributed.device(arguments.device)
    network = load_network(arguments.weights).to(device).eval()
    print(f"{arguments.weights}, {distributed.describe(device)}, torch {torch.__version__}")
    measure.print_row(COLUMNS, [heading for heading, _ in COLUMNS])
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images_of is None:
            synthesize_photos(SAMPLES, Path(folder), test_photos=HELD_OUT, pairs_per_photo=1, seed=0)
        compare(network, find_pairs(arguments.images_of or folder, "test")[: arguments.images], arguments.size, device)


def compare(network: torch.nn.Module, pairs: list[Pair], size: int | None, device: torch.device) -> None:
    """Print a line for each image."""
    for pair in pairs:
        blurred = middle(read_rgb(pair.blurred), size)
        sharp = None if pair.sharp is None else middle(read_rgb(pair.sharp), size)
        images = images_to_tensor([blurred]).to(device)
        (fp32, slow), (bf16, fast) = (restore(network, images, bf16) for bf16 in (False, True))
        scores = [psnr(fp32, sharp), psnr(bf16, sharp)] if sharp is not None else []
        quality = [f"{score:.3f}" for score in scores] or ["-", "-"]
        change = f"{scores[1] - scores[0]:+.4f}" if scores else "-"
        measure.print_row(
            COLUMNS, [pair.name, *quality, change, f"{psnr(bf16, fp32):.1f}", f"{slow:.3f}", f"{fast:.3f}"]
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "images_of",
        nargs="?",
        metavar="FOLDER",
        help="a data set or a folder of blurred images (default: sample photographs with synthetic camera shake)",
    )
    parser.add_argument(
        "--weights", type=Path, default=shipped_weights("xyscannet_t"), metavar="FILE", help="default: the shipped ones"
    )
    parser.add_argument("--images", type=int, default=4, metavar="N", help="the first N (default %(default)s)")
    parser.add_argument("--size", type=int, metavar="N", help="center crop of N x N pixels, a multiple of 8")
    parser.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
    return parser.parse_args()


def middle(image, size: int | None):
    """Center crop of (H, W, 3) to ``size``, or to the next multiples of 8 below the size of the image."""
    height, width = (min(size or side, side // 8 * 8) for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


@torch.inference_mode()
def restore(network: torch.nn.Module, images: torch.Tensor, bf16: bool):
    """(8-bit image, seconds) in bf16 or fp32."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        result = measure.measure(lambda: network(images), images.device, 1)
        restored = network(images)
    return tensor_to_images(restored.float())[0], result.seconds


if __name__ == "__main__":
    with readable_errors():
        main()
