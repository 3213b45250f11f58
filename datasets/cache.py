"""Decodes a split once into one flat file, so that training reads crops from memory-mapped pixels.

Decoding PNGs is what starves a GPU: a crop of 252 x 252 costs the decoding of 1280 x 720 pixels twice. GoPro's training
split takes 12 GB of disk decoded.

A cache is two files, <fingerprint>.rgb (all pixels, one image after the other) and <fingerprint>.json (path -> offset
and shape). The fingerprint covers paths, sizes and modification times, so a changed split gets a new cache and a job
that is running keeps its own; old ones can be deleted when no job runs.
"""
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .images import ImageError, read_rgb, read_size
from .layouts import Pair

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = 1
DECODING_THREADS = min(8, os.cpu_count() or 1)
SPARE_BYTES = 64 << 20

Places = dict[str, tuple[int, tuple[int, int, int]]]  # path -> offset in bytes, shape


class CacheError(OSError):
    """The cache cannot be built. The message says why and what to do."""


class CachedReader:
    """Reads images from a cache: path -> read-only uint8 view (H, W, 3). Maps the file when first used in a process."""

    def __init__(self, file: Path, places: Places) -> None:
        self.file, self.places = file, places
        self._pixels: np.ndarray | None = None

    def __call__(self, path: str | os.PathLike) -> np.ndarray:
        if self._pixels is None:
            self._pixels = np.memmap(self.file, np.uint8, mode="r")
        if str(path) not in self.places:
            raise ImageError(f"{path}: not in the cache {self.file}")
        offset, shape = self.places[str(path)]
        return self._pixels[offset:offset + int(np.prod(shape))].reshape(shape)

    def __getstate__(self) -> dict:
        """Without the mapping: pickling it into a worker would copy the pixels."""
        return {**self.__dict__, "_pixels": None}


def cached_reader(pairs: Sequence[Pair], folder: str | os.PathLike, progress: bool = False) -> CachedReader:
    """A reader of the pairs' images from a cache in `folder`, which is built first unless it is there.

    Safe where several processes or jobs ask at once: one builds, the others wait for it.
    progress: show a bar while building.
    Raises: CacheError where the disk is too full; ImageError for an image that cannot be read.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [path for pair in pairs for path in (pair.blurred, pair.sharp) if path is not None]
    stem = folder / _fingerprint(paths)
    pixels, index = stem.with_suffix(".rgb"), stem.with_suffix(".json")
    if not (index.exists() and pixels.exists()):
        with _locked(stem.with_suffix(".lock")) as alone:
            if alone:
                for left in folder.glob(f"{stem.name}.*.tmp"):  # by a process that was killed
                    left.unlink()
            if not (index.exists() and pixels.exists()):
                _build(paths, pixels, index, progress)
    places = json.loads(index.read_text())
    return CachedReader(pixels, {path: (offset, tuple(shape)) for path, (offset, shape) in places.items()})


def _fingerprint(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256(f"format {FORMAT}".encode())
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise ImageError(f"{path}: cannot be read ({error.strerror})") from error
        digest.update(f"\n{path}\t{path.resolve()}\t{status.st_size}\t{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


@contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Holds an exclusive lock, which the system drops if the process dies; yields whether there is such a lock.

    Where there are no such locks (Windows, some network folders) several processes may build the same cache at once;
    each writes its own temporary file and the renaming decides, so that costs time and breaks nothing.
    """
    with open(file, "a") as handle:
        alone = fcntl is not None
        if alone:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError:
                alone = False
        yield alone


def _build(paths: Sequence[Path], pixels: Path, index: Path, progress: bool) -> None:
    """Writes the pixels, then the index that says they are whole; each under a temporary name first."""
    unique = list(dict.fromkeys(paths))
    temporary = pixels.with_suffix(f".{os.getpid()}.tmp")
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        places, total = _layout(unique, pool.map(read_size, unique))
        free = shutil.disk_usage(pixels.parent).free
        if total + SPARE_BYTES > free:
            raise CacheError(f"{pixels.parent}: {len(unique)} decoded images need {total / 1e9:.2f} GB and "
                             f"{free / 1e9:.2f} GB are free; make room, put the cache elsewhere or do without it")
        try:
            with open(temporary, "wb") as file:
                for image in _decoded(unique, places, pool, progress):
                    file.write(image)
                file.flush()
                os.fsync(file.fileno())
            _rename(temporary, pixels)
            temporary.write_text(json.dumps(places))
            _rename(temporary, index)
        finally:
            temporary.unlink(missing_ok=True)


def _decoded(paths: Sequence[Path], places: Places, pool: ThreadPoolExecutor, progress: bool) -> Iterator[np.ndarray]:
    """The images in order, decoded by several threads."""
    ahead = 4 * DECODING_THREADS  # In portions, so that decoding does not fill the memory before a slow disk.
    with tqdm(desc="Decoding images into the cache", total=len(paths), unit="image", disable=not progress) as bar:
        for begin in range(0, len(paths), ahead):
            portion = paths[begin:begin + ahead]
            for path, image in zip(portion, pool.map(read_rgb, portion), strict=True):
                if image.shape != places[str(path)][1]:
                    raise ImageError(f"{path}: its header says {places[str(path)][1]}, its pixels are {image.shape}")
                yield image
                bar.update()


def _layout(paths: Sequence[Path], sizes: Iterator[tuple[int, int]]) -> tuple[Places, int]:
    """Where each image lies in the file, and the file's length in bytes."""
    places: Places = {}
    total = 0
    for path, (height, width) in zip(paths, sizes, strict=True):
        places[str(path)] = total, (height, width, 3)
        total += height * width * 3
    return places, total


def _rename(temporary: Path, final: Path) -> None:
    try:
        os.replace(temporary, final)
    except PermissionError:
        if not final.exists():  # On Windows a file in use cannot be replaced; then another process has built the same.
            raise
