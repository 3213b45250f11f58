"""Figures are written as their names say, and hold what was drawn."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from analysis.figure import FigureError, check_name, new_figure, save, save_pixels
from datasets.images import read_rgb


@pytest.mark.parametrize("suffix, start", [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".SVG", b"<?xml")])
def test_a_figure_is_what_its_name_says(tmp_path, suffix, start):
    figure = new_figure(2, 2)
    figure.add_subplot().plot([0, 1])
    path = tmp_path / "new" / f"figure{suffix}"
    check_name(path)
    save(figure, path)
    assert path.read_bytes().startswith(start)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_names_are_refused(tmp_path):
    with pytest.raises(FigureError, match="figure.jpg"):
        check_name(tmp_path / "figure.jpg")


def test_pixels_are_embedded_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    for suffix in (".png", ".svg", ".pdf"):
        save_pixels(pixels, tmp_path / f"picture{suffix}")
    assert np.array_equal(read_rgb(tmp_path / "picture.png"), pixels)
    embedded = re.search(r"base64,([^\"]+)", (tmp_path / "picture.svg").read_text())[1]
    svg = np.asarray(Image.open(io.BytesIO(base64.b64decode(embedded))).convert("RGB"))
    assert any(np.array_equal(found, pixels) for found in (svg, svg[::-1]))
    objects = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", (tmp_path / "picture.pdf").read_bytes(), re.DOTALL)
    assert len(max(objects, key=len)) > 0.9 * pixels.size  # noise cannot be compressed: nothing was resampled
