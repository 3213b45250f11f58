"""Figures drawn by matplotlib without a display, and their colours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from datasets.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 160
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


def check_name(path: Path) -> None:
    """Raise FigureError unless the name ends in .png: call it before long work."""
    if path.suffix.lower() != ".png":
        raise FigureError(f"{path}: the picture is written as PNG; give a name that ends in .png")


def save(figure: Figure, path: Path) -> None:
    """Write the PNG atomically, cropped to what is drawn. Makes the folders above it."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, bbox_inches="tight")
