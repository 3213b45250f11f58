"""What is free, what is used, what is needed."""

import pytest
import torch

from engine.memory import (
    PROBE,
    bytes_per_pixel,
    free_memory,
    is_out_of_memory,
    largest_tile,
    peak_memory,
    streaming_cost,
)
from engine.predict.streaming import stream
from models import XYScanNet

CPU = torch.device("cpu")


def test_bytes_per_pixel_of_known_networks():
    def lean(images):  # one map of 100 channels at a time, and the result
        for _ in range(3):
            torch.empty(1, 100, *images.shape[-2:])
        return torch.empty_like(images)

    def greedy(images):  # three at once
        return [torch.empty(1, 100, *images.shape[-2:]) for _ in range(3)]

    assert bytes_per_pixel(lean, CPU) == pytest.approx(400, rel=0.02)
    assert bytes_per_pixel(greedy, CPU) == pytest.approx(1200, rel=0.02)


def test_streaming_cost_of_a_known_function():
    def stream(images, band):  # a map of 10 channels, and 100 channels of a band and the two rows around it
        kept = torch.empty(1, 10, *images.shape[-2:])
        for _ in range(2):
            torch.empty(1, 100, band + 2, images.shape[-1])
        return kept[:, :3]

    cost = streaming_cost(stream, CPU)
    assert cost.per_band_pixel == pytest.approx(400, rel=0.02)
    assert cost.per_pixel == pytest.approx(40 + 400 * 2 / 128, rel=0.02)
    assert cost.of(2, 100, 1000, band=10) == pytest.approx(2 * (cost.per_pixel * 1e5 + cost.per_band_pixel * 1e4))
    assert cost.of(1, 1000, 100, band=10) == cost.of(1, 100, 1000, band=10)


def test_streaming_takes_what_is_foreseen():
    """A larger image in wider bands than were probed; whole, it takes far more."""
    network = XYScanNet(dim=16, num_blocks=(1, 1, 1)).eval()
    cost, side, band = streaming_cost(lambda images, band: stream(network, images, band), CPU), 384, 32

    def larger(_):
        return stream(network, torch.zeros(1, 3, side, side), band)

    measured = bytes_per_pixel(larger, CPU) * PROBE**2
    assert 0.9 * measured < cost.of(1, side, side, band) < 1.4 * measured
    assert measured < 0.6 * bytes_per_pixel(network, CPU) * side**2


def test_largest_tile_keeps_a_margin():
    tile = largest_tile(per_pixel=1000, free=10**9)
    assert tile % 8 == 0 and 0.7 * 10**9 < tile**2 * 1000 <= 0.8 * 10**9
    assert largest_tile(per_pixel=1000, free=1000) == 0


def test_what_counts_as_out_of_memory():
    try:
        torch.empty(2**60, dtype=torch.uint8)
    except RuntimeError as error:
        assert is_out_of_memory(error)  # what PyTorch's own allocator says
    else:
        pytest.fail("2^60 bytes were allocated")
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_memory_of_this_process():
    before = peak_memory(CPU)
    block = torch.ones(32 * 2**20)
    assert peak_memory(CPU) >= before and peak_memory(CPU) > block.nbytes
    assert 0 < free_memory(CPU) < 2**50
