"""Compares the network with the baseline, for each scan backend and precision that is asked for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from tqdm import tqdm

from engine.memory import GIB
from models import XYScanNet
from models.fused import with_fused_levels
from models.ops import triton_runtime
from models.ops.selective_scan import BACKENDS
from models.streaming import stream

from . import measure
from .baseline import Baseline
from .roofline import Work

CHECKPOINTED, COMPILED, FUSED, PLAIN, STREAMED = (
    f"ours {name}" for name in ("checkpointed", "compiled", "fused", "plain", "streamed")
)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Candidate(NamedTuple):
    """One row of a comparison."""

    name: str  # "baseline", "ours" or a variant of ours
    backend: str  # of the selective scan
    precision: str  # "fp32", or "bf16" by autocast

    def build(self, dim: int, num_blocks: tuple[int, ...], device: torch.device) -> torch.nn.Module:
        torch.manual_seed(0)
        if self.name == "baseline":
            return Baseline(dim, num_blocks, self.backend).to(device)
        if self.name == PLAIN:  # for good: each measurement has a process of its own
            triton_runtime.runs = lambda *_: False
        network = XYScanNet(
            dim, num_blocks, scan_backend=self.backend, checkpoint_activations=self.name == CHECKPOINTED
        ).to(device)
        if self.name == STREAMED:
            return Streamed(network)
        if self.name == FUSED:
            return with_fused_levels(network)
        return torch.compile(network, mode="reduce-overhead") if self.name == COMPILED else network

    def autocast(self, device: torch.device) -> AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


class Streamed(torch.nn.Module):
    """The network as the predict scripts run it on a CPU."""

    def __init__(self, network: XYScanNet):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return stream(self.network, images)


class Rates(NamedTuple):
    """Measured limits of the device, see ``measure.copy_rate`` and ``measure.matmul_rate``."""

    copy: float  # bytes/s
    matmul: dict[str, float]  # FLOP/s by precision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = ["auto", *BACKENDS]
    parser.add_argument(
        "--backend",
        nargs="+",
        default=["auto"],
        choices=names,
        metavar="NAME",
        help=f"scan backends of our network: {', '.join(names)} (default auto)",
    )
    parser.add_argument(
        "--baseline_backend",
        nargs="+",
        choices=names,
        metavar="NAME",
        help="scan backends of the baseline (default on a GPU: mamba_ssm, or torch if that cannot run; on a CPU: "
        "reference and torch)",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        metavar="NAME",
        help="fp32 or bf16, of our network (default: both on a GPU, fp32 on a CPU); the baseline runs in fp32",
    )


def choose(arguments: argparse.Namespace, device: torch.device) -> list[Candidate]:
    """The candidates that can run on the device, the baselines first."""
    gpu = device.type == "cuda"
    usual = ["mamba_ssm"] if gpu else ["reference", "torch"]
    baselines = measure.usable_backends(arguments.baseline_backend or usual, device)
    ours = measure.usable_backends(arguments.backend, device)
    precisions = arguments.precision or (["fp32", "bf16"] if gpu else ["fp32"])
    return [
        *[Candidate("baseline", backend, "fp32") for backend in baselines or ["torch"]],
        *[Candidate("ours", backend, precision) for precision in precisions for backend in ours],
    ]


def variants(candidates: list[Candidate], name: str) -> list[Candidate]:
    """Each of ours under the name of a variant."""
    return [each._replace(name=name) for each in candidates if each.name == "ours"]


def measure_rates(candidates: list[Candidate], device: torch.device) -> Rates:
    def alone(function: Callable, *arguments) -> float:
        return measure.isolated(function, *arguments, device=device, limit=300)

    precisions = dict.fromkeys(candidate.precision for candidate in candidates)
    return Rates(
        alone(measure.copy_rate, device),
        {name: alone(measure.matmul_rate, device, PRECISIONS[name]) for name in precisions},
    )


def compare(
    title: str,
    run: Callable[..., measure.Measurement],
    arguments: tuple,
    candidates: list[Candidate],
    work: Work,
    rates: Rates,
    device: torch.device,
    limit: float,
) -> None:
    """Print a table of ``run(candidate, *arguments)``, each candidate measured in its own process."""
    results = {}
    for candidate in tqdm(candidates, desc=title, leave=False, disable=None):
        results[candidate] = measure.isolated(run, candidate, *arguments, device=device, limit=limit)
    baselines = [candidate for candidate in candidates if candidate.name == "baseline"]
    columns = [(title, -44), ("median ms", 11), ("roofline ms", 12), ("peak GiB", 10), ("GFLOP/s", 10)]
    for baseline in baselines:
        columns += [(f"x baseline {baseline.backend}", len(baseline.backend) + 9), ("memory", 9)]
    measure.print_row(columns, [heading for heading, _ in columns])
    for candidate, result in results.items():
        roofline = work.seconds(PRECISIONS[candidate.precision].itemsize, rates.matmul[candidate.precision], rates.copy)
        cells = ["-", f"{roofline * 1e3:.1f}", "-", "-", *["-", "-"] * len(baselines)]
        if result:
            cells = [
                f"{result.seconds * 1e3:.1f}",
                f"{roofline * 1e3:.1f}",
                f"{result.memory / GIB:.3f}",
                f"{work.flops / result.seconds / 1e9:.1f}",
            ]
            for baseline in baselines:
                seconds, memory = results[baseline] or (None, None)
                cells += [measure.ratio(seconds, result.seconds), measure.ratio(result.memory, memory)]
        measure.print_row(columns, ["  " + ", ".join(candidate), *cells])
    print()
