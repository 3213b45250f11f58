"""One's own photographs, a file or a folder of them: found, restored to a place of their own each, never lost.

A result says in a PNG text chunk what made it: the photograph's content, the weights, and how they were used. So the
same command again goes on where it was stopped, and nothing is taken for, or written over, the result of another one.
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
from .inference import Restorer, images_to_tensor, tensor_to_images
from .photo import RAW_SUFFIXES, decode_photograph, write_photograph
from .png import read_text

# Photographs too, though some cannot be read: then each is named and counted as failed, not passed over.
PHOTOGRAPH_SUFFIXES = (
    *IMAGE_SUFFIXES,
    ".heic",
    ".heif",
    ".avif",
    ".jxl",
    ".jp2",
    ".gif",
    ".jpe",
    ".jfif",
    ".psd",
    *RAW_SUFFIXES,
)
MAKER = "XYScanNet"  # keyword of the text in a result
NAMED = 5  # files in a line


class ResultExists(RuntimeError):
    """Where a result should go, something else lies already."""


@dataclass(frozen=True)
class Album:
    """What there is to restore, and what is left out.

    photographs: each with the place of its result, which no other has.
    others: files that are no photographs.
    unreadable: the errors of folders that cannot be read.
    """

    photographs: list[tuple[Path, Path]]
    others: list[Path] = field(default_factory=list)
    unreadable: list[OSError] = field(default_factory=list)

    def report(self) -> int:
        """Names what is left out; returns how many folders could not be read."""
        if self.others:
            names = ", ".join(str(path) for path in self.others[:NAMED]) + (", …" if len(self.others) > NAMED else "")
            print(f"passed over, no photographs ({len(self.others)}): {names}", file=sys.stderr)
        for error in self.unreadable:
            print(f"failed: {describe(error)}", file=sys.stderr)
        return len(self.unreadable)


def find_photographs(source: Path, output: Path) -> Album:
    """The photographs of a file, or of every folder below one, sorted.

    Each folder is visited once, whatever links lead to it. Hidden files and what lies in the output folder are passed
    over. Photographs that differ in their suffix alone keep it in their result's name.

    Raises:
        FileNotFoundError: where there is nothing to restore.
        ImageError: for what is neither a file nor a folder.
        OSError: for folders of which none can be read.
    """
    if source.is_file():
        return Album([(source, output / f"{source.stem}.png")])
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if not source.is_dir():
        raise ImageError(f"{source}: a FIFO, socket or device, neither a file nor a folder")
    unreadable: list[OSError] = []
    beside = output.resolve() == source.resolve()  # results among the photographs: told apart by what they say
    files = list(walk(source, () if beside else (output,), unreadable.append))
    found = [path for path in files if path.name.lower().endswith(PHOTOGRAPH_SUFFIXES)]
    others = sorted(set(files) - set(found))
    if beside:
        found = [path for path in found if _maker(path) is None]
    if not found:
        if unreadable:
            raise unreadable[0]
        raise FileNotFoundError(f"{source}: no photographs below it ({', '.join(IMAGE_SUFFIXES)})")
    relative = sorted(path.relative_to(source).as_posix() for path in found)
    photographs = [
        (source / path, output / f"{name}.png") for path, name in zip(relative, image_names(relative), strict=True)
    ]
    return Album(photographs, others, unreadable)


def restore_photographs(restorer: Restorer, photographs: list[tuple[Path, Path]], overwrite: bool = False) -> int:
    """Restores each photograph to its place, a line each; returns how many failed. Those do not stop the others.

    A result that is there already and was made the same way is left as it is; what else lies there makes its photograph
    fail, unless `overwrite`. A photograph itself is never written over.
    """
    failed = 0
    for number, (source, target) in enumerate(photographs, start=1):
        print(f"[{number}/{len(photographs)}] {source}", end=" ", flush=True)  # a large photograph takes a CPU minutes
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
    """Restores one photograph, if need be; returns what was done in words."""
    if target.exists() and target.samefile(source):
        return f"{target} is the photograph itself, left as it is"
    data = read_file(source)
    made_by = {"source": source.name, "source_sha256": hashlib.sha256(data).hexdigest(), **restorer.maker}
    if target.exists() and not overwrite:
        _check_same(target, made_by, free={"tile", "overlap"} if restorer.auto else set())
        return f"{target} is there already, left as it is"
    try:
        photograph = decode_photograph(source, data)
        height, width = photograph.rgb.shape[:2]
        way = f", {restorer.choose_mode(1, height, width)}" if restorer.auto else ""
        restored, seconds = restorer.restore(images_to_tensor([photograph.rgb]), str(source))
        result = replace(photograph, rgb=tensor_to_images(restored, photograph.rgb.dtype)[0])
        write_photograph(target, result, (MAKER, json.dumps(made_by | restorer.maker)))  # the tile is settled now
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"{source}: out of memory; close other programs, restore it with --tile auto, or make the "
            "photograph smaller"
        ) from error
    only = f", the first of its {photograph.frames} frames" if photograph.frames > 1 else ""
    return f"-> {target}  ({width} x {height}{only}{way}, {seconds:.2f} s)"


def _check_same(target: Path, made_by: dict[str, object], free: set[str]) -> None:
    """Raises ResultExists where what lies at the target was not made so; `free` and names may differ."""
    there = _maker(target)
    ways = "use --overwrite to replace it, or another --output to keep it"
    if there is None:
        raise ResultExists(f"{target} is there already, and is no whole result of this program; {ways}")
    differing = [key for key in made_by if key not in free | {"source"} and there.get(key) != made_by[key]]
    if "source_sha256" in differing:
        raise ResultExists(
            f"{target} is there already, the result of another photograph ({there.get('source')}); {ways}"
        )
    if differing:
        changes = ", ".join(f"{key} {there.get(key)} then and {made_by[key]} now" for key in differing)
        raise ResultExists(f"{target} is there already, made in another way ({changes}); {ways}")


def _maker(path: Path) -> dict[str, object] | None:
    """What made a result, as it says itself; None for what is no whole result."""
    try:
        return dict(json.loads(read_text(path, MAKER) or "")) if path.is_file() else None
    except (ValueError, TypeError):
        return None
