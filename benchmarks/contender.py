"""Ours and the plain twin with the scans and precisions asked for, measured one after the other, as ratios."""
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
from .floor import Work
from .twin import Twin

CHECKPOINTED = "ours checkpointed"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Contender(NamedTuple):
    """A network to measure: "ours", "ours checkpointed" (activations) or "twin", what scans in it, and its precision.

    bf16 is by autocast.
    """
    name: str
    backend: str
    precision: str

    def build(self, dim: int, num_blocks: tuple[int, ...], device: torch.device) -> torch.nn.Module:
        torch.manual_seed(0)
        if self.name == "twin":
            return Twin(dim, num_blocks, self.backend).to(device)
        return XYScanNet(dim, num_blocks, scan_backend=self.backend,
                         checkpoint_activations=self.name == CHECKPOINTED).to(device)

    def autocast(self, device: torch.device) -> AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


class Rates(NamedTuple):
    """What the device reaches: bytes a second in a copy, FLOP a second in a matrix product of each precision."""
    copy: float
    matmul: dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = ["auto", *BACKENDS]
    parser.add_argument("--backend", nargs="+", default=["auto"], choices=names, metavar="NAME",
                        help=f"our scans: of {', '.join(names)} (default auto)")
    parser.add_argument("--twin_backend", nargs="+", choices=names, metavar="NAME",
                        help="the twin's (default: mamba_ssm on a GPU, or torch where that cannot run; reference and "
                             "torch on a CPU)")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, metavar="NAME",
                        help="ours, fp32 and bf16 (default: both on a GPU, fp32 on a CPU); the twin's is fp32")


def choose(arguments: argparse.Namespace, device: torch.device) -> list[Contender]:
    """The twins first, then ours."""
    gpu = device.type == "cuda"
    usual = ["mamba_ssm"] if gpu else ["reference", "torch"]
    twins = measure.usable_backends(arguments.twin_backend or usual, device)
    ours = measure.usable_backends(arguments.backend, device)
    precisions = arguments.precision or (["fp32", "bf16"] if gpu else ["fp32"])
    return [*[Contender("twin", backend, "fp32") for backend in twins or ["torch"]],
            *[Contender("ours", backend, precision) for precision in precisions for backend in ours]]


def with_checkpointing(contenders: list[Contender]) -> list[Contender]:
    """Each of ours a second time, with checkpointed activations."""
    return [*contenders, *[each._replace(name=CHECKPOINTED) for each in contenders if each.name == "ours"]]


def measure_rates(contenders: list[Contender], device: torch.device) -> Rates:
    def alone(function: Callable, *arguments) -> float:
        return measure.isolated(function, *arguments, device=device, limit=300)

    precisions = dict.fromkeys(contender.precision for contender in contenders)
    return Rates(alone(measure.copy_rate, device),
                 {name: alone(measure.matmul_rate, device, PRECISIONS[name]) for name in precisions})


def compare(title: str, run: Callable[..., measure.Measurement], arguments: tuple, contenders: list[Contender],
            work: Work, rates: Rates, device: torch.device, limit: float) -> None:
    """Print a table of what ``run(contender, *arguments)`` measures in a process of its own for each contender."""
    results = {}
    for contender in tqdm(contenders, desc=title, leave=False, disable=None):
        results[contender] = measure.isolated(run, contender, *arguments, device=device, limit=limit)
    twins = [contender for contender in contenders if contender.name == "twin"]
    columns = [(title, -44), ("median ms", 11), ("floor ms", 10), ("peak GiB", 10), ("GFLOP/s", 10)]
    for twin in twins:
        columns += [(f"x twin {twin.backend}", len(twin.backend) + 9), ("memory", 9)]
    measure.print_row(columns, [heading for heading, _ in columns])
    for contender, result in results.items():
        floor = work.seconds(PRECISIONS[contender.precision].itemsize, rates.matmul[contender.precision], rates.copy)
        cells = ["-", f"{floor * 1e3:.1f}", "-", "-", *["-", "-"] * len(twins)]
        if result:
            cells = [f"{result.seconds * 1e3:.1f}", f"{floor * 1e3:.1f}", f"{result.memory / GIB:.3f}",
                     f"{work.flops / result.seconds / 1e9:.1f}"]
            for twin in twins:
                seconds, memory = results[twin] or (None, None)
                cells += [measure.ratio(seconds, result.seconds), measure.ratio(result.memory, memory)]
        measure.print_row(columns, ["  " + ", ".join(contender), *cells])
    print()
