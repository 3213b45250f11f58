"""XYScanNet compared with NAFNet and Restormer in one run: multiply-adds, time and memory.

    python -m benchmarks.peers                      256 px, and 1280 x 720 in full
    python -m benchmarks.peers --sizes 256x256 --networks T S NAFNet-32

NAFNet and Restormer come from the packages spandrel and spandrel_extra_arches (pip install -e .[peers]), with random
weights, on which time and memory do not depend. XYScanNet runs as in predict.py: streamed on a CPU. Each measurement
runs in its own process: the median of --repeats runs after a warm-up run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from analysis.macs import WHOLE, count
from benchmarks import measure
from engine import distributed
from engine.console import readable_errors
from engine.memory import GIB
from models import XYScanNet
from models.streaming import stream

COLUMNS = [("", -16), ("parameters", 12), ("GMAC", 9), ("s", 9), ("s per TMAC", 12), ("peak GiB", 10)]


def nafnet(width: int) -> torch.nn.Module:
    """NAFNet for GoPro (Chen et al., ECCV 2022), width 32 or 64."""
    from spandrel.architectures.NAFNet.__arch.NAFNet_arch import NAFNet

    return NAFNet(width=width, enc_blk_nums=[1, 1, 1, 28], middle_blk_num=1, dec_blk_nums=[1, 1, 1, 1])


def restormer() -> torch.nn.Module:
    """Restormer for motion deblurring (Zamir et al., CVPR 2022)."""
    from spandrel_extra_arches.architectures.Restormer.__arch.restormer_arch import Restormer

    return Restormer(LayerNorm_type="WithBias")


NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "XYScanNet-T": lambda: XYScanNet(32, (1, 1, 2), unshuffle=2),
    "XYScanNet-S": lambda: XYScanNet(48),
    "XYScanNet-P": lambda: XYScanNet(144),
    "NAFNet-32": lambda: nafnet(32),
    "NAFNet-64": lambda: nafnet(64),
    "Restormer": restormer,
}


def main() -> None:
    arguments = parse_arguments()
    device = distributed.device(arguments.device)
    print(f"{distributed.describe(device)}, torch {torch.__version__}, {arguments.precision}")
    for width, height in arguments.sizes:
        measure.print_row(COLUMNS, [f"{width} x {height}", *[heading for heading, _ in COLUMNS[1:]]])
        for name in arguments.networks:
            bf16 = arguments.precision == "bf16"
            result = measure.isolated(
                run, name, height, width, device, bf16, arguments.repeats, device=device, limit=arguments.limit
            )
            parameters, macs = size_of(name, height, width)
            cells = ["-"] * 3
            if result:
                per_work = f"{result.seconds / macs * 1e12:.1f}"
                cells = [f"{result.seconds:.2f}", per_work, f"{result.memory / GIB:.2f}"]
            measure.print_row(COLUMNS, [name, f"{parameters:,}", f"{macs / 1e9:.1f}", *cells])
        print()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME", help=", ".join(NETWORKS)
    )
    parser.add_argument("--sizes", nargs="+", type=size, default=[(256, 256), (1280, 720)], metavar="WxH")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    measure.add_arguments(parser, limit=600)
    return parser.parse_args()


def size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    return width, height


def size_of(name: str, height: int, width: int) -> tuple[int, int]:
    """(parameters, multiply-adds of convolutions, matrix products and scans), without computing anything."""
    network = NETWORKS[name]().eval()
    macs = count(network, 1, 3, height, width).of[WHOLE]
    return sum(p.numel() for p in network.parameters()), macs


@torch.inference_mode()
def run(name: str, height: int, width: int, device: torch.device, bf16: bool, repeats: int) -> measure.Measurement:
    """One measurement, in the current process."""
    torch.manual_seed(0)
    network = NETWORKS[name]().to(device).eval()
    images = torch.rand(1, 3, height, width, device=device)
    streamed = device.type == "cpu" and isinstance(network, XYScanNet)

    def restore() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return stream(network, images) if streamed else network(images)

    return measure.measure(restore, device, repeats)


if __name__ == "__main__":
    with readable_errors():
        main()
