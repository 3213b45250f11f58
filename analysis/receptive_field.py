"""Effective receptive fields of networks side by side, by default XYScan and SS2D (paper, Fig. 6).

    python -m analysis.receptive_field datasets/GoPro
    python -m analysis.receptive_field datasets/GoPro --weights \\
        XYScan=results/ablation/xyscan/models/best_XYScanNet_stage1.pth \\
        SS2D=results/ablation/ss2d/models/best_XYScanNet_stage1.pth

The contribution of an input pixel to the output's centre pixel is the sum of the absolute gradients over the three
channels of both (Luo et al. 2016, https://arxiv.org/abs/1701.04128), averaged over images. The output is the residual
that the network predicts: the image itself, added at the end, would give the centre pixel a gradient of one in every
network. Patches are cut from the images' middles.

A picture comes with the share of the area that holds t = 20, 30, 50 and 99 % of all contributions, as (a) the fewest
pixels that do, wherever they lie, and (b) the smallest square around the centre that does, as in RepLKNet (Ding et al.
2022, https://arxiv.org/abs/2203.06717). A sparse field has a small (a), a field that reaches far a large (b).
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Sequence
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

    from models import XYScanNet

# Heavier modules are imported where they are used: --help needs no PyTorch.

PARTS = (0.2, 0.3, 0.5, 0.99)
UNTRAINED = {"XYScan": "xyscan", "SS2D": "ss2d"}
FLOOR = 1e-5  # of the mean contribution: the darkest colour; slices reach far, but faintly


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    from engine import distributed
    from engine.console import readable_errors

    with readable_errors():
        check_name(arguments.output)
        figure = new_figure(1.2 + 3.6 * (len(arguments.weights) or len(UNTRAINED)), 5.6)
        networks = [read_network(label, file) for label, file in arguments.weights] or [
            untrained_network(label, vssm=vssm) for label, vssm in UNTRAINED.items()
        ]
        paths = find_images(arguments.images, arguments.count)
        for network in networks:
            print(network.describe(), flush=True)
        fields = measure(networks, paths, arguments.size, distributed.device(arguments.device))
        draw(figure, networks, fields, len(paths))
        save(figure, arguments.output)
    print(f"\nshare of the area, in %, over {len(paths)} images of {arguments.size} x {arguments.size} pixels\n")
    print(table(networks, fields))
    print(f"\npicture: {arguments.output}")
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "images",
        nargs="+",
        type=Path,
        metavar="IMAGES",
        help="images, folders of images, or data sets in any known layout (their blurred test images)",
    )
    add_flags(parser, "XYScan and SS2D", size=256)
    parser.add_argument(
        "--count",
        type=int,
        default=50,
        metavar="N",
        help="use at most N of the images, evenly spaced (default %(default)s)",
    )
    add_output_flag(parser, "receptive_field.png")
    arguments = parser.parse_args(argv)
    check_flags(parser, arguments)
    if arguments.count < 1:
        parser.error(f"--count: must be at least 1, not {arguments.count}")
    return arguments


def find_images(sources: Iterable[Path], count: int) -> list[Path]:
    """The files and the folders' blurred images, at most ``count`` of all, evenly spaced.

    Raises:
        LayoutError: a folder has no images, or an unknown layout.
    """
    from datasets.layouts import find_pairs

    found = []
    for source in sources:
        found += [source] if source.is_file() else [pair.blurred for pair in find_pairs(source, "test")]
    count = min(count, len(found))
    return [found[k * len(found) // count] for k in range(count)]


# The measurement


def measure(
    networks: Sequence[NamedNetwork], paths: Sequence[Path], size: int, device: torch.device
) -> list[np.ndarray]:
    """Each network's contributions, averaged over images: (size, size), float64.

    Raises:
        InputError: an image is too small, a network's gradient zero or not finite, or the memory too small.
        ImageError: an image is damaged.
    """
    from tqdm import tqdm

    from engine.memory import is_out_of_memory

    fields = []
    with tqdm(desc="differentiating", total=len(networks) * len(paths), unit="image", disable=None) as bar:
        for named in networks:
            network, field = named.network.to(device), np.zeros((size, size))
            for path in paths:
                patch = read_patch(path, size).to(device)
                try:
                    field += contributions(network, patch).cpu().double().numpy() / len(paths)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    raise InputError(
                        f"{named.label}: out of memory on {device}; use a smaller --size than {size}, or another device"
                    ) from error
                bar.update()
            network.cpu()
            if not 0 < field.sum() < np.inf:
                raise InputError(
                    f"{named.label}: the gradients sum to {field.sum():g}, so there is no receptive "
                    "field to show; these weights are zero or not finite"
                )
            fields.append(field)
    return fields


def contributions(network: XYScanNet, patch: torch.Tensor) -> torch.Tensor:
    """(1, 3, H, W) -> (H, W): the absolute gradients of the residual's pixel (H // 2, W // 2), summed over channels."""
    import torch

    patch = patch.detach().requires_grad_()
    height, width = patch.shape[-2:]
    centre = network.residual(patch)[0, :, height // 2, width // 2]
    # One channel at a time: the gradients of their sum would cancel.
    gradients = [torch.autograd.grad(channel, patch, retain_graph=True)[0] for channel in centre]
    return torch.cat(gradients).abs().sum(dim=(0, 1))


def fewest_pixels(field: np.ndarray, part: float) -> float:
    """The fewest pixels that hold ``part`` of the contributions, as a share of all pixels, in (0, 1]."""
    return _first_to_hold(np.sort(field, axis=None)[::-1].cumsum(), part) / field.size


def smallest_square(field: np.ndarray, part: float) -> float:
    """The smallest square around pixel (H // 2, W // 2) that holds ``part``, as a share of all pixels, in (0, 1].

    Its side is 1, 3, 5, ... pixels; only pixels inside the field count.
    """
    rings = np.maximum.outer(*(np.abs(np.arange(side) - side // 2) for side in field.shape))
    held = np.bincount(rings.ravel(), weights=field.ravel()).cumsum()
    return (rings < _first_to_hold(held, part)).mean()


def _first_to_hold(held: np.ndarray, part: float) -> int:
    """How many entries of a cumulative sum it takes to hold ``part`` of its end, up to rounding."""
    return int(np.searchsorted(held, part * held[-1] * (1 - 1e-12))) + 1


def table(networks: Sequence[NamedNetwork], fields: Sequence[np.ndarray]) -> str:
    """Both shares in per cent, a line for each network and kind, for the terminal."""
    names = [f"{network.label} (untrained)" if network.untrained else network.label for network in networks]
    width = max(len(name) for name in names)
    lines = [f"{'':{width}}  {'':15}" + "".join(f"{f't = {part:.0%}':>10}" for part in PARTS)]
    for name, field in zip(names, fields, strict=True):
        for kind, share in (("fewest pixels", fewest_pixels), ("smallest square", smallest_square)):
            lines.append(f"{name:{width}}  {kind:15}" + "".join(f"{100 * share(field, part):10.2f}" for part in PARTS))
    return "\n".join(lines)


# The picture


def draw(figure: Figure, networks: Sequence[NamedNetwork], fields: Sequence[np.ndarray], count: int) -> None:
    """The fields side by side on one scale, relative to each one's mean, with the shares of the area below."""
    from matplotlib.colors import LogNorm

    relative = [field / field.mean() for field in fields]
    norm = LogNorm(FLOOR, max(field.max() for field in relative), clip=True)
    panels = figure.subplots(1, len(fields), squeeze=False)[0]
    for panel, network, field in zip(panels, networks, relative, strict=True):
        shown = _draw_field(panel, network, field, norm)
    bar = figure.colorbar(shown, ax=panels, extend="min", shrink=0.62, pad=0.02)
    bar.set_label("contribution to the centre / the mean pixel's", fontsize=9)
    size = fields[0].shape[0]
    figure.suptitle(
        "Effective receptive fields of the centre pixel\nof output - input; "
        f"{size} x {size} pixels, mean over {count} image{'s' * (count > 1)}",
        fontsize=10.5,
    )


def _draw_field(panel: Axes, network: NamedNetwork, field: np.ndarray, norm: object) -> object:
    """One field; its axes count pixels from the centre. Returns what the colour bar is of."""
    size = len(field)
    edges = (-(size // 2) - 0.5, size - size // 2 - 0.5)
    shown = panel.imshow(field, norm=norm, cmap="viridis", interpolation="nearest", extent=(*edges, *edges[::-1]))
    ticks = (-(size // 2), -(size // 4), 0, size // 4, size - size // 2 - 1)
    panel.set_xticks(ticks)
    panel.set_yticks(ticks)
    panel.tick_params(labelsize=8)
    title = textwrap.fill(network.label, 30)
    panel.set_title(
        f"{title}\nUNTRAINED: random initialisation" if network.untrained else title,
        fontsize=11,
        color="#B00020" if network.untrained else "black",
    )
    rows = [f"{'share of the area':24}{'fewest':>8}{'centred':>9}", f"{'that holds':24}{'pixels':>8}{'square':>9}"]
    rows += [
        f"{f'{part:4.0%} of contributions':24}{fewest_pixels(field, part):>8.2%}{smallest_square(field, part):>9.2%}"
        for part in PARTS
    ]
    panel.set_xlabel("\n".join(["pixels from the centre", "", *rows]), family="monospace", fontsize=8)
    return shown


if __name__ == "__main__":
    sys.exit(main())
