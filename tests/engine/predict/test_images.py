"""Images to tensors and back, level for level."""

import numpy as np
import torch

from engine.predict.images import images_to_tensor, tensor_to_images


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
