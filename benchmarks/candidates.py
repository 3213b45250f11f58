"""Ours and the plain baseline with the scans and precisions asked for, measured one after the other, as ratios."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from tqdm import tqdm

from engine.memory import GIB
from models import XYScanNet
from models.ops.selective_scan import BACKENDS

from . import measure
from .baseline import Baseline
from .roofline import Work

CHECKPOINTED, COMPILED = "ours checkpointed", "ours compiled"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Candidate(NamedTuple):
    """A network to measure ("baseline", "ours" or another of these), its scan backend, and its precision.

    bf16 is by autocast.
    """

    name: str
    backend: str
    precision: str

    def build(self, dim: int, num_blocks: tuple[int, ...], device: torch.device) -> torch.nn.Module:
        torch.manual_seed(0)
        if self.name == "baseline":
            return Baseline(dim, num_blocks, self.backend).to(device)
        network = XYScanNet(
            dim, num_blocks, scan_backend=self.backend, checkpoint_activations=self.name == CHECKPOINTED
        ).to(device)
        return torch.compile(network, mode="reduce-overhead") if self.name == COMPILED else network

    def autocast(self, device: torch.device) -> AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


class Rates(NamedTuple):
    """What the device reaches: bytes a second in a copy, FLOP a second in a matrix product of each precision."""

    copy: float
    matmul: dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = ["auto", *BACKENDS]
    parser.add_argument(
        "--backend",
        nargs="+",
        default=["auto"],
        choices=names,
        metavar="NAME",
        help=f"our scans: of {', '.join(names)} (default auto)",
    )
    parser.add_argument(
        "--baseline_backend",
        nargs="+",
        choices=names,
        metavar="NAME",
        help="the baseline's (default: mamba_ssm on a GPU, or torch where that cannot run; reference and "
        "torch on a CPU)",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        metavar="NAME",
        help="ours, fp32 and bf16 (default: both on a GPU, fp32 on a CPU); the baseline's is fp32",
    )


def choose(arguments: argparse.Namespace, device: torch.device) -> list[Candidate]:
    """The baselines first, then ours."""
    gpu = device.type == "cuda"
    usual = ["mamba_ssm"] if gpu else ["reference", "torch"]
    baselines = measure.usable_backends(arguments.baseline_backend or usual, device)
    ours = measure.usable_backends(arguments.backend, device)
    precisions = arguments.precision or (["fp32", "bf16"] if gpu else ["fp32"])
    return [
        *[Candidate("baseline", backend, "fp32") for backend in baselines or ["torch"]],
        *[Candidate("ours", backend, precision) for precision in precisions for backend in ours],
    ]


def with_variant(candidates: list[Candidate], name: str) -> list[Candidate]:
    """Each of ours a second time, with checkpointed activations or compiled into CUDA graphs."""
    return [*candidates, *[each._replace(name=name) for each in candidates if each.name == "ours"]]


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
    """Print a table of what ``run(candidate, *arguments)`` measures in a process of its own for each candidate."""
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
