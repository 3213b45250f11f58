"""Input checks: a wrong range or order of axes is an error, not a score."""

from __future__ import annotations

import numpy as np
import torch


def check_rgb(name: str, image: np.ndarray) -> None:
    """Must be a non-empty uint8 RGB image (H, W, 3); raises ValueError that names it and says what is wrong."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise ValueError(f"{name}: a uint8 array is needed, got {getattr(image, 'dtype', type(image).__name__)}")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"{name}: an RGB image (H, W, 3) is needed, got shape {image.shape}")


def check_rgb_pair(restored: np.ndarray, sharp: np.ndarray) -> None:
    """Both must be non-empty uint8 RGB images (H, W, 3) of one size; raises ValueError that says what is wrong."""
    check_rgb("restored", restored)
    check_rgb("sharp", sharp)
    if restored.shape != sharp.shape:
        raise ValueError(f"the images differ in size: restored {restored.shape}, sharp {sharp.shape}")


def to_levels(restored: torch.Tensor, sharp: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches (B, 3, H, W) of one shape, floating in [0, 1] or uint8, as float64 levels 0 to 255. Nothing is
    rounded: round first for the score of a saved image.

    Raises:
        ValueError: what is wrong, in words.
    """
    for name, images in (("restored", restored), ("sharp", sharp)):
        if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
            raise ValueError(f"{name}: a batch of RGB images (B, 3, H, W) is needed, got shape {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"{name}: a floating or uint8 tensor is needed, got {images.dtype}")
        if images.is_floating_point() and not bool(((images >= 0) & (images <= 1)).all()):
            raise ValueError(
                f"{name}: values in [0, 1] are needed, got {images.min():.4g} to {images.max():.4g}; "
                "add 0.5 to the network's output and clamp it"
            )
    if restored.shape != sharp.shape:
        raise ValueError(f"the batches differ in shape: restored {tuple(restored.shape)}, sharp {tuple(sharp.shape)}")
    return tuple(images.double() * (255.0 if images.is_floating_point() else 1.0) for images in (restored, sharp))
