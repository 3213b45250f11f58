"""The restored images of a test set, the list of those that are finished, and the record of what made them.

    results/J/images/        the restored images
    results/J/images.csv     one row per finished image, sorted by name: seconds, bytes, its input's checksum
    results/J/images.json    the record: weights, precision, tiles, versions; at the end time and memory
    results/J/images.csv.0   rows of rank 0 that are not in the list yet; only a stopped run leaves it behind
    results/J/.images.lock   locked while a run restores images

A row is written after its image, and a stopped run goes on with the images that lack one. An image is restored again
where its row was edited, its file is damaged or of another size, or its input has changed. Scores are not kept here but
by evaluation.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from datasets.files import JsonError, checksum, read_json, write_atomic
from datasets.images import PNG_SIGNATURE, ImageError, check_file, read_file

from ..config import ConfigError
from ..csv_rows import csv_line, digest, read_rows

logger = logging.getLogger(__name__)

COLUMNS = ("name", "seconds", "bytes", "input", "check")
INPUT = "input"  # in the record: the data set's folders
READERS = 8  # threads that check images
OVERWRITING = "overwriting"  # in the record of a run with --overwrite that has not ended


class PredictionsError(ConfigError):
    """The folder holds results made in another way, or a file beside it is not what it should be."""


class Finished(NamedTuple):
    """A restored image that is saved.

    Attributes:
        name: of its pair.
        seconds: the network's time, see Restorer.restore.
        size: of its file, in bytes.
        input: `fingerprint` of what was restored.
    """

    name: str
    seconds: float
    size: int
    input: str


class Predictions:
    """A folder of restored images with its list and its record.

    Args:
        images: the folder; need not exist yet.
        inputs: the blurred image of each name.
        rank: of this process among those that share the images; each keeps its new rows in a file of its own.
    """

    def __init__(self, images: Path, inputs: Mapping[str, Path], rank: int = 0):
        self.images, self.inputs = images, inputs
        self.list, self.record = Path(f"{images}.csv"), Path(f"{images}.json")
        self.lock = images.absolute().with_name(f".{images.absolute().name}.lock")
        self.new_rows = Path(f"{images}.csv.{rank}")
        self._lock = threading.Lock()

    def image(self, name: str) -> Path:
        """Where the restored image of that name lies."""
        return self.images / f"{name}.png"

    def begin(self, record: dict[str, object], decisive: Iterable[str], overwrite: bool) -> None:
        """Prepares the folder for the run that `record` describes. One process calls it, before others read or write.

        Args:
            decisive: entries of the record that must be the same for all images of the folder. Input folders may have
                been moved: where they differ, the images in them count.
            overwrite: remove the earlier results, unless they are those of a run that did so and was stopped.

        Raises:
            PredictionsError: the folder's list was not written by this program; or, without `overwrite`, the folder
                holds images without a record, or with one that differs in a decisive entry.
        """
        self.list.parent.mkdir(parents=True, exist_ok=True)
        self._refuse_foreign_list(overwrite and self.record.is_file())
        if overwrite:
            if not self._overwrites(record, decisive):
                self._remove_results()
            record = record | {OVERWRITING: True}  # until `conclude`
        elif self.record.is_file():
            self._compare(record, decisive)
        elif any(self.images.glob("**/*.png")):
            raise PredictionsError(
                f"{self.images} holds images, but there is no {self.record} to say what made them. "
                "Use --overwrite to write over them, or another --output"
            )
        write_atomic(self.record, json.dumps(record, indent=2) + "\n")
        self.merge()

    def add(self, name: str, seconds: float) -> None:
        """Notes that an image is saved, in this process's own file; from any thread."""
        cells = _cells(Finished(name, seconds, self.image(name).stat().st_size, fingerprint(self.inputs[name])))
        with self._lock, self.new_rows.open("a", newline="", encoding="utf-8") as file:
            file.write(csv_line([*cells, digest(cells)]))

    def merge(self) -> None:
        """Brings the new rows of all processes into the list. One process calls it, while none adds any."""
        files = self._files_of_new_rows()
        rows = {row.name: row for file in (self.list, *files) for row in _sound_rows(file)}
        lines = [_cells(rows[name]) for name in sorted(rows)]
        write_atomic(self.list, csv_line(COLUMNS) + "".join(csv_line([*cells, digest(cells)]) for cells in lines))
        for file in files:
            file.unlink()

    def finished(self) -> dict[str, Finished]:
        """By name, the images that are listed, whole, and of inputs as they are now; logs how many are not."""
        rows = [row for row in _sound_rows(self.list) if row.name in self.inputs]
        with ThreadPoolExecutor(READERS) as pool:
            rows = [row for row, whole in zip(rows, pool.map(self._is_whole, rows), strict=True) if whole]
            current = list(pool.map(self._is_of_its_input, rows))
        if not all(current):
            changed = current.count(False)
            logger.warning("%d input images have changed since they were restored; they are restored again", changed)
        return {row.name: row for row, same in zip(rows, current, strict=True) if same}

    def conclude(self, results: dict[str, object]) -> None:
        """Adds the run's time and memory to its record."""
        record = read_json(self.record) | {"results": results}
        record.pop(OVERWRITING, None)
        write_atomic(self.record, json.dumps(record, indent=2) + "\n")

    def _overwrites(self, record: dict[str, object], decisive: Iterable[str]) -> bool:
        """Whether the folder holds the first images of a run like this one that was overwriting and was stopped."""
        try:
            self._compare(record, decisive)
            return OVERWRITING in read_json(self.record)
        except (PredictionsError, JsonError, OSError):
            return False

    def _is_whole(self, row: Finished) -> bool:
        """Whether the image has the size that was listed and every checksum of the PNG fits."""
        path = self.image(row.name)
        try:
            if path.stat().st_size != row.size:
                return False
            data = read_file(path)
            check_file(path, data)
            return data.startswith(PNG_SIGNATURE)
        except (OSError, ImageError):
            return False

    def _is_of_its_input(self, row: Finished) -> bool:
        return row.name in self.inputs and fingerprint(self.inputs[row.name]) == row.input

    def _compare(self, record: dict[str, object], decisive: Iterable[str]) -> None:
        """Raises PredictionsError where the folder's record differs in a decisive entry."""
        try:
            before = read_json(self.record)
        except JsonError as error:
            raise PredictionsError(f"{error}. Use --overwrite to redo the images, or another --output") from error
        changes = [
            f"    {key}: {before.get(key)} then, {record[key]} now\n"
            for key in decisive
            if before.get(key) != record[key] and not (key == INPUT and self._was_moved())
        ]
        if changes:
            raise PredictionsError(
                f"{self.images} holds results made in another way (recorded in {self.record}):\n{''.join(changes)}"
                "Use --overwrite to redo them, or another --output to keep them"
            )

    def _was_moved(self) -> bool:
        """Whether the inputs of all the listed images are among these, wherever they lie now."""
        rows = [row for file in (self.list, *self._files_of_new_rows()) for row in _sound_rows(file)]
        with ThreadPoolExecutor(READERS) as pool:
            return bool(rows) and all(pool.map(self._is_of_its_input, rows))

    def _refuse_foreign_list(self, may_be_damaged: bool) -> None:
        """Raises PredictionsError for a list with neither our header nor one sound row."""
        header = next(iter(read_rows(self.list)), list(COLUMNS))
        ours = header[0] == COLUMNS[0] and COLUMNS[1] in header
        if not (ours or may_be_damaged or _sound_rows(self.list)):
            raise PredictionsError(
                f"{self.list}: not a list of restored images, it begins {','.join(header)[:60]!r}; move it, or choose "
                "another --output"
            )

    def _files_of_new_rows(self) -> list[Path]:
        return sorted(self.list.parent.glob(f"{self.list.name}.[0-9]*"))

    def _remove_results(self) -> None:
        """Removes the images that the lists name, damaged rows' too, and then these files."""
        for file in (self.list, *self._files_of_new_rows()):
            for name, *_ in read_rows(file):
                image = self.image(name)
                # A damaged row's name may be none that a file can have, or lead elsewhere.
                if os.path.isfile(image) and self.images.resolve() in image.resolve().parents:
                    image.unlink()
            file.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)


def fingerprint(path: Path) -> str:
    """Sixteen characters that change with a file's content."""
    return checksum(path)[:16]


def _cells(row: Finished) -> list[str]:
    return [row.name, f"{row.seconds:.6f}", str(row.size), row.input]


def _sound_rows(path: Path) -> list[Finished]:
    """The rows of a list that are as they were written, by this version; logs how many are not."""
    lines = [cells for cells in read_rows(path) if cells[0] != COLUMNS[0] or COLUMNS[1] not in cells]
    sound = [cells for cells in lines if len(cells) == len(COLUMNS) and cells[-1] == digest(cells[:-1])]
    if len(sound) < len(lines):
        logger.warning(
            "%s: %d rows are not as they were written, or of an earlier version; their images are restored again",
            path,
            len(lines) - len(sound),
        )
    return [Finished(name, float(seconds), int(size), source) for name, seconds, size, source, _ in sound]
