"""Reading and writing 8-bit RGB images, and telling a whole file from a truncated one.

Pixels are upright: an EXIF orientation is applied. 16-bit images are reduced to 8 bits, grey ones are repeated to three
channels, an alpha channel is dropped.
"""
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
JPEG_SIGNATURE = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
EXIF_ORIENTATION = 0x0112
STRIP_OFFSETS, STRIP_LENGTHS, TILE_OFFSETS, TILE_LENGTHS = 273, 279, 324, 325  # TIFF 6.0, sections 8 and 15
# Cameras may append a few bytes after the end of a PNG or JPEG.
TAIL_BYTES = 4096


class ImageError(ValueError):
    """An image file that is missing, unreadable or truncated. The message holds the path."""


def read_rgb(path: str | os.PathLike) -> np.ndarray:
    """Decodes an image file.

    Returns: uint8 array (H, W, 3), RGB.
    Raises: ImageError, with the path, for a file that is missing, truncated or no image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    _check_whole(path, data[:16], data[-TAIL_BYTES:], len(data))
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ImageError(f"{path}: cannot be decoded; the file is damaged or of an unknown kind")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """Reads (height, width) from the header, without decoding, and looks at the file's end for truncation.

    Raises: ImageError, with the path, for a file that is missing, truncated or no image.
    """
    try:
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
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged headers.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not an image, or damaged"
        raise ImageError(f"{path}: cannot be read ({reason})") from error


def write_png(path: str | os.PathLike, rgb: np.ndarray) -> None:
    """Writes a uint8 (H, W, 3) RGB array as PNG: wholly or not at all. Makes the folders above it.

    Raises: ValueError for another type or shape.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"{path}: a PNG is written from uint8 (H, W, 3), not {rgb.dtype} {rgb.shape}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
