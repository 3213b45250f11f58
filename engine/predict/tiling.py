"""Restore an image by overlapping tiles, blended where they overlap: the memory of one tile, and no visible seams.

XYScanNet scans full rows and columns and averages over them. A tile sees less of them than the full image, so tiled
results and their scores differ from those of full images and are not comparable with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from models.images import MULTIPLE

# Tiles keep to the grid of MULTIPLE pixels, so that the network halves them as it halves the full image.


def check_tile(tile: int, overlap: int) -> None:
    """Raise ValueError unless both are multiples of 8 pixels and 0 <= overlap < tile."""
    if tile < MULTIPLE or tile % MULTIPLE:
        raise ValueError(f"tile must be a multiple of {MULTIPLE} pixels and at least {MULTIPLE}, got {tile}")
    if not 0 <= overlap < tile or overlap % MULTIPLE:
        raise ValueError(
            f"overlap must be a multiple of {MULTIPLE} pixels from 0 to below the tile ({tile}), got {overlap}"
        )


@torch.no_grad()
def restore_tiled(
    network: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, tile: int, overlap: int
) -> torch.Tensor:
    """Restore (B, 3, H, W) images by tiles of ``tile`` x ``tile`` pixels that overlap by at least ``overlap``.

    An image that one tile covers is passed to ``network`` as it is.

    Raises:
        ValueError: see `check_tile`.
    """
    check_tile(tile, overlap)
    height, width = image.shape[-2:]
    if height <= tile and width <= tile:
        return network(image)
    restored = torch.zeros_like(image)
    rows, columns = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    row_windows, column_windows = blending_windows(height, tile, rows), blending_windows(width, tile, columns)
    for top, row_window in zip(rows, row_windows, strict=True):
        for left, column_window in zip(columns, column_windows, strict=True):
            part = (..., slice(top, top + tile), slice(left, left + tile))
            window = torch.outer(row_window, column_window).to(image)
            restored[part] += network(image[part]) * window
    return restored


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles along a side of ``size`` pixels; the last tile ends with the side."""
    return [*range(0, size - tile, tile - overlap), max(size - tile, 0)]


def blending_windows(size: int, tile: int, starts: list[int]) -> list[torch.Tensor]:
    """Each tile's weights along a side: smooth ramps where it overlaps its neighbours, with a sum of 1 everywhere.

    A tile's weights in the image are the outer product of two such windows, so they sum to 1 over the image as well.
    """
    length = min(tile, size)
    windows = []
    for index, start in enumerate(starts):
        window = torch.ones(length, dtype=torch.float64)
        if index > 0:
            window *= _ramp(starts[index - 1] + length - start, length)
        if index + 1 < len(starts):
            window *= _ramp(start + length - starts[index + 1], length).flip(0)
        windows.append(window)
    total = torch.zeros(size, dtype=torch.float64)
    for start, window in zip(starts, windows, strict=True):
        total[start : start + length] += window
    return [window / total[start : start + length] for start, window in zip(starts, windows, strict=True)]


def _ramp(overlap: int, length: int) -> torch.Tensor:
    """(length,) weights that rise from 0 to 1 over ``overlap`` pixels as sin^2, never exactly 0, and stay at 1."""
    phase = (torch.arange(length, dtype=torch.float64) + 0.5) / max(overlap, 0.5)
    return torch.sin(phase.clamp(max=1.0) * math.pi / 2) ** 2
