"""What a state space module adds to a decoder block's features, by the direction of its scans (paper, Fig. 8).

    python -m analysis.features photograph.jpg --level 1 --block 2
    python -m analysis.features photograph.jpg --weights \\
        bidirectional=results/ablation/bidirectional/models/best_XYScanNet_stage1.pth \\
        unidirectional=results/ablation/xyscan/models/best_XYScanNet_stage1.pth

One row for each network: the patch, then maps of the residual that the module adds to the features, as the mean of its
absolute value over channels, all on one scale. L->R is the residual of the scans from the slices' starts alone (left
and top), R->L is what the scans from their ends contribute besides, and their sum is the whole residual. In an
Intra-VSSM the residual is linear in the scans, so R->L is also what the backward scans would add alone; in an
Inter-VSSM a sigmoid follows the scans.
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

from analysis.figure import add_output_flag, check_name, new_figure, save
from analysis.inputs import (
    InputError,
    NamedNetwork,
    add_flags,
    check_flags,
    read_network,
    read_patch,
    untrained_network,
)

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import nn

# Heavier modules are imported where they are used: --help needs no PyTorch.

FORWARD, BACKWARD, BOTH = "L→R", "R→L", "sum"
TITLES = {
    FORWARD: "L→R\nfrom the left and from the top",
    BACKWARD: "R→L\nfrom the right and from below",
    BOTH: "sum\nall that the module adds",
}
MISSING = {BACKWARD: "this network does not\nscan from there", BOTH: "L→R is all\nthat the module adds"}
UNTRAINED = ("bidirectional", "unidirectional")
BRIGHTEST = 0.999  # the share of all values within the scale: single pixels must not darken the rest
PANEL = 2.9  # inches


@dataclass(frozen=True)
class Residual:
    """What a module of a network adds to its features.

    Attributes:
        module: its class.
        maps: direction -> (h, w), in the order of the picture.
    """

    network: NamedNetwork
    module: str
    maps: dict[str, np.ndarray]

    def title(self) -> str:
        lines = [textwrap.fill(self.network.label, 24), self.module]
        return "\n".join(lines + ["UNTRAINED: random weights"] * self.network.untrained)


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    from engine import distributed
    from engine.console import readable_errors
    from models.images import tensor_to_images

    with readable_errors():
        check_name(arguments.output)
        networks = [read_network(label, file) for label, file in arguments.weights] or [
            untrained_network(scan, scan=scan) for scan in UNTRAINED
        ]
        patch = read_patch(arguments.image, arguments.size, arguments.corner)
        device = distributed.device(arguments.device)
        residuals = []
        for network in networks:
            print(network.describe(), flush=True)
            module = find_module(network, arguments.level, arguments.block, arguments.module)
            residuals.append(measure(network, module, patch.to(device)))
            means = [f"{name} {values.mean():.4g}" for name, values in residuals[-1].maps.items()]
            print(f"    mean |residual|: {', '.join(means)}")
        columns = 1 + max(len(residual.maps) for residual in residuals)
        figure = new_figure(1.3 + PANEL * columns, 0.9 + PANEL * len(residuals))
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
        help="the patch's upper left corner in the image (default: the patch in the image's middle)",
    )
    parser.add_argument(
        "--level",
        type=int,
        default=1,
        choices=(1, 2, 3),
        help="the decoder's level, from 1 (full resolution) to 3 (a quarter of it); default %(default)s",
    )
    parser.add_argument(
        "--block", type=int, default=1, metavar="B", help="of that level, counted from 1 (default %(default)s)"
    )
    parser.add_argument(
        "--module",
        choices=("intra", "inter"),
        default="intra",
        help="the block's first or second state space module (default %(default)s)",
    )
    add_output_flag(parser, "features.png")
    arguments = parser.parse_args(argv)
    check_flags(parser, arguments)
    return arguments


# The measurement


def find_module(network: NamedNetwork, level: int, block: int, module: str) -> nn.Module:
    """The state space module ``module``, "intra" or "inter", of a decoder block, counted from 1.

    Raises:
        InputError: there is none, or it does not scan slices in one or two directions, as SS2D does not.
    """
    from models.mamba import S6

    blocks = getattr(network.network, f"decoder_level{level}")
    if not 1 <= block <= len(blocks):
        count = f"{len(blocks)} block{'s' if len(blocks) != 1 else ''}"
        raise InputError(f"--block {block}: decoder level {level} of {network.label} has {count}")
    found = getattr(blocks[block - 1], module)
    if not isinstance(getattr(found, "mamba", None), S6):
        raise InputError(
            f"{network.label} has {type(found).__name__} modules, which have no S6 (mamba) to scan slices in one or "
            "two directions; choose a network with Intra- or Inter-VSSM"
        )
    return found


def measure(network: NamedNetwork, module: nn.Module, patch: torch.Tensor) -> Residual:
    """The module's residual maps for a patch (1, 3, H, W), on the patch's device.

    Raises:
        InputError: they are not finite.
    """
    residuals = by_direction(network.network.to(patch.device), module, patch)
    maps = {name: to_map(residual) for name, residual in residuals.items()}
    if not all(np.isfinite(values).all() for values in maps.values()):
        raise InputError(f"{network.label}: its features are not finite; these weights are of no use")
    return Residual(network, type(module).__name__, maps)


def by_direction(network: nn.Module, module: nn.Module, patch: torch.Tensor) -> dict[str, torch.Tensor]:
    """What one of the network's modules adds to its features for a patch (1, 3, H, W): direction -> (1, C, h, w).

    FORWARD alone if the module scans in one direction; else FORWARD, BACKWARD and their sum BOTH.
    """
    import torch

    inputs = []
    handle = module.register_forward_pre_hook(lambda _, positional: inputs.extend(positional))
    with torch.inference_mode():
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
    """One row for each network: the patch, uint8 RGB (H, W, 3), and its maps, all on one scale from 0."""
    directions = max((residual.maps for residual in residuals), key=len)
    panels = figure.subplots(len(residuals), 1 + len(directions), squeeze=False)
    values = np.concatenate([values.ravel() for residual in residuals for values in residual.maps.values()])
    top = np.quantile(values, BRIGHTEST)
    for line, residual in zip(panels, residuals, strict=True):
        line[0].imshow(patch)
        line[0].set_ylabel(residual.title(), fontsize=10, color="#B00020" if residual.network.untrained else "black")
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
