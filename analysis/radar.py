"""The paper's Fig. 1: perceptual metrics on GoPro as a radar chart, each normalised to [0, 1].

The paper does not say how it normalises. Here the worst method drawn is 0 and the best is 1 on each axis, so that the
outer rim is the better one for all metrics; the figures at both ends stand beside the axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.figure import COLOURS, new_figure, save
from engine.evaluate.comparison import OWN_NAMES, differences, paper_lines, run_line
from engine.evaluate.table import PAPERS, Figure
from metrics.catalogue import METRICS

AXES = ("KID", "FID", "LPIPS", "NIQE", "SSIM")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HERO, OWN = "#D55E00", "#000000"
HOLE = 0.35  # of the radius, in the middle: lines that are worst everywhere stay apart


def draw_radar(records: dict[str, dict], path: Path) -> list[str]:
    """Draws the paper's methods and the runs on GoPro whose figures can stand beside theirs; returns why others cannot.

    Raises:
        FigureError: matplotlib is not installed.
    """
    lines, remarks = {}, []
    for line in paper_lines("gopro"):
        if line.competes and (figures := by_axis(line.figures)):
            lines[line.label] = figures
    for label, record in records.items():
        if (record["dataset"], record["profile"]) != ("gopro", "paper"):
            continue
        reasons = differences(record)
        if reasons:
            remarks += [f"not in the figure: {label}: {reason}" for reason in reasons]
        elif figures := by_axis(run_line(label, record).figures):
            lines[label] = figures
        else:
            remarks.append(f"not in the figure: {label}: needs {', '.join(OWN_NAMES[axis] for axis in AXES)}")
    draw(lines, path)
    return remarks


def by_axis(figures: Mapping[str, Figure]) -> list[float]:
    """The figure of each axis; none unless there are all."""
    found = [figure for axis in AXES if isinstance(figure := figures.get(OWN_NAMES[axis]), float)]
    return found if len(found) == len(AXES) else []


def normalise(figures: dict[str, list[float]]) -> dict[str, list[float]]:
    """Each axis from 0, the worst of the lines, to 1, the best; 1 where all are equal."""
    columns = []
    for axis, column in zip(AXES, zip(*figures.values(), strict=True), strict=True):
        worst, best = ends(axis, column)
        columns.append([(value - worst) / (best - worst) if best != worst else 1.0 for value in column])
    return {label: list(values) for label, values in zip(figures, zip(*columns, strict=True), strict=True)}


def ends(axis: str, column: Sequence[float]) -> tuple[float, float]:
    """The worst and the best figure of an axis."""
    return (min(column), max(column)) if METRICS[OWN_NAMES[axis]].higher_is_better else (max(column), min(column))


def draw(figures: dict[str, list[float]], path: Path) -> None:
    """The chart of figures by label, in the order of AXES."""
    figure = new_figure(9.6, 5.8)
    chart = figure.add_subplot(projection="polar")
    angles = [2 * math.pi * k / len(AXES) for k in range(len(AXES))]
    for index, (label, values) in enumerate(normalise(figures).items()):
        chart.plot([*angles, angles[0]], [*values, values[0]], label=label, clip_on=False, **style(label, index))
    chart.set_theta_offset(math.pi / 2)
    chart.set_theta_direction(-1)
    chart.set_ylim(0, 1)
    chart.set_rorigin(-HOLE / (1 - HOLE))
    chart.set_yticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "", "0.5", "", "1"], color="#555555", fontsize=9)
    chart.set_rlabel_position(180)
    chart.set_xticks(
        angles,
        labels=[
            axis_label(axis, column) for axis, column in zip(AXES, zip(*figures.values(), strict=True), strict=True)
        ],
        fontsize=11,
    )
    for angle, label in zip(angles, chart.get_xticklabels(), strict=True):  # clear of the rim on either side
        label.set_horizontalalignment(
            "center" if abs(math.sin(angle)) < 0.1 else "left" if math.sin(angle) > 0 else "right"
        )
    chart.tick_params(axis="x", pad=9)
    chart.grid(color="#CCCCCC", linewidth=0.7)
    for name in ("polar", "inner"):
        chart.spines[name].set(color="#999999", linewidth=0.9)
    figure.legend(loc="outside right center", fontsize=10.5, frameon=False, handlelength=3)
    figure.suptitle("GoPro: the rim is the best of these methods, the inner ring the worst", fontsize=12)
    save(figure, path)


def axis_label(axis: str, column: tuple[float, ...]) -> str:
    worst, best = ends(axis, column)
    return f"{axis} {'↑' if METRICS[OWN_NAMES[axis]].higher_is_better else '↓'}\n{worst:.3g} to {best:.3g}"


def style(label: str, index: int) -> dict[str, object]:
    """The paper's XYScanNet and our own runs stand out; the others are thin, with a marker each."""
    if label == f"XYScanNet{PAPERS}":
        return {"color": HERO, "linewidth": 3, "marker": "*", "markersize": 13, "zorder": 4}
    if not label.endswith(PAPERS):
        return {"color": OWN, "linewidth": 2.5, "linestyle": (0, (5 - index % 4, 1.5)), "marker": "h", "zorder": 5}
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linewidth": 1.3,
        "markersize": 6,
        "zorder": 3,
    }
