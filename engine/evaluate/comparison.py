"""Tables of measured scores beside the paper's, from the scores.json of one or several evaluations."""

from __future__ import annotations

import math
from collections import defaultdict

from datasets.catalogue import data_set
from metrics.catalogue import METRICS
from metrics.paper import paper_table

from .pairing import listed
from .table import NOT_MEASURED, PAPERS, Column, Line, Table

REFERENCES = ("Ground Truth", "Blurred")  # rows of the paper that are no method's
OWN_NAMES = {metric.paper: name for name, metric in METRICS.items() if metric.paper}  # the paper's word -> our name
NORMALISED = (
    "The paper does not say how it normalises KID and FID to [0, 1]. Dividing by the blurred inputs' score "
    "is the likeliest reading, and unverified."
)
TWO_MODELS = (
    "niqe_live is not the paper's NIQE: that is niqe_matlab, another model, and the two differ by up to a "
    "factor of two."
)


def compare(dataset: str | None, profile: str, records: dict[str, dict], papers: bool = True) -> Table:
    """The table of a data set: the paper's rows where the profile is the paper's, then a row for each record.

    Args:
        dataset: key of datasets/catalogue.py; None for the user's own images, whose table has no row of the paper.
        records: what scores.json holds, by the row's label.
        papers: False leaves the paper's rows out.

    Raises:
        ValueError: a record is of another data set or profile: such rows never share a table.
    """
    for label, record in records.items():
        if (record["dataset"], record["profile"]) != (dataset, profile):
            raise ValueError(
                f"{label} is {record['dataset']}, profile {record['profile']}, and no row of a table of "
                f"{dataset}, profile {profile}"
            )
    papers = papers and profile == "paper"
    lines = paper_lines(dataset) if papers else []
    if len(records) == 1:
        lines += baseline_lines(*records.values())
    lines += [run_line(label, record) for label, record in records.items()]
    names = {name for line in lines for name in line.figures}
    about = data_set(dataset)
    title = f"Table {about.table}. {about.title}" if about.table else about.title
    return Table(
        f"{title}, profile {profile}{'' if papers or profile != 'paper' else ', not comparable with the paper'}",
        columns(names, lines),
        lines,
        notes(names, profile, records, papers),
        caption(dataset, records),
    )


def caption(dataset: str | None, records: dict[str, dict]) -> str:
    """LaTeX's caption: methods, test set, number of images."""
    counts = sorted({record["images"]["scored"] for record in records.values()}) or [data_set(dataset).count]
    images = f", {' or '.join(map(str, counts))} images" if counts != [None] else ""
    return f"{', '.join(records) or 'Methods'} on {data_set(dataset).title}{images}"


def columns(names: set[str], lines: list[Line]) -> list[Column]:
    """The columns of these metrics."""
    return [
        Column(name, digits(name, lines), metric.higher_is_better) for name, metric in METRICS.items() if name in names
    ]


def digits(name: str, lines: list[Line]) -> int:
    """After the point: as many as the paper prints in this table, else as the metric usually has."""
    figures = [line.figures.get(name) for line in lines if line.label.endswith(PAPERS)]
    decimals = [
        len(str(figure).partition(".")[2]) for figure in figures if isinstance(figure, float) and math.isfinite(figure)
    ]
    return max(decimals, default=METRICS[name].digits)


def paper_lines(dataset: str | None) -> list[Line]:
    """The paper's rows, marked as the paper's, under the exact names of what it measures; none without a table."""
    if dataset is None or data_set(dataset).table is None:
        return []
    return [
        Line(
            method + PAPERS,
            {OWN_NAMES[column]: figure for column, figure in figures.items()},
            competes=method not in REFERENCES,
        )
        for method, figures in paper_table(dataset).items()
    ]


def baseline_lines(record: dict) -> list[Line]:
    """What the blurred input scores, where that was measured."""
    figures = {
        restored: score["value"]
        for name, score in record["metrics"].items()
        if (restored := METRICS[name].baseline_of) and "value" in score
    }
    return [Line("blurred input", figures, competes=False)] if figures else []


def run_line(label: str, record: dict) -> Line:
    """A run's means; it competes where they are over the same images as the paper's."""
    figures = {
        name: score.get("value", NOT_MEASURED)
        for name, score in record["metrics"].items()
        if name in METRICS and METRICS[name].baseline_of is None and {"value", "not_measured"} & score.keys()
    }
    return Line(label, figures, competes=not differences(record))


# Ways of restoring that are not the paper's, by their key in a record's ``made_by``.
OTHER_WAYS = {
    "tile": "restored by tiles, which score differently from full images",
    "local_pooling": "restored with local pooling, which the paper does not use",
    "self_ensemble": "the mean over eight flips and rotations, which the paper does not use",
}


def differences(record: dict) -> list[str]:
    """Why a run's figures cannot be compared with the paper's."""
    scored, count = record["images"]["scored"], data_set(record["dataset"]).count
    reasons = []
    if count not in (None, scored):
        reasons.append(f"over {scored} images, the test set has {count}")
    elif scored < record["images"]["data_set"]:
        reasons.append(f"over {scored} of {record['images']['data_set']} images")
    made_by = record.get("made_by") or {}
    return reasons + [reason for key, reason in OTHER_WAYS.items() if made_by.get(key)]


def notes(names: set[str], profile: str, records: dict[str, dict], papers: bool) -> list[str]:
    """What must be said under a table; each text once. papers: whether it has the paper's rows."""
    remarks = []
    reported = not records or any(data_set(record["dataset"]).table for record in records.values())
    remarks += _notes_on_the_paper(names, profile, papers) if reported else []
    for label, record in records.items():
        against = "not comparable with the paper's rows: " if reported else ""
        remarks += [f"{label}: {against}{reason}." for reason in differences(record)]
        remarks += [f"{label}: {remark}" for remark in _gaps(record["metrics"])]
    return remarks


def _notes_on_the_paper(names: set[str], profile: str, papers: bool) -> list[str]:
    if profile != "paper":
        return [f"The paper's figures are left out: the profile {profile} measures FID and KID on patches."]
    remarks = ["Rows marked (paper) are the paper's own figures, not measured here."] if papers else []
    remarks += [NORMALISED] if {OWN_NAMES["KID"], OWN_NAMES["FID"]} & names else []
    remarks += [TWO_MODELS] if "niqe_live" in names else []
    return remarks


def _gaps(metrics: dict[str, dict]) -> list[str]:
    """Which metrics were not measured, each reason once, and which images a mean leaves out."""
    unmeasured = defaultdict(list)
    for name, score in metrics.items():
        if "not_measured" in score:
            unmeasured[score["not_measured"]].append(name)
    remarks = [f"{', '.join(names)} not measured: {reason}" for reason, names in unmeasured.items()]
    for name, score in metrics.items():
        if failed := score.get("failed"):
            total = score["images"] + len(failed)
            named = listed([f"{image}: {reason}" for image, reason in failed.items()])
            remarks.append(f"{name} leaves out {len(failed)} of {total} images that cannot be scored:{named}")
    return remarks
