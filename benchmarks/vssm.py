"""Intra-VSSM and Inter-VSSM, compared with the baseline's (benchmarks/baseline.py) in one run.

    python -m benchmarks.vssm                                           on a CPU: 48 channels, 128 x 128
    python -m benchmarks.vssm --channels 144 --size 720 1280 --device cuda

Inference, and forward with backward. Each measurement runs in its own process: the median of --repeats runs after a
warm-up run; memory is the peak above weights and input. `x baseline` is the speed-up over the baseline with that scan
backend, `memory` the ratio to its memory, `roofline ms` as in benchmarks/network.py. Our input is channels_last, as in
the network, the baseline's is contiguous NCHW.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks import candidates, measure
from benchmarks.baseline import Baseline
from benchmarks.candidates import Candidate
from benchmarks.roofline import count
from engine import distributed
from engine.console import readable_errors

PASSES = {"inference": False, "forward+backward": True}


def main() -> None:
    arguments = parse_arguments()
    device = distributed.device(arguments.device)
    chosen = candidates.choose(arguments, device)
    rates = candidates.measure_rates(chosen, device)
    height, width = arguments.size[0], arguments.size[-1]
    shape = (arguments.batch, arguments.channels, height, width)
    print(f"VSSM, {' x '.join(map(str, shape))}, {distributed.describe(device)}, torch {torch.__version__}\n")
    for module in ("intra", "inter"):
        with torch.device("meta"):
            plain = part(Baseline(arguments.channels, (1, 1, 1)), module)
        for name, backward in PASSES.items():
            candidates.compare(
                f"{module.capitalize()}-VSSM, {name}",
                run,
                (module, shape, backward, device, arguments.repeats),
                chosen,
                count(plain, shape, backward),
                rates,
                device,
                arguments.limit,
            )
    print(measure.LEFT_OUT)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--channels", type=int, default=48, help="of the level: dim, 2 dim or 4 dim (default %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        default=[128],
        metavar="N",
        help="height and width (one number: both; default 128)",
    )
    parser.add_argument("--batch", type=int, default=1)
    candidates.add_arguments(parser)
    measure.add_arguments(parser, limit=300)
    arguments = parser.parse_args()
    if len(arguments.size) > 2:
        parser.error(f"--size: one or two numbers, got {arguments.size}")
    return arguments


def part(network: torch.nn.Module, module: str) -> torch.nn.Module:
    return getattr(network.decoder_level1[0], module)


def run(
    candidate: Candidate, module: str, shape: tuple[int, ...], backward: bool, device: torch.device, repeats: int
) -> measure.Measurement:
    """One measurement, in the current process."""
    network = candidate.build(shape[1], (1, 1, 1), device)
    vssm, norm = part(network, module), part(network, {"intra": "norm1_ssm", "inter": "norm2_ssm"}[module])
    layout = torch.contiguous_format if candidate.name == "baseline" else torch.channels_last
    x = torch.randn(shape, device=device).contiguous(memory_format=layout)
    gradient = torch.randn(shape, device=device).contiguous(memory_format=layout)

    def forward() -> torch.Tensor:
        with candidate.autocast(device):
            return x + vssm(norm(x))

    def forward_and_backward() -> None:
        vssm.zero_grad(set_to_none=True)
        x.grad = None
        out = forward()
        out.backward(gradient.to(out.dtype))

    if not backward:
        vssm.eval()
        return measure.measure(torch.inference_mode()(forward), device, repeats)
    x.requires_grad_()
    return measure.measure(forward_and_backward, device, repeats)


if __name__ == "__main__":
    with readable_errors():
        main()
