"""Reading and writing 8-bit RGB images, and telling a whole file from a truncated or a damaged one.

Pixels are upright: an EXIF orientation is applied. 16-bit images are reduced to 8 bits, grey ones are repeated to three
channels, an alpha channel is dropped.
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

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
JPEG_SIGNATURE = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
EXIF_ORIENTATION = 0x0112
STRIP_OFFSETS, STRIP_LENGTHS, TILE_OFFSETS, TILE_LENGTHS = 273, 279, 324, 325  # TIFF 6.0, sections 8 and 15
# Cameras may append a few bytes after the end of a PNG or JPEG.
TAIL_BYTES = 4096
JPEG_START_OF_SCAN, JPEG_END_OF_IMAGE, JPEG_RESTART = 0xDA, 0xD9, 0xD0
# What may stand between the scans of a JPEG: Huffman and arithmetic tables, scans, quantisation, lines, restarts, and
# the applications' own (ITU T.81, table B.1).
JPEG_BETWEEN_SCANS = {0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}
OPENCV_NO_MEMORY = -4

# A header's size alone is no danger: what is decoded must fit OpenCV's limit and the memory, and says so if not.
Image.MAX_IMAGE_PIXELS = None


class ImageError(ValueError):
    """An image file that is missing, unreadable or truncated. The message holds the path."""


def read_rgb(path: str | os.PathLike) -> np.ndarray:
    """Decodes an image file.

    Returns: uint8 array (H, W, 3), RGB.
    Raises: ImageError, with the path, for a file that is missing, truncated, damaged or no image; MemoryError.
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
    """The bytes of a regular file; a FIFO would be waited for without end.

    Raises: ImageError, with the path, for a file that is missing or cannot be read.
    """
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ImageError(f"{path}: a FIFO, socket or device, not a file")
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error


def kind_of_file(data: bytes) -> str:
    """What a file that no decoder takes seems to be, by its content, and what to do with it."""
    if data[4:8] == b"ftyp":  # ISO base media: the size of this box, its name, the brands it is compatible with
        brands = {data[start : start + 4] for start in range(8, min(int.from_bytes(data[:4], "big"), 256), 4)}
        if brands & AVIF_BRANDS:
            return "an AVIF image, which is not read here; convert it to PNG first"
        if brands & HEIC_BRANDS:
            return (
                "an HEIC image, which is not read here; convert it to JPEG or PNG first (an iPhone takes JPEGs "
                "with Settings > Camera > Formats > Most Compatible)"
            )
        return "a video, not an image"
    known = data.startswith((PNG_SIGNATURE, JPEG_SIGNATURE, b"RIFF", b"BM", b"II*\0", b"MM\0*"))
    return "the file is damaged" if known else "no image of a kind that is known here"


def check_file(path: str | os.PathLike, data: bytes) -> None:
    """Raises ImageError for a file that is truncated or damaged, as far as its format lets it be known: decoders make
    pixels of many such files without a word."""
    _check_whole(path, data[:16], data[-TAIL_BYTES:], len(data))
    if data.startswith(PNG_SIGNATURE):
        _check_chunks(path, data)
    check_jpeg(path, data)


def _check_chunks(path: str | os.PathLike, data: bytes) -> None:
    """The checksum of every chunk of a PNG (PNG specification, Section 5.3)."""
    view, place = memoryview(data), len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(view[place : place + 4], "big")
        kind = bytes(view[place + 4 : place + 8])
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ImageError(f"{path}: damaged, the checksum of its {kind!r} chunk is wrong; copy or download it again")
        if kind == b"IEND":
            return
        place = end + 4
    raise ImageError(f"{path}: truncated, PNG without its end; copy or download it again")


