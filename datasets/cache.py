"""Decodes a split once into one flat file, so that training reads crops from memory-mapped pixels.

Decoding PNGs is what starves a GPU: a crop of 252 x 252 costs the decoding of 1280 x 720 pixels twice. GoPro's training
split takes 12 GB of disk decoded.

A cache is two files, <fingerprint>.rgb (all pixels, one image after the other) and <fingerprint>.json (path -> offset,
shape and checksum). Each process verifies an image's checksum when it first reads the image, which costs little beside
training; what is wrong, the index included, is built again with a line in the log. The fingerprint covers paths, sizes
and modification times, so a changed split gets a new cache and a job that is running keeps its own; old ones can be
deleted when no job runs.
"""

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .files import atomic, write_atomic
from .images import ImageError, read_rgb, read_size
from .layouts import Pair

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

FORMAT = 2
DECODING_THREADS = min(8, os.cpu_count() or 1)
SPARE_BYTES = 64 << 20

Layout = dict[str, tuple[int, tuple[int, int, int]]]  # path -> offset in bytes, shape
Places = dict[str, tuple[int, tuple[int, int, int], int]]  # path -> offset in bytes, shape, CRC-32


class CacheError(OSError):
    """The cache cannot be built. The message says why and what to do."""


class CachedReader:
    """Reads images from a cache: path -> read-only uint8 view (H, W, 3). Maps the file when first used in a process.

    Where the pixels are not those that were written, the cache is built again, once for all processes.
    """

    def __init__(self, file: Path, places: Places) -> None:
        self.file, self.places = file, places
        self._forget()

    def __call__(self, path: str | os.PathLike) -> np.ndarray:
        """Raises: ImageError for a path that is not in the cache; CacheError where it is wrong also when rebuilt."""
        if str(path) not in self.places:
            raise ImageError(f"{path}: not in the cache {self.file}")
        if (image := self._read(str(path))) is None:
            self._renew()
            if (image := self._read(str(path))) is None:
                raise CacheError(
                    f"{self.file}: wrong pixels for {path}, also after it was built again; is the disk "
                    "failing? Put the cache elsewhere or do without it"
                )
        return image

    def _read(self, path: str) -> np.ndarray | None:
        """The image; None where its checksum is another, or the file's size."""
        if self._pixels is None:
            if not _is_whole(self.file, self.places):
                return None
            self._pixels, self._mapped = np.memmap(self.file, np.uint8, mode="r"), self.file.stat().st_ino
        offset, shape, checksum = self.places[path]
        image = self._pixels[offset : offset + int(np.prod(shape))].reshape(shape)
        if path not in self._verified:
            if zlib.crc32(image) != checksum:
                return None
            self._verified.add(path)
        return image

    def _renew(self) -> None:
        """Map the file anew, built again unless another process has done so since this one mapped it."""
        index = self.file.with_suffix(".json")
        paths = [Path(path) for path in self.places]
        with _locked(self.file.with_suffix(".lock")):
            places = _read_index(index, self.file, paths)
            if places is None or self._mapped == self.file.stat().st_ino:
                logger.warning("%s: damaged; building this cache again", self.file)
                _build(paths, self.file, index, progress=False)
                places = _read_index(index, self.file, paths)
        self._forget()
        self.places = places or self.places

    def _forget(self) -> None:
        self._pixels: np.ndarray | None = None
        self._mapped: int | None = None  # the file's inode, by which it differs from one that takes its place
        self._verified: set[str] = set()

    def __getstate__(self) -> dict:
        """Without the mapping: pickling it into a worker would copy the pixels."""
        return {**self.__dict__, "_pixels": None, "_mapped": None, "_verified": set()}


