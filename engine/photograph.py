"""One's own photographs: read in whatever form cameras and editors leave them, restored, and written as PNG.

The network sees upright RGB; what it does not see (alpha, colour profile, EXIF) goes with the result unchanged. 16-bit
photographs keep their 16 bits through the network and into the PNG, grey ones stay grey.
"""
from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageCms, ImageOps

from datasets.images import IMAGE_SUFFIXES, ImageError

from .memory import OutOfMemory
from .restorer import Restorer, from_levels, to_levels

ORIENTATION = 0x0112  # EXIF's tag
BITS_PER_SAMPLE = 258  # TIFF's tag
PNG_BIT_DEPTH, PNG_COLOUR_TYPE = 24, 25  # where these bytes lie in every PNG file
PNG_GREY_TYPES = (0, 4)


@dataclass(frozen=True)
class Photograph:
    """An upright photograph and what goes with it."""

    rgb: np.ndarray  # (H, W, 3), uint8 or uint16; grey ones have three equal channels
    alpha: np.ndarray | None = None  # (H, W), same type
    grey: bool = False
    icc: bytes | None = None  # colour profile
    exif: bytes | None = None  # without the orientation, which is applied
    frames: int = 1  # in the file; only the first is here


def find_photographs(source: Path, output: Path) -> list[tuple[Path, Path]]:
    """(photograph, where its result goes) for a file, or for every image below a folder, sorted.

    Hidden files and what lies in the output folder are passed over. Photographs that differ in their suffix alone keep
    it in their result's name. Raises FileNotFoundError where there is nothing to restore.
    """
    if source.is_file():
        return [(source, output / f"{source.stem}.png")]
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such file or folder")
    found = sorted(_images_below(source, output.resolve()))
    if not found:
        raise FileNotFoundError(f"{source}: no images below it ({', '.join(IMAGE_SUFFIXES)})")
    alike = Counter(path.with_suffix("") for path in found)
    names = [path if alike[path.with_suffix("")] > 1 else path.with_suffix("") for path in found]
    return [(path, output / f"{name.relative_to(source)}.png") for path, name in zip(found, names, strict=True)]


def restore_photographs(restorer: Restorer, photographs: list[tuple[Path, Path]], overwrite: bool = False) -> int:
    """Restores each photograph to its place, a line each; returns how many failed. Those do not stop the others.

    Results that are there already are left as they are, unless `overwrite`; a photograph itself is never written over.
    """
    failed = 0
    for number, (source, target) in enumerate(photographs, start=1):
        progress = f"[{number}/{len(photographs)}] {source}"
        if target.exists() and (not overwrite or target.samefile(source)):
            print(f"{progress}: {target} is there already, left as it is", flush=True)
            continue
        print(progress, end=" ", flush=True)        # a large photograph takes a CPU minutes
        try:
            photograph = read_photograph(source)
            height, width = photograph.rgb.shape[:2]
            way = f", {restorer.settle(1, height, width)}" if restorer.auto else ""
            restored, seconds = restorer.restore(from_levels([photograph.rgb]), str(source))
            write_photograph(target, replace(photograph, rgb=to_levels(restored, photograph.rgb.dtype)[0]))
        except (ImageError, OutOfMemory, OSError) as error:
            failed += 1
            print("failed", flush=True)
            print(f"[{number}/{len(photographs)}] failed: {error}", file=sys.stderr, flush=True)
            continue
        only = f", the first of its {photograph.frames} frames" if photograph.frames > 1 else ""
        print(f"-> {target}  ({width} x {height}{only}{way}, {seconds:.2f} s)", flush=True)
    if failed:
        print(f"{failed} of {len(photographs)} photographs failed", file=sys.stderr)
    return failed


def read_photograph(path: Path) -> Photograph:
    """Reads PNG, JPEG, WebP, TIFF, BMP and whatever else Pillow can: 8 or 16 bit, grey, palette, alpha, CMYK.

    Raises ImageError, with the path, for a file that is missing, damaged, or of a kind that cannot be restored.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            photograph = _sixteen_bit(image, data) if _is_sixteen_bit(image, data) else _eight_bit(image)
            # A phone's MPO is a photograph followed by previews and depth maps, not several photographs.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            return replace(photograph, exif=_exif(image), frames=frames)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(f"{path}: cannot be read ({reason})") from error


def write_photograph(path: Path, photograph: Photograph) -> None:
    """Writes PNG with the photograph's own depth, grey, alpha, profile and EXIF: wholly or not at all."""
    pixels = photograph.rgb
    if photograph.grey:
        pixels = pixels.mean(axis=2, keepdims=True).round().astype(pixels.dtype)
    if photograph.alpha is not None:
        pixels = np.concatenate([pixels, photograph.alpha[..., None]], axis=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(encode_png(pixels, photograph.icc, photograph.exif))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def encode_png(pixels: np.ndarray, icc: bytes | None = None, exif: bytes | None = None) -> bytes:
    """A PNG file's bytes from uint8 or uint16 pixels (H, W, C): grey, grey and alpha, RGB, or RGBA for C = 1, 2, 3, 4.

    Pillow writes no 16-bit RGB and OpenCV no grey with alpha, nor profiles. PNG specification: https://www.w3.org/TR/png-3
    """
    height, width, channels = pixels.shape
    step = channels * pixels.itemsize  # bytes a pixel
    big_endian = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    rows = np.frombuffer(big_endian, np.uint8).reshape(height, width * step)
    filtered = np.empty((height, 1 + width * step), np.uint8)
    filtered[:, 0] = 1  # filter "Sub": each byte less the one a pixel before it, which compresses better
    filtered[:, 1 : 1 + step] = rows[:, :step]
    np.subtract(rows[:, step:], rows[:, :-step], out=filtered[:, 1 + step :])
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour_type, 0, 0, 0))]
    if icc:
        chunks.append((b"iCCP", b"profile\0\0" + zlib.compress(icc)))
    if exif:
        chunks.append((b"eXIf", exif))
    chunks += [(b"IDAT", zlib.compress(filtered)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks)


def _images_below(folder: Path, output: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and Path(parent, name).resolve() != output]
        yield from (Path(parent, name) for name in files
                    if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))


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
        pixels = _upright(pixels, image.getexif().get(ORIENTATION, 1))
        grey = data[PNG_COLOUR_TYPE] in PNG_GREY_TYPES
    if pixels.shape[2] >= 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return _photograph(pixels, grey, image.info.get("icc_profile"))


def _eight_bit(image: Image.Image) -> Photograph:
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


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) turned and mirrored as the EXIF orientation, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1]
