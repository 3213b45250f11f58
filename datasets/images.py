"""Reads and writes 8-bit RGB images, and detects truncated and damaged files.

EXIF orientation is applied. 16-bit images are reduced to 8 bits (a PNG is truncated, a TIFF rounded), grey images are
expanded to three channels, alpha channels are dropped (but multiplied in TIFF).
"""

import os
import stat
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from .files import write_atomic

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
JPEG_SIGNATURE = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
EXIF_ORIENTATION = 0x0112
STRIP_OFFSETS, STRIP_LENGTHS, TILE_OFFSETS, TILE_LENGTHS = 273, 279, 324, 325  # TIFF 6.0, sections 8 and 15
# Cameras may append a few bytes after the end of a PNG or JPEG.
TAIL_BYTES = 4096
JPEG_START_OF_SCAN, JPEG_END_OF_IMAGE, JPEG_RESTART = 0xDA, 0xD9, 0xD0
# Markers allowed between the scans of a JPEG: Huffman and arithmetic tables, scans, quantisation tables, number of
# lines, restart intervals, application segments and comments (ITU T.81, table B.1).
JPEG_BETWEEN_SCANS = {0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}
OPENCV_NO_MEMORY = -4

# No limit on the size in a header: decoding fails with a clear error if OpenCV's limit or the memory is exceeded.
Image.MAX_IMAGE_PIXELS = None


class ImageError(ValueError):
    """An image file that is missing, unreadable or damaged. The message contains the path."""


def read_rgb(path: str | os.PathLike) -> np.ndarray:
    """Decode an image file.

    Returns:
        RGB as a uint8 array (H, W, 3).
    Raises:
        ImageError: the file is missing, truncated, damaged or not an image.
        MemoryError: not enough memory to decode it.
    """
    data = read_file(path)
    check_file(path, data)
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        if error.code == OPENCV_NO_MEMORY:
            raise MemoryError(f"{path}: not enough memory to decode it") from error
        raise ImageError(f"{path}: cannot be decoded ({error.err})") from error
    if bgr is None:
        raise ImageError(f"{path}: cannot be decoded; {kind_of_file(data)}")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def read_file(path: str | os.PathLike) -> bytes:
    """The content of a regular file.

    Raises:
        ImageError: the file is missing, cannot be read, or is a FIFO or device, which could block forever.
    """
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ImageError(f"{path}: a FIFO, socket or device, not a file")
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error


def kind_of_file(data: bytes) -> str:
    """What an undecodable file seems to be, judged by its content, and what to do about it."""
    if data[4:8] == b"ftyp":  # ISO base media: box size, "ftyp", then compatible brands
        brands = {data[start : start + 4] for start in range(8, min(int.from_bytes(data[:4], "big"), 256), 4)}
        if brands & AVIF_BRANDS:
            return "an AVIF image, which is not supported; convert it to PNG first"
        if brands & HEIC_BRANDS:
            return (
                "an HEIC image, which is not supported; convert it to JPEG or PNG first (iPhones take JPEGs "
                "with Settings > Camera > Formats > Most Compatible)"
            )
        return "a video, not an image"
    known = data.startswith((PNG_SIGNATURE, JPEG_SIGNATURE, b"RIFF", b"BM", b"II*\0", b"MM\0*"))
    return "damaged, or of an unsupported kind of pixels" if known else "not an image, or of an unknown format"


def check_file(path: str | os.PathLike, data: bytes) -> None:
    """Check a file for truncation and damage that decoders accept silently, as far as its format allows.

    Args:
        path: for the message.
        data: the content of the file.
    Raises:
        ImageError: the file is truncated or damaged.
    """
    _check_whole(path, data[:16], data[-TAIL_BYTES:], len(data))
    if data.startswith(PNG_SIGNATURE):
        _check_chunks(path, data)
    check_jpeg(path, data)


def _check_chunks(path: str | os.PathLike, data: bytes) -> None:
    """Verify the checksum of every chunk of a PNG (PNG specification, Section 5.3)."""
    view, start = memoryview(data), len(PNG_SIGNATURE)
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(view[start : start + 4], "big")
        kind = bytes(view[start + 4 : start + 8])
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ImageError(f"{path}: damaged, the checksum of its {kind!r} chunk is wrong; copy or download it again")
        if kind == b"IEND":
            return
        start = end + 4
    raise ImageError(f"{path}: truncated, the end of the PNG is missing; copy or download it again")


