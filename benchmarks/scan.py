"""The selective scan by itself, at the network's shapes, for every backend that can run on the device.

    python -m benchmarks.scan                              on a CPU: dim 48, rows and columns of a 252 px image
    python -m benchmarks.scan --all                        252 and 320 px, 720p and 1080p, dim 48 and 144
    python -m benchmarks.scan --sizes 720p --dims 144 --backends triton mamba_ssm

Tensors have the network's memory layout: channels innermost, u and delta contiguous, z half of a wider map, B and C
slices of another. The steps of a row are neighbouring pixels, those of a column are a row apart. GB/s counts what must
be moved: forward reads u, delta, z (d channels each), B, C (16 states each) and writes y, (4 d + 32) numbers a pixel;
backward reads the five again and the gradient of y, and writes five gradients, (7 d + 64) more. `of copy` is the ratio
to the rate of a large copy on the same device, `roofline ms` the time of such a copy. Gexp/s counts 16 + 2 exponentials
a channel and pixel (states, softplus, SiLU), twice as many with the backward pass, which recomputes the states.
`x reference` and `x mamba_ssm` are speed-ups over these. Each measurement runs in its own process: the median of
--repeats runs after a warm-up run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import torch
from tqdm import tqdm

from benchmarks import measure
from benchmarks.roofline import Work, scan_work
from engine import distributed
from engine.console import readable_errors
from models.ops.selective_scan import BACKENDS, selective_scan

STATES = 16
IMAGES = {"252": (16, 252, 252), "320": (8, 320, 320), "720p": (1, 720, 1280), "1080p": (1, 1080, 1920)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PASSES = {"forward": False, "forward+backward": True}
COLUMNS = [
    ("shape", -36),
    ("pass", -18),
    ("backend", -11),
    ("median ms", 10),
    ("roofline ms", 12),
    ("peak MiB", 10),
    ("GB/s", 8),
    ("of copy", 9),
    ("Gexp/s", 8),
    ("x reference", 13),
    ("x mamba_ssm", 13),
]


class Shape(NamedTuple):
    name: str
    batch: int
    height: int
    width: int
    channels: int
    rows: bool

    def work(self, backward: bool) -> Work:
        return scan_work(self.channels, self.batch * self.height * self.width, STATES, backward)


def main() -> None:
    arguments = parse_arguments()
    device = distributed.device(arguments.device)
    # All but Triton's interpreter on a CPU.
    names = arguments.backends or [name for name in BACKENDS if device.type == "cuda" or name != "triton"]
    backends = measure.usable_backends(names, device)
    shapes, dtype = list(make_shapes(arguments, device)), DTYPES[arguments.precision]
    copy_rate = measure.isolated(measure.copy_rate, device, device=device, limit=300)
    print(
        f"selective scan, {arguments.precision}, {distributed.describe(device)}, torch {torch.__version__}; "
        f"a copy moves {copy_rate / 1e9:.1f} GB/s"
    )
    measure.print_row(COLUMNS, [heading for heading, _ in COLUMNS])
    with tqdm(total=len(shapes) * len(PASSES) * len(backends), unit="measurement", leave=False, disable=None) as bar:
        for shape in shapes:
            for name, backward in PASSES.items():
                results = {}
                for backend in backends:
                    results[backend] = measure.isolated(
                        run,
                        shape,
                        backward,
                        backend,
                        dtype,
                        device,
                        arguments.repeats,
                        device=device,
                        limit=arguments.limit,
                    )
                    bar.update()
                bar.clear()
                print_results(shape, name, results, dtype.itemsize, copy_rate)
    print(measure.LEFT_OUT)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="on a CPU: every size and dim, as on a GPU")
    parser.add_argument("--sizes", nargs="+", choices=IMAGES, metavar="NAME", help=", ".join(IMAGES))
    parser.add_argument(
        "--dims", nargs="+", type=int, metavar="DIM", help="channels of the network: 48 (S), 72 or 144 (P)"
    )
    parser.add_argument("--levels", nargs="+", type=int, default=[1, 2, 3], choices=[1, 2, 3], metavar="N")
    parser.add_argument(
        "--batch", type=int, help="images (default: 16 of 252 px and 8 of 320 px on a GPU, otherwise 1)"
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=["auto", *BACKENDS],
        metavar="NAME",
        help=f"auto, {', '.join(BACKENDS)} (default: all that can run)",
    )
    parser.add_argument("--precision", choices=DTYPES, default="fp32", help="of u, delta, z, B and C")
    measure.add_arguments(parser, limit=60)
    return parser.parse_args()


def make_shapes(arguments: argparse.Namespace, device: torch.device) -> Iterator[Shape]:
    """Rows and columns at each level, for each size and dim."""
    every = arguments.all or device.type == "cuda"
    for dim in arguments.dims or ([48, 144] if every else [48]):
        for size in arguments.sizes or (list(IMAGES) if every else ["252"]):
            batch, height, width = IMAGES[size]
            batch = arguments.batch or (batch if device.type == "cuda" else 1)
            for level in arguments.levels:
                scale = 2 ** (level - 1)
                h, w = height // scale, width // scale
                for rows in (True, False):
                    lines, length = (h, w) if rows else (w, h)
                    name = f"{size} dim {dim} level {level} {batch * lines} x {length}{' rows' if rows else ' cols'}"
                    yield Shape(name, batch, h, w, dim * scale, rows)


def run(
    shape: Shape, backward: bool, backend: str, dtype: torch.dtype, device: torch.device, repeats: int
) -> measure.Measurement:
    """One measurement, in this process."""
    torch.manual_seed(0)
    inputs = make_inputs(shape, dtype, device)
    channels = shape.channels
    A = -torch.arange(1, STATES + 1, device=device).float().repeat(channels, 1)
    D, bias = torch.ones(channels, device=device), torch.full((channels,), -3.0, device=device)

    def forward() -> torch.Tensor:
        u, delta, z, B, C = inputs
        return selective_scan(u, delta, A, B, C, D, z, bias, delta_softplus=True, backend=backend)

    if not backward:
        return measure.measure(torch.inference_mode()(forward), device, repeats)
    leaves = [t.requires_grad_() for t in (*inputs, A, D, bias)]
    gradient = torch.randn_like(inputs[0])
    return measure.measure(lambda: torch.autograd.grad(forward(), leaves, gradient), device, repeats)


def make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """u, delta, z, B, C (batch, lines, channels or states, length), views of maps (batch, height, width, channels)."""

    def features(width: int) -> torch.Tensor:
        values = torch.randn(shape.batch, shape.height, shape.width, width, device=device).to(dtype)
        return values.movedim(3, 2) if shape.rows else values.permute(0, 2, 3, 1)

    rank = -(-shape.channels // 32)  # dt_rank: the step sizes' channels, which precede B and C
    z = features(2 * shape.channels)[:, :, shape.channels :]
    _, B, C = features(rank + 2 * STATES).split([rank, STATES, STATES], dim=2)
    return [features(shape.channels), features(shape.channels), z, B, C]


def print_results(
    shape: Shape, name: str, results: dict[str, measure.Measurement | None], itemsize: int, copy_rate: float
) -> None:
    work = shape.work(PASSES[name])
    moved = work.numbers * itemsize
    baselines = [result.seconds if (result := results.get(backend)) else None for backend in ("reference", "mamba_ssm")]
    for backend, result in results.items():
        cells = ["-"] * 8
        if result:
            rate = moved / result.seconds
            cells = [
                f"{result.seconds * 1e3:.2f}",
                f"{moved / copy_rate * 1e3:.2f}",
                f"{result.memory / 2**20:.1f}",
                f"{rate / 1e9:.2f}",
                f"{rate / copy_rate:.1%}",
                f"{work.exps / result.seconds / 1e9:.2f}",
                *[measure.ratio(baseline, result.seconds) for baseline in baselines],
            ]
        measure.print_row(COLUMNS, [shape.name, name, backend, *cells])


if __name__ == "__main__":
    with readable_errors():
        main()
