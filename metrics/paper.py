"""The figures of the paper's tables (paper_numbers.yaml), to be printed beside what is measured here."""
from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

TABLES = Path(__file__).with_name("paper_numbers.yaml")


@cache
def _tables() -> dict[str, dict[str, list]]:
    return yaml.safe_load(TABLES.read_text(encoding="utf-8"))


def paper_row(dataset: str, method: str = "XYScanNet") -> dict[str, float | None]:
    """The paper's figures for a method on a data set: column -> figure, None where the paper reports none.

    `dataset` is a key of paper_numbers.yaml: gopro, hide, rwbi, realblur_j, realblur_r, ablation_… . Raises KeyError
    that lists the names known for an unknown data set or method.
    """
    tables = _tables()
    if dataset not in tables:
        raise KeyError(f"the paper has no table {dataset!r}; known: {', '.join(tables)}")
    table = dict(tables[dataset])
    columns = table.pop("columns")
    if method not in table:
        raise KeyError(f"the paper's table {dataset!r} has no method {method!r}; known: {', '.join(table)}")
    return dict(zip(columns, table[method], strict=True))
