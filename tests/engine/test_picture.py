"""The picture of blurred, restored and sharp: what is enlarged, and rows without a sharp image."""

import os

import numpy as np
from PIL import Image

from engine.picture import CROP, ORANGE, PANEL, Example, save_comparison, where_they_differ


def example(sharp: bool) -> Example:
    rng = np.random.default_rng(0)
    image = rng.integers(60, 200, (120, 180, 3), dtype=np.uint8)
    changed = image.copy()
    changed[70:100, 50:90] = 0
    return Example("name", changed, image, image if sharp else None)


def test_enlarges_where_images_differ():
    pair = example(sharp=True)
    y, x = where_they_differ(pair.blurred, pair.sharp)
    assert y <= 70 and x <= 50 and y + CROP[0] >= 100 and x + CROP[1] >= 90
    small = np.zeros((20, 30, 3), np.uint8)
    assert where_they_differ(small, small) == (0, 0)


def test_a_row_without_a_sharp_image_has_two_panels_of_three(tmp_path):
    path = tmp_path / "new" / "picture.png"
    save_comparison([example(sharp=True), example(sharp=False)], path)
    picture = np.asarray(Image.open(path))
    rows = np.split(picture, 2)
    columns = 8, 16 + PANEL, 24 + 2 * PANEL
    framed = [[(row[:, left : left + PANEL] == ORANGE).all(axis=2).any() for left in columns] for row in rows]
    assert framed == [[True] * 3, [True, True, False]]
    assert (rows[1][:, 20 + 2 * PANEL :] == 255).all()


def test_a_picture_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append("sync"), sync(number)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("name"), replace(*names)))
    save_comparison([example(sharp=True)], tmp_path / "a.png")
    assert done == ["sync", "name", "sync"] and os.listdir(tmp_path) == ["a.png"]
