"""Figures drawn by matplotlib without a display, and their colours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 160
FORMATS = (".png", ".pdf", ".svg")
# Okabe and Ito's colours, told apart with any colour vision and on paper by markers; yellow is too pale for lines.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#7F7F7F", "#8B6508")


class FigureError(RuntimeError):
    """A figure cannot be drawn or saved. The message says what to do."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, its sides in inches of DPI pixels. Raises FigureError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FigureError("the picture needs matplotlib: pip install -e .[metrics]") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def add_output_flag(parser: argparse.ArgumentParser, default: str) -> None:
    """--output, the name of the figure's file, ``default`` if it is not given."""
    parser.add_argument(
        "--output", type=Path, default=Path(default), metavar="FILE", help="PNG, PDF or SVG (default %(default)s)"
    )


def check_name(path: Path) -> None:
    """Raise FigureError unless `save` writes files of that name: call it before long work."""
    if path.suffix.lower() not in FORMATS:
        raise FigureError(f"{path}: the name of a figure must end in {', '.join(FORMATS)}")


def save(figure: Figure, path: Path) -> None:
    """Write the figure atomically as its name says, cropped to what is drawn. Makes the folders above it."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower()[1:], dpi=DPI, bbox_inches="tight")


def save_pixels(pixels: np.ndarray, path: Path) -> None:
    """Write a picture, uint8 RGB (H, W, 3), as its name says; in PDF and SVG the pixels are embedded as they are."""
    if path.suffix.lower() == ".png":
        from datasets.images import write_png  # only here: --help needs no OpenCV

        write_png(path, pixels)
        return
    height, width = pixels.shape[:2]
    figure = new_figure(width / DPI, height / DPI)
    figure.figimage(pixels)
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower()[1:], dpi=DPI)
