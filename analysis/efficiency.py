"""What each variant of the paper's ablations costs: parameters and multiply-adds counted, time and memory measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from tqdm import tqdm

from analysis.macs import WHOLE, Macs, count, papers_fusion_macs
from benchmarks import measure
from benchmarks.measure import Measurement
from benchmarks.network import Case, run
from models import XYScanNet

# The model section of each job in configs/ablation/ that has a row in the paper's tables.
VARIANTS = {
    "xyscan": {},
    "ss2d": {"vssm": "ss2d"},
    "bidirectional": {"scan": "bidirectional"},
    "intra": {"slices": "intra"},
    "inter": {"slices": "inter"},
    "aff": {"fusion": "aff"},
    "no_fusion": {"fusion": "none"},
}
FUSIONS = ("clff_level1", "clff_level2")
STATE_SPACE = re.compile(r"decoder_level\d\.\d+\.(intra|inter)")


class Counted(NamedTuple):
    """parameters: of the network's modules, in their order. macs: as they are computed here; written: the whole's,
    layer by layer as the paper writes them; fusion: the fusion modules' as Table 8 counts them."""

    parameters: dict[str, int]
    macs: Macs
    written: int
    fusion: int

    @property
    def state_space(self) -> int:
        """MACs of the decoder's state space modules."""
        return sum(number for name, number in self.macs.of.items() if STATE_SPACE.fullmatch(name))


def count_variant(name: str, dim: int, num_blocks: Sequence[int], size: int) -> Counted:
    """For one image of ``size`` x ``size``, a multiple of 4."""
    network = XYScanNet(dim, num_blocks, **VARIANTS[name])
    parameters = {
        child: sum(parameter.numel() for parameter in module.parameters()) for child, module in network.named_children()
    }
    written = count(network, 1, 3, size, size, as_written=True).of[WHOLE]
    return Counted(parameters, count(network, 1, 3, size, size), written, papers_fusion_macs(network, size, size))


class Variant(NamedTuple):
    """A variant as benchmarks.network runs it: fp32, whatever scans fastest on the device."""

    name: str

    def build(self, dim: int, num_blocks: Sequence[int], device: torch.device) -> XYScanNet:
        torch.manual_seed(0)
        return XYScanNet(dim, num_blocks, **VARIANTS[self.name]).to(device)

    def autocast(self, device: torch.device) -> AbstractContextManager:
        return nullcontext()


class Protocol(NamedTuple):
    """What is measured, on what, how often, and after how many seconds one measurement is given up."""

    train: Case
    test: Case
    device: torch.device
    repeats: int
    limit: float


class Efficiency(NamedTuple):
    """None where a measurement took too long or too much memory."""

    train: Measurement | None
    test: Measurement | None


def measure_variants(
    names: list[str], dim: int, num_blocks: Sequence[int], protocol: Protocol
) -> dict[str, Efficiency]:
    """One measurement after another. Forward, loss without its VGG19 term, backward and Adam are a training step."""
    measured = {name: [] for name in names}
    runs = [(name, case) for name in names for case in (protocol.train, protocol.test)]
    for name, case in tqdm(runs, desc="measuring", leave=False, disable=None):
        result = measure.isolated(
            run,
            Variant(name),
            dim,
            num_blocks,
            case,
            protocol.device,
            protocol.repeats,
            device=protocol.device,
            limit=protocol.limit,
        )
        measured[name].append(result)
    return {name: Efficiency(*both) for name, both in measured.items()}