def check_jpeg(path: str | os.PathLike, data: bytes) -> None:
    """Looks for markers that cannot be in a JPEG's compressed data, which decoders pass over with wrong pixels.

    JPEG has no checksum: a byte that is changed and makes no marker is not found. Other kinds of files are left alone.

    Raises: ImageError, with the path, for foreign bytes between the first scan and the end.
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
    raise ImageError(f"{path}: damaged, foreign bytes in its compressed data; copy or download it again")


def _is_segment(marker: int, data: bytes, begin: int, end: int) -> bool:
    """Whether a JPEG's segment is as long as it should be, as far as that shows; chance finds marker bytes alone."""
    if marker == JPEG_START_OF_SCAN:
        return end - begin == 2 + 6 + 2 * data[begin + 4] if begin + 4 < len(data) else False
    return data[end : end + 1] == b"\xff"


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """Reads (height, width) from the header, without decoding, and looks at the file's end for truncation.

    Raises: ImageError, with the path, for a file that is missing, truncated or no image.
    """
    try:
        if not os.path.isfile(path):
            read_file(path)  # says why
        with open(path, "rb") as file:
            head = file.read(16)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            _check_whole(path, head, file.read(), size)
            file.seek(0)
            with Image.open(file) as image:
                if isinstance(image, TiffImageFile):
                    _check_strips(path, image, size)
                width, height = image.size
                return (width, height) if _is_turned(image) else (height, width)
    except (ImageError, MemoryError):
        raise
    except Exception:  # Pillow raises many kinds for headers that are odd or damaged: whether they matter, pixels tell
        return read_rgb(path).shape[:2]


def write_png(path: str | os.PathLike, rgb: np.ndarray) -> None:
    """Writes a uint8 (H, W, 3) RGB array as PNG: wholly or not at all. Makes the folders above it.

    Raises: ValueError for another type or shape.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"{path}: a PNG is written from uint8 (H, W, 3), not {rgb.dtype} {rgb.shape}")
    write_atomic(path, cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes())


def _check_whole(path: str | os.PathLike, head: bytes, tail: bytes, size: int) -> None:
    """Raises ImageError for an empty file and for a PNG, JPEG, WebP or BMP whose end is missing."""
    reason = None
    declared = 0
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        declared = 8 + int.from_bytes(head[4:8], "little")
    elif head[:2] == b"BM":
        declared = int.from_bytes(head[2:6], "little")
    if size == 0:
        reason = "the file is empty"
    elif size < declared:
        reason = f"it says {declared} bytes and has {size}"
    elif head.startswith(PNG_SIGNATURE) and PNG_END not in tail:
        reason = "PNG without its end"
    elif head.startswith(JPEG_SIGNATURE) and JPEG_END not in tail and not _decodes(path):
        reason = "JPEG without its end"
    if reason:
        raise ImageError(f"{path}: truncated, {reason}; copy or download it again")


def _decodes(path: str | os.PathLike) -> bool:
    """Whether the file decodes to its last row: the slow answer, for a JPEG with much data after its end."""
    try:
        with Image.open(path) as image:
            image.load()
        return True
    except OSError:
        return False


def _check_strips(path: str | os.PathLike, image: TiffImageFile, size: int) -> None:
    """Raises ImageError where the strips or tiles of a TIFF end after the file does."""
    tags = image.tag_v2
    begins = tags.get(STRIP_OFFSETS) or tags.get(TILE_OFFSETS) or (size,)
    lengths = tags.get(STRIP_LENGTHS) or tags.get(TILE_LENGTHS) or (size,)
    needed = max(begin + length for begin, length in zip(begins, lengths, strict=True))
    if needed > size:
        raise ImageError(f"{path}: truncated, TIFF of {needed} bytes or more has {size}; copy or download it again")


def _is_turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation swaps height and width. The raw block is parsed because asking a PNG decodes it."""
    if "exif" not in image.info or isinstance(image, TiffImageFile):  # Pillow turns a TIFF's size itself.
        return False
    exif = Image.Exif()
    exif.load(image.info["exif"])
    return exif.get(EXIF_ORIENTATION, 1) >= 5
