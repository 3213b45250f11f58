"""One's own photographs: read in whatever form cameras and editors leave them, restored, and written as PNG.

The network sees upright RGB; what it does not see (alpha, colour profile, EXIF) goes with the result unchanged. 16-bit
photographs keep their 16 bits through the network and into the PNG, grey ones stay grey.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from datasets.files import write_atomic
from datasets.images import ImageError, check_file, kind_of_file, read_file

from ..memory import GIB, OutOfMemory, free_memory
from .png import encode_png

ORIENTATION = 0x0112  # EXIF's tag
BITS_PER_SAMPLE = 258  # TIFF's tag
PNG_BIT_DEPTH, PNG_COLOUR_TYPE = 24, 25  # where these bytes lie in every PNG file
PNG_GREY_TYPES = (0, 4)
RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pef")
DECODING = 8  # bytes a pixel, at least: the decoded photograph and its upright copy


@dataclass(frozen=True)
class Photograph:
    """An upright photograph and what goes with it."""

    rgb: np.ndarray  # (H, W, 3), uint8 or uint16; grey ones have three equal channels
    alpha: np.ndarray | None = None  # (H, W), same type
    grey: bool = False
    icc: bytes | None = None  # colour profile
    exif: bytes | None = None  # without the orientation, which is applied
    frames: int = 1  # in the file; only the first is here


def read_photograph(path: Path) -> Photograph:
    """Reads PNG, JPEG, WebP, TIFF, BMP and whatever else Pillow can: 8 or 16 bit, grey, palette, alpha, CMYK.

    Raises ImageError, with the path, for a file that is missing, damaged, or of a kind that cannot be restored;
    OutOfMemory for more pixels than there is memory for.
    """
    return decode_photograph(path, read_file(path))


def decode_photograph(path: Path, data: bytes) -> Photograph:
    """As `read_photograph`, of what the file at the path holds."""
    if path.suffix.lower() in RAW_SUFFIXES:  # Pillow would take a preview in them for the photograph
        raise ImageError(f"{path}: a camera's raw file; develop it to a TIFF or PNG of 16 bits first")
    check_file(path, data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            _expect_to_fit(path, *image.size)
            image.load()
            photograph = _sixteen_bit(image, data) if _is_sixteen_bit(image, data) else _eight_bit(image)
            # A phone's MPO is a photograph followed by previews and depth maps, not several photographs.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            return replace(photograph, exif=_exif(image), frames=frames)
    except (OutOfMemory, MemoryError):
        raise
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: cannot be read; {kind_of_file(data) if data else 'the file is empty'}") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ImageError(f"{path}: cannot be read ({error or type(error).__name__})") from error


def _expect_to_fit(path: Path, width: int, height: int) -> None:
    """Looks before decoding whether the memory suffices: a small file may hold any number of pixels."""
    needed, free = DECODING * width * height, free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        raise OutOfMemory(
            f"{path}: {width} x {height} pixels take {needed / GIB:.1f} GiB to read, and "
            f"{free / GIB:.1f} GiB are free; close other programs, or make the photograph smaller"
        )


def write_photograph(path: Path, photograph: Photograph, text: tuple[str, str] | None = None) -> None:
    """Writes PNG with the photograph's own depth, grey, alpha, profile and EXIF: wholly or not at all.

    text: a keyword and what the file says under it.
    """
    pixels = photograph.rgb
    if photograph.grey:
        pixels = pixels.mean(axis=2, keepdims=True).round().astype(pixels.dtype)
    if photograph.alpha is not None:
        pixels = np.concatenate([pixels, photograph.alpha[..., None]], axis=2)
    write_atomic(path, encode_png(pixels, photograph.icc, photograph.exif, text))


def _is_sixteen_bit(image: Image.Image, data: bytes) -> bool:
    """Pillow opens most 16-bit images as 8-bit ones, so the file itself is asked."""
    if image.format == "PNG":
        return data[PNG_BIT_DEPTH] == 16
    if image.format == "TIFF":
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) == 16 and image.mode not in ("CMYK", "F")
    return False


def _sixteen_bit(image: Image.Image, data: bytes) -> Photograph:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ImageError("16-bit pixels in a form that OpenCV cannot decode; convert the photograph to 16-bit PNG")
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    grey = pixels.shape[2] == 1
    if image.format == "PNG":  # OpenCV turns a TIFF, and makes RGBA of grey with alpha
        pixels = _upright(pixels, _orientation(image))
        grey = data[PNG_COLOUR_TYPE] in PNG_GREY_TYPES
    if pixels.shape[2] >= 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return _photograph(pixels, grey, image.info.get("icc_profile"))


def _eight_bit(image: Image.Image) -> Photograph:
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    icc = image.info.get("icc_profile")
    if image.mode[0] in "IF":
        raise ImageError(f"pixels of 32 bits ({image.mode}); convert the photograph to 8 or 16 bits")
    if image.mode == "CMYK" and icc:
        profiles = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    grey = image.mode in ("1", "L", "LA", "La")
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    pixels = np.asarray(image.convert(("L" if grey else "RGB") + ("A" if transparent else "")))
    return _photograph(pixels.reshape(*pixels.shape[:2], -1), grey, icc)


def _photograph(pixels: np.ndarray, grey: bool, icc: bytes | None) -> Photograph:
    """From pixels (H, W, C), the last of two or four channels being alpha."""
    alpha = pixels[..., -1] if pixels.shape[2] in (2, 4) else None
    rgb = pixels[..., :1].repeat(3, axis=2) if grey else pixels[..., :3]
    # A profile says in bytes 16 to 20 what it is for; another kind's would only be ignored, or misread.
    fits = icc is not None and icc[16:20] == (b"GRAY" if grey else b"RGB ")
    return Photograph(np.ascontiguousarray(rgb), alpha, grey, icc if fits else None)


def _exif(image: Image.Image) -> bytes | None:
    """The EXIF block without the orientation. A TIFF's is left out: it mostly describes how the file is laid out."""
    if image.format == "TIFF":
        return None
    try:
        exif = image.getexif()
        exif.pop(ORIENTATION, None)
        return exif.tobytes().removeprefix(b"Exif\0\0") if len(exif) else None
    except Exception:  # a damaged EXIF block, which raises anything, is no reason to refuse the photograph
        return None


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1, which is upright, where a damaged block does not tell."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # as in _exif
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) turned and mirrored as the EXIF orientation, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1]
