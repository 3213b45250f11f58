"""Photographs of every kind: read upright, restored, written as PNG with all that went with them."""

import io
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from datasets.images import ImageError
from engine.memory import OutOfMemory
from engine.predict.album import restore_photographs
from engine.predict.photo import Photograph, decode_photograph, losses, read_maker, write_photograph
from engine.predict.png import encode_png

ORIENTATION, MAKE = 0x0112, 0x010F
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def read_photograph(path: Path) -> Photograph:
    return decode_photograph(path, path.read_bytes())


class Unchanged:
    """Stands for a restorer whose network finds nothing to do, so that every level must come back."""

    maker = {"weights_sha256": "none"}

    def restore(self, images: torch.Tensor, *names: str) -> tuple[torch.Tensor, float]:
        return images, 0.25


class Brighter:
    """Adds 20 of 255 levels, colours alike."""

    maker = {"weights_sha256": "none"}

    def restore(self, images: torch.Tensor, *names: str) -> tuple[torch.Tensor, float]:
        return images + 20 / 255, 0.25


def pixels(channels: int, dtype=np.uint8, height: int = 11, width: int = 14) -> np.ndarray:
    """Random, with room above for Brighter."""
    peak = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, int(0.9 * peak), (height, width, channels), dtype=dtype)


def pillow(channels: int, mode: str | None = None) -> Image.Image:
    values = pixels(channels)
    image = Image.fromarray(values[..., 0] if channels == 1 else values)
    return image.convert(mode) if mode else image