def cached_reader(pairs: Sequence[Pair], folder: str | os.PathLike, progress: bool = False) -> CachedReader:
    """A reader of the pairs' images from a cache in `folder`, which is built first unless it is there and whole.

    Safe where several processes or jobs ask at once: one builds, the others wait for it.
    progress: show a bar while building.
    Raises: CacheError where the disk is too full; ImageError for an image that cannot be read.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [path for pair in pairs for path in (pair.blurred, pair.sharp) if path is not None]
    stem = folder / _fingerprint(paths)
    pixels, index = stem.with_suffix(".rgb"), stem.with_suffix(".json")
    if (places := _read_index(index, pixels, paths)) is None:
        with _locked(stem.with_suffix(".lock")) as alone:
            if alone:
                for left in folder.glob(f".{stem.name}.*.tmp"):  # by a process that was killed
                    left.unlink()
            if (places := _read_index(index, pixels, paths)) is None:
                if index.exists():
                    logger.warning("%s: damaged, or its pixels are; building this cache again", index)
                places = _build(paths, pixels, index, progress)
    return CachedReader(pixels, places)


def _read_index(index: Path, pixels: Path, paths: Sequence[Path]) -> Places | None:
    """The index; None where there is none, where it is not as it was written, or where the pixels are not whole."""
    if not index.exists():
        return None
    try:
        content = json.loads(index.read_bytes())
        if content["checksum"] != _checksum(content["places"]):
            return None
        places = {
            path: (offset, tuple(shape), checksum) for path, (offset, shape, checksum) in content["places"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # whatever an editor can make of it
        return None
    return places if places.keys() == set(map(str, paths)) and _is_whole(pixels, places) else None


def _checksum(places: Places) -> int:
    return zlib.crc32(json.dumps(places).encode())


def _is_whole(pixels: Path, places: Places) -> bool:
    """Whether the file has all the pixels: reading a mapping beyond a file's end kills the process."""
    expected = max(offset + int(np.prod(shape)) for offset, shape, _ in places.values())
    return pixels.is_file() and pixels.stat().st_size == expected


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


def _build(paths: Sequence[Path], pixels: Path, index: Path, progress: bool) -> Places:
    """Writes the pixels, then the index that says they are whole; each under a temporary name first."""
    unique = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        layout, total = _layout(unique, pool.map(read_size, unique))
        free = shutil.disk_usage(pixels.parent).free
        if total + SPARE_BYTES > free:
            raise CacheError(
                f"{pixels.parent}: {len(unique)} decoded images need {total / 1e9:.2f} GB and "
                f"{free / 1e9:.2f} GB are free; make room, put the cache elsewhere or do without it"
            )
        checksums = []
        with _replaceable(pixels), atomic(pixels) as temporary, open(temporary, "wb") as file:
            for image in _decoded(unique, layout, pool, progress):
                file.write(image)
                checksums.append(zlib.crc32(image))
    places = {path: (*place, checksum) for (path, place), checksum in zip(layout.items(), checksums, strict=True)}
    with _replaceable(index):
        write_atomic(index, json.dumps({"checksum": _checksum(places), "places": places}))
    return places


def _decoded(paths: Sequence[Path], layout: Layout, pool: ThreadPoolExecutor, progress: bool) -> Iterator[np.ndarray]:
    """The images in order, decoded by several threads."""
    ahead = 4 * DECODING_THREADS  # In portions, so that decoding does not fill the memory before a slow disk.
    with tqdm(desc="Decoding images into the cache", total=len(paths), unit="image", disable=not progress) as bar:
        for begin in range(0, len(paths), ahead):
            portion = paths[begin : begin + ahead]
            for path, image in zip(portion, pool.map(read_rgb, portion), strict=True):
                if image.shape != layout[str(path)][1]:
                    raise ImageError(f"{path}: its header says {layout[str(path)][1]}, its pixels are {image.shape}")
                yield np.ascontiguousarray(image)
                bar.update()


def _layout(paths: Sequence[Path], sizes: Iterator[tuple[int, int]]) -> tuple[Layout, int]:
    """Where each image lies in the file, and the file's length in bytes."""
    layout: Layout = {}
    total = 0
    for path, (height, width) in zip(paths, sizes, strict=True):
        layout[str(path)] = total, (height, width, 3)
        total += height * width * 3
    return layout, total


@contextmanager
def _replaceable(final: Path) -> Iterator[None]:
    """On Windows a file in use cannot be replaced; then another process has built the same."""
    try:
        yield
    except PermissionError:
        if not final.exists():
            raise
