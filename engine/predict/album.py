"""Restore photographs, one file or a folder of them, each to a result of its own.

A result stores in a PNG text chunk what made it: the photograph's checksum, the weights and the flags. The same command
again therefore continues where it was stopped, and never takes, or overwrites, another photograph's or another
setting's result.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets.files import walk
from datasets.images import IMAGE_SUFFIXES, ImageError, read_file
from datasets.layouts import image_names

from ..console import describe
from ..memory import OutOfMemory, is_out_of_memory
from .images import images_to_tensor, tensor_to_images
from .inference import Restorer
from .photo import RAW_SUFFIXES, decode_photograph, write_photograph
from .png import read_text

# Some of these cannot be read. They are still photographs: each is named and counted as failed, not skipped.
PHOTOGRAPH_SUFFIXES = (
    *IMAGE_SUFFIXES,
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".gif", ".jpe", ".jfif", ".psd"),
    *RAW_SUFFIXES,
)
MAKER = "XYScanNet"  # keyword of the text chunk in a result
NAMED = 5  # files listed in one line


class ResultExists(RuntimeError):
    """Something else already lies where a result would be written."""


@dataclass(frozen=True)
class Album:
    """The photographs to restore, and what is left out.

    Attributes:
        photographs: (photograph, result), no two with the same result.
        others: files that are not photographs.
        unreadable: errors of folders that cannot be read.
    """

    photographs: list[tuple[Path, Path]]
    others: list[Path] = field(default_factory=list)
    unreadable: list[OSError] = field(default_factory=list)

    def report(self) -> int:
        """Print what is left out; return how many folders could not be read."""
        if self.others:
            names = ", ".join(str(path) for path in self.others[:NAMED]) + (", …" if len(self.others) > NAMED else "")
            print(f"skipped, not photographs ({len(self.others)}): {names}", file=sys.stderr)
        for error in self.unreadable:
            print(f"failed: {describe(error)}", file=sys.stderr)
        return len(self.unreadable)


def find_photographs(source: Path, output: Path) -> Album:
    """Find a photograph, or all photographs below a folder, sorted.

    Each folder is visited once, whatever links lead to it. Hidden files and the output folder are left out.
    Photographs that differ in their suffix alone keep it in their result's name.

    Raises:
        FileNotFoundError: there is nothing to restore.
        ImageError: ``source`` is neither a file nor a folder.
        OSError: none of the folders can be read.
    """
    if source.is_file():
        return Album([(source, output / f"{source.stem}.png")])
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if not source.is_dir():
        raise ImageError(f"{source}: a FIFO, socket or device, neither a file nor a folder")
    unreadable: list[OSError] = []
    beside = output.resolve() == source.resolve()  # results among the photographs: recognised by their text
    files = list(walk(source, () if beside else (output,), unreadable.append))
    found = [path for path in files if path.name.lower().endswith(PHOTOGRAPH_SUFFIXES)]
    others = sorted(set(files) - set(found))
    if beside:
        found = [path for path in found if _maker(path) is None]
    if not found:
        if unreadable:
            raise unreadable[0]
        raise FileNotFoundError(f"{source}: no photographs in this folder ({', '.join(IMAGE_SUFFIXES)})")
    relative = sorted(path.relative_to(source).as_posix() for path in found)
    photographs = [
        (source / path, output / f"{name}.png") for path, name in zip(relative, image_names(relative), strict=True)
    ]
    return Album(photographs, others, unreadable)


def restore_photographs(restorer: Restorer, photographs: list[tuple[Path, Path]], overwrite: bool = False) -> int:
    """Restore each photograph, with a line for each; one that fails does not stop the others.

    A result that was made from the same photograph in the same way is kept as it is. Anything else in its place makes
    the photograph fail, unless ``overwrite``. A photograph itself is never overwritten.

    Returns:
        How many failed.
    """
    failed = 0
    for number, (source, target) in enumerate(photographs, start=1):
        print(f"[{number}/{len(photographs)}] {source}", end=" ", flush=True)  # a large one takes minutes on a CPU
        try:
            print(_restore(restorer, source, target, overwrite), flush=True)
        except Exception as error:
            line = describe(error)
            if line is None:  # a fault of the code
                raise
            failed += 1
            print("failed", flush=True)
            print(f"[{number}/{len(photographs)}] failed: {line}", file=sys.stderr, flush=True)
    if failed:
        print(f"{failed} of {len(photographs)} photographs failed", file=sys.stderr)
    return failed


def _restore(restorer: Restorer, source: Path, target: Path, overwrite: bool) -> str:
    """Restore one photograph, unless its result exists; return what was done, in words."""
    if target.exists() and target.samefile(source):
        return f"{target} is the photograph itself, left as it is"
    data = read_file(source)
    made_by = {"source": source.name, "source_sha256": hashlib.sha256(data).hexdigest(), **restorer.maker}
    if target.exists() and not overwrite:
        _check_same(target, made_by)
        return f"{target} exists already, left as it is"
    try:
        photograph = decode_photograph(source, data)
        restored, seconds = restorer.restore(images_to_tensor([photograph.rgb]), str(source))
        result = replace(photograph, rgb=tensor_to_images(restored, photograph.rgb.dtype)[0])
        write_photograph(target, result, (MAKER, json.dumps(made_by)))
    except (RuntimeError, MemoryError) as error:  # of the photograph's arrays; the restorer's has a line of its own
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{source}: out of memory; close other programs, or make the photograph smaller") from error
    height, width = photograph.rgb.shape[:2]
    only = f", the first of its {photograph.frames} frames" if photograph.frames > 1 else ""
    return f"-> {target}  ({width} x {height}{only}, {seconds:.2f} s)"


def _check_same(target: Path, made_by: dict[str, object]) -> None:
    """Raise ResultExists unless the file at ``target`` was made so; the photograph's name may differ."""
    there = _maker(target)
    ways = "use --overwrite to replace it, or another --output to keep it"
    if there is None:
        raise ResultExists(f"{target} exists already, and is not an intact result of this program; {ways}")
    differing = [key for key in made_by if key != "source" and there.get(key) != made_by[key]]
    if "source_sha256" in differing:
        raise ResultExists(f"{target} exists already, the result of another photograph ({there.get('source')}); {ways}")
    if differing:
        changes = ", ".join(f"{key} {there.get(key)} then and {made_by[key]} now" for key in differing)
        raise ResultExists(f"{target} exists already, made in another way ({changes}); {ways}")


def _maker(path: Path) -> dict[str, object] | None:
    """What made a result, as stored in it; None for a file that is not an intact result."""
    try:
        return dict(json.loads(read_text(path, MAKER) or "")) if path.is_file() else None
    except (ValueError, TypeError):
        return None
