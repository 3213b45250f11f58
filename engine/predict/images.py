"""Images as NumPy arrays, and the tensors that the network takes."""

import numpy as np
import torch


def images_to_tensor(images: list[np.ndarray]) -> torch.Tensor:
    """Images (H, W, 3), uint8 or uint16, of one size and type -> (B, 3, H, W) float32 in [-0.5, 0.5]."""
    batch = np.stack(images)
    peak = np.iinfo(batch.dtype).max
    return torch.from_numpy(batch.astype(np.float32)).permute(0, 3, 1, 2) / peak - 0.5


def tensor_to_images(images: torch.Tensor, dtype: type = np.uint8) -> np.ndarray:
    """(B, 3, H, W) in [-0.5, 0.5], clamped to it -> (B, H, W, 3), uint8 or uint16, rounded to the nearest level."""
    peak = np.iinfo(dtype).max
    levels = ((images.float().clamp(-0.5, 0.5) + 0.5) * peak).round()
    return levels.permute(0, 2, 3, 1).cpu().numpy().astype(dtype)
