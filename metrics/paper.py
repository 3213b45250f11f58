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

    `dataset` is a key of paper_numbers.yaml: gopro, hide, rwbi, realblur_j, realblur_r, ablation_…
    """
    table = dict(_tables()[dataset])
    columns = table.pop("columns")
    return {method: dict(zip(columns, figures, strict=True)) for method, figures in table.items()}
