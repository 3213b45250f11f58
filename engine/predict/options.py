"""Command-line flags that say how to restore images, shared by all prediction scripts."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..flags import named_path


def add_photograph_flags(parser: argparse.ArgumentParser) -> None:
    """Add predict.py's own: what to restore, where to, in which form."""
    parser.add_argument(
        "input", type=named_path, nargs="+", metavar="INPUT", help="photographs, videos, and folders of them"
    )
    parser.add_argument(
        "--output", type=named_path, default=Path("restored"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument(
        "--job_name",
        default="xyscannet_t",
        help="whose best_ stage-2 weights to use (default %(default)s, the shipped ones)",
    )
    parser.add_argument(
        "--format",
        choices=("png", "jpeg", "webp", "same"),
        default="png",
        help="format of restored photographs; same: that of the input if it is PNG, JPEG or WebP, else PNG "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--quality", type=int, default=95, metavar="N", help="quality of JPEG and WebP, 1 to 100 (default %(default)s)"
    )
    parser.add_argument(
        "--frames",
        type=frame_range,
        metavar="FIRST:END",
        help="restore only these frames of a video, numbered from 0, END excluded",
    )


def frame_range(text: str) -> slice:
    """--frames's value: FIRST:END, :END or FIRST:.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    first, colon, stop = text.partition(":")
    if not colon or not all(part.isdecimal() for part in (first, stop) if part):
        raise argparse.ArgumentTypeError(f"must be FIRST:END, of numbers from 0, not {text!r}")
    frames = slice(*(int(part) if part else None for part in (first, stop)))
    if frames.stop is not None and (frames.start or 0) >= frames.stop:
        raise argparse.ArgumentTypeError(f"must end after its first frame, not {text!r}")
    return frames


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a parser."""
    parser.add_argument(
        "--weights",
        type=named_path,
        metavar="FILE",
        help="weights to use instead of the job's own in results/JOB_NAME/models; may be another network's "
        "that the package spandrel knows (NAFNet, Restormer, ...)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="restore by tiles of N x N pixels, a multiple of 8, to save memory; default: full images, "
        "whose results and scores differ from tiled ones",
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="restore full images band by band: the same result to rounding in a fraction of the memory; "
        "always on a CPU, and automatically when a GPU runs out of memory",
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
        help="average over windows of N x N pixels, the training crops' size, instead of full rows, columns "
        "and images (TLC); changes the results of images larger than that",
    )
    parser.add_argument(
        "--self_ensemble",
        action="store_true",
        help="restore each image in its eight flips and rotations and take the mean: slightly better, "
        "in eight times the time",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="run the network through torch.compile, as CUDA graphs on a GPU and without the kernels of "
        "this project: the same result to rounding; takes a minute or more for each new image size, of which PyTorch "
        "compiles eight, so use it for many images of one size",
    )
    parser.add_argument("--device", help="cuda, cuda:1, cpu; default: a GPU where there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")


def check_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with the parser's usage and an error for values and combinations that are impossible."""
    from ..console import check_device  # only here: --help needs no PyTorch, which takes seconds to import
    from .local_pooling import COARSEST
    from .tiling import check_tile

    check_device(parser, arguments.device)
    if arguments.stream and arguments.tile is not None:
        parser.error("--stream is for full images and --tile is not; use one of them")
    if arguments.stream and arguments.compile:
        parser.error("--compile is for full images and tiles, not for --stream")
    if not 1 <= getattr(arguments, "quality", 95) <= 100:
        parser.error(f"--quality: must be from 1 to 100, got {arguments.quality}")
    window = arguments.local_pooling
    if window is not None and (window < COARSEST or window % COARSEST):
        parser.error(f"--local_pooling: must be a positive multiple of {COARSEST}, got {window}")
    if arguments.tile is not None:
        try:
            check_tile(arguments.tile, arguments.overlap)
        except ValueError as error:
            parser.error(f"--tile, --overlap: {error}")
