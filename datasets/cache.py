"""Decodes a split once into one file, from which training reads crops as memory-mapped pixels.

Decoding PNGs starves a GPU: a pair of crops of 252 x 252 pixels needs two decoded images of 1280 x 720. GoPro's
training split takes 12 GB of disk when decoded.

A cache consists of two files: <fingerprint>.rgb (the pixels of all images in sequence) and <fingerprint>.json (path ->
offset, shape and checksum). Each process verifies the checksum of an image when it first reads it. A damaged cache is
logged and rebuilt. The fingerprint covers paths, sizes and times of change: a changed split gets a new cache, and
running jobs keep theirs. Old caches can be deleted when no job is running.
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
from .folder import cores
from .images import ImageError, read_rgb, read_size
from .layouts import Pair

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

FORMAT = 2
DECODING_THREADS = min(8, cores())
SPARE_BYTES = 64 << 20

Layout = dict[str, tuple[int, tuple[int, int, int]]]  # path -> offset in bytes, shape
Places = dict[str, tuple[int, tuple[int, int, int], int]]  # path -> offset in bytes, shape, CRC-32


class CacheError(OSError):
    """The cache cannot be built; the message gives the reason and a remedy."""


class CachedReader:
    """Reads images from a cache, which each process maps when it first reads from it.

    A damaged cache is rebuilt, once for all processes.
    """

    def __init__(self, file: Path, places: Places) -> None:
        self.file, self.places = file, places
        self._pixels: np.ndarray | None = None
        self._inode: int | None = None  # of the mapped file: another process may have replaced it
        self._verified: set[str] = set()

    def __call__(self, path: str | os.PathLike) -> np.ndarray:
        """The image at ``path``, a read-only uint8 view (H, W, 3).

        Raises:
            ImageError: the path is not in the cache.
            CacheError: the pixels are still damaged after a rebuild.
        """
        if str(path) not in self.places:
            raise ImageError(f"{path}: not in the cache {self.file}")
        if (image := self._read(str(path))) is None:
            self._renew()
            if (image := self._read(str(path))) is None:
                raise CacheError(
                    f"{self.file}: wrong pixels for {path}, even after a rebuild; the disk may be failing. Set "
                    "data.cache_dir to another disk, or data.cache=none"
                )
        return image

    def _read(self, path: str) -> np.ndarray | None:
        """The image; None if its checksum or the size of the file is wrong."""
        if self._pixels is None:
            if not _is_whole(self.file, self.places):
                return None
            self._pixels, self._inode = np.memmap(self.file, np.uint8, mode="r"), self.file.stat().st_ino
        offset, shape, checksum = self.places[path]
        image = self._pixels[offset : offset + int(np.prod(shape))].reshape(shape)
        if path not in self._verified:
            if zlib.crc32(image) != checksum:
                return None
            self._verified.add(path)
        return image

    def _renew(self) -> None:
        """Map the file again, after rebuilding it unless another process already has."""
        index = self.file.with_suffix(".json")
        paths = [Path(path) for path in self.places]
        with _locked(self.file.with_suffix(".lock")):
            places = _read_index(index, self.file, paths)
            if places is None or self._inode == self.file.stat().st_ino:
                logger.warning("%s: damaged; rebuilding this cache", self.file)
                _build(paths, self.file, index, progress=False)
                places = _read_index(index, self.file, paths)
        self._pixels, self._inode, self._verified = None, None, set()
        self.places = places or self.places

    def __getstate__(self) -> dict:
        """Without the mapping: pickling it for a worker would copy the pixels."""
        return {**self.__dict__, "_pixels": None, "_inode": None, "_verified": set()}


def cached_reader(pairs: Sequence[Pair], folder: str | os.PathLike, progress: bool = False) -> CachedReader:
    """A reader of the pairs' images from a cache in ``folder``, which is built first if necessary.

    Several processes or jobs may call this at once: one builds the cache, the others wait.

    Args:
        progress: show a progress bar while building.
    Raises:
        CacheError: not enough disk space.
        ImageError: an image cannot be read.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = _unique_paths(pairs)
    stem = folder / _fingerprint(paths)
    pixels, index = stem.with_suffix(".rgb"), stem.with_suffix(".json")
    if (places := _read_index(index, pixels, paths)) is None:
        with _locked(stem.with_suffix(".lock")) as alone:
            if alone:
                for left in folder.glob(f".{stem.name}.*.tmp"):  # of a process that was killed
                    left.unlink()
            if (places := _read_index(index, pixels, paths)) is None:
                if index.exists():
                    logger.warning("%s: damaged, or its pixels are; rebuilding this cache", index)
                places = _build(paths, pixels, index, progress)
    return CachedReader(pixels, places)


