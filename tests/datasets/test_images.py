"""Images read and written: against Pillow as the oracle, and damaged files of each kind."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.images import IMAGE_SUFFIXES, ImageError, read_rgb, read_size, write_png
from engine.predict.photo import decode_photograph
from tests.datasets.conftest import textured


def pillow_saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_reads_what_pillow_reads(tmp_path: Path, suffix: str) -> None:
    path = pillow_saved(tmp_path / f"a{suffix}", Image.fromarray(textured(21, 34, 0)))
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    image = read_rgb(path)
    assert image.dtype == np.uint8
    assert np.abs(image - expected).max() <= (3 if suffix in (".jpg", ".jpeg", ".webp") else 0)
    assert read_size(path) == (21, 34)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_other_modes_become_8_bit_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        values = np.arange(6 * 5, dtype=np.uint16).reshape(6, 5) * 2000
        path = pillow_saved(tmp_path / "a.png", Image.fromarray(values))
        expected = np.repeat((values >> 8)[..., None], 3, axis=2)
    else:
        source = Image.fromarray(textured(6, 5, 1)).convert(mode)
        path = pillow_saved(tmp_path / "a.png", source)
        expected = np.asarray(source.convert("RGB"))
    assert np.abs(read_rgb(path).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_size_agrees_with_pixels_where_exif_turns_them(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = pillow_saved(tmp_path / f"a{suffix}", Image.fromarray(textured(20, 30, 2)), exif=exif)
    assert read_size(path) == read_rgb(path).shape[:2]


@pytest.mark.parametrize("lost", [1, 12, 0.5, 0.99])
@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_truncated_file_is_named(tmp_path: Path, suffix: str, lost: float) -> None:
    """A copy that stopped. A TIFF's last bytes may be its directory, whose loss only the decoder is sure to see."""
    path = pillow_saved(tmp_path / f"a{suffix}", Image.fromarray(textured(64, 64, 3)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - (int(len(data) * lost) if lost < 1 else int(lost))])
    if not (suffix in (".tif", ".tiff") and lost >= 1):
        with pytest.raises(ImageError, match="a" + suffix):
            read_size(path)
    with pytest.raises(ImageError, match="a" + suffix):
        read_rgb(path)


def test_size_agrees_with_pixels_where_a_png_has_its_exif_behind_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = pillow_saved(tmp_path / "a.png", Image.fromarray(textured(20, 30, 2)), exif=exif)
    data = path.read_bytes()
    begin = data.index(b"eXIf") - 4
    end = begin + 12 + int.from_bytes(data[begin : begin + 4], "big")
    last = data.index(b"IEND") - 4
    path.write_bytes(data[:begin] + data[end:last] + data[begin:end] + data[last:])
    assert read_size(path) == read_rgb(path).shape[:2] == (30, 20)


@pytest.mark.parametrize("content", [b"", b"not an image at all"])
def test_empty_and_alien_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.png"
    path.write_bytes(content)
    for read in (read_rgb, read_size):
        with pytest.raises(ImageError, match="odd.png"):
            read(path)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    for read in (read_rgb, read_size):
        with pytest.raises(ImageError, match="gone.png.*No such file"):
            read(tmp_path / "gone.png")
        with pytest.raises(ImageError, match=tmp_path.name):
            read(tmp_path)


def test_jpeg_with_data_after_its_end_is_whole(tmp_path: Path) -> None:
    """Phones append videos to their photographs."""
    path = pillow_saved(tmp_path / "motion.jpg", Image.fromarray(textured(16, 24, 4)))
    path.write_bytes(path.read_bytes() + bytes(10_000))
    assert read_size(path) == (16, 24) == read_rgb(path).shape[:2]


def test_png_survives_the_round_trip(tmp_path: Path) -> None:
    image = textured(11, 13, 5)
    write_png(tmp_path / "new" / "folder" / "a.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "folder" / "a.png")), image)
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["a.png"]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    old, new = textured(4, 4, 6), textured(4, 4, 7)
    write_png(path, old)

    def full(self: Path, data: bytes) -> None:
        with open(self, "wb") as file:
            file.write(bytes(data)[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_png(path, new)
    assert np.array_equal(read_rgb(path), old)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)])
