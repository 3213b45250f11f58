"""Restore photographs and videos, files or folders of them, each to a result of its own.

A result stores what made it: the input's checksum, the weights and the flags. The same command again therefore
continues where it was stopped, and never takes, or overwrites, another input's or another setting's result.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from datasets.files import checksum, walk
from datasets.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES, ImageError, read_file
from datasets.layouts import image_names
from models.images import images_to_tensor, tensor_to_images

from ..console import describe
from ..memory import OutOfMemory, is_out_of_memory
from . import video
from .inference import Restorer
from .photo import RAW_SUFFIXES, decode_photograph, losses, read_maker, result_suffix, write_photograph
from .progress import show_progress

# Some of these cannot be read. They are still photographs: each is named and counted as failed, not skipped.
PHOTOGRAPH_SUFFIXES = (
    *IMAGE_SUFFIXES,
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".gif", ".jpe", ".jfif", ".psd"),
    *RAW_SUFFIXES,
)
NAMED = 5  # files listed in one line


class ResultExists(RuntimeError):
    """Something else already lies where a result would be written."""


class SameName(RuntimeError):
    """Two inputs would have the same result."""


@dataclass(frozen=True)
class Album:
    """The photographs and videos to restore, and what is left out.

    Attributes:
        photographs: (photograph or video, result), no two with the same result.
        others: files that are neither.
        unreadable: errors of inputs and folders that cannot be read.
    """

    photographs: list[tuple[Path, Path]]
    others: list[Path] = field(default_factory=list)
    unreadable: list[Exception] = field(default_factory=list)

    @property
    def videos(self) -> list[Path]:
        return [source for source, _ in self.photographs if video.is_video(source)]

    def report(self) -> int:
        """Print what is left out; return how many inputs and folders could not be read."""
        if self.others:
            names = ", ".join(str(path) for path in self.others[:NAMED]) + (", …" if len(self.others) > NAMED else "")
            print(f"skipped, neither photographs nor videos ({len(self.others)}): {names}", file=sys.stderr)
        for error in self.unreadable:
            print(f"failed: {describe(error)}", file=sys.stderr)
        return len(self.unreadable)


def find_photographs(sources: list[Path], output: Path, form: str = "png") -> Album:
    """Find photographs and videos: the files among ``sources``, and all below the folders among them, sorted.

    Each folder is visited once, whatever links lead to it. Hidden files and the output folder are left out. A result
    has its input's path relative to the folder that was given. Inputs that differ in their suffix alone keep it in
    their result's name; those of the same name in different places get their folder's name before it.

    Args:
        form: of restored photographs, see `photo.result_suffix`.

    Raises:
        FileNotFoundError, ImageError, OSError: the first input's error, where there is nothing to restore at all.
        SameName: two inputs would have the same result.
    """
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"--output {output}: a file, where restored photographs need a folder")
    nearest = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"--output {output}: {nearest} cannot be written to")
    found: dict[Path, tuple[Path, str]] = {}  # by resolved path: (path, path relative to what was given)
    others: dict[Path, Path] = {}
    errors: list[Exception] = []
    for source in sources:
        try:
            files, left_out = _find(source, output, errors)
        except (ImageError, OSError) as error:
            errors.append(error)
            continue
        others |= {path.resolve(): path for path in left_out}
        for path in files:
            name = path.relative_to(source).as_posix() if source.is_dir() else path.name
            found.setdefault(path.resolve(), (path, name))
    if not found:
        raise errors[0]
    times = Counter(name for _, name in found.values())
    named = [(path, name if times[name] == 1 else f"{_folder(path, name)}/{name}") for path, name in found.values()]
    left_out = sorted(path for resolved, path in others.items() if resolved not in found)
    return Album(_with_results(named, output, form), left_out, errors)


def _find(source: Path, output: Path, errors: list[Exception]) -> tuple[list[Path], list[Path]]:
    """The photographs and videos of one input, sorted, and its other files; folders that cannot be read go to errors.

    Raises:
        FileNotFoundError, ImageError, OSError: there is nothing to restore.
    """
    if source.is_file():
        return [source], []
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if not source.is_dir():
        raise ImageError(f"{source}: a FIFO, socket or device, neither a file nor a folder")
    unreadable: list[OSError] = []
    beside = output.resolve() == source.resolve()  # results among the photographs: recognised by what made them
    files = list(walk(source, () if beside else (output,), unreadable.append))
    found = [path for path in files if path.name.lower().endswith((*PHOTOGRAPH_SUFFIXES, *VIDEO_SUFFIXES))]
    others = sorted(set(files) - set(found))
    if beside:
        found = [path for path in found if _maker(path) is None]
    if not found and unreadable:
        raise unreadable[0]
    if not found:
        raise FileNotFoundError(f"{source}: no photographs or videos in this folder ({', '.join(IMAGE_SUFFIXES)}, …)")
    errors += unreadable
    return sorted(found, key=lambda path: path.relative_to(source).as_posix()), others


def _folder(path: Path, name: str) -> str:
    """The name of the folder that a path was relative to."""
    return Path(os.path.abspath(path)).parents[name.count("/")].name


def _with_results(named: list[tuple[Path, str]], output: Path, form: str) -> list[tuple[Path, Path]]:
    """Each path with its result's; ``named`` holds (path, relative path in the output folder)."""
    places: dict[str, Path] = {}
    for path, name in named:
        if places.setdefault(name, path) is not path:
            raise SameName(
                f"{places[name]} and {path} would both be restored to {output / name}; "
                "restore them in two commands with different --output folders"
            )
    suffixes = [video.target_suffix(path) if video.is_video(path) else result_suffix(path, form) for path, _ in named]
    results: dict[str, str] = {}
    for suffix in set(suffixes):  # results of different suffixes never collide
        names = [name for (_, name), own in zip(named, suffixes, strict=True) if own == suffix]
        results |= {name: result + suffix for name, result in zip(names, image_names(names), strict=True)}
    return [(path, output / results[name]) for path, name in named]


