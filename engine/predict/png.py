"""Write PNG files of 8 or 16 bits with a colour profile, EXIF and text.

Pillow writes no 16-bit RGB, OpenCV no grey with alpha and no profiles. Specification: https://www.w3.org/TR/png-3
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from datasets.images import PNG_SIGNATURE

TEXT_HEADER = b"\0\0\0\0\0"  # after the keyword: not compressed, in no language, not translated


def encode_png(
    pixels: np.ndarray, icc: bytes | None = None, exif: bytes | None = None, text: tuple[str, str] | None = None
) -> bytes:
    """Encode uint8 or uint16 pixels (H, W, C): grey, grey and alpha, RGB, or RGBA for C = 1, 2, 3, 4.

    Args:
        icc: colour profile.
        exif: EXIF block.
        text: a keyword, in Latin-1, and the text stored under it (an iTXt chunk).

    Returns:
        The file's bytes.
    """
    height, width, channels = pixels.shape
    step = channels * pixels.itemsize  # bytes per pixel
    big_endian = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    rows = np.frombuffer(big_endian, np.uint8).reshape(height, width * step)
    filtered = np.empty((height, 1 + width * step), np.uint8)
    filtered[:, 0] = 1  # filter "Sub": each byte minus the one a pixel before it, which compresses better
    filtered[:, 1 : 1 + step] = rows[:, :step]
    np.subtract(rows[:, step:], rows[:, :-step], out=filtered[:, 1 + step :])
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour_type, 0, 0, 0))]
    if icc:
        chunks.append((b"iCCP", b"profile\0\0" + zlib.compress(icc)))
    if exif:
        chunks.append((b"eXIf", exif))
    if text:
        chunks.append((b"iTXt", text[0].encode("latin-1") + TEXT_HEADER + text[1].encode()))
    chunks += [(b"IDAT", zlib.compress(filtered)), (b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
