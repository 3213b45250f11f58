"""Read photographs as cameras and editors save them, and write the restored ones as PNG, JPEG or WebP.

The network sees upright RGB. Colour profile and EXIF are copied to the result unchanged, and grey photographs stay
grey. PNG also keeps 16 bits, and PNG and WebP alpha. A result says what made it: a PNG in an iTXt chunk, a JPEG in its
comment, a WebP in XMP.
"""

from __future__ import annotations

import html
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from datasets.files import write_atomic
from datasets.images import EXIF_ORIENTATION, ImageError, check_file, kind_of_file, read_file

from ..memory import GIB, OutOfMemory, free_memory
from .png import encode_png

BITS_PER_SAMPLE = 258  # TIFF's tag
PNG_BIT_DEPTH, PNG_COLOUR_TYPE = 24, 25  # where these bytes lie in every PNG file
PNG_GREY_TYPES = (0, 4)
MAKER = "XYScanNet"  # what made a result stands under this keyword
FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".webp": "WEBP"}
LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383}  # pixels that the encoders take
LARGEST_EXIF = 65527  # bytes in a JPEG: a segment's 65535 without its length and "Exif\0\0"
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:xyscannet="urn:xyscannet:" xyscannet:made_by="{}"/></rdf:RDF></x:xmpmeta>'
)
RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pef")
DECODING = 8  # bytes per pixel, at least: the decoded photograph and an upright copy

pillow_heif.register_heif_opener()  # makes Pillow read HEIC; it reads AVIF itself, from version 11.3


@dataclass(frozen=True)
class Photograph:
    """An upright photograph, and what the result copies from it."""

    rgb: np.ndarray  # (H, W, 3), uint8 or uint16; grey ones have three equal channels
    alpha: np.ndarray | None = None  # (H, W), same type
    grey: bool = False
    icc: bytes | None = None  # colour profile
    exif: bytes | None = None  # without the orientation, which is applied
    frames: int = 1  # in the file, of which this is the first


def decode_photograph(path: Path, data: bytes) -> Photograph:
    """Decode PNG, JPEG, WebP, TIFF, BMP and what else Pillow reads: 8 or 16 bit, grey, palette, alpha, CMYK.

    Args:
        path: of the file with these bytes, for its suffix and for messages.
    Raises:
        ImageError: the file is damaged, or of a kind that cannot be restored; names the path.
        OutOfMemory: decoding would take more memory than is free.
    """
    if path.suffix.lower() in RAW_SUFFIXES:  # Pillow would read the preview in them
        raise ImageError(f"{path}: a camera's raw file; develop it to a TIFF or PNG of 16 bits first")
    check_file(path, data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            _expect_to_fit(path, *image.size)
            image.load()
            if image.format == "HEIF" and image.info.get("bit_depth", 8) > 8:
                photograph = _deep_heif(data)
            else:
                photograph = _sixteen_bit(image, data) if _is_sixteen_bit(image, data) else _eight_bit(image)
            # A phone's MPO holds one photograph, and then previews and depth maps.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            return replace(photograph, exif=_exif(image), frames=frames)
    except (OutOfMemory, MemoryError):
        raise
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        kind = kind_of_file(data)
        reason = "a damaged HEIC image; copy or download it again" if "HEIC" in kind else f"cannot be read; {kind}"
        raise ImageError(f"{path}: {reason}") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ImageError(f"{path}: cannot be read ({error or type(error).__name__})") from error


def _expect_to_fit(path: Path, width: int, height: int) -> None:
    """Check the memory before decoding: a small file can hold any number of pixels."""
    needed, free = DECODING * width * height, free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        raise OutOfMemory(
            f"{path}: {width} x {height} pixels take {needed / GIB:.1f} GiB to read, and "
            f"{free / GIB:.1f} GiB are free; close other programs, or make the photograph smaller"
        )


def result_suffix(path: Path, form: str) -> str:
    """Of the restored photograph. ``form`` is png, jpeg, webp, or same: ``path``'s own; PNG where it is another."""
    own = path.suffix if path.suffix.lower() in SUFFIXES else ".png"
    return own if form == "same" else FORMATS[form]


def losses(target: Path, photograph: Photograph) -> list[str]:
    """What a result of this suffix cannot hold of the photograph, in words."""
    form = SUFFIXES[target.suffix.lower()]
    lost = {
        "16 bits reduced to 8": form != "PNG" and photograph.rgb.dtype == np.uint16,
        "without transparency": form == "JPEG" and photograph.alpha is not None,
        "without EXIF, which is too large": form == "JPEG" and len(photograph.exif or b"") > LARGEST_EXIF,
    }
    return [words for words, applies in lost.items() if applies]


def write_photograph(path: Path, photograph: Photograph, made_by: str | None = None, quality: int = 95) -> None:
    """Write PNG, JPEG or WebP by the suffix, atomically, with all of the photograph that the format holds.

    Args:
        made_by: JSON that says what made it, see `read_maker`.
        quality: of JPEG and WebP, 1 to 100.

    Raises:
        ImageError: a side is too long for the format.
    """
    pixels, form = photograph.rgb, SUFFIXES[path.suffix.lower()]
    if photograph.grey:
        pixels = pixels.mean(axis=2, keepdims=True).round().astype(pixels.dtype)
    if photograph.alpha is not None and form != "JPEG":
        pixels = np.concatenate([pixels, photograph.alpha[..., None]], axis=2)
    if form == "PNG":
        text = (MAKER, made_by) if made_by else None
        write_atomic(path, encode_png(pixels, photograph.icc, photograph.exif, text))
        return
    if max(pixels.shape) > LONGEST_SIDE[form]:
        raise ImageError(f"{path}: a {form} has at most {LONGEST_SIDE[form]} pixels a side; use --format png")
    if pixels.dtype == np.uint16:
        pixels = (pixels / 257).round().astype(np.uint8)
    options: dict[str, object]
    exif = photograph.exif or b""
    if form == "JPEG":
        options = {
            "subsampling": 0,  # full colour resolution: it was just restored
            "exif": b"Exif\0\0" + exif if 0 < len(exif) <= LARGEST_EXIF else b"",
            "comment": f"{MAKER} {made_by}".encode() if made_by else b"",
        }
    else:
        options = {"exif": exif, "xmp": XMP.format(html.escape(made_by)).encode() if made_by else b""}
    encoded = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(encoded, form, quality=quality, icc_profile=photograph.icc, **options)
    write_atomic(path, encoded.getvalue())


def read_maker(path: Path) -> dict[str, object] | None:
    """What made a result, as `write_photograph` stored it; None for a file that is not an intact result."""
    try:
        data = read_file(path)
        check_file(path, data)
        with Image.open(io.BytesIO(data)) as image:
            form, info = image.format, image.info
        if form == "JPEG":
            before, _, text = info["comment"].decode().partition(f"{MAKER} ")
            if before:
                return None
        elif form == "WEBP":
            text = html.unescape(info["xmp"].decode().partition('xyscannet:made_by="')[2].partition('"')[0])
        else:
            text = info[MAKER]
        return dict(json.loads(text))
    except Exception:  # another program's file, or a damaged one, for which Pillow raises many kinds
        return None


def _is_sixteen_bit(image: Image.Image, data: bytes) -> bool:
    """Read it from the file's header: Pillow opens most 16-bit images as 8-bit ones."""
    if image.format == "PNG":
        return data[PNG_BIT_DEPTH] == 16
    if image.format == "TIFF":
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) == 16 and image.mode not in ("CMYK", "F")
    return False


