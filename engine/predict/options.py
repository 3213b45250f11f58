"""The flags that say how images are restored, the same in all prediction scripts."""

from __future__ import annotations

import argparse
from pathlib import Path

AUTO = "auto"
LARGEST = 2**20  # pixels: a tile that any overlap fits


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser."""
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="weights to use instead of the job's own in results/JOB_NAME/models",
    )
    parser.add_argument(
        "--tile",
        type=_tile,
        metavar="N",
        help="restore by tiles of N x N pixels, a multiple of 8, to save memory; default: full images "
        "(the two score differently). auto: full images if they fit the free memory, else "
        "streamed ones, else the largest tiles that fit",
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="restore full images band by band: the same result to rounding in a fraction of the "
        "memory; on a CPU always, where it is quicker too",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        default=32,
        metavar="N",
        help="pixels, a multiple of 8, over which tiles are blended (default %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="bf16: mixed precision by autocast (default %(default)s)",
    )
    parser.add_argument(
        "--local_pooling",
        type=int,
        metavar="N",
        help="average over windows of N pixels, the training crops' size, instead of whole rows, "
        "columns and images: other results, where images are larger than that",
    )
    parser.add_argument(
        "--self_ensemble",
        action="store_true",
        help="restore each image in its eight flips and rotations and take the mean: a little nearer "
        "to the sharp image, for eight times the time",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the network with torch.compile first, into CUDA graphs on a GPU: a minute or "
        "more for each size of image, worth it for many of one size; the same to rounding",
    )
    parser.add_argument("--device", help="cuda, cuda:1, cpu; default: a GPU where there is one")
    parser.add_argument("--overwrite", action="store_true", help="redo what is already there")


def check_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Stops with the parser's usage and an error for flags that cannot be."""
    from .. import distributed  # only here: --help needs no PyTorch, which takes seconds to import
    from .local_pooling import COARSEST
    from .tiling import check_tile

    try:
        distributed.device(arguments.device)
    except (RuntimeError, ValueError) as error:
        parser.error(f"--device: {error}")
    if arguments.stream and arguments.tile is not None:
        parser.error("--stream is for full images and --tile is not; use one of them")
    if arguments.local_pooling is not None:
        if arguments.local_pooling < COARSEST or arguments.local_pooling % COARSEST:
            parser.error(f"--local_pooling: must be a positive multiple of {COARSEST}, got {arguments.local_pooling}")
        if arguments.stream or arguments.tile == AUTO:
            parser.error(
                "--local_pooling is for full images and tiles of a given size, not for --stream and --tile auto"
            )
    if arguments.compile and (arguments.stream or arguments.tile == AUTO):
        parser.error("--compile is for full images and tiles of one size, not for --stream and --tile auto")
    if arguments.tile is not None:
        try:
            check_tile(LARGEST if arguments.tile == AUTO else arguments.tile, arguments.overlap)
        except ValueError as error:
            parser.error(f"--tile, --overlap: {error}")


def _tile(text: str) -> int | str:
    """--tile's value."""
    if text == AUTO:
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number of pixels or {AUTO}, got {text!r}") from None
