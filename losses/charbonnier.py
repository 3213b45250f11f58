"""Charbonnier loss: a smooth L1 (Charbonnier et al., ICIP 1994; the paper's pixel-wise term, Section 4.1)."""

import torch

from .terms import term

EPSILON_SQUARED = 1e-6


@term("charbonnier")
def charbonnier(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean of sqrt((x - y)^2 + 1e-6) over everything: a scalar >= 1e-3 for any two tensors of one shape."""
    return ((x - y).square() + EPSILON_SQUARED).sqrt().mean()
