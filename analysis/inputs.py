"""Inputs of the figures and the flags that select them: networks, trained or not, folders, patches of images."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import model_options

if TYPE_CHECKING:
    import torch

    from models import XYScanNet

# Heavier modules are imported where they are used: --help needs no PyTorch.

SEED = 666
MIN_SIZE, MULTIPLE = 8, 8  # of a patch's side: every network takes it without padding


class InputError(ValueError):
    """A network, an image or a run that cannot be shown so. The message says which, and what to do."""


@dataclass(frozen=True)
class NamedNetwork:
    """A network in evaluation mode, whose parameters need no gradient, under the name that pictures give it."""

    label: str
    network: XYScanNet
    untrained: bool = False

    def describe(self) -> str:
        """Its name, size and modules, in a line for the terminal."""
        network = self.network
        parts = [f"dim {network.dim}", f"blocks {'-'.join(map(str, network.num_blocks))}"]
        if network.unshuffle == 2:
            parts.append("at half resolution")
        if network.vssm == "xyscan":
            parts += [network.scan, network.slices.replace("_", " and ")]
        else:
            parts.append(network.vssm)
        if network.fusion != "klff":
            parts.append(f"fusion {network.fusion}")
        line = f"{self.label}: {', '.join(parts)}"
        if self.untrained:
            line += "; UNTRAINED, random initialisation: this shows the architecture, not what is learned"
        return line


def add_flags(parser: argparse.ArgumentParser, untrained: str, size: int) -> None:
    """Add the flags for networks, patch size and device.

    Args:
        untrained: in words, the networks that are shown without --weights.
        size: the patch's default side.
    """
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        type=named_path("FILE", "ours=results/J/models/best.pth"),
        metavar="NAME=FILE",
        help="trained networks, in the order of the picture. For weights without a description (of the first versions, "
        "or released), scan, slices and kl_gate are read from the recipe beside FILE, or that of the job called NAME. "
        f"Default: {untrained}, both UNTRAINED, at XYScanNet-S's size",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=size,
        metavar="N",
        help=f"the patch's side in pixels, a multiple of {MULTIPLE} (default %(default)s)",
    )
    parser.add_argument("--device", help="cuda, cuda:1, cpu; default: a GPU where there is one")


def check_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with the usage and an error for impossible flags."""
    if arguments.size < MIN_SIZE or arguments.size % MULTIPLE:
        parser.error(f"--size: must be a multiple of {MULTIPLE}, at least {MIN_SIZE}, not {arguments.size}")
    labels = [label for label, _ in arguments.weights]
    check_unique(parser, "--weights", labels)
    from engine.console import check_device

    check_device(parser, arguments.device)


def check_unique(parser: argparse.ArgumentParser, flag: str, labels: list[str]) -> None:
    """End with the usage and an error if a label appears twice."""
    if twice := {label for label in labels if labels.count(label) > 1}:
        parser.error(f"{flag}: names must be unique, but {' and '.join(sorted(twice))} appears twice")


def named_path(kind: str, example: str) -> Callable[[str], tuple[str, Path]]:
    """The type of an argument NAME=``kind``."""

    def parse(text: str) -> tuple[str, Path]:
        label, _, path = text.partition("=")
        if not label or not path:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME={kind}, such as {example}")
        return label, Path(path)

    return parse


def read_network(label: str, weights: Path) -> NamedNetwork:
    """The network in a file.

    Raises:
        WeightsError: the file holds no weights of XYScanNet.
        ConfigError: the recipe beside it is invalid.
    """
    from models.weights import load_network

    # Backends differ in speed alone, and the training machine's may not run here.
    options = {**model_options(weights, label), "scan_backend": "auto"}
    return NamedNetwork(label, load_network(weights, **options).requires_grad_(False))


def untrained_network(label: str, **variant: str) -> NamedNetwork:
    """XYScanNet-S at its initialisation, from the same seed each time."""
    import torch

    from models import xyscannet_s

    torch.manual_seed(SEED)
    return NamedNetwork(label, xyscannet_s(**variant).eval().requires_grad_(False), untrained=True)


def read_patch(path: Path, size: int, corner: tuple[int, int] | None = None) -> torch.Tensor:
    """A square of an image, (1, 3, size, size) in [-0.5, 0.5].

    Args:
        corner: its upper left corner (y, x); None for the image's middle.

    Raises:
        InputError: it does not lie inside the image.
        ImageError: the image is damaged.
    """
    from datasets.images import read_rgb
    from models.images import images_to_tensor

    image = read_rgb(path)
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise InputError(
            f"{path} is {width} x {height} pixels, smaller than --size {size}; choose a larger image, or a smaller size"
        )
    y, x = corner or ((height - size) // 2, (width - size) // 2)
    if min(y, x) < 0 or y + size > height or x + size > width:
        raise InputError(
            f"--corner {y} {x} with --size {size} does not lie inside {path}, which is {height} high "
            f"and {width} wide: Y is at most {height - size}, X at most {width - size}"
        )
    return images_to_tensor([image[y : y + size, x : x + size]])