def check_jpeg(path: str | os.PathLike, data: bytes) -> None:
    """Look for markers that cannot occur in a JPEG's compressed data: decoders skip them and return wrong pixels.

    JPEG has no checksums, so damage that creates no marker is not found. Other formats are not checked.

    Raises:
        ImageError: invalid markers between the first scan and the end.
    """
    if not data.startswith(JPEG_SIGNATURE):
        return
    levels = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(levels[:-1] == 0xFF)
    places = places[(levels[places + 1] != 0) & (levels[places + 1] != 0xFF)]  # stuffing, fill bytes
    position, in_scan = 2, False
    while True:
        index = np.searchsorted(places, position)
        kinds = levels[places[index:] + 1]
        if in_scan:
            others = np.flatnonzero((kinds & 0xF8) != JPEG_RESTART)
            restarts = int(others[0]) if len(others) else len(kinds)
            if np.any(kinds[:restarts] != JPEG_RESTART + np.arange(restarts) % 8):
                break
            index, kinds = index + restarts, kinds[restarts:]
        if not len(kinds) or kinds[0] == JPEG_END_OF_IMAGE:
            return
        marker, place = int(kinds[0]), int(places[index])
        position = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if in_scan and not (marker in JPEG_BETWEEN_SCANS and _is_segment(marker, data, place, position)):
            break
        in_scan = in_scan or marker == JPEG_START_OF_SCAN
    raise ImageError(f"{path}: damaged, invalid markers in its compressed data; copy or download it again")


def _is_segment(marker: int, data: bytes, begin: int, end: int) -> bool:
    """Whether a marker begins a segment of plausible length, and is not a chance match in damaged data."""
    if marker == JPEG_START_OF_SCAN:
        return end - begin == 2 + 6 + 2 * data[begin + 4] if begin + 4 < len(data) else False
    return data[end : end + 1] == b"\xff"


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """(height, width) from the header, without decoding; also checks the end of the file for truncation.

    Raises:
        ImageError: the file is missing, truncated or not an image.
    """
    try:
        if not os.path.isfile(path):
            read_file(path)  # raises with the reason
        with open(path, "rb") as file:
            head = file.read(16)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            tail = file.read()
            _check_whole(path, head, tail, size)
            if head.startswith(PNG_SIGNATURE) and b"eXIf" in tail:  # behind the pixels, where Pillow does not look
                return read_rgb(path).shape[:2]
            file.seek(0)
            with Image.open(file) as image:
                if isinstance(image, TiffImageFile):
                    _check_strips(path, image, size)
                width, height = image.size
                return (width, height) if _is_transposed(image) else (height, width)
    except (ImageError, MemoryError):
        raise
    except Exception:  # Pillow raises many types for odd headers: decoding decides whether they matter
        return read_rgb(path).shape[:2]


def write_png(path: str | os.PathLike, rgb: np.ndarray) -> None:
    """Write RGB, a uint8 array (H, W, 3), as PNG, atomically. Creates parent folders.

    Raises:
        ValueError: another dtype or shape.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"{path}: expected uint8 (H, W, 3) to write as PNG, got {rgb.dtype} {rgb.shape}")
    write_atomic(path, cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes())


def reduced(image: np.ndarray, by: int) -> np.ndarray:
    """Average blocks of ``by`` x ``by`` pixels: (H, W, 3) -> (H // by, W // by, 3)."""
    height, width = (side // by for side in image.shape[:2])
    return cv2.resize(image[: height * by, : width * by], (width, height), interpolation=cv2.INTER_AREA)


def _check_whole(path: str | os.PathLike, head: bytes, tail: bytes, size: int) -> None:
    """Raise ImageError for an empty file and for a PNG, JPEG, WebP or BMP whose end is missing."""
    reason = None
    declared = 0
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        declared = 8 + int.from_bytes(head[4:8], "little")
    elif head[:2] == b"BM":
        declared = int.from_bytes(head[2:6], "little")
    if size == 0:
        reason = "the file is empty"
    elif size < declared:
        reason = f"{size} of {declared} bytes"
    elif head.startswith(PNG_SIGNATURE) and PNG_END not in tail:
        reason = "the end of the PNG is missing"
    elif head.startswith(JPEG_SIGNATURE) and JPEG_END not in tail and not _decodes(path):
        reason = "the end of the JPEG is missing"
    if reason:
        raise ImageError(f"{path}: truncated, {reason}; copy or download it again")


def _decodes(path: str | os.PathLike) -> bool:
    """Whether the file decodes to its last row: a slow check, for JPEGs with much data after their end."""
    try:
        with Image.open(path) as image:
            image.load()
        return True
    except OSError:
        return False


def _check_strips(path: str | os.PathLike, image: TiffImageFile, size: int) -> None:
    """Raise ImageError if strips or tiles of a TIFF lie beyond the end of the file."""
    tags = image.tag_v2
    begins = tags.get(STRIP_OFFSETS) or tags.get(TILE_OFFSETS) or (size,)
    lengths = tags.get(STRIP_LENGTHS) or tags.get(TILE_LENGTHS) or (size,)
    needed = max(begin + length for begin, length in zip(begins, lengths, strict=True))
    if needed > size:
        raise ImageError(f"{path}: truncated, {size} of at least {needed} bytes; copy or download it again")


def _is_transposed(image: Image.Image) -> bool:
    """Whether the EXIF orientation swaps height and width. Parses the raw block: getexif() would decode a PNG."""
    if "exif" not in image.info or isinstance(image, TiffImageFile):  # Pillow transposes the size of a TIFF itself
        return False
    exif = Image.Exif()
    exif.load(image.info["exif"])
    return exif.get(EXIF_ORIENTATION, 1) >= 5
