"""CSV tables that are appended to row by row, each row with a checksum that reveals truncation or editing."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from pathlib import Path


def csv_line(cells: Iterable[str]) -> str:
    """One line of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def digest(cells: Iterable[str]) -> str:
    """Twelve characters that change with the content of any cell."""
    return hashlib.sha256("\0".join(cells).encode()).hexdigest()[:12]


def read_rows(path: Path) -> list[list[str]]:
    """The cells of each complete line of a CSV file; none if there is no file.

    The checksum of a damaged line does not match.
    """
    text = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    return [_cells(line) for line in text.split("\n")[:-1] if line.strip()]


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line]))
    except csv.Error:  # a field of more than 128 KiB, a null byte
        return [line]
