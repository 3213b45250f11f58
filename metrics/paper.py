"""The figures of the paper's tables (paper_numbers.yaml), to be printed beside what is measured here."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

TABLES = Path(__file__).with_name("paper_numbers.yaml")


@cache
def _tables() -> dict[str, dict[str, list]]:
    return yaml.safe_load(TABLES.read_text(encoding="utf-8"))


def paper_table(dataset: str) -> dict[str, dict[str, float | None]]:
    """The paper's figures on a data set: method -> column -> figure, None where the paper reports none.

    `dataset` is a key of paper_numbers.yaml: gopro, hide, rwbi, realblur_j, realblur_r, ablation_… . Raises KeyError
    that lists the names known for an unknown data set.
    """
    tables = _tables()
    if dataset not in tables:
        raise KeyError(f"the paper has no table {dataset!r}; known: {', '.join(tables)}")
    table = dict(tables[dataset])
    columns = table.pop("columns")
    return {method: dict(zip(columns, figures, strict=True)) for method, figures in table.items()}


def paper_row(dataset: str, method: str = "XYScanNet") -> dict[str, float | None]:
    """One method's row of `paper_table`. Raises KeyError that lists the names known for an unknown one."""
    table = paper_table(dataset)
    if method not in table:
        raise KeyError(f"the paper's table {dataset!r} has no method {method!r}; known: {', '.join(table)}")
    return table[method]