def restore_photographs(
    restorer: Restorer,
    photographs: list[tuple[Path, Path]],
    overwrite: bool = False,
    frames: slice | None = None,
    quality: int = 95,
) -> int:
    """Restore each photograph and video, with a line for each; one that fails does not stop the others.

    A result that was made from the same input in the same way is kept as it is. Anything else in its place makes the
    input fail, unless ``overwrite``. An input itself is never overwritten.

    Args:
        photographs: (input, result); the result's suffix says its format.
        frames: of videos, those to restore; None for all.
        quality: of JPEG and WebP, 1 to 100.

    Returns:
        How many failed.
    """
    failed = 0
    for number, (source, target) in enumerate(photographs, start=1):
        begin = f"[{number}/{len(photographs)}] {source}"
        if not sys.stderr.isatty():  # a large one takes minutes; a terminal has a bar for it
            print(begin, end=" ", flush=True)
            begin = ""
        try:
            if video.is_video(source):
                done = _restore_video(restorer, source, target, overwrite, frames)
            else:
                done = _restore(restorer, source, target, overwrite, quality)
            print(begin, done, sep=" " if begin else "", flush=True)
        except Exception as error:
            line = describe(error)
            if line is None:  # a fault of the code
                raise
            failed += 1
            print(begin, "failed", sep=" " if begin else "", flush=True)
            print(f"[{number}/{len(photographs)}] failed: {line}", file=sys.stderr, flush=True)
    if failed:
        what = "inputs" if any(video.is_video(source) for source, _ in photographs) else "photographs"
        print(f"{failed} of {len(photographs)} {what} failed", file=sys.stderr)
    return failed


def _restore(restorer: Restorer, source: Path, target: Path, overwrite: bool, quality: int) -> str:
    """Restore one photograph, unless its result exists; return what was done, in words."""
    data = read_file(source)
    made_by = {"source": source.name, "source_sha256": hashlib.sha256(data).hexdigest(), **restorer.maker}
    if target.suffix.lower() != ".png":
        made_by["quality"] = quality
    if there := _already_there(source, target, made_by, overwrite):
        return there
    try:
        photograph = decode_photograph(source, data)
        height, width = photograph.rgb.shape[:2]
        with show_progress(restorer, height, width, source.name):
            restored, seconds = restorer.restore(images_to_tensor([photograph.rgb]), str(source))
        result = replace(photograph, rgb=tensor_to_images(restored, photograph.rgb.dtype)[0])
        write_photograph(target, result, json.dumps(made_by), quality)
    except (RuntimeError, MemoryError) as error:  # of the photograph's arrays; the restorer's has a line of its own
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{source}: out of memory; close other programs, or make the photograph smaller") from error
    only = [f"the first of its {photograph.frames} frames"] if photograph.frames > 1 else []
    what = ", ".join([f"{width} x {height}", *only, *losses(target, photograph), f"{seconds:.2f} s"])
    return f"-> {target}  ({what})"


def _restore_video(restorer: Restorer, source: Path, target: Path, overwrite: bool, frames: slice | None) -> str:
    """As `_restore`, for a video."""
    video.import_av()
    frames = frames or slice(None)
    made_by = {
        "source": source.name,
        "source_sha256": checksum(source),
        "frames": None
        if frames == slice(None)
        else f"{frames.start or 0}:{'' if frames.stop is None else frames.stop}",
        **restorer.maker,
    }
    if there := _already_there(source, target, made_by, overwrite):
        return there

    def restore(image: np.ndarray) -> tuple[np.ndarray, float]:
        restored, seconds = restorer.restore(images_to_tensor([image]), str(source))
        return tensor_to_images(restored)[0], seconds

    statistics = video.restore_video(restore, source, target, frames, made_by)
    return f"-> {target}  ({statistics})"


def _already_there(source: Path, target: Path, made_by: dict[str, object], overwrite: bool) -> str | None:
    """Why nothing has to be made, in words; None where something has.

    Raises:
        ResultExists: something else is in the result's place. An input's name may differ from that in its result.
    """
    if not target.exists():
        return None
    if target.samefile(source):
        return f"{target} is the {'video' if video.is_video(source) else 'photograph'} itself, left as it is"
    if overwrite:
        return None
    there = _maker(target)
    ways = "use --overwrite to replace it, or another --output to keep it"
    if there is None:
        raise ResultExists(f"{target} exists already, and is not an intact result of this program; {ways}")
    differing = [key for key in made_by if key != "source" and there.get(key) != made_by[key]]
    if "source_sha256" in differing:
        kind = "video" if video.is_video(source) else "photograph"
        raise ResultExists(f"{target} exists already, the result of another {kind} ({there.get('source')}); {ways}")
    if differing:
        changes = ", ".join(f"{key} {there.get(key)} then and {made_by[key]} now" for key in differing)
        raise ResultExists(f"{target} exists already, made in another way ({changes}); {ways}")
    return f"{target} exists already, left as it is"


def _maker(path: Path) -> dict[str, object] | None:
    """What made a result, as stored in it; None for a file that is not an intact result."""
    if not path.is_file():
        return None
    if not video.is_video(path):
        return read_maker(path)
    try:
        return video.read_maker(path)
    except video.VideoError:  # without PyAV no video is restored; each says so
        return None
