"""Images to tensors and back, level for level; reflect padding against NumPy's."""

import numpy as np
import pytest
import torch

from models.images import images_to_tensor, reflect_pad, tensor_to_images


def test_levels_there_and_back():
    every = np.arange(65536, dtype=np.uint16).reshape(64, 1024, 1).repeat(3, axis=2)
    for image in (every, (every // 256).astype(np.uint8)):
        tensor = images_to_tensor([image, image])
        assert tensor.shape == (2, 3, 64, 1024) and tensor.min() == -0.5 and tensor.max() == 0.5
        assert np.array_equal(tensor_to_images(tensor, image.dtype.type)[1], image)


def test_levels_are_clamped_and_rounded_to_the_nearest():
    values = torch.tensor([-9.0, -0.5, 0.4 / 255 - 0.5, 0.6 / 255 - 0.5, 254.6 / 255 - 0.5, 0.5, 9.0])
    levels = tensor_to_images(values.view(1, 1, 1, -1).expand(1, 3, 1, -1))
    assert levels[0, 0, :, 0].tolist() == [0, 0, 0, 1, 255, 255, 255]


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (2, 3), (5, 16), (8, 8), (21, 30)])
def test_padding_reflects_as_numpy_does(height, width):
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    widths = ((0, 0), (0, 0), (0, -height % 8), (0, -width % 8))
    assert np.array_equal(reflect_pad(images).numpy(), np.pad(images.numpy(), widths, mode="reflect"))
