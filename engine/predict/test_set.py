"""The prediction scripts' command line: a test set, where it lies, and with which weights it is restored."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from .options import add_flags, check_flags


@dataclass(frozen=True)
class PredictSpec:
    """A data set to predict: where it lies, what it is predicted with, what its results are compared with."""

    name: str  # as the paper writes it
    folder: str  # where it lies by default
    images: str  # folder of the restored images in results/JOB_NAME
    weights: str  # which of the job's stage-2 weights: best or final
    paper: str | None = None  # key of metrics/paper_numbers.yaml
    variant: str | None = None  # RealBlur's: J or R
    count: int | None = None  # images in the whole test set
    note: str = ""  # printed under the scores


def predict(spec: PredictSpec, argv: list[str] | None = None) -> None:
    """What the predict scripts do: parse the command line, restore, save, score, report."""
    arguments = parse_arguments(spec, argv)
    from . import predictor  # only here: --help needs no PyTorch, which takes seconds to import

    predictor.predict(spec, arguments)


def parse_arguments(spec: PredictSpec, argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=f"Restore the test images of {spec.name} with a job's {spec.weights}_ stage-2 weights, and score "
        "them where there are sharp images. The same command again goes on where it was stopped."
    )
    parser.add_argument("--job_name", required=True, help="whose weights to use; results go to results/JOB_NAME")
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="a data set's root, its test split, any folder of images, or two folders, blurred and "
        f"sharp (default {spec.folder})",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help=f"for the restored images; their scores go to FOLDER.csv (default results/JOB_NAME/{spec.images})",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        default=1,
        metavar="N",
        help="neighbouring images of equal size restored at once (default %(default)s)",
    )
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="measure the paper's other metrics too, as evaluate.py does, when the images are made",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    add_flags(parser)
    arguments = parser.parse_args(argv)
    check_flags(parser, arguments)
    for flag in ("batch_size", "limit"):
        if getattr(arguments, flag) is not None and getattr(arguments, flag) < 1:
            parser.error(f"--{flag} must be at least 1, got {getattr(arguments, flag)}")
    if arguments.evaluate and spec.paper is None:
        parser.error(f"--evaluate is for the paper's data sets, and {spec.name} is none")
    if arguments.input and len(arguments.input) > 2:
        parser.error(f"--input takes one folder or two, got {len(arguments.input)}")
    return arguments
