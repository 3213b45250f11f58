"""Time and memory as functions of image size, network width and batch size: tables and a plot.

    python -m benchmarks.growth --output growth
    python -m benchmarks.growth --output growth --networks T --megapixels 0.07 0.3 1 3 12 48

Prediction is as in predict.py: streamed on a CPU, full images on a GPU. A line a + b x is fitted to time and memory
over pixels; its largest residual shows how linear they are. `level 1` is the size of the largest feature map that must
be kept, all channels of level 1 in fp32. Each measurement runs in its own process, once, after a small image as
warm-up.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from analysis.figure import new_figure, save
from benchmarks import measure
from engine import distributed
from engine.console import readable_errors
from engine.memory import GIB
from models import XYScanNet
from models.streaming import stream

ASPECT = 4 / 3
COLUMNS = [
    ("what", -34),
    ("s", 10),
    ("s per megapixel", 15),
    ("peak GiB", 10),
    ("level 1 GiB", 13),
    ("bytes per pixel", 14),
]


class Case(NamedTuple):
    """A network and the images it restores."""

    dim: int
    unshuffle: int
    num_blocks: tuple[int, int, int]
    batch: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.batch * self.height * self.width

    @property
    def level1(self) -> int:
        """Bytes of level 1's features in fp32."""
        return 4 * self.dim * self.pixels // self.unshuffle**2


Point = tuple[Case, measure.Measurement]
NETWORKS = {"T": (32, 2, (1, 1, 2)), "S": (48, 1, (3, 3, 6)), "P": (144, 1, (3, 3, 6))}


def main() -> None:
    arguments = parse_arguments()
    device = distributed.device(arguments.device)
    print(f"{distributed.describe(device)}, torch {torch.__version__}")
    measured: dict[str, list[Point]] = {}
    for name in arguments.networks:
        dim, unshuffle, num_blocks = NETWORKS[name]
        sizes = [Case(dim, unshuffle, num_blocks, 1, *sides(millions)) for millions in arguments.megapixels]
        measured[name] = table(f"XYScanNet-{name}, image", sizes, device, arguments.limit)
        print(fit_in_words(measured[name]))
    small = NETWORKS["S"]
    table("dim", [Case(dim, 1, small[2], 1, 256, 256) for dim in arguments.dims], device, arguments.limit)
    table("batch", [Case(small[0], 1, small[2], n, 256, 256) for n in arguments.batches], device, arguments.limit)
    if arguments.output:
        draw(measured, arguments.output.with_suffix(".png"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["T", "S"])
    parser.add_argument("--megapixels", nargs="+", type=float, default=[0.0655, 0.25, 0.9216, 3, 12], metavar="N")
    parser.add_argument(
        "--dims", nargs="+", type=int, default=[16, 48, 96, 144], metavar="N", help="channels, otherwise as XYScanNet-S"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4], metavar="N", help="batch sizes at 256 px")
    parser.add_argument("--output", type=Path, metavar="NAME", help="save the plot as NAME.png")
    parser.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
    parser.add_argument(
        "--limit", type=float, default=600, metavar="SECONDS", help="for a measurement (default %(default)s)"
    )
    return parser.parse_args()


def sides(megapixels: float) -> tuple[int, int]:
    """Height and width with about that many pixels and an aspect of 4:3, multiples of 8."""
    height = (megapixels * 1e6 / ASPECT) ** 0.5
    return max(round(height / 8) * 8, 8), max(round(height * ASPECT / 8) * 8, 8)


def table(what: str, cases: Iterable[Case], device: torch.device, limit: float) -> list[Point]:
    """Measure the cases and print a row for each; returns those that could be measured."""
    measure.print_row(COLUMNS, [what, *[heading for heading, _ in COLUMNS[1:]]])
    found = []
    for case in tqdm(list(cases), desc=what, leave=False, disable=None):
        result = measure.isolated(run, case, device, device=device, limit=limit)
        name = f"  dim {case.dim}, {case.batch} x {case.width} x {case.height}"
        if result is None:
            measure.print_row(COLUMNS, [name, *["-"] * 5])
            continue
        found.append((case, result))
        cells = [f"{result.seconds:.2f}", f"{result.seconds / case.pixels * 1e6:.2f}", f"{result.memory / GIB:.3f}"]
        cells += [f"{case.level1 / GIB:.3f}", f"{result.memory / case.pixels:.0f}"]
        measure.print_row(COLUMNS, [name, *cells])
    return found


@torch.inference_mode()
def run(case: Case, device: torch.device) -> measure.Measurement:
    """One measurement, in the current process."""
    torch.manual_seed(0)
    network = XYScanNet(case.dim, case.num_blocks, unshuffle=case.unshuffle).to(device).eval()
    images = torch.rand(case.batch, 3, case.height, case.width, device=device) - 0.5
    restore = stream if device.type == "cpu" else lambda network, images: network(images)
    restore(network, images[..., :64, :64])  # compiles kernels; a warm-up run of the whole may take minutes
    return measure.measure(lambda: restore(network, images), device, 1, warm_up=False)


def fit(found: list[Point], what: str) -> tuple[float, float, float]:
    """(a, b, largest relative residual) of the fit a + b x over pixels, in seconds or bytes."""
    pixels = np.array([case.pixels for case, _ in found], float)
    values = np.array([getattr(result, what) for _, result in found], float)
    # Relative residuals: otherwise the largest images would decide the fit.
    matrix = np.stack([1 / values, pixels / values], axis=1)
    (a, b), *_ = np.linalg.lstsq(matrix, np.ones(len(values)), rcond=None)
    return a, b, float(np.abs((a + b * pixels) / values - 1).max())


def fit_in_words(found: list[Point]) -> str:
    found = [(case, result) for case, result in found if result.memory]  # a small image may take no new memory
    if len(found) < 3:
        return ""
    (a, b, off), (c, d, error) = fit(found, "seconds"), fit(found, "memory")
    return (
        f"  time = {a:.2f} s + {b * 1e6:.2f} s per megapixel (largest residual {off:.0%}); "
        f"memory = {c / GIB:.2f} GiB + {d:.0f} bytes per pixel (largest residual {error:.0%})\n"
    )


def draw(measured: dict[str, list[Point]], path: Path) -> None:
    """Plot time and memory over pixels, on logarithmic axes."""
    figure = new_figure(10, 4.2)
    for axes, what, unit, scale in zip(
        figure.subplots(1, 2), ("seconds", "memory"), ("s", "GiB"), (1, GIB), strict=True
    ):
        for k, (name, found) in enumerate(measured.items()):
            pixels = [case.pixels / 1e6 for case, _ in found]
            values = [getattr(result, what) / scale for _, result in found]
            axes.loglog(pixels, values, "o-", color=f"C{k}", label=f"XYScanNet-{name}")
            if what == "memory":
                level1 = [case.level1 / GIB for case, _ in found]
                axes.loglog(pixels, level1, ":", color=f"C{k}", label=f"{name}: level 1 in fp32")
        axes.set(xlabel="megapixels", ylabel=f"{'time' if what == 'seconds' else 'peak memory'} in {unit}")
        axes.grid(True, which="major", alpha=0.3)
        axes.legend()
    save(figure, path)
    print(f"plot: {path}")


if __name__ == "__main__":
    with readable_errors():
        main()
