"""The network's fast operations: each has a readable reference (``…_ref``) and backends with the same signature."""

import torch


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def channels_last(features: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, H, W, C), dense; copied only where it is not."""
    return features.movedim(1, -1).contiguous()


def channels_adjacent(tensor: torch.Tensor) -> torch.Tensor:
    """(*batch, channels, steps) with channel stride 1, copied only where it has another."""
    if tensor.shape[-2] == 1 or tensor.stride(-2) == 1:
        return tensor
    return tensor.mT.contiguous().mT


def empty_adjacent(tensor: torch.Tensor) -> torch.Tensor:
    """Uninitialised (*batch, channels, steps) with channel stride 1, otherwise in the tensor's order of strides.

    For a tensor that is expanded along its steps, ``empty_like`` makes these adjacent.
    """
    empty = torch.empty_like(tensor)
    if empty.shape[-2] == 1 or empty.stride(-2) == 1:
        return empty
    return torch.empty_like(tensor.mT, memory_format=torch.contiguous_format).mT


def to_pixels(features: torch.Tensor) -> torch.Tensor:
    """(B, C, …) -> (pixels, C) with adjacent channels, copied only where they are not; a vector -> (1, C)."""
    pixels = features.movedim(1, -1).reshape(-1, features.shape[1]) if features.dim() > 1 else features.reshape(1, -1)
    return pixels if pixels.stride(1) == 1 else pixels.contiguous()


def from_pixels(pixels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The inverse: a view of dense ``pixels`` in the shape of ``features``, channels last in memory."""
    if features.dim() < 2:
        return pixels.view(features.shape)
    return pixels.view(features.movedim(1, -1).shape).movedim(-1, 1)
