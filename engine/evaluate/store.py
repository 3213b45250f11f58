"""The scores of each image as they are made: a CSV from which a stopped run goes on.

    name,files,check,psnr,niqe_live
    GOPR0384_11_00/000001,4f1d…,b08e…,33.91,4.05
    GOPR0384_11_00/000002,77a0…,19c2…,33.47,failed: too small

`files` stands for the sizes and times of the image's files, `check` for the other cells of the line: where one of them
does not fit, the image is scored again. A line may hold some of an image's scores and a later line the others; at the
end there is one line per image, sorted. Numbers are written in full, so that a run that was stopped ends with the very
same means.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from pathlib import Path

from datasets.files import write_atomic

from ..config import ConfigError
from ..csv_rows import csv_line, digest, read_rows

logger = logging.getLogger(__name__)

FAILED = "failed: "  # before the reason why an image has no score
HEAD = ("name", "files", "check")


Score = float | str  # a string is the reason why there is no number


class ScoresError(ConfigError):
    """The existing CSV was not written by this program."""


def stamp(*files: Path | None) -> str:
    """Twelve characters that change when a file is replaced or rewritten."""
    facts = [(path.stat().st_size, path.stat().st_mtime_ns) if path else None for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


class ImageScores:
    """Scores by image and by name of the metric.

    Args:
        table: the CSV file, read if it is there.
        stamps: the `stamp` of each image's files, by the image's name; rows of other images are left out.
        keep: metrics whose scores are taken over from an earlier run.

    Attributes:
        scores: image -> metric -> score.
        found: image -> stamp, of all sound rows of the file.

    Raises:
        ScoresError: the file is no such table.
    """

    def __init__(self, table: Path, stamps: dict[str, str], keep: Collection[str]):
        self.table, self._stamps = table, stamps
        self.scores: dict[str, dict[str, Score]] = {name: {} for name in stamps}
        self.found: dict[str, str] = {}
        rows = read_rows(table)
        header, lines = (rows[0], rows[1:]) if rows else (list(HEAD), [])
        if tuple(header[:2]) != HEAD[:2]:
            raise ScoresError(
                f"{table}: not a table of scores, it begins {','.join(header)[:60]!r}; remove it, or choose another "
                "--output"
            )
        self.columns = [name for name in header[3:] if name in keep]
        damaged = [self._take_over(header, line) for line in lines].count(False)
        if damaged:
            logger.warning("%s: %d rows are not as they were written; their images are scored again", table, damaged)

    def _take_over(self, header: list[str], line: list[str]) -> bool:
        """False for a line that is not as it was written."""
        if len(line) != len(header) or tuple(header[:3]) != HEAD:
            return False
        name, files, check, *cells = line
        if check != _check(name, files, header[3:], cells):
            return False
        self.found[name] = files
        if self._stamps.get(name) == files:
            self.scores[name] |= {
                column: cell.removeprefix(FAILED) if cell.startswith(FAILED) else float(cell)
                for column, cell in zip(header[3:], cells, strict=True)
                if cell and column in self.columns
            }
        return True

    def begin(self, columns: list[str]) -> None:
        """Prepares the file for scores of these metrics."""
        self.columns += [name for name in columns if name not in self.columns]
        self.write()

    def missing(self, name: str, columns: Collection[str]) -> list[str]:
        """Which of these scores the image lacks."""
        return [column for column in columns if column not in self.scores[name]]

    def add(self, name: str, scores: dict[str, Score]) -> None:
        """Writes scores of an image at once."""
        self.scores[name] |= scores
        with self.table.open("a", newline="", encoding="utf-8") as file:
            file.write(self._line(name, scores))

    def write(self) -> None:
        """The whole table, sorted by name, one line an image."""
        scored = [name for name in sorted(self.scores) if self.scores[name]]
        lines = [self._line(name, self.scores[name]) for name in scored]
        write_atomic(self.table, csv_line((*HEAD, *self.columns)) + "".join(lines))

    def _line(self, name: str, scores: dict[str, Score]) -> str:
        cells = [scores.get(column, "") for column in self.columns]
        texts = [repr(cell) if isinstance(cell, float) else cell and FAILED + cell for cell in cells]
        return csv_line((name, self._stamps[name], _check(name, self._stamps[name], self.columns, texts), *texts))


def _check(name: str, files: str, columns: Collection[str], cells: Collection[str]) -> str:
    return digest([name, files, *(f"{column}={cell}" for column, cell in zip(columns, cells, strict=True) if cell)])
