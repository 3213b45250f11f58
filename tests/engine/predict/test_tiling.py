"""Tiles that blend into one image: equality where it must hold, no seams, little memory, clear refusals."""

import pytest
import torch
import torch.nn.functional as F

from engine.predict.tiling import blending_windows, restore_tiled, tile_starts


def image_of(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) - 0.5


def blur(images: torch.Tensor) -> torch.Tensor:
    """A local "network": a 5 x 5 mean, which near a tile's border sees zeros instead of its neighbours."""
    return F.avg_pool2d(images, 5, stride=1, padding=2)


SIZES = pytest.mark.parametrize(
    "size, tile, overlap",
    [
        (72, 64, 16),
        (640, 64, 0),
        (640, 128, 32),
        (721, 128, 120),
        (1280, 256, 32),
        (9, 8, 0),
        (33, 16, 8),
        (100, 40, 32),
    ],
)


@SIZES
def test_tiles_cover_the_side_and_keep_their_overlap(size, tile, overlap):
    starts = tile_starts(size, tile, overlap)
    assert starts[0] == 0 and starts[-1] == size - tile and starts == sorted(set(starts))
    assert all(start % 8 == 0 for start in starts[:-1])
    assert all(a + tile - b >= overlap for a, b in zip(starts, starts[1:], strict=False))
    assert len(starts) <= 1 + -(-(size - tile) // (tile - overlap))


@SIZES
def test_windows_sum_to_one_and_are_smooth(size, tile, overlap):
    starts = tile_starts(size, tile, overlap)
    windows = blending_windows(size, tile, starts)
    total = torch.zeros(size, dtype=torch.float64)
    for start, window in zip(starts, windows, strict=True):
        assert (window > 0).all()
        total[start : start + tile] += window
    assert torch.allclose(total, torch.ones_like(total), atol=1e-12)
    if overlap >= 8:
        inner = windows[0] if len(windows) < 3 else windows[1]
        assert inner.diff().abs().max() < 4 / overlap  # no step: the ramp spreads over the overlap


@pytest.mark.parametrize("height, width", [(64, 64), (40, 64), (64, 8)])
def test_one_tile_is_the_plain_call(height, width):
    image = image_of(height, width)
    assert torch.equal(restore_tiled(blur, image, tile=64, overlap=16), blur(image))


@pytest.mark.parametrize("height, width, tile, overlap", [(96, 160, 64, 16), (40, 200, 64, 32), (131, 77, 48, 0)])
def test_pointwise_networks_do_not_notice_tiles(height, width, tile, overlap):
    image = image_of(height, width)
    restored = restore_tiled(lambda part: 0.5 * part + part**2, image, tile, overlap)
    assert torch.allclose(restored, 0.5 * image + image**2, atol=1e-6)


def test_seams_vanish():
    """Every tile gets a brightness of its own: the worst that tiles can do. Blended, it changes slowly."""
    count = iter(range(100))

    def patchy(part: torch.Tensor) -> torch.Tensor:
        return part + 0.1 * (-1) ** next(count)

    flat = torch.zeros(1, 3, 64, 320)
    blended = restore_tiled(patchy, flat, tile=64, overlap=32)
    assert blended.diff(dim=-1).abs().max() < 0.2 * 2 / 32
    count = iter(range(100))
    abutting = restore_tiled(patchy, flat, tile=64, overlap=0)
    assert abutting.diff(dim=-1).abs().max() == pytest.approx(0.2, abs=1e-6)


def test_overlap_hides_the_borders_of_tiles():
    image = image_of(128, 128)
    whole = blur(image)

    def worst(overlap: int) -> float:
        return float((restore_tiled(blur, image, 64, overlap) - whole).abs().max())

    assert worst(32) < 0.02 < worst(0)


def test_the_network_sees_one_tile_at_a_time():
    shapes = []

    def network(part: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(part.shape))
        return part

    restore_tiled(network, image_of(200, 500), tile=64, overlap=16)
    assert set(shapes) == {(1, 3, 64, 64)} and len(shapes) == 4 * 11


def test_a_side_shorter_than_the_tile_is_taken_whole():
    shapes = set()

    def network(part: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(part.shape[-2:]))
        return part

    image = image_of(24, 200)
    assert torch.allclose(restore_tiled(network, image, tile=64, overlap=16), image, atol=1e-6)
    assert shapes == {(24, 64)}


@pytest.mark.parametrize("tile", [0, -8, 4, 100])
def test_refuses_impossible_tiles(tile):
    with pytest.raises(ValueError, match=f"tile must be a multiple of 8 .* got {tile}"):
        restore_tiled(blur, image_of(16, 16), tile, 0)


@pytest.mark.parametrize("overlap", [-8, 64, 72, 10])
def test_refuses_impossible_overlaps(overlap):
    with pytest.raises(ValueError, match=rf"from 0 to below the tile \(64\), got {overlap}"):
        restore_tiled(blur, image_of(16, 16), 64, overlap)
