"""What a look inside the network is taken at: networks, trained or untrained, and patches of images."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from datasets.images import read_rgb
from engine import distributed
from engine.config import model_options
from engine.predict.inference import MULTIPLE, images_to_tensor
from models.weights import load_network
from models.xyscannet import MIN_SIZE, XYScanNet, xyscannet_s

SEED = 666


class SubjectError(ValueError):
    """A network or an image that cannot be looked at so; the message says which, and what to do."""


@dataclass(frozen=True)
class Subject:
    """A network to look into, in evaluation mode; its parameters need no gradient."""

    label: str
    network: XYScanNet
    untrained: bool = False

    @property
    def variant(self) -> str:
        """Its size and modules in words; scan and slices are what no weights tell."""
        network = self.network
        modules = ["half the size inside"] if network.unshuffle == 2 else []
        modules += ["SS2D"] if network.vssm == "ss2d" else [network.scan, network.slices.replace("_", " and ")]
        return ", ".join([f"dim {network.dim}", f"blocks {'-'.join(map(str, network.num_blocks))}", *modules])

    def announce(self) -> str:
        """A line for the terminal."""
        return f"{self.label}: {self.variant}" + (
            "; UNTRAINED, random initialisation: it shows the architecture, not what is learned"
            if self.untrained
            else ""
        )


def add_flags(parser: argparse.ArgumentParser, untrained: str, size: int) -> None:
    """The flags that name networks, the patch's size and the device; `untrained`: what is shown without weights."""
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        type=_named_file,
        metavar="NAME=FILE",
        help="trained networks, in the order of the picture. What weights do not tell (scan, slices, "
        "kl_gate) is read from the recipe beside FILE, or else from that of the job called NAME. "
        f"Without any: {untrained}, both UNTRAINED, at XYScanNet-S's size",
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
    """Stops with the parser's usage and an error for flags that cannot be."""
    if arguments.size < MIN_SIZE or arguments.size % MULTIPLE:
        parser.error(f"--size: a multiple of {MULTIPLE}, at least {MIN_SIZE}, not {arguments.size}")
    labels = [label for label, _ in arguments.weights]
    if twice := {label for label in labels if labels.count(label) > 1}:
        parser.error(f"--weights: every network has a name of its own, but {' and '.join(sorted(twice))} appears twice")
    try:
        distributed.device(arguments.device)
    except (RuntimeError, ValueError) as error:
        parser.error(f"--device: {error}")


def _named_file(text: str) -> tuple[str, Path]:
    label, _, file = text.partition("=")
    if not label or not file:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE, such as ours=results/J/models/best.pth")
    return label, Path(file)


def read_subject(label: str, weights: Path) -> Subject:
    """The network in a file. Raises WeightsError for other weights, ConfigError for a bad recipe beside them."""
    # Backends differ in speed alone, and the training machine's may not run here.
    options = {**model_options(weights, label), "scan_backend": "auto"}
    return Subject(label, load_network(weights, **options).requires_grad_(False))


def untrained_subject(label: str, **variant: str) -> Subject:
    """XYScanNet-S as it is initialised, from the same seed each time."""
    torch.manual_seed(SEED)
    return Subject(label, xyscannet_s(**variant).eval().requires_grad_(False), untrained=True)


def read_patch(path: Path, size: int, corner: tuple[int, int] | None = None) -> torch.Tensor:
    """A square of an image, (1, 3, size, size) in [-0.5, 0.5]: the middle, or from an upper left `corner` (y, x).

    Raises: SubjectError where it does not lie inside the image; ImageError for a damaged one.
    """
    image = read_rgb(path)
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise SubjectError(
            f"{path} is {width} x {height} pixels, smaller than --size {size}; choose a larger image, or a smaller size"
        )
    y, x = corner or ((height - size) // 2, (width - size) // 2)
    if min(y, x) < 0 or y + size > height or x + size > width:
        raise SubjectError(
            f"--corner {y} {x} with --size {size} does not lie inside {path}, which is {height} high "
            f"and {width} wide: Y is at most {height - size}, X at most {width - size}"
        )
    return images_to_tensor([image[y : y + size, x : x + size]])
