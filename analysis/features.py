"""What a scan adds to a decoder block's features, by its direction (paper, Fig. 8).

    python -m analysis.features photograph.jpg --level 1 --block 2
    python -m analysis.features photograph.jpg --weights \\
        bidirectional=results/ablation/bidirectional/models/best_XYScanNet_stage1.pth \\
        unidirectional=results/ablation/xyscan/models/best_XYScanNet_stage1.pth

A row for each network: the patch, then maps of the residual that a state space module adds to the features, as the
mean of its absolute value over channels, all on one scale. L->R is what the module adds when it scans each slice from
its start alone, from the left and from the top; R->L is what the scan from the slices' ends adds to that; their sum is
what the module adds. In an Intra-VSSM that is linear in the scans, so that R->L is also what this scan would add alone;
in an Inter-VSSM a sigmoid comes after the scans.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from analysis.figure import check_name, new_figure, save
from analysis.subjects import Subject, SubjectError, add_flags, check_flags, read_patch, read_subject, untrained_subject
from engine import distributed
from engine.console import readable_errors
from engine.predict.inference import tensor_to_images
from models.ss2d import SS2D

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORWARD, BACKWARD, BOTH = "L→R", "R→L", "sum"
TITLES = {
    FORWARD: "L→R\nfrom the left and from the top",
    BACKWARD: "R→L\nfrom the right and from below",
    BOTH: "sum\nall that the module adds",
}
MISSING = {BACKWARD: "this network does not\nscan from there", BOTH: "L→R is all\nthat the module adds"}
UNTRAINED = ("bidirectional", "unidirectional")
LEVELS = (1, 2, 3)
BRIGHTEST = 0.999  # of all values lie on the scale: single pixels must not darken the rest
PANEL = 2.9  # inches


@dataclass(frozen=True)
class Residual:
    """What a module of a network adds. maps: (h, w) by direction, in the order of the picture."""

    subject: Subject
    module: str
    maps: dict[str, np.ndarray]

    def title(self) -> str:
        lines = [textwrap.fill(self.subject.label, 24), self.module]
        return "\n".join(lines + ["UNTRAINED: random weights"] * self.subject.untrained)


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    with readable_errors():
        check_name(arguments.output)
        subjects = [read_subject(label, file) for label, file in arguments.weights] or [
            untrained_subject(scan, scan=scan) for scan in UNTRAINED
        ]
        patch = read_patch(arguments.image, arguments.size, arguments.corner)
        device = distributed.device(arguments.device)
        residuals = []
        for subject in subjects:
            print(subject.announce(), flush=True)
            module = find_module(subject, arguments.level, arguments.block, arguments.module)
            residuals.append(measure(subject, module, patch.to(device)))
            print(
                "    mean |residual|: "
                + ", ".join(f"{name} {shown.mean():.4g}" for name, shown in residuals[-1].maps.items())
            )
        figure = new_figure(
            1.3 + PANEL * (1 + max(len(residual.maps) for residual in residuals)), 0.9 + PANEL * len(residuals)
        )
        draw(figure, residuals, tensor_to_images(patch)[0], f"decoder level {arguments.level}, block {arguments.block}")
        save(figure, arguments.output)
    print(f"picture: {arguments.output}")
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, metavar="IMAGE")
    add_flags(parser, " and ".join(UNTRAINED), size=128)
    parser.add_argument(
        "--corner",
        nargs=2,
        type=int,
        metavar=("Y", "X"),
        help="the patch's upper left corner in the image; default: the patch is the image's middle",
    )
    parser.add_argument(
        "--level",
        type=int,
        default=1,
        metavar="L",
        help="of the decoder: 1, the image's own resolution, to 3, a quarter of it (default %(default)s)",
    )
    parser.add_argument(
        "--block", type=int, default=1, metavar="B", help="of that level, 1 being the first (default %(default)s)"
    )
    parser.add_argument(
        "--module",
        choices=("intra", "inter"),
        default="intra",
        help="the block's first or second state space module (default %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("features.png"), metavar="FILE", help="default: %(default)s"
    )
    arguments = parser.parse_args(argv)
    check_flags(parser, arguments)
    return arguments


# The measurement


def find_module(subject: Subject, level: int, block: int, module: str) -> nn.Module:
    """The state space module `module`, "intra" or "inter", of a decoder block, counted from 1.

    Raises: SubjectError where there is none, and for SS2D, whose routes are not of two directions.
    """
    if level not in LEVELS:
        raise SubjectError(f"--level {level}: the decoder has levels 1, 2 and 3")
    blocks = getattr(subject.network, f"decoder_level{level}")
    if not 1 <= block <= len(blocks):
        raise SubjectError(
            f"--block {block}: decoder level {level} of {subject.label} has "
            f"{f'blocks 1 to {len(blocks)}' if len(blocks) > 1 else 'block 1 alone'}"
        )
    found = getattr(blocks[block - 1], module)
    if isinstance(found, SS2D):
        raise SubjectError(
            f"{subject.label} has SS2D modules, which scan full images along four routes; choose a "
            "network that scans slices"
        )
    return found


def measure(subject: Subject, module: nn.Module, patch: torch.Tensor) -> Residual:
    """The module's residual maps for a patch (1, 3, H, W), on the patch's device.

    Raises: SubjectError where they are not finite.
    """
    residuals = by_direction(subject.network.to(patch.device), module, patch)
    maps = {name: to_map(residual) for name, residual in residuals.items()}
    if not all(np.isfinite(shown).all() for shown in maps.values()):
        raise SubjectError(f"{subject.label}: its features are not finite; these weights hold inf or NaN")
    return Residual(subject, type(module).__name__, maps)


@torch.inference_mode()
def by_direction(network: nn.Module, module: nn.Module, patch: torch.Tensor) -> dict[str, torch.Tensor]:
    """What one of the network's modules adds to its features for a patch (1, 3, H, W), by direction: (1, C, h, w) each.

    FORWARD alone where the module scans in one direction; else FORWARD, BACKWARD and their sum BOTH.
    """
    inputs = []
    handle = module.register_forward_pre_hook(lambda _, positional: inputs.extend(positional))
    try:
        network.residual(patch)
    finally:
        handle.remove()
    added = module(*inputs)
    if not module.mamba.bidirectional:
        return {FORWARD: added}
    module.mamba.bidirectional = False
    try:
        forward = module(*inputs)
    finally:
        module.mamba.bidirectional = True
    return {FORWARD: forward, BACKWARD: added - forward, BOTH: added}


def to_map(residual: torch.Tensor) -> np.ndarray:
    """(1, C, h, w) -> (h, w): the mean absolute value over channels."""
    return residual[0].abs().mean(dim=0).cpu().numpy()


# The picture


def draw(figure: Figure, residuals: Sequence[Residual], patch: np.ndarray, where: str) -> None:
    """A row for each network: the patch, uint8 RGB (H, W, 3), and its maps, all of them on one scale from 0."""
    directions = max((residual.maps for residual in residuals), key=len)
    panels = figure.subplots(len(residuals), 1 + len(directions), squeeze=False)
    top = np.quantile(np.concatenate([shown.ravel() for one in residuals for shown in one.maps.values()]), BRIGHTEST)
    for line, residual in zip(panels, residuals, strict=True):
        line[0].imshow(patch)
        line[0].set_ylabel(residual.title(), fontsize=10, color="#B00020" if residual.subject.untrained else "black")
        for panel, direction in zip(line[1:], directions, strict=True):
            if direction in residual.maps:
                values = residual.maps[direction]
                shown = panel.imshow(values, cmap="viridis", vmin=0, vmax=top, interpolation="nearest")
                panel.set_xlabel(f"mean {values.mean():.3g}", fontsize=9)
            else:
                _leave_blank(panel, MISSING[direction])
        for panel in line:
            panel.set(xticks=[], yticks=[])
    for panel, title in zip(panels[0], ("blurred patch", *(TITLES[name] for name in directions)), strict=True):
        panel.set_title(title, fontsize=9)
    figure.colorbar(shown, ax=panels, extend="max", shrink=0.8, pad=0.02, label="mean over channels of |residual|")
    figure.suptitle(f"What the state space module adds to the features: {where}", fontsize=11)


def _leave_blank(panel: Axes, why: str) -> None:
    panel.text(0.5, 0.5, why, ha="center", va="center", fontsize=9, color="#555555", transform=panel.transAxes)
    panel.set_box_aspect(1)
    for spine in panel.spines.values():
        spine.set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
