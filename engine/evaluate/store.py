"""The scores of each image as they are made: a CSV from which a stopped run goes on.

    name,files,check,psnr,niqe_live
    GOPR0384_11_00/000001,4f1d…,b08e…,33.91,4.05
    GOPR0384_11_00/000002,77a0…,19c2…,33.47,failed: too small

`files` stands for the sizes and times of the image's files, `check` for the other cells of the line: where one of them
no longer fits, the image is measured again. A line
may hold some of an image's scores and a later line the others; at the end there is one a line, sorted. Numbers are
written in full, so that a run that was stopped ends with the very same means.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from pathlib import Path

from datasets.files import write_atomic

from ..config import ConfigError
from ..predict.record import csv_line, digest, whole_lines

logger = logging.getLogger(__name__)

FAILED = "failed: "  # before the reason why measuring had no result
HEAD = ("name", "files", "check")


Score = float | str  # a string is the reason why there is no number


class MeasurementsError(ConfigError):
    """The CSV of an earlier run is not what it should be."""


def stamp(*files: Path | None) -> str:
    """Twelve characters that change when a file is replaced or rewritten."""
    facts = [(path.stat().st_size, path.stat().st_mtime_ns) if path else None for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


class Measurements:
    """Scores by image and by name of the score; a string where measuring failed, the reason.

    Args:
        table: the CSV file, read if it is there. Raises MeasurementsError, with file and line, if it is none of these.
        stamps: the `stamp` of each image's files, by the image's name; rows of other images are left out.
        keep: names of scores that are taken over from an earlier run.
    """

    def __init__(self, table: Path, stamps: dict[str, str], keep: Collection[str]):
        self.table, self._stamps = table, stamps
        self.wanted: list[str] = []
        self.scores: dict[str, dict[str, Score]] = {name: {} for name in stamps}
        earlier = whole_lines(table) if table.is_file() else []
        if earlier and tuple(earlier[0][:2]) != HEAD[:2]:
            raise MeasurementsError(
                f"{table}: not a table of scores, its first line is {','.join(earlier[0])!r}; "
                "remove it, or choose another --output"
            )
        self.columns = [name for name in (earlier[0][3:] if earlier else []) if name in keep]
        sound = [self._take_over(earlier[0], line) for line in earlier[1:]]
        if not all(sound):
            logger.warning(
                "%s: %d rows are not as they were written; their images are measured again", table, sound.count(False)
            )

    def _take_over(self, header: list[str], line: list[str]) -> bool:
        """False for a line that is not as it was written."""
        if len(line) != len(header) or tuple(header[:3]) != HEAD:
            return False
        name, files, check, *cells = line
        if check != _check(name, files, header[3:], cells):
            return False
        if self._stamps.get(name) == files:
            self.scores[name] |= {
                column: cell.removeprefix(FAILED) if cell.startswith(FAILED) else float(cell)
                for column, cell in zip(header[3:], cells, strict=True)
                if cell and column in self.columns
            }
        return True

    def begin(self, columns: list[str]) -> None:
        """Makes ready to add scores of these names, the wanted ones."""
        self.wanted = columns
        self.columns += [name for name in columns if name not in self.columns]
        self.write()

    def missing(self, name: str, columns: Collection[str]) -> list[str]:
        """Which of these scores the image does not have yet."""
        return [column for column in columns if column not in self.scores[name]]

    def add(self, name: str, scores: dict[str, Score]) -> None:
        """Writes scores of an image down at once."""
        self.scores[name] |= scores
        with self.table.open("a", newline="", encoding="utf-8") as file:
            file.write(self._line(name, scores))

    def write(self) -> None:
        """The whole table, sorted by name, one line an image."""
        measured = [name for name in sorted(self.scores) if self.scores[name]]
        write_atomic(
            self.table,
            csv_line((*HEAD, *self.columns)) + "".join(self._line(name, self.scores[name]) for name in measured),
        )

    def _line(self, name: str, scores: dict[str, Score]) -> str:
        cells = [scores.get(column, "") for column in self.columns]
        texts = [repr(cell) if isinstance(cell, float) else cell and FAILED + cell for cell in cells]
        return csv_line((name, self._stamps[name], _check(name, self._stamps[name], self.columns, texts), *texts))


def _check(name: str, files: str, columns: Collection[str], cells: Collection[str]) -> str:
    return digest([name, files, *(f"{column}={cell}" for column, cell in zip(columns, cells, strict=True) if cell)])
