"""Tunes the launch parameters of the Triton kernels (models/ops/tuning.py) on the current GPU.

    python -m benchmarks.tuning
    python -m benchmarks.tuning --write             save the best in models/ops/tuned.json, by compute capability

Coordinate descent: each parameter in turn gets its fastest value, by the time of the scan (forward, or forward with
backward), of the products of fused blocks, or of another kernel forward and backward, in fp32, at the shapes of
XYScanNet-P at 720p and of two training crops of 252 px.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace

import torch

from benchmarks import measure, scan
from datasets.files import write_atomic
from engine import distributed
from engine.console import readable_errors
from models.ops import tuning
from models.ops.tuning import TUNED, LaunchParameters

# Parameter -> (which time decides, values to try).
CANDIDATES = {
    "forward_lanes": ("forward", (32, 64, 128, 256)),
    "forward_registers": ("forward", (80, 96, 128, 168)),
    "chunk": ("backward", (16, 32, 64)),
    "backward_programs": ("backward", (1024, 2048, 4096)),
    "conv_tile": ("convolution", (512, 1024, 2048)),
    "conv_warps": ("convolution", (4, 8)),
    "depthwise_rows": ("gate", (4, 8, 16)),
    "depthwise_warps": ("gate", (2, 4, 8)),
    "norm_elements": ("norm", (1024, 2048, 4096)),
    "product_pixels": ("products", (64, 128)),
    "product_outputs": ("products", (64, 128, 256)),
    "gated_pixels": ("gated products", (32, 64, 128)),
    "product_inner": ("all products", (16, 32, 64)),
}
SHAPES = {"720p": scan.Shape("", 1, 720, 1280, 288, True), "252": scan.Shape("", 2, 252, 252, 288, False)}
TINY = {"tiny": scan.Shape("", 1, 3, 5, 8, True)}
COLUMNS = [("parameter", -20), ("value", 8), ("ms", 10), ("best", 6)]


def main() -> None:
    arguments = parse_arguments()
    device = distributed.device(arguments.device)
    shapes = list((TINY if arguments.tiny else SHAPES).values())
    print(
        f"{distributed.describe(device)}, torch {torch.__version__}; starting from {tuning.launch_parameters(device)}"
    )
    measure.print_row(COLUMNS, [heading for heading, _ in COLUMNS])
    best = search(tuning.launch_parameters(device), shapes, device, arguments.limit)
    print(f"best: {best}")
    if arguments.write:
        keep(best, device)


def search(best: LaunchParameters, shapes: list[scan.Shape], device: torch.device, limit: float) -> LaunchParameters:
    """Coordinate descent, once over all parameters."""
    for name, (what, values) in CANDIDATES.items():
        times = {value: seconds(replace(best, **{name: value}), what, shapes, device, limit) for value in values}
        fastest = min(times, key=times.__getitem__)
        for value, spent in times.items():
            shown = "-" if math.isinf(spent) else f"{spent * 1e3:.2f}"
            measure.print_row(COLUMNS, [name, str(value), shown, "*" if value == fastest else ""])
        if times[fastest] < math.inf:
            best = replace(best, **{name: fastest})
    return best


def seconds(
    parameters: LaunchParameters, what: str, shapes: list[scan.Shape], device: torch.device, limit: float
) -> float:
    """Time summed over the shapes, measured in its own process; infinite if it fails or takes too long."""
    try:
        found = measure.isolated(run, parameters, what, shapes, device, device=device, limit=limit)
    except RuntimeError as error:  # cannot be compiled with these parameters
        print(f"left out, {str(error).strip().splitlines()[-1]}: {parameters}")
        return math.inf
    return math.inf if found is None else found


def run(parameters: LaunchParameters, what: str, shapes: list[scan.Shape], device: torch.device) -> float:
    """One measurement, in the current process."""
    from models.ops import causal_conv_triton, channel_norm_triton, depthwise_triton, fused_triton
    from models.ops.selective_scan import triton_kernel

    for module in (causal_conv_triton, channel_norm_triton, depthwise_triton, fused_triton, triton_kernel):
        module.launch_parameters = lambda device: parameters  # type: ignore[attr-defined]
    if what in ("forward", "backward"):
        return sum(scan.run(shape, what == "backward", "triton", torch.float32, device, 5).seconds for shape in shapes)
    kernel = products if what.endswith("products") else other_kernel
    return sum(kernel(what, shape, device) for shape in shapes)


@torch.no_grad()
def products(what: str, shape: scan.Shape, device: torch.device) -> float:
    """Seconds of a feed-forward network's two products, of the gated one, or of all, with half the channels."""
    from models.ops import fused_triton

    C = shape.channels // 2
    wide, W_in = torch.randn(shape.batch, shape.height, shape.width, 2 * C, device=device), torch.randn(2 * C, C)
    W_in, norm = W_in.to(device), torch.ones(C, device=device)
    x, W = wide[..., :C].contiguous(), W_in[:C].contiguous()
    h, v = (half.contiguous() for half in x.chunk(2, dim=-1))

    def two() -> None:
        fused_triton.normed_product(x, norm, norm, 1e-5, W_in)
        fused_triton.product(wide[..., :C], W, x)

    def gated() -> None:
        fused_triton.gated_projection(x, h, v, wide[..., C:], W, W)

    chosen = {"products": [two], "gated products": [gated], "all products": [two, gated]}[what]
    return sum(measure.measure(work, device, 5).seconds for work in chosen)


def other_kernel(what: str, shape: scan.Shape, device: torch.device) -> float:
    """Seconds of forward and backward."""
    from models.ops.causal_conv_triton import causal_conv_silu_triton
    from models.ops.channel_norm import channel_norm
    from models.ops.depthwise import gated_depthwise

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, device=device, requires_grad=True)

    make: Callable[..., torch.Tensor]
    channels = shape.channels
    leaves = [draw(shape.batch, shape.height, shape.width, channels)]
    if what == "convolution":
        leaves = [scan.make_inputs(shape, torch.float32, device)[0].requires_grad_(), draw(channels, 4), draw(channels)]
        make = causal_conv_silu_triton
    elif what == "gate":
        leaves += [draw(channels, 1, 3, 3)]
        make = lambda x, weight: gated_depthwise(x.movedim(-1, 1), weight)  # noqa: E731
    else:
        leaves += [draw(channels), draw(channels)]
        make = lambda x, weight, bias: channel_norm(x.movedim(-1, 1), weight, bias, 1e-5)  # noqa: E731
    gradient = torch.randn_like(make(*leaves))
    return measure.measure(lambda: torch.autograd.grad(make(*leaves), leaves, gradient), device, 5).seconds


def keep(best: LaunchParameters, device: torch.device) -> None:
    """Save the parameters for the compute capability of this device, next to those of others."""
    capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
    content = {name: asdict(parameters) for name, parameters in tuning.tuned().items()} | {capability: asdict(best)}
    write_atomic(TUNED, json.dumps(dict(sorted(content.items())), indent=2) + "\n")
    print(f"saved for compute capability {capability}: {TUNED}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--write", action="store_true", help="save the best parameters for GPUs of this compute capability"
    )
    parser.add_argument("--tiny", action="store_true", help="a shape of a few pixels, to check that the search runs")
    parser.add_argument(
        "--limit", type=float, default=60, metavar="SECONDS", help="for a measurement (default %(default)s)"
    )
    parser.add_argument("--device", help="cuda or cuda:1; cpu only with TRITON_INTERPRET=1")
    return parser.parse_args()


if __name__ == "__main__":
    with readable_errors():
        main()
