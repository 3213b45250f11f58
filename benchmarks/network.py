"""Time and peak memory of the whole network: one scan backend against the reference, in one run, as ratios.

    python benchmarks/network.py                        XYScanNet-S, the backend that `auto` picks
    python benchmarks/network.py --dim 144 --device cuda --size 256 --batch 4

Each measurement has a process of its own, so that one's memory is not the other's. Median of --repeats runs after one
to warm up; on a GPU the device is synchronised around each. Memory is what rose above the weights: on a GPU what
PyTorch allocated at most, on a CPU the process's resident high-water mark.
"""
import argparse
import multiprocessing
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))      # run as a script, its folder is on the path, not the root

from engine import distributed  # noqa: E402
from engine.memory import GIB, peak_memory  # noqa: E402
from losses import DeblurLoss  # noqa: E402
from models import XYScanNet  # noqa: E402
from models.selective_scan import BACKENDS, resolve_backend  # noqa: E402

REFERENCE = "reference"


def main() -> None:
    arguments = parse_arguments()
    device = distributed.device(arguments.device)
    backend = resolve_backend(arguments.backend, device)
    print(f"XYScanNet dim {arguments.dim}, blocks {arguments.num_blocks}, {arguments.batch} x 3 x {arguments.size} x "
          f"{arguments.size}, fp32, {distributed.describe(device)}, torch {torch.__version__}")
    print(f"{'':<16}{'backend':<12}{'median ms':>12}{'peak GiB':>10}{'times faster':>14}{'memory':>9}")
    context = multiprocessing.get_context("spawn")
    for what in ("forward", "training step"):
        results = {}
        for name in dict.fromkeys((backend, REFERENCE)):
            with context.Pool(1) as pool:
                results[name] = pool.apply(measure, (what, name, str(device), arguments))
        for name, (milliseconds, memory) in results.items():
            speed, share = results[REFERENCE][0] / milliseconds, memory / max(results[REFERENCE][1], 1)
            print(f"{what:<16}{name:<12}{milliseconds:>12.1f}{memory / GIB:>10.2f}{speed:>13.2f}x{share:>8.2f}x")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto", choices=["auto", *BACKENDS])
    parser.add_argument("--device", default=None, help="default: a GPU where there is one")
    parser.add_argument("--dim", type=int, default=48, help="channels: 48 S, 72 mid, 144 P (default %(default)s)")
    parser.add_argument("--num_blocks", type=int, nargs=3, default=[3, 3, 6], metavar="N")
    parser.add_argument("--size", type=int, default=128, help="height and width (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def measure(what: str, backend: str, device: str, arguments: argparse.Namespace) -> tuple[float, float]:
    """(median milliseconds, bytes) of ``what`` in this process."""
    torch.manual_seed(0)
    device = torch.device(device)
    network = XYScanNet(arguments.dim, arguments.num_blocks, scan_backend=backend).to(device)
    blurred = torch.rand(arguments.batch, 3, arguments.size, arguments.size, device=device) - 0.5
    work = forward(network, blurred) if what == "forward" else training_step(network, blurred)
    before = peak_memory(device) or 0
    seconds = []
    for _ in range(arguments.repeats + 1):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]) * 1e3, (peak_memory(device) or 0) - before


def forward(network: XYScanNet, blurred: torch.Tensor):
    network.eval()
    return torch.inference_mode()(lambda: network(blurred))


def training_step(network: XYScanNet, blurred: torch.Tensor):
    """Forward, loss without its VGG19 term (the same for all backends), backward and Adam."""
    loss, optimizer = DeblurLoss(contrast_weight=0), torch.optim.Adam(network.parameters())
    sharp = torch.rand_like(blurred) - 0.5

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss(network(blurred), sharp, blurred)[0].backward()
        optimizer.step()
    return step


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
