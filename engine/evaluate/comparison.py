"""What was measured beside the paper's figures: the table of one or several scores.json of one data set and profile."""

from __future__ import annotations

import math
from collections import defaultdict

from metrics.paper import paper_table

from .pairing import listed
from .registry import MEASURES, data_set
from .table import NOT_MEASURED, Column, Line, Table

REFERENCES = ("Ground Truth", "Blurred")  # rows of the paper that are no method's
PAPERS = " (paper)"  # marks the paper's own rows
OWN_NAMES = {measure.paper: name for name, measure in MEASURES.items() if measure.paper}
NORMALISED = (
    "The paper does not say how it normalises KID and FID to [0, 1]. Dividing by the blurred inputs' score "
    "is the likeliest reading, and unverified."
)
TWO_MODELS = (
    "niqe_live is not the paper's NIQE: that is niqe_matlab, another model, and the two differ by up to a "
    "factor of two."
)


def compare(dataset: str | None, profile: str, records: dict[str, dict]) -> Table:
    """The table of a data set: the runs' `records` by label, and the paper's rows where the profile is the paper's.

    For images of no data set of the paper (None) it has the runs alone.

    Raises ValueError for a record of another data set or profile: such rows never share a table.
    """
    for label, record in records.items():
        if (record["dataset"], record["profile"]) != (dataset, profile):
            raise ValueError(
                f"{label} is {record['dataset']}, profile {record['profile']}, and no row of a table of "
                f"{dataset}, profile {profile}"
            )
    lines = paper_lines(dataset) if dataset and profile == "paper" else []
    lines += [run_line(label, record) for label, record in records.items()]
    names = {name for line in lines for name in line.figures}
    columns = [
        Column(name, digits(name, lines), measure.higher_is_better)
        for name, measure in MEASURES.items()
        if name in names
    ]
    about = data_set(dataset)
    title = f"Table {about.table}. {about.title}" if about.table else about.title.capitalize()
    return Table(
        f"{title}, profile {profile}",
        columns,
        lines,
        notes(names, profile, records)
        if dataset
        else [f"{label}: {gap}" for label, record in records.items() for gap in _gaps(record["metrics"])],
    )


def digits(name: str, lines: list[Line]) -> int:
    """After the point: as many as the paper prints in this table, else as the measure usually has."""
    figures = [line.figures.get(name) for line in lines if line.label.endswith(PAPERS)]
    decimals = [
        len(str(figure).partition(".")[2]) for figure in figures if isinstance(figure, float) and math.isfinite(figure)
    ]
    return max(decimals, default=MEASURES[name].digits)


def paper_lines(dataset: str) -> list[Line]:
    """The paper's rows, marked as the paper's, under the exact names of what it measures."""
    return [
        Line(
            method + PAPERS,
            {OWN_NAMES[column]: figure for column, figure in figures.items()},
            competes=method not in REFERENCES,
        )
        for method, figures in paper_table(dataset).items()
    ]


def run_line(label: str, record: dict) -> Line:
    """A run's means; it competes where they are over the same images as the paper's."""
    figures = {name: score.get("value", NOT_MEASURED) for name, score in record["metrics"].items()}
    return Line(label, figures, competes=not differences(record))


def differences(record: dict) -> list[str]:
    """Why a run's figures cannot be compared with the paper's."""
    scored, count = record["images"]["scored"], data_set(record["dataset"]).count
    reasons = []
    if count not in (None, scored):
        reasons.append(f"over {scored} images, the paper's are over all {count}")
    elif scored < record["images"]["data_set"]:
        reasons.append(f"over {scored} of {record['images']['data_set']} images")
    if (record.get("made_by") or {}).get("tile"):
        reasons.append("restored by tiles, which score differently from full images")
    return reasons


def notes(names: set[str], profile: str, records: dict[str, dict]) -> list[str]:
    """What must be said under the table; each text once."""
    remarks = []
    if profile == "paper":
        remarks.append("Rows marked (paper) are the paper's own figures, not measured here.")
        remarks += [NORMALISED] if {"kid_over_blurred", "fid_over_blurred"} & names else []
        remarks += [TWO_MODELS] if "niqe_live" in names else []
    else:
        remarks.append(
            f"The paper's figures are of another profile and no rows of this table: {profile} measures FID "
            "and KID on patches."
        )
    for label, record in records.items():
        remarks += [f"{label}: not comparable with the paper's rows: {reason}." for reason in differences(record)]
        remarks += [f"{label}: {remark}" for remark in _gaps(record["metrics"])]
    return remarks


def _gaps(metrics: dict[str, dict]) -> list[str]:
    """Which scores were not measured, each reason once, and which images a mean leaves out."""
    columns = defaultdict(list)
    for name, score in metrics.items():
        if "not_measured" in score:
            columns[score["not_measured"]].append(name)
    remarks = [f"{', '.join(names)} not measured: {reason}" for reason, names in columns.items()]
    for name, score in metrics.items():
        if failed := score.get("failed"):
            total = score["images"] + len(failed)
            named = listed([f"{image}: {reason}" for image, reason in failed.items()])
            remarks.append(f"{name} leaves out {len(failed)} of {total} images that it cannot be had of:{named}")
    return remarks
