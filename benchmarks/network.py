"""Time and peak memory of the network, compared with the baseline (benchmarks/baseline.py) in one run.

    python -m benchmarks.network                    on a CPU: XYScanNet-S, 256 x 256, and training at 128 px, batch 4
    python -m benchmarks.network --case 720p train252x16 --dim 144 --precision bf16 --device cuda
    python -m benchmarks.network --size 96 128 --batch 2        both passes at another size

Each measurement runs in its own process: the median of --repeats runs after a warm-up run, synchronised on a GPU.
Memory is the peak above weights and image. `x baseline` is the speed-up over the baseline with that scan backend,
`memory` the ratio to its memory. GFLOP/s counts the baseline's convolutions and matrix products, for every row.
`roofline ms` is the time that these take at the rate of a measured matrix product, or the layers' bytes at that of a
measured copy if that is longer, see benchmarks/roofline.py. A training step is forward, loss without the VGG19 term,
backward and Adam; `ours checkpointed` sets train.checkpoint_activations. On a CPU, `ours streamed` is what the predict
scripts run there. On a GPU they run `ours fused`, or `ours compiled` with --compile, and `ours plain` has PyTorch's
norm, depth-wise convolution, gate and divergence in the place of Triton's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks import candidates, measure
from benchmarks.baseline import Baseline
from benchmarks.candidates import Candidate
from benchmarks.roofline import count
from engine import distributed
from engine.console import readable_errors
from losses import DeblurLoss


class Case(NamedTuple):
    training: bool
    batch: int
    height: int
    width: int


# Test images, a small training batch, and the two recipes' batches, full and as the share of one GPU out of eight.
CASES = {
    "256": Case(False, 1, 256, 256),
    "720p": Case(False, 1, 720, 1280),
    "1080p": Case(False, 1, 1080, 1920),
    "train128x4": Case(True, 4, 128, 128),
    "train252x16": Case(True, 16, 252, 252),
    "train252x2": Case(True, 2, 252, 252),
    "train320x8": Case(True, 8, 320, 320),
    "train320x1": Case(True, 1, 320, 320),
}
CPU_CASES = ("256", "train128x4")


def main() -> None:
    arguments = parse_arguments()
    device = distributed.device(arguments.device)
    chosen = candidates.choose(arguments, device)
    rates = candidates.measure_rates(chosen, device)
    matmul = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in rates.matmul.items())
    print(
        f"XYScanNet, blocks {arguments.num_blocks}, {distributed.describe(device)}, torch {torch.__version__}; "
        f"a copy moves {rates.copy / 1e9:.1f} GB/s, a matrix product reaches {matmul}\n"
    )
    for dim in arguments.dim or ([48, 144] if device.type == "cuda" else [48]):
        for case in chosen_cases(arguments, device):
            with torch.device("meta"):
                plain = Baseline(dim, arguments.num_blocks)
            work = count(plain, shape(case), case.training)
            print(
                f"dim {dim}: {work.flops / 1e9:.3g} GFLOP; {work.numbers / 1e9:.3g} G numbers in and out of layers "
                f"and scans; {work.exps / 1e9:.3g} G exponentials in scans"
            )
            title = f"{'training step' if case.training else 'inference'} {' x '.join(map(str, shape(case)))}"
            candidates.compare(
                title,
                run,
                (dim, arguments.num_blocks, case, device, arguments.repeats),
                with_variants(chosen, case, device),
                work,
                rates,
                device,
                arguments.limit,
            )
    print(measure.LEFT_OUT)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--case",
        nargs="+",
        choices=CASES,
        metavar="NAME",
        help=f"{', '.join(CASES)} (default: all on a GPU, {' and '.join(CPU_CASES)} on a CPU)",
    )
    what.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="N",
        help="inference and training at this height and width (one number: both)",
    )
    parser.add_argument("--batch", type=int, default=1, help="batch size for --size (default %(default)s)")
    parser.add_argument(
        "--dim", type=int, nargs="+", help="channels: 48 (S), 72 or 144 (P) (default: 48 and 144 on a GPU, 48 on a CPU)"
    )
    parser.add_argument("--num_blocks", type=int, nargs=3, default=[3, 3, 6], metavar="N")
    candidates.add_arguments(parser)
    measure.add_arguments(parser, limit=600)
    arguments = parser.parse_args()
    if arguments.size and (len(arguments.size) > 2 or any(side < 8 or side % 4 for side in arguments.size)):
        parser.error(f"--size: one or two multiples of 4, at least 8 (the baseline does not pad), got {arguments.size}")
    return arguments


def chosen_cases(arguments: argparse.Namespace, device: torch.device) -> list[Case]:
    if arguments.size:
        height, width = arguments.size[0], arguments.size[-1]
        return [Case(training, arguments.batch, height, width) for training in (False, True)]
    return [CASES[name] for name in arguments.case or (CASES if device.type == "cuda" else CPU_CASES)]


def with_variants(chosen: list[Candidate], case: Case, device: torch.device) -> list[Candidate]:
    """The candidates, and the variants of ours that apply to the case."""
    names = [candidates.CHECKPOINTED] if case.training else []
    if device.type == "cpu" and not case.training:
        names = [candidates.STREAMED]
    if device.type == "cuda":
        names += [candidates.PLAIN] if case.training else [candidates.FUSED, candidates.PLAIN, candidates.COMPILED]
    return [*chosen, *[variant for name in names for variant in candidates.variants(chosen, name)]]


def shape(case: Case) -> tuple[int, ...]:
    return case.batch, 3, case.height, case.width


def run(
    candidate: Candidate, dim: int, num_blocks: list[int], case: Case, device: torch.device, repeats: int
) -> measure.Measurement:
    """One measurement, in the current process."""
    network = candidate.build(dim, tuple(num_blocks), device)
    blurred = torch.rand(shape(case), device=device) - 0.5
    make = training_step if case.training else inference
    return measure.measure(make(network, blurred, candidate), device, repeats)


def inference(network: torch.nn.Module, blurred: torch.Tensor, candidate: Candidate) -> Callable[[], torch.Tensor]:
    network.eval()

    def restore() -> torch.Tensor:
        with torch.inference_mode(), candidate.autocast(blurred.device):
            return network(blurred)

    return restore


def training_step(network: torch.nn.Module, blurred: torch.Tensor, candidate: Candidate) -> Callable[[], None]:
    loss, optimizer = DeblurLoss({"charbonnier": 1, "edge": 0.05}), torch.optim.Adam(network.parameters())
    sharp = torch.rand_like(blurred) - 0.5

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with candidate.autocast(blurred.device):
            restored = network(blurred)
        loss(restored, sharp, blurred)[0].backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    with readable_errors():
        main()
