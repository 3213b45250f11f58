"""The quality columns of the paper's Tables 5 to 8: the means of several seeds' scores beside the paper's figures."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence

from analysis.variants import paper_rows
from datasets.catalogue import DATA_SETS
from engine.evaluate.comparison import OWN_NAMES, columns, differences, notes
from engine.evaluate.table import NOT_MEASURED, PAPERS, Line, Table
from engine.provenance import network_code

PAPER_SEEDS = 4  # the paper averages four runs


class Mean(float):
    """A mean over seeds. Of several, it is formatted with their standard deviation (of a sample, n - 1)."""

    deviation: float | None

    def __new__(cls, values: Sequence[float]) -> Mean:
        mean = super().__new__(cls, statistics.fmean(values))
        mean.deviation = statistics.stdev(values) if len(values) > 1 else None
        return mean

    def __format__(self, spec: str) -> str:
        text = super().__format__(spec)
        return text if self.deviation is None else f"{text} ± {self.deviation:{spec}}"


def quality_columns(numbers: Collection[int]) -> dict[str, list[str]]:
    """The paper's words for the scores in these tables by test set, such as gopro: [PSNR, LPIPS]."""
    keys = {data_set.title: key for key, data_set in DATA_SETS.items()}
    scores: dict[str, list[str]] = {}
    for column in dict.fromkeys(column for figures in paper_rows(numbers).values() for column in figures):
        title, _, score = column.rpartition(" ")
        if title in keys and score in OWN_NAMES:
            scores.setdefault(keys[title], []).append(score)
    return scores


def quality_table(
    title: str,
    numbers: Collection[int],
    test_set: str,
    records: dict[str, list[dict]],
    niqe_model: str = "live",
    remarks: Sequence[str] = (),
    full: bool = True,
) -> Table:
    """The scores on one test set: the paper's rows of the tables, ours beside the row of the same name or below.

    Args:
        records: row -> what evaluate.py has written, one for each finished run.
        remarks: printed below the table, before its own.
        full: whether the runs are those of the paper's protocol, and may be compared with its figures.
    """
    scores = quality_columns(numbers)[test_set]
    names = {OWN_NAMES[score] for score in scores}
    if "NIQE" in scores and niqe_model == "live":
        names.add("niqe_live")
    papers = {
        row: {OWN_NAMES[score]: figures.get(f"{DATA_SETS[test_set].title} {score}") for score in scores}
        for row, figures in paper_rows(numbers).items()
    }
    lines = []
    for row in [*papers, *(row for row in records if row not in papers)]:
        if row in papers:
            lines.append(Line(row + PAPERS, papers[row], competes=row != "Reference"))
        if row in records:
            lines.append(own_line(row, records[row], names, full))
    return Table(title, columns(names, lines), lines, [*remarks, *run_remarks(records, names)])


def own_line(label: str, records: list[dict], names: set[str], full: bool) -> Line:
    """One of our rows. It competes with the paper's if it is of as many runs, over the same images."""
    figures = {}
    for name in names:
        values = [record["metrics"][name]["value"] for record in records if "value" in record["metrics"].get(name, {})]
        figures[name] = Mean(values) if values else NOT_MEASURED
    return Line(label, figures, full and len(records) >= PAPER_SEEDS and not any(map(differences, records)))


def run_remarks(records: dict[str, list[dict]], names: set[str]) -> list[str]:
    """How many runs a row is of, and what limits the comparison; each remark once."""
    remarks = {}
    for label, found in records.items():
        if 0 < len(found) < PAPER_SEEDS:
            remarks[f"{label}: runs finished and scored: {len(found)}, the paper's: {PAPER_SEEDS}."] = None
        for record in found:
            metrics = {name: score for name, score in record["metrics"].items() if name in names}
            if (record.get("made_by") or {}).get("network_code", network_code()) != network_code():
                remarks[f"{label}: restored by other code in models/ than there is now."] = None
            remarks |= dict.fromkeys(notes(names, "paper", {label: record | {"metrics": metrics}}, papers=True))
    return list(remarks)
