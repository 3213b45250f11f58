"""A picture drawn by matplotlib, without a screen, and saved whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from datasets.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 160


class FigureError(RuntimeError):
    """The picture cannot be drawn; the message says what to do."""


def new_figure(width: float, height: float) -> Figure:
    """An empty picture, its sides in inches of DPI pixels. Raises FigureError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FigureError("the picture needs matplotlib: pip install -e .[metrics]") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_name(path: Path) -> None:
    """FigureError for a name that is no PNG's; worth asking before long work."""
    if path.suffix.lower() != ".png":
        raise FigureError(f"{path}: the picture is a PNG; let its name end in .png")


def save(figure: Figure, path: Path) -> None:
    """Writes the PNG wholly or not at all, cut or widened to what is drawn. Makes the folders above it."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, bbox_inches="tight")
