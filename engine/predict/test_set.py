"""The prediction scripts' command line: a test set, where it lies, and with which weights it is restored."""

from __future__ import annotations

import argparse

from datasets.catalogue import DATA_SETS, DataSet

from ..flags import named_path
from .options import add_flags, check_flags


def predict(data_set: DataSet | str | None = None, argv: list[str] | None = None) -> None:
    """What the predict scripts do: parse the command line, restore, save, score, report.

    Args:
        data_set: the test set, or its key in datasets/catalogue.py; None lets --dataset choose.
        argv: the command line, by default the program's own.
    """
    data_set, arguments = parse_arguments(DATA_SETS[data_set] if isinstance(data_set, str) else data_set, argv)
    from . import predictor  # only here: --help needs no PyTorch, which takes seconds to import

    predictor.predict(data_set, arguments)


def parse_arguments(data_set: DataSet | None, argv: list[str] | None) -> tuple[DataSet, argparse.Namespace]:
    """The test set and the other arguments; ends the program with the parser's usage if the arguments are invalid."""
    title = data_set.title if data_set else "a data set"
    which, folder, images = (
        (f"{data_set.weights}_", data_set.folder, data_set.images) if data_set else ("", "the data set's", "images_…")
    )
    parser = argparse.ArgumentParser(
        description=f"Restore the test images of {title} with a job's {which} stage-2 weights, and score "
        "them where there are sharp images. The same command again continues where it was stopped."
    )
    if data_set is None:
        parser.add_argument("--dataset", required=True, choices=DATA_SETS, help="which test set")
    parser.add_argument("--job_name", required=True, help="whose weights to use; results go to results/JOB_NAME")
    parser.add_argument(
        "--input",
        type=named_path,
        nargs="+",
        metavar="FOLDER",
        help="a data set's root, its test split, any folder of images, or two folders, blurred and "
        f"sharp (default {folder})",
    )
    parser.add_argument(
        "--output",
        type=named_path,
        metavar="FOLDER",
        help=f"folder for the restored images; their scores go to FOLDER_scores (default results/JOB_NAME/{images})",
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
    parser.add_argument("--limit", type=int, metavar="N", help="restore only the first N images")
    add_flags(parser)
    arguments = parser.parse_args(argv)
    check_flags(parser, arguments)
    for flag in ("batch_size", "limit"):
        if getattr(arguments, flag) is not None and getattr(arguments, flag) < 1:
            parser.error(f"--{flag} must be at least 1, got {getattr(arguments, flag)}")
    if arguments.input and len(arguments.input) > 2:
        parser.error(f"--input takes one folder or two, got {len(arguments.input)}")
    return data_set or DATA_SETS[arguments.dataset], arguments
