"""The scores of a folder of restored images, row by row as they are made, and the record of what made them.

    results/J/images/        the restored images
    results/J/images.csv     one row an image, sorted by name
    results/J/images.json    the record: weights, precision, tiles, versions; at the end the means
    results/J/images.csv.0   rows of rank 0 that are not in the table yet; only a stopped run leaves it behind

A row is written after its image, so what has both is done, and a stopped run goes on from there. A row also holds its
image's size in bytes and a digest of all its cells: images whose row was edited, or whose file is another, are restored
again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from datasets.files import write_atomic

from ..config import ConfigError

logger = logging.getLogger(__name__)


class ScoreSheetError(ConfigError):
    """The folder holds results made in another way, or a file beside it is not what it should be."""


@dataclass(frozen=True)
class Row:
    """One image's scores on its saved 8-bit values, PSNR in dB; None without a sharp image."""

    name: str
    psnr: float | None
    ssim_matlab_rgb: float | None
    ssim_per_channel: float | None
    blurred_psnr: float | None
    seconds: float  # the network's, see Restorer.restore


SCORES = tuple(field.name for field in fields(Row))
COLUMNS = (*SCORES, "bytes", "check")


class ScoreSheet:
    """The table and the record beside a folder of restored images.

    Args:
        images: the folder of restored images; need not exist yet.
        rank: this process's place among those that share the images; each keeps its new rows in a file of its own.
    """

    def __init__(self, images: Path, rank: int = 0):
        self.images = images
        self.table, self.record = Path(f"{images}.csv"), Path(f"{images}.json")
        self.journal = Path(f"{images}.csv.{rank}")
        self._lock = threading.Lock()

    def image(self, name: str) -> Path:
        """Where the restored image of that name lies."""
        return self.images / f"{name}.png"

    def begin(self, record: dict[str, object], decisive: Iterable[str], overwrite: bool) -> None:
        """Makes ready for the run that `record` describes; one process calls it, before the others read or write.

        Raises ScoreSheetError where the folder holds results whose record differs in one of the `decisive` entries, or
        images without a record. With `overwrite` the earlier results are removed instead.
        """
        self.table.parent.mkdir(parents=True, exist_ok=True)
        if overwrite:
            self._remove_results()
        elif self.record.is_file():
            before = self._read_record()
            differing = [key for key in decisive if before.get(key) != record[key]]
            if differing:
                changes = "".join(f"    {key}: {before.get(key)} then, {record[key]} now\n" for key in differing)
                raise ScoreSheetError(
                    f"{self.images} holds results made in another way (so says {self.record}):\n"
                    f"{changes}Use --overwrite to redo them, or another --output to keep them"
                )
        elif any(self.images.glob("**/*.png")):
            raise ScoreSheetError(
                f"{self.images} holds images, but there is no {self.record} to say what made them. "
                "Use --overwrite to write over them, or another --output"
            )
        write_atomic(self.record, json.dumps(record, indent=2) + "\n")
        self.merge()

    def append(self, row: Row) -> None:
        """Adds a row to this process's journal, in one piece; from any thread."""
        with self._lock, self.journal.open("a", newline="", encoding="utf-8") as file:
            file.write(self._line(row))

    def merge(self) -> None:
        """Brings the new rows of all processes into the table; one process calls it, while none appends."""
        journals = self._journals()
        lines = {line[0]: line for file in (self.table, *journals) for line in _sound_lines(file)}
        write_atomic(self.table, csv_line(COLUMNS) + "".join(csv_line(lines[name]) for name in sorted(lines)))
        for journal in journals:
            journal.unlink()

    def rows(self) -> dict[str, Row]:
        """The table's rows by name."""
        return {line[0]: _row(self.table, line) for line in _sound_lines(self.table)}

    def done(self) -> set[str]:
        """The names that have a row in the table and the image that the row was written for, by its size."""
        return {line[0] for line in _sound_lines(self.table) if _size(self.image(line[0])) == int(line[-2]) > 0}

    def _line(self, row: Row) -> str:
        cells = next(csv.reader([csv_line(astuple(row))])) + [str(_size(self.image(row.name)))]
        return csv_line([*cells, digest(cells)])

    def conclude(self, results: dict[str, object]) -> None:
        """Adds the run's results to its record."""
        write_atomic(self.record, json.dumps(self._read_record() | {"results": results}, indent=2) + "\n")

    def _journals(self) -> list[Path]:
        return sorted(self.table.parent.glob(f"{self.table.name}.[0-9]*"))

    def _read_record(self) -> dict[str, object]:
        try:
            return dict(json.loads(self.record.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, TypeError, ValueError) as error:
            raise ScoreSheetError(
                f"{self.record}: not a record of a prediction ({error}). Use --overwrite to redo the "
                "images, or another --output"
            ) from error

    def _remove_results(self) -> None:
        """Removes the images that the table and the journals name, damaged rows' too, and then these files."""
        for table in [self.table, *self._journals()]:
            if table.is_file():
                for line in _lines_of_rows(table):
                    image = self.image(line[0])
                    if self.images.resolve() in image.resolve().parents:  # an edited name may lead elsewhere
                        image.unlink(missing_ok=True)
                table.unlink()
        self.record.unlink(missing_ok=True)


def csv_line(values: Iterable[str | float | None]) -> str:
    """One line of CSV; numbers to six digits after the point."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(
        f"{value:.6f}" if isinstance(value, float) else value for value in values
    )
    return text.getvalue()


def digest(cells: Iterable[str]) -> str:
    """Twelve characters that change with the content of any of a row's cells."""
    return hashlib.sha256("\0".join(cells).encode()).hexdigest()[:12]


def whole_lines(path: Path) -> list[list[str]]:
    """The fields of each line of a CSV file but a last one that a kill cut short.

    Raises:
        ScoreSheetError: the file is not text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ScoreSheetError(f"{path}: not a table in UTF-8; remove it, and the same command makes it anew") from error
    return [line for line in csv.reader(text[: text.rfind("\n") + 1].splitlines()) if line]


def _sound_lines(path: Path) -> list[list[str]]:
    """The lines of a table or a journal that are as they were written; says how many are not."""
    lines = _lines_of_rows(path) if path.is_file() else []
    sound = [line for line in lines if len(line) == len(COLUMNS) and line[-1] == digest(line[:-1])]
    if len(sound) < len(lines):
        logger.warning(
            "%s: %d rows are not as they were written, or without a check; their images are restored again",
            path,
            len(lines) - len(sound),
        )
    return sound


def _row(path: Path, line: list[str]) -> Row:
    name, *scores, seconds = line[: len(SCORES)]
    psnr, volume, per_channel, blurred = (float(score) if score else None for score in scores)
    return Row(name, psnr, volume, per_channel, blurred, float(seconds))


def _size(path: Path) -> int:
    """Of a file, in bytes; 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def _lines_of_rows(path: Path) -> list[list[str]]:
    return [line for line in whole_lines(path) if line[:2] != list(COLUMNS[:2])]
