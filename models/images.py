"""Images as NumPy arrays and as the tensors that the network takes, and the reflect padding between the two."""

import numpy as np
import torch

MULTIPLE = 8  # pixels; the released code pads RealBlur so, and every size works with two halvings and unshuffle 2


def images_to_tensor(images: list[np.ndarray]) -> torch.Tensor:
    """Images (H, W, 3), uint8 or uint16, of one size and type -> (B, 3, H, W) float32 in [-0.5, 0.5]."""
    batch = np.stack(images)
    peak = np.iinfo(batch.dtype).max
    return torch.from_numpy(batch.astype(np.float32)).div_(peak).sub_(0.5).permute(0, 3, 1, 2)


def tensor_to_images(images: torch.Tensor, dtype: type = np.uint8) -> np.ndarray:
    """(B, 3, H, W) in [-0.5, 0.5], clamped to it -> (B, H, W, 3), uint8 or uint16, rounded to the nearest level."""
    peak = np.iinfo(dtype).max
    levels = ((images.float().clamp(-0.5, 0.5) + 0.5) * peak).round()
    return levels.permute(0, 2, 3, 1).cpu().numpy().astype(dtype)


def reflect_pad(images: torch.Tensor) -> torch.Tensor:
    """Pad (B, C, H, W) at the bottom and right by reflection, to multiples of 8; any size from 1 x 1.

    The values are those of ``numpy.pad(..., mode="reflect")``. PyTorch's own cannot pad a side by its length or more.
    """
    for dim in (-2, -1):
        size = images.shape[dim]
        if size % MULTIPLE == 0:
            continue  # without a copy
        index = torch.arange(size + -size % MULTIPLE, device=images.device) % max(2 * (size - 1), 1)
        images = images.index_select(dim, torch.minimum(index, 2 * (size - 1) - index) if size > 1 else index)
    return images
