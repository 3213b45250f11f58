"""Weights and images from names and seeds: the same numbers in any implementation with the same parameter names."""

import zlib

import numpy as np
import torch


def fill(state: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """A state dict of the same names and shapes, each tensor drawn from its name and ``seed``, float32."""
    return {name: torch.from_numpy(_draw(name, tuple(tensor.shape), seed)) for name, tensor in state.items()}


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF).standard_normal(shape)
    if name.endswith("A_log"):
        noise = np.log(np.arange(1, shape[1] + 1))[None] + 0.1 * noise
    elif name.endswith("dt_proj.bias"):
        noise = -3.0 + 0.5 * noise
    elif len(shape) == 1 and name.endswith(("weight", "D")):
        noise = 1 + 0.1 * noise
    elif len(shape) == 1:
        noise = 0.1 * noise
    else:
        noise = noise / np.sqrt(int(np.prod(shape[1:])))
    return noise.astype(np.float32)


def image(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A uniform random image (B, C, H, W) in [-0.5, 0.5], float32."""
    return torch.from_numpy((np.random.RandomState(seed).random_sample(shape) - 0.5).astype(np.float32))