def _deep_heif(data: bytes) -> Photograph:
    """An HEIC of 10 or 12 bits, as 16 bits."""
    file = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    pixels = np.asarray(file)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    # The upper bits hold the value; repeated in the lower ones, white becomes white.
    pixels = pixels | pixels >> file.info["bit_depth"]
    return _photograph(pixels, pixels.shape[2] < 3, file.info.get("icc_profile"))


def _sixteen_bit(image: Image.Image, data: bytes) -> Photograph:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ImageError("16-bit pixels in a form that OpenCV cannot decode; convert the photograph to 16-bit PNG")
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    grey = pixels.shape[2] == 1
    if image.format == "PNG":  # OpenCV applies a TIFF's orientation, and decodes grey with alpha to RGBA
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
        raise ImageError(
            f"pixels of mode {image.mode}; convert the photograph to an 8-bit image, or a 16-bit PNG or TIFF"
        )
    if image.mode == "CMYK" and icc:
        profiles = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    grey = image.mode in ("1", "L", "LA", "La")
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    pixels = np.asarray(image.convert(("L" if grey else "RGB") + ("A" if transparent else "")))
    return _photograph(pixels.reshape(*pixels.shape[:2], -1), grey, icc)


def _photograph(pixels: np.ndarray, grey: bool, icc: bytes | None) -> Photograph:
    """Make a Photograph of pixels (H, W, C); the last of two or four channels is alpha."""
    alpha = pixels[..., -1] if pixels.shape[2] in (2, 4) else None
    rgb = pixels[..., :1].repeat(3, axis=2) if grey else pixels[..., :3]
    # Bytes 16 to 20 of a profile name its colour space; another one's would be ignored or misread.
    fits = icc is not None and icc[16:20] == (b"GRAY" if grey else b"RGB ")
    return Photograph(np.ascontiguousarray(rgb), alpha, grey, icc if fits else None)


def _exif(image: Image.Image) -> bytes | None:
    """The EXIF block without the orientation; None for a TIFF, whose tags mostly describe the file's own layout."""
    if image.format == "TIFF":
        return None
    try:
        exif = image.getexif()
        exif.pop(EXIF_ORIENTATION, None)
        return exif.tobytes().removeprefix(b"Exif\0\0") if len(exif) else None
    except Exception:  # damaged EXIF raises anything, and is no reason to refuse the photograph
        return None


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 (upright) where the block is damaged."""
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # as in _exif
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and mirror (H, W, C) as the EXIF orientation, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if vertical else 1, :: -1 if horizontal else 1]
