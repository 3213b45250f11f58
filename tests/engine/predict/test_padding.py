"""Reflect padding against NumPy's."""

import numpy as np
import pytest
import torch

from engine.predict.padding import reflect_pad


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (2, 3), (5, 16), (8, 8), (21, 30)])
def test_padding_reflects_as_numpy_does(height, width):
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    widths = ((0, 0), (0, 0), (0, -height % 8), (0, -width % 8))
    assert np.array_equal(reflect_pad(images).numpy(), np.pad(images.numpy(), widths, mode="reflect"))
