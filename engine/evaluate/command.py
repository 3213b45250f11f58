"""The command line of evaluate.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.catalogue import DATA_SETS, OWN, DataSet, data_set
from metrics.catalogue import FLAGS, METRICS, PROFILES, SINGLE, column_names

from ..flags import named_path
from .table import FORMATS


@dataclass(frozen=True)
class Request:
    """What to score, and how.

    Attributes:
        restored: the folder of restored images.
        data_set: whose rows of the paper to print, and whose metrics are the default; OWN for other images.
        truth: a data set, a folder of sharp images, or two folders, blurred and sharp; empty where nothing is known
            but the restored images.
        metrics: flags of metrics/catalogue.py; empty for the data set's.
        niqe_model: "live", or the file of MATLAB's exported model.
        output: the folder of the results; by default beside the restored images.
        workers: threads on the CPU; by default one per core.
        partial: score what can be paired, where images are missing, extra or of a wrong shape.
    """

    restored: Path
    data_set: DataSet = OWN
    truth: Sequence[Path] = ()
    metrics: Sequence[str] = ()
    profile: str = "paper"
    niqe_model: str = "live"
    output: Path | None = None
    form: str = "text"
    device: str | None = None
    workers: int | None = None
    partial: bool = False

    @property
    def folder(self) -> Path:
        """Where the results go."""
        suffix = "" if self.profile == "paper" else f"_{self.profile}"
        return self.output or Path(f"{self.restored}_scores{suffix}")


def main(argv: list[str] | None = None) -> None:
    """What evaluate.py does."""
    request = parse_request(argv)
    from ..console import readable_errors  # only here: --help needs no PyTorch, which takes seconds to import
    from .run import evaluate

    with readable_errors():
        evaluate(request)


def parse_request(argv: list[str] | None) -> Request:
    """Ends the program with the parser's usage if the arguments are invalid."""
    parser = _parser()
    given = parser.parse_args(argv)
    given.data_set = data_set(given.data_set)
    request = Request(**vars(given))
    if request.workers is not None and request.workers < 1:
        parser.error(f"--workers must be at least 1, got {request.workers}")
    if len(request.truth) > 2:
        parser.error(f"--gt takes one folder or two, got {len(request.truth)}")
    columns = column_names(request.metrics or request.data_set.metrics, request.profile, request.niqe_model)
    if not request.truth and request.data_set.has_sharp and any(METRICS[name].kind != SINGLE for name in columns):
        parser.error("--gt is needed: the data set, or its sharp images")
    return request


def _parser() -> argparse.ArgumentParser:
    """Its arguments are Request's fields."""
    parser = argparse.ArgumentParser(
        description="Score a folder of restored images, and print the means beside the paper's. The same command again "
        "continues where it was stopped.",
        epilog=f"Results go to PRED_scores/scores.csv and scores.json. Metrics: {', '.join(FLAGS)}.",
    )
    parser.add_argument(
        "--pred", dest="restored", required=True, type=named_path, metavar="FOLDER", help="the restored images"
    )
    parser.add_argument(
        "--gt",
        dest="truth",
        type=named_path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="a data set's root or test split, a folder of sharp images, or two folders, blurred and "
        "sharp; images are paired by name. NIQE, and so a data set without sharp images, needs none",
    )
    parser.add_argument(
        "--dataset", dest="data_set", choices=DATA_SETS, help="also print the paper's rows for this test set"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        choices=FLAGS,
        metavar="METRIC",
        help="which of the metrics below (default: those of the paper's table)",
    )
    parser.add_argument(
        "--profile",
        default="paper",
        choices=PROFILES,
        help="FID and KID of full images (paper) or of 15 patches each (whang); default %(default)s",
    )
    parser.add_argument(
        "--niqe_model",
        default="live",
        metavar="live|FILE",
        help="the LIVE release's model, or the file exported from MATLAB, which the paper uses (default %(default)s)",
    )
    parser.add_argument(
        "--output", type=named_path, metavar="FOLDER", help="folder for the results (default: PRED_scores)"
    )
    parser.add_argument("--format", dest="form", default="text", choices=FORMATS, help="format of the printed table")
    parser.add_argument("--device", help="for the networks: cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--workers", type=int, metavar="N", help="threads on the CPU (default: one per core)")
    parser.add_argument(
        "--partial",
        action="store_true",
        help="leave out, and name, images that are missing, extra or of a wrong shape, instead of stopping",
    )
    return parser