def through(path, tmp_path, restorer=None):
    """What comes out of predict.py's loop for one photograph, as bytes and as OpenCV decodes them."""
    target = tmp_path / "out" / "result.png"
    assert restore_photographs(restorer or Unchanged(), [(path, target)]) == 0
    return target, cv2.imread(str(target), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels, mode", [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_our_png_is_read_by_others(dtype, channels, mode):
    values = pixels(channels, dtype)
    data = encode_png(values, icc=None, exif=None)
    if dtype == np.uint8:
        image = Image.open(io.BytesIO(data))
        assert image.mode == mode and np.array_equal(np.asarray(image).reshape(values.shape), values)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    order = {1: [0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    assert decoded.dtype == dtype and np.array_equal(decoded.reshape(11, 14, -1), values[..., order])


@pytest.mark.parametrize("suffix, options", [("png", {}), ("tiff", {}), ("webp", {"lossless": True}), ("bmp", {})])
def test_8_bit_colour_comes_back_level_for_level(tmp_path, suffix, options):
    pillow(3).save(tmp_path / f"photo.{suffix}", **options)
    _, result = through(tmp_path / f"photo.{suffix}", tmp_path)
    assert result.dtype == np.uint8 and np.array_equal(result[..., ::-1], pixels(3))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_stay_16_bits(tmp_path, suffix, channels):
    values = pixels(channels, np.uint16)
    cv2.imwrite(str(tmp_path / f"photo.{suffix}"), values)
    _, result = through(tmp_path / f"photo.{suffix}", tmp_path)
    assert result.dtype == np.uint16 and np.array_equal(result.reshape(values.shape), values)
    assert len(np.unique(values % 256)) > 50  # the low bytes were not empty


def test_16_bit_grey_with_alpha(tmp_path):
    values = pixels(2, np.uint16)
    (tmp_path / "photo.png").write_bytes(encode_png(values))
    photograph = read_photograph(tmp_path / "photo.png")
    assert photograph.grey and np.array_equal(photograph.alpha, values[..., 1])
    target, _ = through(tmp_path / "photo.png", tmp_path)
    result = read_photograph(target)
    assert result.grey and np.array_equal(result.alpha, values[..., 1])
    assert np.array_equal(result.rgb[..., 0], values[..., 0])


@pytest.mark.parametrize("suffix, options", [("png", {}), ("tiff", {}), ("jpg", {"quality": 100})])
def test_grey_stays_grey(tmp_path, suffix, options):
    pillow(1).save(tmp_path / f"photo.{suffix}", **options)
    seen = read_photograph(tmp_path / f"photo.{suffix}")
    assert seen.grey and np.array_equal(seen.rgb[..., 0], seen.rgb[..., 2])
    _, result = through(tmp_path / f"photo.{suffix}", tmp_path, Brighter())
    assert result.ndim == 2 and np.array_equal(result, np.asarray(Image.open(tmp_path / f"photo.{suffix}")) + 20)


@pytest.mark.parametrize(
    "channels, suffix, options",
    [(2, "png", {}), (4, "png", {}), (4, "tiff", {}), (4, "webp", {"lossless": True, "exact": True})],
)
def test_alpha_is_carried_over_and_not_restored(tmp_path, channels, suffix, options):
    pillow(channels).save(tmp_path / f"photo.{suffix}", **options)
    target, _ = through(tmp_path / f"photo.{suffix}", tmp_path, Brighter())
    result = np.asarray(Image.open(target))
    assert np.array_equal(result[..., -1], pixels(channels)[..., -1])
    assert np.array_equal(result[..., :-1], pixels(channels)[..., :-1] + 20)


def test_palettes_become_colours(tmp_path):
    palette = pillow(3).quantize(16)
    palette.save(tmp_path / "photo.png")
    target, _ = through(tmp_path / "photo.png", tmp_path)
    assert np.array_equal(np.asarray(Image.open(target)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode, transparency, result", [("P", 0, "RGBA"), ("L", 7, "LA"), ("RGB", (1, 2, 3), "RGBA")])
def test_a_transparent_colour_becomes_alpha(tmp_path, mode, transparency, result):
    image = pillow(3).quantize(16) if mode == "P" else pillow(3, mode)
    image.save(tmp_path / "photo.png", transparency=transparency)
    expected = Image.open(tmp_path / "photo.png").convert(result)
    target, _ = through(tmp_path / "photo.png", tmp_path)
    assert np.array_equal(np.asarray(Image.open(target)), np.asarray(expected))


def test_cmyk_becomes_rgb(tmp_path):
    flat = Image.new("CMYK", (16, 9), (0, 200, 200, 0))
    flat.save(tmp_path / "photo.jpg", quality=100)
    _, result = through(tmp_path / "photo.jpg", tmp_path)
    assert result.shape == (9, 16, 3)
    assert np.abs(result[..., ::-1].astype(int) - (255, 55, 55)).max() <= 3  # red, not its negative


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "16-bit png", "16-bit tiff"])
def test_every_orientation_comes_out_upright(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    suffix, deep = kind.split()[-1], kind.startswith("16")
    values = pixels(1 if deep else 3, np.uint16 if deep else np.uint8)
    path = tmp_path / f"photo.{suffix}"
    image = Image.fromarray(values[..., 0] if deep else values)
    image.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    rotated = (
        image.copy()
        if orientation == 1
        else image.transpose(
            {
                2: Image.Transpose.FLIP_LEFT_RIGHT,
                3: Image.Transpose.ROTATE_180,
                4: Image.Transpose.FLIP_TOP_BOTTOM,
                5: Image.Transpose.TRANSPOSE,
                6: Image.Transpose.ROTATE_270,
                7: Image.Transpose.TRANSVERSE,
                8: Image.Transpose.ROTATE_90,
            }[orientation]
        )
    )
    target, result = through(path, tmp_path)
    assert np.array_equal(result if deep else result[..., ::-1], np.asarray(rotated))
    assert ImageOps.exif_transpose(Image.open(target)).size == rotated.size  # not turned a second time


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_profile_and_exif_go_along(tmp_path, suffix):
    exif = Image.Exif()
    exif[MAKE], exif[ORIENTATION] = "Camera maker", 6
    pillow(3).save(tmp_path / f"photo.{suffix}", icc_profile=SRGB, exif=exif)
    target, _ = through(tmp_path / f"photo.{suffix}", tmp_path)
    result = Image.open(target)
    result.load()
    assert result.info["icc_profile"] == SRGB and dict(result.getexif()) == {MAKE: "Camera maker"}


def test_a_profile_of_another_kind_is_left_behind(tmp_path):
    pillow(1).save(tmp_path / "photo.jpg", icc_profile=SRGB)
    assert read_photograph(tmp_path / "photo.jpg").icc is None


def test_only_the_first_frame_and_it_says_so(tmp_path, capsys):
    pillow(3).save(tmp_path / "pages.tiff", save_all=True, append_images=[pillow(3), pillow(3)])
    through(tmp_path / "pages.tiff", tmp_path)
    assert "the first of its 3 frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, content, complaint",
    [
        ("text.png", b"not an image", "cannot be read"),
        ("empty.jpg", b"", "truncated"),
        ("cut.png", encode_png(pixels(3, height=200))[:3000], "truncated"),
        ("cut16.png", encode_png(pixels(3, np.uint16, height=200))[:3000], "truncated"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=f"{name}: {complaint}"):
        read_photograph(tmp_path / name)


def test_32_bit_pixels_are_refused_with_advice(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "radiance.tiff")
    with pytest.raises(ImageError, match="radiance.tiff: pixels of mode .*convert the photograph to an 8-bit image"):
        read_photograph(tmp_path / "radiance.tiff")


def test_nothing_half_written(tmp_path, monkeypatch):
    photograph = read_photograph_of(tmp_path)

    def full(self, data):
        open(self, "wb").write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_photograph(tmp_path / "out" / "result.png", photograph)
    assert list((tmp_path / "out").iterdir()) == []


def read_photograph_of(folder):
    pillow(3).save(folder / "photo.png")
    return read_photograph(folder / "photo.png")


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damaged_exif_is_no_reason_to_refuse_a_photograph(tmp_path, suffix, exif):
    pillow(3).save(tmp_path / f"photo.{suffix}", exif=exif)
    assert read_photograph(tmp_path / f"photo.{suffix}").rgb.shape == (11, 14, 3)


@pytest.mark.parametrize("brand, kind", [(b"heic", "HEIC"), (b"isom", "video")])
def test_files_of_other_kinds_are_named_by_their_content(tmp_path, brand, kind):
    (tmp_path / "photo.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(4) + brand * 2 + bytes(200))
    with pytest.raises(ImageError, match=f"photo.jpg: .*{kind}") as caught:
        read_photograph(tmp_path / "photo.jpg")
    assert "BytesIO" not in str(caught.value)


def test_a_raw_file_is_refused_and_its_preview_not_taken_for_it(tmp_path):
    pillow(3).save(tmp_path / "photo.dng", format="TIFF")
    with pytest.raises(ImageError):
        read_photograph(tmp_path / "photo.dng")


def test_as_many_pixels_as_memory_permits(tmp_path, monkeypatch):
    """Pillow alone refuses 200 megapixels of black."""
    Image.new("1", (20_000, 10_000)).save(tmp_path / "large.png")
    monkeypatch.setattr("engine.predict.photo.free_memory", lambda device: 8 * 20_000 * 10_000 - 1)
    with pytest.raises(OutOfMemory, match="large.png"):
        read_photograph(tmp_path / "large.png")
    monkeypatch.setattr("engine.predict.photo.free_memory", lambda device: 8 * 20_000 * 10_000)
    monkeypatch.setattr("engine.predict.photo._eight_bit", lambda image: Photograph(np.zeros((1, 1, 3))))
    assert read_photograph(tmp_path / "large.png").rgb.shape == (1, 1, 3)  # decoded, then cut short for the test


def test_without_memory_it_is_not_called_unreadable(tmp_path, monkeypatch):
    pillow(3).save(tmp_path / "photo.png")

    def full(image):
        raise MemoryError

    monkeypatch.setattr("engine.predict.photo._eight_bit", full)
    with pytest.raises(MemoryError):
        read_photograph(tmp_path / "photo.png")


def test_a_png_says_what_it_was_told_and_nothing_once_damaged(tmp_path):
    path, made_by = tmp_path / "a.png", {"source": "grüße \u2603"}
    write_photograph(path, Photograph(pixels(3)), json.dumps(made_by, ensure_ascii=False))
    assert read_maker(path) == made_by
    data = path.read_bytes()
    for damaged in (
        data[:-1],
        data[:60],
        b"",
        data.replace(b"IDAT", b"IDAx"),
        encode_png(pixels(3), text=("Key", "{}")),
    ):
        path.write_bytes(damaged)
        assert read_maker(path) is None


def test_what_is_written_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    photograph = read_photograph_of(tmp_path)
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append("sync"), sync(number)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("name"), replace(*names)))
    write_photograph(tmp_path / "out" / "result.png", photograph)
    assert done == ["sync", "name", "sync"]


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_heic_and_avif_come_with_all_that_went_with_them(tmp_path, suffix):
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[MAKE], exif[ORIENTATION] = "Camera maker", 6
    values = cv2.resize(pixels(3, height=4, width=6), (60, 40), interpolation=cv2.INTER_CUBIC)
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(values).save(path, quality=100, icc_profile=SRGB, exif=exif.tobytes())
    with Image.open(path) as image:
        assert image.format == {"heic": "HEIF", "avif": "AVIF"}[suffix]
    photograph = read_photograph(path)
    expected = np.rot90(values, -1)  # orientation 6
    assert photograph.rgb.shape == expected.shape and photograph.rgb.dtype == np.uint8
    assert np.abs(photograph.rgb.astype(int) - expected).mean() < 4
    target, _ = through(path, tmp_path)
    result = Image.open(target)
    assert result.info["icc_profile"] == SRGB and dict(result.getexif()) == {MAKE: "Camera maker"}


def test_a_heic_of_10_bits_becomes_16_bits(tmp_path):
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16)
    values = np.repeat(np.tile(ramp, (48, 1))[..., None], 3, axis=2)
    encoded = pillow_heif.from_bytes(mode="RGB;16", size=(64, 48), data=values.tobytes())
    encoded.save(tmp_path / "photo.heic", quality=100, bit_depth=10)
    photograph = read_photograph(tmp_path / "photo.heic")
    assert photograph.rgb.dtype == np.uint16 and photograph.rgb.max() == 65535
    assert np.abs(photograph.rgb.astype(int) - values).mean() < 40  # 8 bits would be 64 off


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize("channels, dtype", [(1, np.uint8), (3, np.uint8), (4, np.uint8), (3, np.uint16)])
def test_jpeg_and_webp_keep_what_they_can_and_say_the_rest(tmp_path, capsys, suffix, channels, dtype):
    values = np.clip(cv2.GaussianBlur(pixels(channels, dtype, 40, 60), (0, 0), 4), 0, None).reshape(40, 60, channels)
    exif = Image.Exif()
    exif[MAKE] = "Camera maker"
    icc = None if channels == 1 else SRGB
    (tmp_path / "photo.png").write_bytes(encode_png(values, icc, exif.tobytes().removeprefix(b"Exif\0\0")))
    target = tmp_path / "out" / f"photo.{suffix}"
    assert restore_photographs(Unchanged(), [(tmp_path / "photo.png", target)]) == 0
    said = capsys.readouterr().out
    result = Image.open(target)
    assert result.format == {"jpg": "JPEG", "webp": "WEBP"}[suffix]
    assert result.info.get("icc_profile") == icc and dict(result.getexif()) == {MAKE: "Camera maker"}
    assert ("16 bits reduced to 8" in said) == (dtype == np.uint16)
    assert ("without transparency" in said) == (suffix == "jpg" and channels == 4)
    expected = values / (257 if dtype == np.uint16 else 1)
    decoded = read_photograph(target)
    assert np.abs(decoded.rgb.astype(float) - expected[..., :3]).mean() < 3
    assert (decoded.alpha is not None) == (suffix == "webp" and channels == 4)
    made_by = read_maker(target)
    assert made_by["weights_sha256"] == "none" and made_by["quality"] == 95 and made_by["source"] == "photo.png"


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_another_quality_is_another_result(tmp_path, suffix):
    pillow(3).save(tmp_path / "photo.png")
    work = [(tmp_path / "photo.png", tmp_path / f"out.{suffix}")]
    assert restore_photographs(Unchanged(), work, quality=40) == 0
    small = work[0][1].read_bytes()
    assert restore_photographs(Unchanged(), work, quality=40) == 0 and work[0][1].read_bytes() == small
    assert restore_photographs(Unchanged(), work, quality=90) == 1 and work[0][1].read_bytes() == small
    work[0][1].write_bytes(small[:-20])
    assert read_maker(work[0][1]) is None


def test_exif_that_no_jpeg_holds_is_left_out_and_a_side_that_no_webp_holds_refused(tmp_path):
    large = Photograph(pixels(3), exif=b"MM\0*" + bytes(70_000))
    write_photograph(tmp_path / "a.jpg", large)
    assert Image.open(tmp_path / "a.jpg").size == (14, 11)
    assert len(losses(tmp_path / "a.jpg", large)) == 1 and not losses(tmp_path / "a.png", large)
    with pytest.raises(ImageError, match="--format png"):
        write_photograph(tmp_path / "a.webp", Photograph(pixels(3, width=17_000)))
    assert not (tmp_path / "a.webp").exists()