def test_only_8_bit_rgb_is_written(tmp_path: Path, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a.png.*uint8"):
        write_png(tmp_path / "a.png", wrong)


def jpeg_with_junk(folder: Path, junk: bytes, **options) -> Path:
    """A JPEG whose compressed data holds foreign bytes in its middle."""
    path = pillow_saved(folder / "junk.jpg", Image.fromarray(textured(256, 256, 8)), quality=95, **options)
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + junk + data[middle + len(junk) :])
    return path


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_jpeg_with_foreign_bytes_inside_is_refused(tmp_path: Path, options: dict, rng: np.random.Generator) -> None:
    path = jpeg_with_junk(tmp_path, rng.integers(0, 256, 2048, dtype=np.uint8).tobytes(), **options)
    with pytest.raises(ImageError, match="junk.jpg"):
        read_rgb(path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"optimize": True},
        {"restart_marker_blocks": 3, "progressive": True},
    ],
)
def test_whole_jpegs_are_never_refused(tmp_path: Path, options: dict) -> None:
    for quality in (5, 75, 100):
        for seed in range(5):
            image = Image.fromarray(textured(90, 130, seed))
            image = image.convert("L") if seed == 4 else image
            path = pillow_saved(tmp_path / "a.jpg", image, quality=quality, **options)
            assert read_rgb(path).shape == (90, 130, 3)


def test_a_restart_out_of_turn_is_refused(tmp_path: Path) -> None:
    path = pillow_saved(tmp_path / "a.jpg", Image.fromarray(textured(64, 64, 1)), restart_marker_rows=1)
    data = path.read_bytes()
    assert data.count(b"\xff\xd1") == 1
    path.write_bytes(data.replace(b"\xff\xd1", b"\xff\xd2"))
    with pytest.raises(ImageError):
        read_rgb(path)


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0"])
@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png"])
def test_size_and_pixels_agree_about_damaged_exif(tmp_path: Path, suffix: str, exif: bytes) -> None:
    path = pillow_saved(tmp_path / f"a{suffix}", Image.fromarray(textured(20, 30, 2)), exif=exif)
    assert read_size(path) == read_rgb(path).shape[:2] == (20, 30)


def ftyp(*brands: bytes) -> bytes:
    """The beginning of an ISO base media file."""
    content = brands[0] + bytes(4) + b"".join(brands[1:])
    return (8 + len(content)).to_bytes(4, "big") + b"ftyp" + content + bytes(100)


@pytest.mark.parametrize(
    "data, kind",
    [
        (ftyp(b"heic", b"mif1", b"heic"), "HEIC"),
        (ftyp(b"mif1", b"heic"), "HEIC"),
        (ftyp(b"mif1", b"avif"), "AVIF"),
        (ftyp(b"avif"), "AVIF"),
        (ftyp(b"isom", b"mp41"), "video"),
        (b"<html>", "not an image"),
    ],
)
def test_files_of_other_kinds_are_named_by_their_content(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    for read in (read_rgb, read_size):
        with pytest.raises(ImageError, match=f"a.jpg: .*{kind}"):
            read(tmp_path / "a.jpg")


@pytest.mark.timeout(20)
def test_a_fifo_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for read in (read_rgb, read_size):
        with pytest.raises(ImageError, match="a.png"):
            read(tmp_path / "a.png")


def test_a_header_of_many_pixels_is_read(tmp_path: Path) -> None:
    """400 megapixels: two numbers in a BMP's header, no pixels."""
    path = pillow_saved(tmp_path / "large.bmp", Image.fromarray(textured(8, 8, 0)))
    data = path.read_bytes()
    path.write_bytes(data[:18] + struct.pack("<ii", 20_000, 20_000) + data[26:])
    assert read_size(path) == (20_000, 20_000)


def test_what_is_written_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append("sync"), sync(number)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("name"), replace(*names)))
    write_png(tmp_path / "a.png", textured(4, 4, 0))
    assert done == ["sync", "name", "sync"]


@pytest.mark.parametrize("read", [read_rgb, lambda path: decode_photograph(path, path.read_bytes())])
@pytest.mark.parametrize("where", [40, 0.5, -30, -6])
def test_a_changed_bit_of_a_png_is_noticed_wherever_it_is(tmp_path, read, where):
    path = tmp_path / "a.png"
    write_png(path, np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[int(where * len(data)) if isinstance(where, float) else where] ^= 4
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.png"):
        read(path)
