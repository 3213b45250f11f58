"""Reflect padding of images to a multiple of 8 pixels, the same in validation and prediction."""

import torch

MULTIPLE = 8  # pixels; the released code pads RealBlur so, and every size works with two halvings and unshuffle 2


def reflect_pad(images: torch.Tensor) -> torch.Tensor:
    """Pad (B, C, H, W) at the bottom and right by reflection, to multiples of 8; any size from 1 x 1.

    The values are those of ``numpy.pad(..., mode="reflect")``; PyTorch's refuses to pad a side by its length or more.
    """
    for dim in (-2, -1):
        size = images.shape[dim]
        index = torch.arange(size + -size % MULTIPLE, device=images.device) % max(2 * (size - 1), 1)
        images = images.index_select(dim, torch.minimum(index, 2 * (size - 1) - index) if size > 1 else index)
    return images
