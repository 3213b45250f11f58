"""One picture to look at: blurred | restored | sharp, with the same crop enlarged under each, PSNR in the captions.

A truly blurred photograph has no sharp one, and no PSNR.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets.files import atomic
from metrics.psnr import psnr

PANELS, PANEL = 3, 360  # in a row; pixels across each
CROP = (48, 96)  # height and width of the enlarged crop in the image's pixels
GAP, CAPTION = 8, 28
ORANGE, BLACK = (230, 120, 0), (20, 20, 20)


@dataclass(frozen=True)
class Example:
    """One image of three kinds, uint8 RGB (H, W, 3), all of one size."""

    name: str
    blurred: np.ndarray
    restored: np.ndarray
    sharp: np.ndarray | None


def save_comparison(examples: Sequence[Example], path: Path) -> None:
    """A row for each example, saved as PNG."""
    rows = np.vstack([_row(example) for example in examples])
    with atomic(path) as temporary:
        Image.fromarray(rows).save(temporary, format="PNG")


def _row(example: Example) -> Image.Image:
    blurred, restored, sharp = example.blurred, example.restored, example.sharp
    y, x = where_they_differ(blurred, restored if sharp is None else sharp)
    if sharp is None:
        panels = [_panel(blurred, f"blurred ({example.name})", y, x), _panel(restored, "restored", y, x)]
    else:
        panels = [
            _panel(blurred, f"blurred, {psnr(blurred, sharp):.2f} dB", y, x),
            _panel(restored, f"restored, {psnr(restored, sharp):.2f} dB", y, x),
            _panel(sharp, f"sharp ({example.name})", y, x),
        ]
    row = Image.new("RGB", (PANELS * (PANEL + GAP) + GAP, panels[0].height + GAP), "white")
    for k, panel in enumerate(panels):
        row.paste(panel, (GAP + k * (PANEL + GAP), GAP))
    return row


def _panel(image: np.ndarray, caption: str, y: int, x: int) -> Image.Image:
    """The full image with the crop's frame, and the crop below it at the same width."""
    height, width = image.shape[:2]
    scale = PANEL / width
    whole = Image.fromarray(image).resize((PANEL, round(height * scale)), Image.Resampling.LANCZOS)
    crop_height, crop_width = min(CROP[0], height), min(CROP[1], width)
    frame = [round(v * scale) for v in (x, y, x + crop_width, y + crop_height)]
    ImageDraw.Draw(whole).rectangle(frame, outline=ORANGE, width=2)
    crop = Image.fromarray(image[y : y + crop_height, x : x + crop_width])
    crop = crop.resize((PANEL, round(PANEL * crop_height / crop_width)), Image.Resampling.NEAREST)

    panel = Image.new("RGB", (PANEL, CAPTION + whole.height + GAP + crop.height), "white")
    draw = ImageDraw.Draw(panel)
    draw.text((2, 4), caption, fill=BLACK, font=ImageFont.load_default(size=17))
    panel.paste(whole, (0, CAPTION))
    panel.paste(crop, (0, CAPTION + whole.height + GAP))
    top = CAPTION + whole.height + GAP
    draw.rectangle((0, top, PANEL - 1, top + crop.height - 1), outline=ORANGE, width=2)
    return panel


def where_they_differ(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """Upper left corner (y, x) of the window of CROP's size where two images differ most."""
    error = np.square(one.astype(np.float32) - other).mean(axis=2)
    height, width = min(CROP[0], error.shape[0]), min(CROP[1], error.shape[1])
    sums = cv2.boxFilter(error, -1, (width, height), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
    inside = sums[: error.shape[0] - height + 1, : error.shape[1] - width + 1]
    y, x = np.unravel_index(np.argmax(inside), inside.shape)
    return int(y), int(x)