def _unique_paths(pairs: Sequence[Pair]) -> list[Path]:
    return list(dict.fromkeys(path for pair in pairs for path in (pair.blurred, pair.sharp) if path is not None))


def missing_bytes(pairs: Sequence[Pair], folder: str | os.PathLike) -> int:
    """Size of a cache of the pairs' images, from their headers; 0 if ``folder`` has it already.

    Raises:
        ImageError: an image cannot be read.
    """
    paths = _unique_paths(pairs)
    stem = Path(folder) / _fingerprint(paths)
    if _read_index(stem.with_suffix(".json"), stem.with_suffix(".rgb"), paths) is not None:
        return 0
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        return _layout(paths, pool.map(read_size, paths))[1]


def _read_index(index: Path, pixels: Path, paths: Sequence[Path]) -> Places | None:
    """The index; None if it is missing or damaged, or if the pixels are incomplete."""
    if not index.exists():
        return None
    try:
        content = json.loads(index.read_bytes())
        if content["checksum"] != _checksum(content["places"]):
            return None
        places = {
            path: (offset, tuple(shape), checksum) for path, (offset, shape, checksum) in content["places"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # whatever an edit can break
        return None
    return places if places.keys() == set(map(str, paths)) and _is_whole(pixels, places) else None


def _checksum(places: Places) -> int:
    return zlib.crc32(json.dumps(places).encode())


def _is_whole(pixels: Path, places: Places) -> bool:
    """Whether the file has its full size: reading a mapping beyond the end of a file kills the process."""
    expected = max(offset + int(np.prod(shape)) for offset, shape, _ in places.values())
    return pixels.is_file() and pixels.stat().st_size == expected


def _fingerprint(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256(f"format {FORMAT}".encode())
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise ImageError(f"{path}: cannot be read ({error.strerror})") from error
        digest.update(
            f"\n{path}\t{path.resolve()}\t{status.st_size}\t{status.st_mtime_ns}\t{status.st_ctime_ns}".encode()
        )
    return digest.hexdigest()[:16]


@contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Hold an exclusive lock, which the system releases if the process dies; yields False if locks are not supported.

    Without locks (Windows, some network file systems) several processes may build the same cache at once. That costs
    time but breaks nothing: each writes its own temporary file and renames it.
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
    """Write the pixels, then the index, each atomically: an index exists only for complete pixels."""
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        layout, total = _layout(paths, pool.map(read_size, paths))
        free = shutil.disk_usage(pixels.parent).free
        if total + SPARE_BYTES > free:
            raise CacheError(
                f"{pixels.parent}: {len(paths)} decoded images need {total / 1e9:.2f} GB, but only "
                f"{free / 1e9:.2f} GB are free; make room, set data.cache_dir to another disk, or data.cache=none"
            )
        logger.info("decoding %d images into %s (%.2f GB), once", len(paths), pixels, total / 1e9)
        checksums = []
        with _replaceable(pixels), atomic(pixels) as temporary, open(temporary, "wb") as file:
            for image in _decoded(paths, layout, pool, progress):
                file.write(image)
                checksums.append(zlib.crc32(image))
    places = {path: (*place, checksum) for (path, place), checksum in zip(layout.items(), checksums, strict=True)}
    with _replaceable(index):
        write_atomic(index, json.dumps({"checksum": _checksum(places), "places": places}))
    return places


def _decoded(paths: Sequence[Path], layout: Layout, pool: ThreadPoolExecutor, progress: bool) -> Iterator[np.ndarray]:
    """Yield the images in order, decoded by several threads."""
    chunk = 4 * DECODING_THREADS  # bounds the memory in use when the disk is slower than decoding
    with tqdm(desc="Decoding images into the cache", total=len(paths), unit="image", disable=not progress) as bar:
        for begin in range(0, len(paths), chunk):
            batch = paths[begin : begin + chunk]
            for path, image in zip(batch, pool.map(read_rgb, batch), strict=True):
                if image.shape != layout[str(path)][1]:
                    raise ImageError(f"{path}: its header says {layout[str(path)][1]}, its pixels are {image.shape}")
                yield np.ascontiguousarray(image)
                bar.update()


def _layout(paths: Sequence[Path], sizes: Iterator[tuple[int, int]]) -> tuple[Layout, int]:
    """(offset and shape of each image in the file, size of the file in bytes)."""
    layout: Layout = {}
    total = 0
    for path, (height, width) in zip(paths, sizes, strict=True):
        layout[str(path)] = total, (height, width, 3)
        total += height * width * 3
    return layout, total


@contextmanager
def _replaceable(final: Path) -> Iterator[None]:
    """Ignore that Windows cannot replace a file in use: another process has built the same one."""
    try:
        yield
    except PermissionError:
        if not final.exists():
            raise
